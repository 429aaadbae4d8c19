//! The operations with one answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bhatti_link::{Link, LinkEnd, MessageReader, Mode, Stream, write_message};
use bhatti_wire::message::{
    Activity as ActivityRequest, ActivityReply, Configure, Hello, HelloReply, Hold, Operation,
    PROTOCOL_VERSION, PowerOff, Quiesce, Reply, Request,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use crate::GuestError;
use crate::error::printable;

/// The longest answer to anything but a running command.
pub(crate) const MAX_REPLY: usize = 64 * 1024;

/// The most features and the longest name of one that are believed.
const MAX_FEATURES: usize = 64;
const MAX_NAME: usize = 128;

/// How long a guest may take. Generous, since it may be emulated on a busy machine: these are
/// for guests that will never answer.
const HELLO: Duration = Duration::from_secs(20);
const CONFIGURE: Duration = Duration::from_secs(60);
const POWER_OFF: Duration = Duration::from_secs(30);
/// Short: it is asked often, and a guest too busy to answer is not idle.
const ACTIVITY: Duration = Duration::from_secs(2);
/// Short too: a clock that is set late is set wrong.
const SET_CLOCK: Duration = Duration::from_secs(5);
/// A time that was longer under way is set once more: the guest's clock is behind by about as
/// much as the message took, and 100 ms are promised.
const CLOCK_ROUND_TRIP: Duration = Duration::from_millis(20);
/// How often it is set again at most: a host that is never quick has a late clock, not none.
const CLOCK_TRIES: usize = 8;

/// One guest's agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Guest {
    link: Link,
}

/// Who answered. All texts are the guest's word, bounded and printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloInfo {
    pub agent_version: String,
    /// Optional operations this agent knows.
    pub features: Vec<String>,
    /// Whether it has been configured since it booted.
    pub configured: bool,
    pub kernel_release: String,
}

/// What the machine did since it was last asked, or since it booted. All numbers are the
/// guest's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Tasks that run, want to, or wait for a disk.
    pub runnable: u32,
    /// CPU time used by everything but the agent.
    pub busy: Duration,
    /// How long ago it was last asked, by a clock that stands still with the machine.
    pub since: Duration,
    /// Established TCP connections to other machines.
    pub connections: u32,
    /// Received and sent over all interfaces but the loopback.
    pub moved_bytes: u64,
    /// Commands that still run: the detached ones, and those whose host went away. A command on
    /// a living link is counted too.
    pub commands: u32,
}

