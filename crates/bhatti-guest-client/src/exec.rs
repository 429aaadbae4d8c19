//! Running commands.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bhatti_link::MessageReader;
use bhatti_wire::message::{
    Exec, ExecOutput, ExecOutputEvent, KillExec, MAX_CHUNK, Operation, Reply, Started,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep_until};

use crate::error::printable;
use crate::guest::{answer, within};
use crate::input::{Input, StdinWriter};
use crate::{Guest, GuestError};

/// How long a guest may take to start a command.
const START: Duration = Duration::from_secs(60);

/// How long after a command's timeout its guest may take to say so.
const GRACE: Duration = Duration::from_secs(5);

/// How long a guest may take to say that it has killed a command.
const KILL: Duration = Duration::from_secs(10);

/// The longest message about a command: a chunk and what surrounds it.
const MAX_OUTPUT: usize = MAX_CHUNK + 1024;

/// The longest path that is believed.
const MAX_PATH: usize = 4096;

/// The exit code of a command killed by its timeout: 128 + SIGKILL.
const KILLED: i32 = 137;

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Over the sandbox's environment.
    pub env: HashMap<String, String>,
    /// Working directory; empty means `/`.
    pub cwd: String,
    /// After this the whole process group is killed. `None`: no limit.
    pub timeout: Option<Duration>,
    pub stdin: Stdin,
}

/// What a command reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// What [`Running::take_stdin`] writes.
    Pipe,
}

/// A command that was started and left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// In the guest's process table.
    pub pid: u32,
    /// Where its stdout and stderr go, in the guest.
    pub output_file: String,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    /// It ended and all its output has been seen. The last event.
    Exit {
        /// The exit code, or 128 + signal number.
        code: i32,
        /// It was killed by its timeout.
        timed_out: bool,
    },
}

impl Guest {
    /// Starts a command. Returns when it runs, or with why it does not.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Running, GuestError> {
        let deadline = spec.timeout.and_then(|limit| Instant::now().checked_add(limit + GRACE));
        let (mut running, _) = self.start(exec_message(spec)).await?;
        running.deadline = deadline;
        Ok(running)
    }

    /// Starts a command that outlives this call, the link and the daemon. Its output goes to
    /// `output_file` in the guest; if that is empty the guest chooses one.
    pub async fn exec_detached(
        &self,
        spec: ExecSpec,
        output_file: &str,
    ) -> Result<Detached, GuestError> {
        let mut exec = exec_message(spec);
        exec.detach = true;
        exec.output_file = output_file.to_owned();
        let (mut command, started) = self.start(exec).await?;
        // Nothing more will be said about it, and dropping this must not kill it.
        command.end();
        let output_file = printable(&started.output_file, MAX_PATH);
        Ok(Detached { pid: started.pid, output_file })
    }

    async fn start(&self, exec: Exec) -> Result<(Running, Started), GuestError> {
        let (piped, id) = (exec.stdin, exec.id);
        // Who gives a command three seconds does not want to wait a minute for its start.
        let patience = match exec.timeout_ms {
            0 => START,
            limit => START.min(Duration::from_millis(limit).saturating_add(GRACE)),
        };
        within(patience, "start the command", async {
            let input = Input::new(self.request(Operation::Exec(exec)).await?);
            let mut running = Running {
                pid: 0,
                killer: Killer { guest: self.clone(), input: input.clone(), id },
                output: MessageReader::new(Reader(input.clone()), MAX_OUTPUT),
                stdin: piped.then(|| StdinWriter::new(input.clone())),
                input,
                deadline: None,
                ended: false,
            };
            // From here on, giving up kills what may have been started.
            match next_event(&mut running.output).await? {
                ExecOutputEvent::Started(started) => {
                    running.pid = started.pid;
                    Ok((running, started))
                }
                ExecOutputEvent::Failed(failure) => {
                    running.end();
                    Err(failure.into())
                }
                _ => Err(GuestError::Protocol("output of a command that was not started")),
            }
        })
        .await
    }
}

fn exec_message(spec: ExecSpec) -> Exec {
    Exec {
        argv: spec.argv,
        env: spec.env,
        cwd: spec.cwd,
        // Zero would mean no limit.
        timeout_ms: spec
            .timeout
            .map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1)),
        detach: false,
        output_file: String::new(),
        stdin: spec.stdin == Stdin::Pipe,
        // Nothing gets in the way of killing a command without stdin.
        id: if spec.stdin == Stdin::Pipe { random_id() } else { 0 },
    }
}

