//! Many byte streams in one session.
//!
//! ```text
//!   write ─▶ outbox ─┐  fresh ─┐                        ┌─▶ inbox ─▶ read
//!   write ─▶ outbox ─┼─────────┼─▶ transmit ══▶ receive ┼─▶ inbox ─▶ read
//!   write ─▶ outbox ─┘  busy  ─┘                        └─▶ inbox ─▶ read
//! ```
//!
//! Only the host opens streams. Each direction of each stream has a window of [`WINDOW`] bytes;
//! the reader gives credit back when the application has taken half of it. A writer may only
//! queue what its credit covers, so whatever is queued can leave, and a reader that stands still
//! holds up its own stream and no other.
//!
//! Fairness: streams with much to send take turns of [`QUANTUM`]. One that had nothing queued
//! and now has at most [`SMALL`] comes before them, every other turn. So a keystroke waits for
//! the chunk being written, not for the uploads.
//!
//! Promises, whatever the peer sends: at most [`MAX_STREAMS`] streams are open, each holding at
//! most a window of received bytes; frames about streams that are gone allocate nothing.
//!
//! Wakers are collected and handed out by [`Mux::take_wakers`], so that the owner can wake them
//! without holding its lock.

mod entry;

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use crate::Violation;
use crate::frame::{self, Body, FRAME_OVERHEAD, Frame};
use crate::record::Nonce;
use entry::{Entry, Receiving, Sending};

/// How many bytes one side may send on a stream ahead of the other's reading it.
pub const WINDOW: usize = 256 * 1024;

/// The most streams open at once.
pub const MAX_STREAMS: usize = 512;

/// The most bytes of one stream sent before another's turn.
pub const QUANTUM: usize = 32 * 1024;

/// What may overtake streams that have more.
pub const SMALL: usize = 8 * 1024;

/// The most bytes [`Mux::transmit`] adds while one stream is open: a large write is several
/// times cheaper per byte than a small one for a guest.
pub const CHUNK: usize = 256 * 1024;

/// The same while several are open: what a newcomer has to wait behind.
pub const SHARED_CHUNK: usize = 128 * 1024;

/// Above this many queued bytes, writers that already have [`STREAM_RESERVE`] queued wait.
const QUEUE_LIMIT: usize = 1024 * 1024;

/// What every stream may queue however full the queue is.
const STREAM_RESERVE: usize = 16 * 1024;

/// Above this many queued control frames no stream is opened and the peer is not read.
const CONTROL_LIMIT: usize = 4096;

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Host,
    Guest,
}

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The peer gave the stream up.
    Reset,
    /// The session is over.
    Lost,
    /// Written to after its half-close.
    Closed,
}

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotOpen {
    /// The session is over.
    Lost,
    /// [`MAX_STREAMS`] are open, or the carrier has stood still for thousands of them.
    TooMany,
    /// Every id of this session has been used.
    Exhausted,
}

/// The streams of one session.
#[derive(Debug)]
pub struct Mux {
    role: Role,
    nonce: Nonce,
    streams: HashMap<u32, Entry>,
    /// The highest id ever opened.
    last_id: u32,
    /// Streams not yet over in both directions. The others only wait for their handle to go.
    open: usize,
    control: VecDeque<(u32, Control)>,
    /// Streams with something to send: those that began with little, and the others.
    fresh: VecDeque<u32>,
    busy: VecDeque<u32>,
    /// Bytes in all outboxes.
    queued: usize,
    /// Streams whose writer waits for `queued` to shrink.
    crowded: Vec<u32>,
    transmitter: Option<Waker>,
    wakers: Vec<Waker>,
    dead: bool,
}

/// Frames that carry no data and overtake it.
#[derive(Clone, Copy, Debug)]
enum Control {
    Open,
    Reset,
    Window(u32),
}

