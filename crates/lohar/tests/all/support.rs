//! A guest in this process: the real reaper, the caller's own identity, streams in memory.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bhatti_link::{read_message, write_message};
use bhatti_wire::message::{
    Exec, ExecInput, ExecInputEvent, ExecOutput, ExecOutputEvent, ExitStatus, Failure, Nothing,
    Operation, Reply, Request, Started,
};
use lohar::guest::{Account, Guest};
use lohar::process::Reaper;
use lohar::serve::answer;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, split};

/// Far beyond what anything here takes, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The one reaper of this process, collecting in a thread of its own.
pub(crate) fn reaper() -> Arc<Reaper> {
    static REAPER: LazyLock<Arc<Reaper>> = LazyLock::new(|| {
        let reaper = Arc::new(Reaper::default());
        let running = Arc::clone(&reaper);
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                ready.send(()).unwrap();
                running.run().await
            })
        });
        is_ready.recv().unwrap();
        reaper
    });
    Arc::clone(&REAPER)
}

pub(crate) fn guest() -> Arc<Guest> {
    let owner = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let account = Account {
        name: "tester".into(),
        home: "/nonexistent".into(),
        shell: "/bin/sh".into(),
        login_gid: owner.1,
    };
    Arc::new(Guest::new(reaper(), account, owner))
}

/// The host's end of one stream.
pub(crate) struct Host {
    pub(crate) from: ReadHalf<DuplexStream>,
    pub(crate) to: WriteHalf<DuplexStream>,
}

/// Opens a stream with `operation`.
pub(crate) async fn open(guest: &Arc<Guest>, operation: Option<Operation>) -> Host {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let guest = Arc::clone(guest);
    tokio::spawn(async move { answer(&guest, theirs).await });
    let (from, mut to) = split(ours);
    write_message(&mut to, &Request { operation }).await.unwrap();
    Host { from, to }
}

pub(crate) fn sh(script: &str) -> Exec {
    Exec { argv: ["/bin/sh", "-c", script].map(String::from).into(), ..Exec::default() }
}

/// How a command went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) started: Option<Started>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) failed: Option<Failure>,
}

impl Outcome {
    pub(crate) fn code(&self) -> i32 {
        self.exit.as_ref().unwrap_or_else(|| panic!("no exit: {self:?}")).code
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }
}

impl Host {
    pub(crate) async fn send(&mut self, event: ExecInputEvent) {
        write_message(&mut self.to, &ExecInput { event: Some(event) }).await.unwrap();
    }

    /// Says nothing, and `false`, if the guest takes nothing for a moment.
    pub(crate) async fn try_send(&mut self, event: ExecInputEvent) -> bool {
        let message = ExecInput { event: Some(event) };
        let sending = write_message(&mut self.to, &message);
        matches!(tokio::time::timeout(Duration::from_millis(500), sending).await, Ok(Ok(())))
    }

    /// The one answer of an operation that has one.
    pub(crate) async fn reply(mut self) -> Reply {
        read_message(&mut self.from).await.unwrap().expect("an answer")
    }

    pub(crate) async fn kill(&mut self) {
        self.send(ExecInputEvent::Kill(Nothing {})).await;
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<ExecOutputEvent> {
        let message = tokio::time::timeout(PATIENCE, read_message::<ExecOutput>(&mut self.from));
        message
            .await
            .expect("an event in time")
            .expect("a whole message")
            .map(|message| message.event.unwrap())
    }

    /// Reads to the end and checks the order of the events.
    pub(crate) async fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(event) = self.next().await {
            assert!(
                outcome.exit.is_none() && outcome.failed.is_none(),
                "{event:?} after the last event"
            );
            match event {
                ExecOutputEvent::Started(started) => outcome.started = Some(started),
                ExecOutputEvent::Stdout(bytes) => outcome.stdout.extend(&bytes),
                ExecOutputEvent::Stderr(bytes) => outcome.stderr.extend(&bytes),
                ExecOutputEvent::Exit(exit) => outcome.exit = Some(exit),
                ExecOutputEvent::Failed(failure) => outcome.failed = Some(failure),
            }
        }
        outcome
    }
}

pub(crate) async fn run(exec: Exec) -> Outcome {
    open(&guest(), Some(Operation::Exec(exec))).await.finish().await
}

/// Waits for a state, not for a moment.
pub(crate) async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    let mut look_again = tokio::time::interval(Duration::from_millis(5));
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come true");
        look_again.tick().await;
    }
}

/// Whether anybody is left in the group that a command's pid names.
pub(crate) fn group_lives(pid: u32) -> bool {
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid as i32), None).is_ok()
}