/// Never twice among the commands of one guest. 0, if there is no randomness: such a command can
/// only be killed on its own stream.
fn random_id() -> u64 {
    let mut id = [0; 8];
    getrandom::fill(&mut id).unwrap_or_default();
    u64::from_ne_bytes(id)
}

/// Kills a command while somebody else waits for what it does.
#[derive(Clone, Debug)]
pub struct Killer {
    guest: Guest,
    input: Arc<Input>,
    /// 0: the command's own stream is the only way.
    id: u64,
}

impl Killer {
    /// Kills the command and all it started, and takes no more stdin for it. Its exit is still
    /// reported, by [`Running::next`], which is also where a guest that does not obey shows.
    pub async fn kill(&self) {
        self.input.kill();
        if self.id == 0 {
            return;
        }
        // An agent that does not know this has the order on the command's stream; a command that
        // is over needs none.
        let order = Operation::KillExec(KillExec { id: self.id });
        let told = within(KILL, "kill the command", async {
            let stream = self.guest.request(order).await?;
            answer::<Reply>(&stream).await
        });
        told.await.map(drop).unwrap_or_default();
    }
}

/// A command under way. Dropping it before its exit kills it and all it started.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    killer: Killer,
    output: Output,
    input: Arc<Input>,
    stdin: Option<StdinWriter>,
    deadline: Option<Instant>,
    /// Exit or failure was seen.
    ended: bool,
}

type Output = MessageReader<Reader>;

impl Running {
    /// In the guest's process table.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The command's stdin, once, if the spec asked for it.
    pub fn take_stdin(&mut self) -> Option<StdinWriter> {
        self.stdin.take()
    }

    /// To kill the command from elsewhere.
    pub fn killer(&self) -> Killer {
        self.killer.clone()
    }

    /// What happens next. `None` after the exit. Cancel-safe.
    ///
    /// A guest that does not report a timeout in time is taken at its silence: the command
    /// counts as timed out.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, GuestError> {
        if self.ended {
            return Ok(None);
        }
        let event = match self.deadline {
            None => self.event().await,
            Some(deadline) => tokio::select! {
                // First the deadline: a guest that always has more to say must not outrun it.
                biased;
                () = sleep_until(deadline) => {
                    self.input.kill();
                    Ok(ExecEvent::Exit { code: KILLED, timed_out: true })
                }
                event = self.event() => event,
            },
        };
        if !matches!(event, Ok(ExecEvent::Stdout(_) | ExecEvent::Stderr(_))) {
            self.end();
        }
        event.map(Some)
    }

    /// Nothing is left to be said, in either direction.
    fn end(&mut self) {
        self.ended = true;
        self.input.finish();
    }

    async fn event(&mut self) -> Result<ExecEvent, GuestError> {
        let input = &self.input;
        let mut event = pin!(next_event(&mut self.output));
        let event = poll_fn(|context| {
            input.poll_closing(context);
            event.as_mut().poll(context)
        })
        .await?;
        let bounded = |bytes: Bytes| match bytes.len() {
            ..=MAX_CHUNK => Ok(bytes),
            _ => Err(GuestError::Protocol("oversized chunk of output")),
        };
        match event {
            ExecOutputEvent::Stdout(bytes) => bounded(bytes).map(ExecEvent::Stdout),
            ExecOutputEvent::Stderr(bytes) => bounded(bytes).map(ExecEvent::Stderr),
            ExecOutputEvent::Exit(exit) => {
                Ok(ExecEvent::Exit { code: exit.code, timed_out: exit.timed_out })
            }
            ExecOutputEvent::Failed(failure) => Err(failure.into()),
            ExecOutputEvent::Started(_) => Err(GuestError::Protocol("a command started twice")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.input.kill();
            self.input.finish();
        }
    }
}

async fn next_event(output: &mut Output) -> Result<ExecOutputEvent, GuestError> {
    loop {
        match output.next::<ExecOutput>().await.map_err(GuestError::reading)? {
            Some(ExecOutput { event: Some(event) }) => return Ok(event),
            // A later agent may tell more than this daemon knows.
            Some(ExecOutput { event: None }) => {}
            None => return Err(GuestError::LinkLost(None)),
        }
    }
}

/// The guest's direction of an exec stream.
#[derive(Debug)]
struct Reader(Arc<Input>);

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut &self.0.stream).poll_read(context, buffer)
    }
}
