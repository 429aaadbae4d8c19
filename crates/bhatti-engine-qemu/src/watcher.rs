//! The one who watches a machine: alone speaks QMP, and alone declares it ended.
//!
//! A command runs to its end here, whoever asked and whether he still waits; so a machine is never
//! half paused. Two of them can take long, because they flush the disk; a kill does not wait for
//! them ([`crate::vm`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bhatti_engine::{EngineError, Exit};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::cmdline::CONSOLE_BYTES;
use crate::control::Control;
use crate::disk::TopName;
use crate::merging::{Progress, Step};
use crate::qmp::{Disk, Event, Qmp, Standing};
use bhatti_vmm::cgroup::Group;
use bhatti_vmm::machine_dir::{CONSOLE_LOG, MachineDir};
use bhatti_vmm::process::{Process, Status};
use bhatti_vmm::vmm_log::VmmLog;

/// How long a kill waits for the console before it does without.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// How long the VMM may take to close its disk after the guest has ended.
const QUIT_DEADLINE: Duration = Duration::from_secs(5);
/// Between two tries of a write that found the host's disk full.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(2);

/// Where an answer goes; who asked may have gone.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// What the watcher can be asked for.
pub(crate) enum Command {
    Kill,
    /// Fetch what the guest has printed; answered when it is in the shared buffer.
    Console(oneshot::Sender<()>),
    Pause(Reply<()>),
    Resume(Reply<()>),
    /// Write the devices of the paused machine into this file of its directory.
    SaveDevices(&'static str, Reply<Devices>),
    /// What the disk is, of a paused machine.
    Disk(Reply<Disk>),
    PutOnTop {
        new: TopName,
        old: TopName,
        reply: Reply<()>,
    },
    /// One step of a merge of the paused machine's layers.
    Merge(Step, Reply<Progress>),
}

/// What a VMM says of the machine it has saved.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    pub vcpus: u32,
    pub disk: Disk,
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Why the process will end, if it does now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Unexpected,
    /// The guest powered off, rebooted or panicked.
    Guest,
    /// We were asked to.
    Killed,
}

pub(crate) struct Watcher {
    process: Arc<Process>,
    control: Control,
    group: Group,
    log: Option<VmmLog>,
    dir: Arc<MachineDir>,
    console: Arc<Mutex<Vec<u8>>>,
    inbox: mpsc::Receiver<Command>,
    /// Set before the process is killed past us.
    killed: Arc<AtomicBool>,
    ending: Ending,
    /// When a machine that stands because the host's disk is full is to try again.
    go_on_at: Option<Instant>,
    /// Somebody wants it to stand, so a full disk or its end is no reason to let it go on.
    paused: bool,
}

/// What a watcher is made of.
pub(crate) struct Watched {
    pub process: Arc<Process>,
    pub control: Control,
    pub group: Group,
    pub log: Option<VmmLog>,
    pub dir: Arc<MachineDir>,
    pub console: Arc<Mutex<Vec<u8>>>,
    pub inbox: mpsc::Receiver<Command>,
    pub killed: Arc<AtomicBool>,
}

enum Happened {
    Ended(std::io::Result<Status>),
    Event(Event),
    Asked(Option<Command>),
    TimeToGoOn,
}

impl Watcher {
    pub(crate) fn new(watched: Watched) -> Self {
        let Watched { process, control, group, log, dir, console, inbox, killed } = watched;
        let (ending, go_on_at, paused) = (Ending::Unexpected, None, false);
        Self { process, control, group, log, dir, console, inbox, killed, ending, go_on_at, paused }
    }

    /// Watches until the machine has ended and its traces are gone.
    pub(crate) async fn run(mut self, exit: watch::Sender<Option<Exit>>) {
        self.catch_up().await;
        let status = loop {
            let happened = tokio::select! {
                biased;
                status = self.process.ended() => Happened::Ended(status),
                event = self.control.event() => Happened::Event(event),
                command = self.inbox.recv() => Happened::Asked(command),
                () = at(self.go_on_at) => Happened::TimeToGoOn,
            };
            match happened {
                Happened::Ended(Ok(status)) => break status,
                Happened::Ended(Err(error)) => {
                    tracing::error!(%error, dir = %self.dir.path(), "cannot collect a VMM");
                    break Status::Unknown;
                }
                Happened::Event(event) => {
                    self.react(event).await;
                    // Whoever never stops telling shall not keep us from being asked.
                    if !self.process.has_ended()
                        && let Ok(command) = self.inbox.try_recv()
                    {
                        self.obey(command).await;
                    }
                }
                Happened::TimeToGoOn => self.go_on().await,
                Happened::Asked(Some(command)) => self.obey(command).await,
                // The handle is gone; it aborts this task, unless it comes to this first.
                Happened::Asked(None) => return,
            }
        };
        if self.ending == Ending::Unexpected && self.killed.load(Ordering::Acquire) {
            self.ending = Ending::Killed;
        }
        let detail = self.finish(status).await;
        exit.send_replace(Some(match self.ending {
            Ending::Guest => Exit::Guest,
            Ending::Killed => Exit::Killed,
            Ending::Unexpected => Exit::Died { detail },
        }));
    }

