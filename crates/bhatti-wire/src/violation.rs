//! What a peer can do wrong on the carrier.

/// The peer broke the protocol. The host ends the link, the guest hunts for a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("frame of another session")]
    Epoch,
    #[error("frame with a length of {0}")]
    Length(u32),
    #[error("frame cut short")]
    Seal,
    #[error("unexpected handshake record")]
    Record,
    #[error("handshake version {0} is not known here")]
    Version(u8),
    #[error("frame for stream {0}, which was never opened")]
    NeverOpened(u32),
    #[error("stream {0} opened out of order")]
    BadOpen(u32),
    #[error("more data on stream {0} than its window allows")]
    Overrun(u32),
    #[error("data on stream {0} after its end")]
    AfterFin(u32),
    #[error("more credit on stream {0} than its window holds")]
    BadCredit(u32),
}
