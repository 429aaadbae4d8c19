//! One stream's two directions: buffers, windows, and how each ended.

use std::collections::VecDeque;
use std::task::Waker;

use super::{Gone, WINDOW};
use crate::Violation;

/// An inbox or outbox that grew beyond this gives its memory back when it runs empty.
const KEEP: usize = 16 * 1024;

/// Our direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Open,
    /// Half-closed by us; the outbox and the Fin still have to go out.
    Closing,
    /// The Fin is out.
    Closed,
    Ended(Gone),
}

/// The peer's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    Open,
    /// Half-closed by the peer; the inbox may still hold bytes.
    Fin,
    Ended(Gone),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) outbox: VecDeque<u8>,
    /// How many more bytes may be queued for the peer.
    pub(super) credit: usize,
    pub(super) sending: Sending,
    /// In one of the two send queues.
    pub(super) scheduled: bool,
    /// In the list of those that wait for the common queue.
    pub(super) crowded: bool,
    pub(super) inbox: VecDeque<u8>,
    pub(super) receiving: Receiving,
    /// How many more bytes the peer may send.
    window: usize,
    /// Bytes the application has taken and the peer has no credit for yet.
    consumed: usize,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// Nobody holds this stream any more.
    pub(super) released: bool,
    /// Not counted as open any more.
    pub(super) settled: bool,
}

impl Entry {
    pub(super) fn new() -> Self {
        Self {
            outbox: VecDeque::new(),
            credit: WINDOW,
            sending: Sending::Open,
            scheduled: false,
            crowded: false,
            inbox: VecDeque::new(),
            receiving: Receiving::Open,
            window: WINDOW,
            consumed: 0,
            reader: None,
            writer: None,
            released: false,
            settled: false,
        }
    }

    /// Both directions are over, and nothing waits to be sent.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.sending, Sending::Closed | Sending::Ended(_))
            && self.receiving != Receiving::Open
    }

    /// Moves received bytes out.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let (front, back) = self.inbox.as_slices();
        let from_front = front.len().min(into.len());
        into[..from_front].copy_from_slice(&front[..from_front]);
        let from_back = back.len().min(into.len() - from_front);
        into[from_front..from_front + from_back].copy_from_slice(&back[..from_back]);
        let taken = from_front + from_back;
        self.inbox.drain(..taken);
        if self.inbox.is_empty()
            && self.inbox.capacity() > KEEP
            && self.receiving != Receiving::Open
        {
            self.inbox = VecDeque::new();
        }
        self.consumed += taken;
        taken
    }

    /// What to give back to the peer, once it is worth a frame.
    pub(super) fn credit_due(&mut self) -> Option<u32> {
        if self.receiving != Receiving::Open || self.consumed < WINDOW / 2 {
            return None;
        }
        let credit = std::mem::take(&mut self.consumed);
        self.window += credit;
        u32::try_from(credit).ok()
    }

    pub(super) fn drop_inbox(&mut self) {
        self.inbox = VecDeque::new();
    }

    pub(super) fn on_data(&mut self, id: u32, bytes: &[u8]) -> Result<(), Violation> {
        match self.receiving {
            Receiving::Open => {}
            Receiving::Fin => return Err(Violation::AfterFin(id)),
            Receiving::Ended(_) => return Ok(()),
        }
        self.window = self.window.checked_sub(bytes.len()).ok_or(Violation::Overrun(id))?;
        if !self.released {
            self.inbox.extend(bytes);
        }
        Ok(())
    }

    pub(super) fn on_fin(&mut self, id: u32) -> Result<(), Violation> {
        match self.receiving {
            Receiving::Open => self.receiving = Receiving::Fin,
            Receiving::Fin => return Err(Violation::AfterFin(id)),
            Receiving::Ended(_) => {}
        }
        Ok(())
    }

    pub(super) fn on_window(&mut self, id: u32, credit: u32) -> Result<(), Violation> {
        let credit = usize::try_from(credit).map_err(|_| Violation::BadCredit(id))?;
        let sum = self.credit.saturating_add(credit);
        if credit == 0 || sum > WINDOW {
            return Err(Violation::BadCredit(id));
        }
        self.credit = sum;
        Ok(())
    }

    /// Ends whatever is not over. What came before the peer's half-close stays readable.
    pub(super) fn on_reset(&mut self) {
        self.outbox = VecDeque::new();
        if self.sending != Sending::Closed {
            self.sending = Sending::Ended(Gone::Reset);
        }
        if self.receiving == Receiving::Open {
            self.receiving = Receiving::Ended(Gone::Reset);
            self.inbox = VecDeque::new();
        }
    }

    /// The session is over. What has arrived stays readable.
    pub(super) fn lose(&mut self) {
        self.outbox = VecDeque::new();
        self.scheduled = false;
        self.crowded = false;
        if !matches!(self.sending, Sending::Closed | Sending::Ended(_)) {
            self.sending = Sending::Ended(Gone::Lost);
        }
        if self.receiving == Receiving::Open {
            self.receiving = Receiving::Ended(Gone::Lost);
        }
    }
}