    /// The guest may have ended while nobody watched: then there is no event to come.
    async fn catch_up(&mut self) {
        let Some(qmp) = self.control.qmp() else { return };
        match qmp.standing().await.map(Standing::event) {
            Ok(Some(event)) => self.react(event).await,
            Ok(None) => {}
            Err(error) => self.control.lose(&error),
        }
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may have gone; what was asked is done all the same.
        match command {
            Command::Kill => self.kill().await,
            Command::Console(reply) => {
                self.take_console().await;
                reply.send(()).ok();
            }
            Command::Pause(reply) => drop(reply.send(self.pause().await)),
            Command::Resume(reply) => drop(reply.send(self.resume().await)),
            Command::SaveDevices(file, reply) => drop(reply.send(self.save_devices(file).await)),
            Command::Disk(reply) => {
                // Also of one that runs: whoever adopts it has to know.
                let disk = self.ask("query-block", async |qmp| qmp.disk().await);
                drop(reply.send(disk.await));
            }
            Command::PutOnTop { new, old, reply } => {
                let switched = self.ask("blockdev-snapshot", async |qmp| {
                    must_stand(qmp, "blockdev-snapshot").await?;
                    qmp.put_on_top(&new, &old).await
                });
                drop(reply.send(switched.await));
            }
            Command::Merge(step, reply) => {
                let taken = self.ask("block-stream", async |qmp| {
                    must_stand(qmp, "block-stream").await?;
                    step.take(qmp).await
                });
                drop(reply.send(taken.await));
            }
        }
    }

    /// Has the VMM do something. A connection that breaks at it is given up, and found again.
    async fn ask<T>(
        &mut self,
        what: &str,
        work: impl AsyncFnOnce(&mut Qmp) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let result = match self.control.qmp() {
            None => Err(refused(what, "there is no connection to the VMM now")),
            Some(qmp) => {
                let result = work(qmp).await;
                let broken = qmp.is_broken();
                if let (Err(error), true) = (&result, broken) {
                    self.control.lose(error);
                }
                result
            }
        };
        match result {
            // The connection to somebody who is dying breaks a moment before he is dead.
            Err(EngineError::Control { .. }) if self.process.is_ending() => Err(EngineError::Gone),
            other => other,
        }
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        const STOP: &str = "stop";
        let standing = self.ask(STOP, async |qmp| {
            qmp.stop().await?;
            qmp.standing().await
        });
        match standing.await? {
            Standing::Paused => {
                self.paused = true;
                self.go_on_at = None;
                Ok(())
            }
            // It waits in the middle of a write, and tries again by itself.
            Standing::DiskFull => Err(refused(STOP, "the host's disk is full")),
            Standing::GuestEnded => Err(EngineError::Gone),
            Standing::Running => Err(refused(STOP, "the machine runs on")),
        }
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.ask("cont", async |qmp| qmp.go_on().await).await?;
        // If the disk is full still, an event says so.
        self.paused = false;
        self.go_on_at = None;
        Ok(())
    }

    async fn save_devices(&mut self, file: &'static str) -> Result<Devices, EngineError> {
        self.ask("xen-save-devices-state", async |qmp| {
            must_stand(qmp, "xen-save-devices-state").await?;
            let (vcpus, disk) = (qmp.vcpus().await?, qmp.disk().await?);
            qmp.save_devices(file).await?;
            Ok(Devices { vcpus, disk })
        })
        .await
    }

    async fn react(&mut self, event: Event) {
        match event {
            Event::GuestEnded => self.dismiss().await,
            Event::Paused => {
                self.paused = true;
                self.go_on_at = None;
            }
            // The write is tried when the machine is let go on.
            Event::DiskFull if self.paused => {}
            Event::DiskFull => {
                if self.go_on_at.is_none() {
                    tracing::error!(
                        dir = %self.dir.path(),
                        "the host's disk is full: a machine stands still until there is room"
                    );
                }
                self.go_on_at = Some(Instant::now() + DISK_FULL_PAUSE);
            }
            Event::Other => {}
        }
    }

    /// Tries the write again that found no room. If there is none still, the next event says so.
    async fn go_on(&mut self) {
        self.go_on_at = None;
        let Some(qmp) = self.control.qmp() else { return };
        if let Err(error) = qmp.go_on().await {
            self.control.lose(&error);
        }
    }

