//! The control connection over a machine's life: lost, and found again.
//!
//! One late answer on a busy host, or a daemon that has just started, is no reason to be deaf for
//! ever: under `-no-shutdown` a guest's end shows nowhere but here. So a lost connection is tried
//! again for as long as the machine runs, ever more seldom; the other end may be hostile, and
//! must be able to cost us no more than that.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{EngineError, Private};
use tokio::time::{Instant, sleep};

use crate::qmp::{Event, Qmp};
use bhatti_vmm::machine_dir::MachineDir;

/// Where QEMU listens for commands.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
/// The first pause after a loss.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause. A connection that lasted longer than this was a good one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long one try may take to be greeted.
const TRY_DEADLINE: Duration = Duration::from_secs(10);

/// The connection, or the attempt to have one.
pub(crate) struct Control {
    dir: Arc<MachineDir>,
    owner: Private,
    state: State,
    /// Before the next attempt.
    pause: Duration,
    /// Whether people have been told of this outage.
    told: bool,
}

enum State {
    Up {
        qmp: Qmp,
        since: Instant,
    },
    /// Waits, connects, and asks what was missed meanwhile.
    Down(Attempt),
    /// The machine is ending; nothing is left to say.
    Closed,
}

/// A connection, and what was missed without one.
type Attempt = Pin<Box<dyn Future<Output = Result<(Qmp, Option<Event>), EngineError>> + Send>>;

impl Control {
    /// With a connection, or with the first attempt to have one under way.
    pub(crate) fn new(dir: Arc<MachineDir>, owner: Private, qmp: Option<Qmp>) -> Self {
        let state = State::Closed;
        let mut control = Self { dir, owner, state, pause: FIRST_PAUSE, told: false };
        match qmp {
            Some(qmp) => control.state = State::Up { qmp, since: Instant::now() },
            None => control.retry(),
        }
        control
    }

    /// The connection, if there is one now.
    pub(crate) fn qmp(&mut self) -> Option<&mut Qmp> {
        match &mut self.state {
            State::Up { qmp, .. } => Some(qmp),
            State::Down(_) | State::Closed => None,
        }
    }

    /// The next event; what was missed while there was no connection is told as one. Gets the
    /// connection back meanwhile. Cancel-safe.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            match &mut self.state {
                State::Up { qmp, .. } => match qmp.event().await {
                    Ok(event) => return event,
                    Err(error) => self.lose(&error),
                },
                State::Down(attempt) => match attempt.as_mut().await {
                    Ok((qmp, missed)) => {
                        if std::mem::take(&mut self.told) {
                            tracing::info!(dir = %self.dir.path(), "control of a VMM is back");
                        }
                        self.state = State::Up { qmp, since: Instant::now() };
                        if let Some(event) = missed {
                            return event;
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut self.told, true) {
                            tracing::warn!(%error, dir = %self.dir.path(), "no control of a VMM, trying on");
                        }
                        self.retry();
                    }
                },
                State::Closed => std::future::pending().await,
            }
        }
    }

    /// Gives a broken connection up and begins to get another.
    pub(crate) fn lose(&mut self, error: &EngineError) {
        // When the process is ending this is only the first sign of it.
        tracing::debug!(%error, dir = %self.dir.path(), "lost the control socket of a VMM");
        if let State::Up { since, .. } = &self.state
            && since.elapsed() > LONGEST_PAUSE
        {
            self.pause = FIRST_PAUSE;
        }
        self.retry();
    }

    /// Hangs up for good.
    pub(crate) fn close(&mut self) {
        self.state = State::Closed;
    }

    fn retry(&mut self) {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        let (dir, owner) = (Arc::clone(&self.dir), self.owner);
        // The former connection must be closed first: QEMU serves one at a time.
        self.state = State::Down(Box::pin(async move {
            sleep(pause).await;
            let mut qmp = connect(&dir, owner, TRY_DEADLINE).await?;
            let missed = qmp.standing().await?.event();
            Ok((qmp, missed))
        }));
    }
}

/// Connects to QMP, waiting for QEMU to listen there.
pub(crate) async fn connect(
    dir: &MachineDir,
    owner: Private,
    patience: Duration,
) -> Result<Qmp, EngineError> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        match dir.connect(QMP_SOCKET, owner).await {
            Ok(stream) => return Qmp::greet(stream, deadline).await,
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => {
                return Err(dir.error("connect to", QMP_SOCKET, error));
            }
            Err(_) if Instant::now() > deadline => {
                return Err(EngineError::Timeout { action: "greet", seconds: patience.as_secs() });
            }
            // Bound, but not listened on yet: there is nothing to wait for but time.
            Err(_) => sleep(pause).await,
        }
        // A machine that wakes is waited for, and asking costs next to nothing.
        pause = (pause * 2).min(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Greets, and answers the two commands every connection begins with.
    async fn play_qemu(peer: UnixStream, status: &str) -> BufReader<UnixStream> {
        let mut peer = BufReader::new(peer);
        peer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let status = format!("{{\"return\": {{\"status\": \"{status}\"}}}}\n");
        for answer in ["{\"return\": {}}\n", &status] {
            let mut command = String::new();
            peer.read_line(&mut command).await.unwrap();
            peer.write_all(answer.as_bytes()).await.unwrap();
        }
        peer
    }

    fn control(path: &std::path::Path) -> (UnixListener, Control) {
        let listener = UnixListener::bind(path.join(QMP_SOCKET)).unwrap();
        let dir = MachineDir::open(Utf8Path::from_path(path).unwrap()).unwrap();
        let owner = dir.owner().unwrap();
        (listener, Control::new(Arc::new(dir), owner, None))
    }

    #[tokio::test]
    async fn an_end_during_an_outage_is_told_after_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (listener, mut control) = control(scratch.path());
        let script = async {
            // Hangs up before the greeting, then in the middle of a session, then is good.
            drop(listener.accept().await.unwrap());
            drop(play_qemu(listener.accept().await.unwrap().0, "running").await);
            play_qemu(listener.accept().await.unwrap().0, "shutdown").await
        };
        let both = async { tokio::join!(control.event(), script) };
        let (event, _peer) = timeout(PATIENCE, both).await.unwrap();
        assert_eq!(event, Event::GuestEnded);
        assert!(control.qmp().is_some());
    }

    #[tokio::test]
    async fn a_cancelled_wait_does_not_begin_again() {
        let scratch = tempfile::tempdir().unwrap();
        let (listener, mut control) = control(scratch.path());
        let script = async { play_qemu(listener.accept().await.unwrap().0, "shutdown").await };
        let impatient = async {
            // Each wait is shorter than the pause before the first attempt.
            loop {
                if let Ok(event) = timeout(FIRST_PAUSE / 10, control.event()).await {
                    return event;
                }
            }
        };
        let both = async { tokio::join!(impatient, script) };
        assert_eq!(timeout(PATIENCE, both).await.unwrap().0, Event::GuestEnded);
    }

    #[tokio::test]
    async fn a_peer_that_always_hangs_up_is_met_ever_more_seldom() {
        let scratch = tempfile::tempdir().unwrap();
        let (listener, mut control) = control(scratch.path());
        let script = async {
            for _ in 0..3 {
                drop(play_qemu(listener.accept().await.unwrap().0, "running").await);
            }
        };
        timeout(PATIENCE, async {
            tokio::select! {
                event = control.event() => panic!("there is none: {event:?}"),
                () = script => {}
            }
        })
        .await
        .unwrap();
        assert!(control.pause >= FIRST_PAUSE * 8, "{:?}", control.pause);
    }
}
