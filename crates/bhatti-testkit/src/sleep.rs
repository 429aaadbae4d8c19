//! Where a sandbox is in its sleep, seen from outside: nothing here wakes it.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{TestDaemon, wait_for};

/// The last move from one state to another, as `inspect --json` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// `hot`, `warm`, `cold` or `stopped`.
    pub to: String,
    /// Why, in words.
    pub reason: String,
}

impl TestDaemon {
    /// What `bhatti --json …` of the admin's prints; it has to work.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.cli(&[&["--json"], args].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// What a shell script in the guest of `sandbox` prints; it has to work.
    #[track_caller]
    pub fn sh(&self, sandbox: &str, script: &str) -> String {
        self.cli(&["exec", sandbox, "--", "sh", "-c", script]).ok()
    }

    /// `hot`, `warm`, `stopped` or `unknown`, from the listing; `None` if it is not listed.
    #[track_caller]
    pub fn state(&self, sandbox: &str) -> Option<String> {
        let list = self.json(&["list"]);
        let listed = list.as_array().expect("a list");
        let found = listed.iter().find(|listed| listed["name"] == sandbox)?;
        let word = |key: &str| found[key].as_str().filter(|word| !word.is_empty());
        word("thermal").or_else(|| word("status")).map(str::to_owned)
    }

    /// Waits until the listing shows `sandbox` as `state`.
    #[track_caller]
    pub fn wait_for_state(&self, sandbox: &str, state: &str) {
        wait_for(&format!("{sandbox} becomes {state}"), || {
            (self.state(sandbox).as_deref() == Some(state)).then_some(())
        });
    }

    /// The last move of `sandbox`, and why.
    #[track_caller]
    pub fn transition(&self, sandbox: &str) -> Transition {
        let record = self.json(&["inspect", sandbox]);
        let last = &record["last_transition"];
        let word = |key: &str| {
            last[key].as_str().unwrap_or_else(|| panic!("no {key} in {record}")).to_owned()
        };
        Transition { to: word("to"), reason: word("reason") }
    }

    /// The process of the machine of `sandbox`, if it has one.
    #[track_caller]
    pub fn vmm_pid(&self, sandbox: &str) -> Option<i32> {
        let record = self.json(&["inspect", sandbox]);
        let id = record["engine_id"].as_str().filter(|id| !id.is_empty());
        self.processes_in(id.unwrap_or_else(|| panic!("no engine_id in {record}"))).first().copied()
    }

    /// Ends the machine of `sandbox` as a crash would. Whether there was one.
    #[track_caller]
    pub fn kill_vmm(&self, sandbox: &str) -> bool {
        let Some(pid) = self.vmm_pid(sandbox) else { return false };
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) => true,
            // It went to sleep in between.
            Err(Errno::ESRCH) => false,
            Err(error) => panic!("a VMM cannot be killed: {error}"),
        }
    }
}
