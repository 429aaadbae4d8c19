//! A terminal that a test can look at: tmux, with a server of the test's own.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, deadline, wait_for};
use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Between two looks.
const STEP: Duration = Duration::from_millis(50);

/// One terminal in which `bhatti` runs. Dropping it closes it, as closing a window does.
pub(crate) struct Screen {
    socket: Utf8PathBuf,
}

impl Screen {
    /// Runs a shell script in a new terminal of 24 rows and 80 columns, in which `bhatti` is the
    /// command under test, run as the admin.
    pub(crate) fn run(daemon: &TestDaemon, script: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = daemon.scratch_path().join(format!("tmux-{number}"));
        let config = daemon.scratch_path().join("tmux.conf");
        let settings = "set -g remain-on-exit on\nset -g remain-on-exit-format ''\n\
                        set -g default-terminal tmux-256color\nset -g history-limit 20000\n";
        std::fs::write(&config, settings).expect("a file");
        // What the command needs is in its environment already.
        let command = daemon.prepare(Some(daemon.admin()), &[]);
        let bhatti = command.get_program().to_string_lossy().into_owned();
        let vars: Vec<_> = command
            .get_envs()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        let script = format!("bhatti() {{ '{bhatti}' \"$@\"; }}; {script}");
        let mut tmux = Command::new("tmux");
        tmux.args(["-S", socket.as_str(), "-f", config.as_str(), "new-session", "-d"]);
        tmux.args(["-x", "80", "-y", "24", "--", "/bin/sh", "-c", &script]);
        tmux.envs(vars).env("LC_ALL", "C.UTF-8").env_remove("TMUX");
        tmux.env("EXIT_FILE", exit_file(&socket));
        let started = tmux.output().expect("tmux runs; scripts/bootstrap installs it");
        assert!(started.status.success(), "{started:?}");
        Self { socket }
    }

    /// `bhatti shell <args>` in a new terminal.
    pub(crate) fn shell(daemon: &TestDaemon, args: &str) -> Self {
        Self::run(daemon, &format!("bhatti shell {args}; echo $? > \"$EXIT_FILE\""))
    }

    fn tmux(&self, args: &[&str]) -> Output {
        let mut tmux = Command::new("tmux");
        tmux.args(["-u", "-S", self.socket.as_str()]).args(args).env("LC_ALL", "C.UTF-8");
        let output = tmux.output().expect("tmux runs");
        assert!(output.status.success(), "tmux {args:?}: {output:?}");
        output
    }

    fn ask(&self, args: &[&str]) -> String {
        String::from_utf8_lossy(&self.tmux(args).stdout).into_owned()
    }

    /// Presses keys, by their names: `Enter`, `C-c`, `C-\`.
    pub(crate) fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a line and presses Enter.
    pub(crate) fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
        self.press(&["Enter"]);
    }

    /// Makes the terminal as large.
    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        let (rows, cols) = (rows.to_string(), cols.to_string());
        self.tmux(&["resize-window", "-x", &cols, "-y", &rows]);
    }

    /// What is on the screen, and what has scrolled out of it.
    pub(crate) fn text(&self) -> String {
        self.ask(&["capture-pane", "-p", "-J", "-S", "-"])
    }

    /// What is on the screen.
    pub(crate) fn visible(&self) -> String {
        self.ask(&["capture-pane", "-p"])
    }

    /// Waits until a line on the screen, or above it, ends with `text`.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let ends =
            |screen: &Self| screen.text().lines().any(|line| line.trim_end().ends_with(text));
        self.wait_until(&format!("a line ends with {text:?}"), ends);
    }

    /// Waits for a shell's prompt. What is typed before it may be thrown away by an interrupted
    /// shell, or not be shown by one that just began.
    #[track_caller]
    pub(crate) fn wait_for_prompt(&self) {
        self.wait_until("a prompt", |screen| screen.visible().trim_end().ends_with('$'));
    }

    /// Waits until the screen is as wanted; shows it if it is not by the deadline.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !is(self) {
            assert!(started.elapsed() < deadline(), "not seen: {what}\n{}", self.text());
            std::thread::sleep(STEP);
        }
    }

    /// Tells what runs in the terminal's foreground to end.
    pub(crate) fn terminate(&self) {
        let shell = self.ask(&["display-message", "-p", "#{pane_pid}"]);
        let children = format!("/proc/{0}/task/{0}/children", shell.trim());
        let children = std::fs::read_to_string(children).expect("it runs");
        let child = children.split_whitespace().next().expect("a command").parse();
        kill(Pid::from_raw(child.expect("a pid")), Signal::SIGTERM).expect("ours to end");
    }

    /// The exit code of `bhatti shell`, once it has ended. From a file: tmux 3.3 may forget how a
    /// command ended whose terminal was closed first.
    #[track_caller]
    pub(crate) fn exit_code(&self) -> i32 {
        wait_for(&format!("the command ends:\n{}", self.text()), || {
            std::fs::read_to_string(exit_file(&self.socket)).ok()?.trim().parse().ok()
        })
    }
}

/// Where the exit code of the command in a terminal is written.
fn exit_file(socket: &Utf8Path) -> Utf8PathBuf {
    socket.with_extension("exit")
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It has gone by itself if the test closed it.
        let mut tmux = Command::new("tmux");
        drop(tmux.args(["-S", self.socket.as_str(), "kill-server"]).output());
    }
}