    /// The guest has ended and QEMU holds still: take what is left of it, then let it go.
    async fn dismiss(&mut self) {
        if self.ending == Ending::Unexpected {
            self.ending = Ending::Guest;
        }
        self.take_console().await;
        if let Some(qmp) = self.control.qmp() {
            // Not a kill: QEMU closes the disk in order first. It may hang up before it answers.
            drop(timeout(QUIT_DEADLINE, qmp.quit()).await);
        }
        self.control.close();
        if timeout(QUIT_DEADLINE, self.process.wait_readable()).await.is_err() {
            tracing::warn!(dir = %self.dir.path(), "the VMM did not quit, ending it");
            self.process.kill();
        }
    }

    async fn kill(&mut self) {
        if self.ending == Ending::Unexpected {
            self.ending = Ending::Killed;
        }
        drop(timeout(LAST_WORDS, self.take_console()).await);
        self.process.kill();
    }

    /// Moves what the guest has printed from QEMU into the buffer and the file beside it.
    async fn take_console(&mut self) {
        let Some(qmp) = self.control.qmp() else { return };
        match qmp.take_console().await {
            Ok(new) if new.is_empty() => {}
            Ok(new) => {
                let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
                console.extend_from_slice(&new);
                let surplus = console.len().saturating_sub(CONSOLE_BYTES);
                console.drain(..surplus);
                if let Err(error) = self.dir.write(CONSOLE_LOG, &console) {
                    tracing::warn!(%error, dir = %self.dir.path(), "cannot save a console");
                }
            }
            Err(error) => self.control.lose(&error),
        }
    }

    /// Removes the traces of the ended process; returns a sentence about its end.
    async fn finish(&mut self, status: Status) -> String {
        let mut detail = status.describe();
        if self.group.ran_out_of_memory() {
            detail.push_str("; the kernel says it ran out of its memory limit");
        }
        if let (Ending::Unexpected, Some(log)) = (self.ending, &self.log) {
            detail.push_str("; its log ends: ");
            detail.push_str(&log.tail());
        }
        let (group, dir) = (self.group.clone(), Arc::clone(&self.dir));
        let clear = move || {
            let cleared = group.clear();
            dir.remove_traces();
            cleared
        };
        match tokio::task::spawn_blocking(clear).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, dir = %self.dir.path(), "cannot remove a control group");
            }
            // Only when the runtime is going down; the next start sweeps.
            Err(error) => tracing::debug!(%error, "control group left for the next start"),
        }
        detail
    }
}

/// Only a machine that stands has a state that can be kept.
async fn must_stand(qmp: &mut Qmp, what: &str) -> Result<(), EngineError> {
    match qmp.standing().await? {
        Standing::Paused => Ok(()),
        Standing::GuestEnded => Err(EngineError::Gone),
        Standing::Running | Standing::DiskFull => Err(refused(what, "the machine is not paused")),
    }
}