impl Guest {
    /// Operations over `link`.
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// Begins a link on `carrier`. Waits as long as the guest takes: the caller brings the
    /// deadline, and dropping this drops the carrier.
    ///
    /// The caller spawns the returned driver; the link lives as long as that does.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        carrier: IO,
        mode: Mode,
    ) -> Result<(Self, impl Future<Output = LinkEnd> + Send + 'static), GuestError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)
            .map_err(|error| GuestError::LinkLost(Some(std::io::Error::other(error))))?;
        let (link, driver) = bhatti_link::connect(carrier, nonce, mode).await?;
        Ok((Self::new(link), driver))
    }

    /// Whether the link has ended. It does not come back; connect again.
    pub fn is_gone(&self) -> bool {
        self.link.is_closed()
    }

    /// Resolves when the link has ended.
    pub async fn gone(&self) {
        self.link.closed().await;
    }

    /// Greets the agent: it gets the time and fresh randomness, and says who it is.
    ///
    /// A guest that has just been restored may be slow to take it; then its clock is set again.
    pub async fn hello(&self, host_version: &str) -> Result<HelloInfo, GuestError> {
        let start = Instant::now();
        let reply = within(HELLO, "greet", self.greet(host_version, None)).await?;
        self.correct_clock(&reply, start).await?;
        Ok(info(&reply))
    }

    /// [`Self::hello`] and [`Self::configure`] in one: what has just been restored under
    /// emulation takes 10 ms and more for each message.
    pub async fn hello_and_configure(
        &self,
        host_version: &str,
        configure: Configure,
    ) -> Result<HelloInfo, GuestError> {
        let start = Instant::now();
        let greet = self.greet(host_version, Some(configure.clone()));
        let reply = within(CONFIGURE, "greet", greet).await?;
        self.correct_clock(&reply, start).await?;
        match reply.applied.clone() {
            Some(reply) => done(reply)?,
            None => self.configure(configure).await?,
        }
        Ok(info(&reply))
    }

    /// Sets the clock once more if it was set late. A guest says what its clock showed when it
    /// answered; without that, it may have been late by as long as the answer took.
    async fn correct_clock(&self, reply: &HelloReply, greeted: Instant) -> Result<(), GuestError> {
        let late = match Duration::from_nanos(reply.unix_nanos) {
            Duration::ZERO => greeted.elapsed(),
            clock => since_epoch().abs_diff(clock),
        };
        if late > CLOCK_ROUND_TRIP { self.set_clock().await } else { Ok(()) }
    }

    /// Sets the guest's clock, and nothing else: after a pause. One round trip, if that is a quick
    /// one: the clock is behind by as long as the message was under way.
    pub async fn set_clock(&self) -> Result<(), GuestError> {
        for _ in 0..CLOCK_TRIES {
            let start = Instant::now();
            within(SET_CLOCK, "set its clock", self.say_hello(Hello::default())).await?;
            if start.elapsed() <= CLOCK_ROUND_TRIP {
                break;
            }
        }
        Ok(())
    }

    async fn greet(
        &self,
        host_version: &str,
        identity: Option<Configure>,
    ) -> Result<HelloReply, GuestError> {
        let mut entropy = [0; 64];
        getrandom::fill(&mut entropy)
            .map_err(|error| GuestError::LinkLost(Some(std::io::Error::other(error))))?;
        self.say_hello(Hello {
            host_version: host_version.to_owned(),
            entropy: Bytes::copy_from_slice(&entropy),
            identity,
            ..Hello::default()
        })
        .await
    }

    async fn say_hello(&self, hello: Hello) -> Result<HelloReply, GuestError> {
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            unix_nanos: u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX),
            ..hello
        };
        let stream = self.request(Operation::Hello(hello)).await?;
        let reply: HelloReply = answer(&stream).await?;
        if reply.protocol != PROTOCOL_VERSION {
            let (guest, host) = (reply.protocol, PROTOCOL_VERSION);
            return Err(GuestError::Incompatible { guest, host });
        }
        Ok(reply)
    }

    /// Asks whether the machine works. Every call begins a new report, so there is one asker.
    ///
    /// [`GuestError::Unsupported`] if the agent is from before there was this operation.
    pub async fn activity(&self) -> Result<Activity, GuestError> {
        let reply: ActivityReply = within(ACTIVITY, "say whether it works", async {
            let stream = self.request(Operation::Activity(ActivityRequest {})).await?;
            answer(&stream).await
        })
        .await?;
        if let Some(failure) = reply.failure {
            return Err(failure.into());
        }
        Ok(Activity {
            runnable: reply.runnable,
            busy: Duration::from_millis(reply.busy_millis),
            since: Duration::from_millis(reply.since_millis),
            connections: reply.connections,
            moved_bytes: reply.moved_bytes,
            commands: reply.commands,
        })
    }

    /// Returns when everything that was written to the guest's files is on its disk, or after
    /// `deadline`: a guest may have a file system that never gets there.
    ///
    /// [`GuestError::Unsupported`] if the agent is from before there was this operation.
    pub async fn quiesce(&self, deadline: Duration) -> Result<(), GuestError> {
        within(deadline, "write its files to disk", async {
            let stream = self.request(Operation::Quiesce(Quiesce {})).await?;
            done(answer(&stream).await?)
        })
        .await
    }

    /// Returns when nothing runs in the guest but its agent, or after `deadline`. Any greeting
    /// afterwards lets everything go on: [`Self::hello`], [`Self::set_clock`].
    ///
    /// [`GuestError::Unsupported`] if the agent is from before there was this operation, or its
    /// kernel cannot do it. After another error some of it may be held.
    pub async fn hold(&self, deadline: Duration) -> Result<(), GuestError> {
        within(deadline, "hold its processes", async {
            let stream = self.request(Operation::Hold(Hold {})).await?;
            done(answer(&stream).await?)
        })
        .await
    }

    /// Makes the machine this sandbox. When it returns, names and network work.
    pub async fn configure(&self, configure: Configure) -> Result<(), GuestError> {
        within(CONFIGURE, "apply its configuration", async {
            let stream = self.request(Operation::Configure(configure)).await?;
            done(answer(&stream).await?)
        })
        .await
    }

    /// Asks the machine to sync and power off. Returns when it has agreed, not when it is off;
    /// a guest that goes away at once has agreed too.
    pub async fn power_off(&self) -> Result<(), GuestError> {
        within(POWER_OFF, "agree to power off", async {
            let stream = self.request(Operation::PowerOff(PowerOff {})).await?;
            match answer(&stream).await {
                Ok(reply) => done(reply),
                Err(GuestError::LinkLost(_)) => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Opens a stream and says what it is for.
    pub(crate) async fn request(&self, operation: Operation) -> Result<Stream, GuestError> {
        let stream = self.link.open()?;
        let request = Request { operation: Some(operation) };
        write_message(&stream, &request).await.map_err(GuestError::writing)?;
        Ok(stream)
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn info(reply: &HelloReply) -> HelloInfo {
    let features = reply.features.iter().take(MAX_FEATURES);
    HelloInfo {
        agent_version: printable(&reply.agent_version, MAX_NAME),
        features: features.map(|name| printable(name, MAX_NAME)).collect(),
        configured: reply.configured,
        kernel_release: printable(&reply.kernel_release, MAX_NAME),
    }
}

/// The one answer on a stream.
pub(crate) async fn answer<M: prost::Message + Default>(stream: &Stream) -> Result<M, GuestError> {
    let mut reader = MessageReader::new(stream, MAX_REPLY);
    match reader.next().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(GuestError::LinkLost(None)),
        Err(error) => Err(GuestError::reading(error)),
    }
}

fn done(reply: Reply) -> Result<(), GuestError> {
    match reply.failure {
        None => Ok(()),
        Some(failure) => Err(failure.into()),
    }
}

pub(crate) async fn within<T>(
    patience: Duration,
    action: &'static str,
    operation: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    match timeout(patience, operation).await {
        Ok(result) => result,
        Err(_) => Err(GuestError::Deadline { action, seconds: patience.as_secs() }),
    }
}