impl Mux {
    /// A session without streams.
    pub fn new(role: Role, nonce: Nonce) -> Self {
        Self {
            role,
            nonce,
            streams: HashMap::new(),
            last_id: 0,
            open: 0,
            control: VecDeque::new(),
            fresh: VecDeque::new(),
            busy: VecDeque::new(),
            queued: 0,
            crowded: Vec::new(),
            transmitter: None,
            wakers: Vec::new(),
            dead: false,
        }
    }

    /// Opens a stream (host only) and returns its id. It must be [released](Self::release).
    pub fn open(&mut self) -> Result<u32, CannotOpen> {
        debug_assert_eq!(self.role, Role::Host, "only the host opens streams");
        if self.dead {
            return Err(CannotOpen::Lost);
        }
        if self.open >= MAX_STREAMS || self.control.len() >= CONTROL_LIMIT {
            return Err(CannotOpen::TooMany);
        }
        let id = self.last_id.checked_add(1).ok_or(CannotOpen::Exhausted)?;
        self.insert(id);
        self.control(id, Control::Open);
        Ok(id)
    }

    /// Takes received bytes. `Ready(Ok(0))` is the peer's half-close.
    ///
    /// Bytes that arrived before the session was lost can still be read.
    pub fn poll_read(
        &mut self,
        id: u32,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize, Gone>> {
        let Some(entry) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Gone::Lost));
        };
        let taken = entry.take(into);
        if taken > 0 {
            if let Some(credit) = entry.credit_due() {
                self.control(id, Control::Window(credit));
            }
            return Poll::Ready(Ok(taken));
        }
        match entry.receiving {
            Receiving::Open if into.is_empty() => Poll::Ready(Ok(0)),
            Receiving::Open => {
                entry.reader = Some(context.waker().clone());
                Poll::Pending
            }
            Receiving::Fin => Poll::Ready(Ok(0)),
            Receiving::Ended(gone) => Poll::Ready(Err(gone)),
        }
    }

    /// How many bytes [`Self::poll_read`] could give out now.
    pub fn readable(&self, id: u32) -> usize {
        self.streams.get(&id).map_or(0, |entry| entry.inbox.len())
    }

    /// Queues bytes for sending; how many says the result.
    pub fn poll_write(
        &mut self,
        id: u32,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Gone>> {
        let taken = self.try_write(id, bytes)?;
        if taken > 0 || bytes.is_empty() {
            return Poll::Ready(Ok(taken));
        }
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.writer = Some(context.waker().clone());
            if entry.credit > 0 && !entry.crowded {
                entry.crowded = true;
                self.crowded.push(id);
            }
        }
        Poll::Pending
    }

    /// Queues what there is room for now: possibly nothing. Wakes nobody later.
    pub fn try_write(&mut self, id: u32, bytes: &[u8]) -> Result<usize, Gone> {
        let Some(entry) = self.streams.get_mut(&id) else { return Err(Gone::Lost) };
        match entry.sending {
            Sending::Open => {}
            Sending::Closing | Sending::Closed => return Err(Gone::Closed),
            Sending::Ended(gone) => return Err(gone),
        }
        let own = entry.outbox.len();
        let common = QUEUE_LIMIT.saturating_sub(self.queued);
        let room = common.max(STREAM_RESERVE.saturating_sub(own)).min(entry.credit);
        let taken = bytes.len().min(room);
        if taken > 0 {
            entry.outbox.extend(&bytes[..taken]);
            entry.credit -= taken;
            self.queued += taken;
            self.schedule(id);
        }
        Ok(taken)
    }

    /// Half-closes: after what is queued the peer reads the end. Doing it twice is fine.
    pub fn shutdown(&mut self, id: u32) -> Result<(), Gone> {
        let Some(entry) = self.streams.get_mut(&id) else {
            return Err(Gone::Lost);
        };
        match entry.sending {
            Sending::Open => {
                entry.sending = Sending::Closing;
                self.schedule(id);
                Ok(())
            }
            Sending::Closing | Sending::Closed => Ok(()),
            Sending::Ended(gone) => Err(gone),
        }
    }

    /// The stream's owner is gone. Without a half-close what is queued is thrown away and the
    /// peer sees a reset; after one, what is queued still goes out and the peer is told that
    /// nobody reads its answer.
    pub fn release(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        entry.released = true;
        entry.reader = None;
        entry.writer = None;
        entry.drop_inbox();
        let peer_sends = entry.receiving == Receiving::Open;
        match entry.sending {
            Sending::Open => self.reset(id),
            Sending::Closed if peer_sends => self.reset(id),
            Sending::Closing | Sending::Closed | Sending::Ended(_) => self.settle(id),
        }
    }

    /// Takes one frame from the peer. `Some` is the id of a stream the host opened (guest only);
    /// it must be [released](Self::release).
    pub fn receive(&mut self, frame: Frame<'_>) -> Result<Option<u32>, Violation> {
        let id = frame.stream;
        if frame.body == Body::Open {
            return self.on_open(id);
        }
        if id == 0 || id > self.last_id {
            return Err(Violation::NeverOpened(id));
        }
        // A stream we are done with: the peer sent this before it knew.
        let Some(entry) = self.streams.get_mut(&id) else {
            return Ok(None);
        };
        match frame.body {
            Body::Data(bytes) => entry.on_data(id, bytes)?,
            Body::Fin => entry.on_fin(id)?,
            Body::Window(credit) => entry.on_window(id, credit)?,
            Body::Reset => {
                self.queued -= entry.outbox.len();
                entry.on_reset();
            }
            Body::Open => {}
        }
        if !matches!(frame.body, Body::Window(_)) {
            self.wakers.extend(entry.reader.take());
        }
        if matches!(frame.body, Body::Window(_) | Body::Reset) {
            self.wakers.extend(entry.writer.take());
        }
        self.settle(id);
        Ok(None)
    }

    fn on_open(&mut self, id: u32) -> Result<Option<u32>, Violation> {
        if self.role == Role::Host || id <= self.last_id {
            return Err(Violation::BadOpen(id));
        }
        if self.open >= MAX_STREAMS {
            self.last_id = id;
            self.control(id, Control::Reset);
            return Ok(None);
        }
        self.insert(id);
        Ok(Some(id))
    }

    /// Appends frames to `out`, up to [`CHUNK`] bytes, and says whether there were any.
    pub fn transmit(&mut self, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let chunk = if self.streams.len() > 1 { SHARED_CHUNK } else { CHUNK };
        let limit = before + chunk;
        while out.len() + FRAME_OVERHEAD + 4 <= limit {
            let Some((stream, control)) = self.control.pop_front() else {
                break;
            };
            let body = match control {
                Control::Open => Body::Open,
                Control::Reset => Body::Reset,
                Control::Window(credit) => Body::Window(credit),
            };
            frame::encode(Frame { stream, body }, &self.nonce, out);
        }
        // Room for a frame worth sending, a Fin and a Reset.
        let mut newcomers_turn = true;
        while self.control.is_empty() && out.len() + 1024 <= limit {
            let (first, second) = match newcomers_turn {
                true => (&mut self.fresh, &mut self.busy),
                false => (&mut self.busy, &mut self.fresh),
            };
            let Some(id) = first.pop_front().or_else(|| second.pop_front()) else {
                break;
            };
            newcomers_turn = !newcomers_turn;
            let most = (limit - out.len() - 3 * FRAME_OVERHEAD).min(QUANTUM);
            self.transmit_turn(id, most, out);
        }
        if self.queued < QUEUE_LIMIT {
            for id in std::mem::take(&mut self.crowded) {
                if let Some(entry) = self.streams.get_mut(&id) {
                    entry.crowded = false;
                    self.wakers.extend(entry.writer.take());
                }
            }
        }
        out.len() > before
    }

    /// One stream's turn: at most `most` bytes, and its end if that is all.
    fn transmit_turn(&mut self, id: u32, most: usize, out: &mut Vec<u8>) {
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        entry.scheduled = false;
        let len = entry.outbox.len().min(most);
        if len > 0 {
            let (front, back) = entry.outbox.as_slices();
            let front = &front[..front.len().min(len)];
            let back = &back[..len - front.len()];
            frame::encode_data(id, [front, back], &self.nonce, out);
            entry.outbox.drain(..len);
            self.queued -= len;
        }
        if !entry.outbox.is_empty() {
            entry.scheduled = true;
            self.busy.push_back(id);
            return;
        }
        // Waking the writer only now gives it room for one large piece instead of many small.
        self.wakers.extend(entry.writer.take_if(|_| entry.credit > 0));
        if entry.sending == Sending::Closing {
            entry.sending = Sending::Closed;
            frame::encode(Frame { stream: id, body: Body::Fin }, &self.nonce, out);
            if entry.released && entry.receiving == Receiving::Open {
                entry.receiving = Receiving::Ended(Gone::Closed);
                frame::encode(Frame { stream: id, body: Body::Reset }, &self.nonce, out);
            }
            self.settle(id);
        }
    }

    /// Whether anything waits to be transmitted.
    pub fn has_output(&self) -> bool {
        !(self.control.is_empty() && self.fresh.is_empty() && self.busy.is_empty())
    }

    /// Whether the peer makes us answer faster than it reads: do not read it for now.
    pub fn is_congested(&self) -> bool {
        self.control.len() >= CONTROL_LIMIT
    }

    /// Whom to wake when there is something to transmit, or the session ends.
    pub fn set_transmitter(&mut self, waker: &Waker) {
        match &mut self.transmitter {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Ends the session: every stream is lost, and none can be opened.
    pub fn kill(&mut self) {
        self.dead = true;
        self.control.clear();
        self.fresh.clear();
        self.busy.clear();
        self.crowded.clear();
        self.queued = 0;
        for entry in self.streams.values_mut() {
            entry.lose();
            self.wakers.extend(entry.reader.take());
            self.wakers.extend(entry.writer.take());
        }
        self.streams.retain(|_, entry| !entry.released);
        self.open = 0;
        self.wakers.extend(self.transmitter.take());
    }

    /// Whether the session is over.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// Those to wake because of the calls since the last time. To be woken outside of any lock.
    #[must_use]
    pub fn take_wakers(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers)
    }

    /// Bytes held for all streams, in both directions.
    pub fn held_bytes(&self) -> usize {
        self.streams.values().map(|entry| entry.inbox.len() + entry.outbox.len()).sum()
    }

    /// Streams known here, open or waiting for their handle to go.
    pub fn known_streams(&self) -> usize {
        self.streams.len()
    }

    fn insert(&mut self, id: u32) {
        self.last_id = id;
        self.open += 1;
        self.streams.insert(id, Entry::new());
    }

    fn control(&mut self, id: u32, control: Control) {
        self.control.push_back((id, control));
        self.wakers.extend(self.transmitter.take());
    }

    fn schedule(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id)
            && !entry.scheduled
        {
            entry.scheduled = true;
            match entry.outbox.len() {
                ..=SMALL => self.fresh.push_back(id),
                _ => self.busy.push_back(id),
            }
            self.wakers.extend(self.transmitter.take());
        }
    }

    /// Gives the stream up now, and tells the peer.
    fn reset(&mut self, id: u32) {
        if self.dead {
            self.streams.remove(&id);
            return;
        }
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        self.queued -= entry.outbox.len();
        entry.on_reset();
        self.control(id, Control::Reset);
        self.settle(id);
    }

    /// Counts a stream out once both directions are over; forgets it once its handle is gone.
    fn settle(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        if !entry.is_over() {
            return;
        }
        if !entry.settled {
            entry.settled = true;
            self.open = self.open.saturating_sub(1);
        }
        if entry.released {
            self.streams.remove(&id);
        }
    }
}