fn refused(command: &str, message: &str) -> EngineError {
    EngineError::Control { command: command.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use camino::Utf8Path;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;

    use super::*;

    /// A process to stand for a VMM's.
    fn sleeper() -> (std::process::Child, Process) {
        let mut child = std::process::Command::new("sleep");
        // If a test fails, whoever reads what tests print must not wait for it.
        child.arg("1000").stdout(Stdio::null()).stderr(Stdio::null());
        let child = child.spawn().unwrap();
        let process = Process::child(i32::try_from(child.id()).unwrap()).unwrap();
        (child, process)
    }

    fn watcher(
        process: Process,
        dir: Arc<MachineDir>,
        qmp: Qmp,
        inbox: mpsc::Receiver<Command>,
    ) -> Watcher {
        Watcher::new(Watched {
            process: Arc::new(process),
            control: Control::new(Arc::clone(&dir), dir.owner().unwrap(), Some(qmp)),
            group: Group::nowhere(),
            log: None,
            dir,
            console: Arc::default(),
            inbox,
            killed: Arc::default(),
        })
    }

    /// A VMM that obeys and notes what it was told; a full disk meets every attempt to write, of
    /// which there is one when it stops and one when it goes on.
    async fn play_qemu(peer: UnixStream, told: watch::Sender<Vec<String>>) {
        const FULL: &[u8] = b"{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"action\": \"stop\"}}\n";
        let mut peer = BufReader::new(peer);
        let mut standing = "running";
        peer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let mut line = String::new();
        while peer.read_line(&mut line).await.is_ok_and(|count| count > 0) {
            let command: serde_json::Value = serde_json::from_str(&line).unwrap();
            let command = command["execute"].as_str().unwrap().to_owned();
            line.clear();
            let answer = match command.as_str() {
                "stop" => {
                    standing = if standing == "running" { "paused" } else { standing };
                    peer.write_all(FULL).await.unwrap();
                    "{}".to_owned()
                }
                "cont" => {
                    standing = "io-error";
                    "{}".to_owned()
                }
                "query-status" => format!("{{\"status\": \"{standing}\"}}"),
                "ringbuf-read" => "\"\"".to_owned(),
                _ => "{}".to_owned(),
            };
            peer.write_all(format!("{{\"return\": {answer}}}\n").as_bytes()).await.unwrap();
            if command == "cont" {
                peer.write_all(FULL).await.unwrap();
            }
            told.send_modify(|told| told.push(command));
        }
    }

    /// A VMM that obeys and tells of things that are of no interest, without end. In threads of its
    /// own: a task would let the other one come to an end of what it has to read.
    fn play_chatterbox(peer: std::os::unix::net::UnixStream) {
        use std::io::{BufRead, BufReader, Write};
        let mut writer = peer.try_clone().unwrap();
        writer.write_all(b"{\"QMP\": {}}\n").unwrap();
        let (answer, answers) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for command in BufReader::new(peer).lines().map_while(Result::ok) {
                let text: &[u8] = match command.contains("query-status") {
                    true => b"{\"return\": {\"status\": \"paused\"}}\n",
                    false => b"{\"return\": {}}\n",
                };
                answer.send(text).ok();
            }
        });
        std::thread::spawn(move || {
            let news = b"{\"event\": \"NEWS\"}\n".repeat(4000);
            // Until nobody listens.
            while writer.write_all(answers.try_recv().unwrap_or(&news)).is_ok() {}
        });
    }

    #[tokio::test]
    async fn who_never_stops_telling_is_asked_all_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Arc::new(MachineDir::open(Utf8Path::from_path(scratch.path()).unwrap()).unwrap());
        let (mut child, process) = sleeper();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        play_chatterbox(theirs);
        let deadline = Instant::now() + Duration::from_secs(10);
        let qmp = Qmp::greet(ours, deadline).await.unwrap();
        let (commands, inbox) = mpsc::channel(8);
        let watcher = watcher(process, dir, qmp, inbox);
        let (exit, mut ended) = watch::channel(None);
        let watcher = tokio::spawn(watcher.run(exit));
        for _ in 0..5 {
            let (reply, answer) = oneshot::channel();
            commands.send(Command::Pause(reply)).await.ok().unwrap();
            let answer = timeout(Duration::from_secs(20), answer).await;
            answer.expect("it is asked").unwrap().unwrap();
        }
        commands.send(Command::Kill).await.ok().unwrap();
        ended.wait_for(Option::is_some).await.unwrap();
        watcher.await.unwrap();
        child.wait().ok();
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_lets_go_on_what_was_not_paused() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Arc::new(MachineDir::open(Utf8Path::from_path(scratch.path()).unwrap()).unwrap());
        let (mut child, process) = sleeper();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (told, mut heard) = watch::channel(Vec::new());
        let vmm = tokio::spawn(play_qemu(theirs, told));
        let deadline = Instant::now() + Duration::from_secs(10);
        let qmp = Qmp::greet(ours, deadline).await.unwrap();
        let (commands, inbox) = mpsc::channel(8);
        let watcher = watcher(process, dir, qmp, inbox);
        let (exit, mut ended) = watch::channel(None);
        let watcher = tokio::spawn(watcher.run(exit));
        let conts = |told: &Vec<String>| told.iter().filter(|told| *told == "cont").count();
        let ask = async |command: fn(Reply<()>) -> Command| {
            let (reply, answer) = oneshot::channel();
            commands.send(command(reply)).await.ok().unwrap();
            answer.await.unwrap()
        };

        ask(Command::Pause).await.unwrap();
        // Longer than it waits between two tries.
        let never = heard.wait_for(|told| conts(told) > 0);
        assert!(timeout(DISK_FULL_PAUSE * 5, never).await.is_err(), "somebody wants it to stand");

        ask(Command::Resume).await.unwrap();
        let again = heard.wait_for(|told| conts(told) >= 3);
        timeout(DISK_FULL_PAUSE * 5, again).await.expect("it tries again and again").unwrap();
        let refused = ask(Command::Pause).await.unwrap_err().to_string();
        assert!(refused.contains("disk is full"), "{refused}");
        let again = heard.wait_for(|told| conts(told) >= 5);
        timeout(DISK_FULL_PAUSE * 5, again).await.expect("it still does").unwrap();

        commands.send(Command::Kill).await.ok().unwrap();
        ended.wait_for(Option::is_some).await.unwrap();
        assert_eq!(*ended.borrow(), Some(Exit::Killed));
        watcher.await.unwrap();
        vmm.abort();
        child.wait().ok();
    }
}
