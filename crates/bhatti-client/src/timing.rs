//! Where the time of a request went.

use std::time::{Duration, Instant};

/// The phases of one request. `None`: did not happen, e.g. on a reused connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Resolving a name; not for a literal address.
    pub dns: Option<Duration>,
    pub connect: Option<Duration>,
    pub tls: Option<Duration>,
    /// From the request's first byte out to the answer's headers.
    pub server: Option<Duration>,
    /// From the headers to the end of the body.
    pub transfer: Option<Duration>,
    /// Everything.
    pub total: Duration,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    started: Instant,
    headers: Option<Instant>,
    timing: Timing,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), headers: None, timing: Timing::default() }
    }

    /// The phases of a connection made for this request.
    pub(crate) fn connected(&mut self, connection: Timing) {
        self.timing = connection;
    }

    pub(crate) fn headers(&mut self, sent: Instant) {
        let now = Instant::now();
        self.timing.server = Some(now - sent);
        self.headers = Some(now);
    }

    pub(crate) fn finish(mut self) -> Timing {
        let now = Instant::now();
        self.timing.transfer = self.headers.map(|headers| now - headers);
        self.timing.total = now - self.started;
        self.timing
    }
}
