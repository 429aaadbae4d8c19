//! What listens in the guest, and a way to it.

use super::Failure;

/// Asks on which TCP ports something listens, on any address. Feature `ports`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ListeningPorts {}

/// The answer to [`ListeningPorts`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct PortsReply {
    /// On the tag [`Reply`](super::Reply) has it.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
    /// In order, each once.
    #[prost(uint32, repeated, tag = "2")]
    pub ports: Vec<u32>,
}

/// Connects to a TCP port of the guest's own loopback: `127.0.0.1`, or `::1` where only that is
/// listened on. Feature `dial`.
///
/// [`ErrorKind::Refused`](super::ErrorKind::Refused): nobody listens.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Dial {
    /// 1 to 65535.
    #[prost(uint32, tag = "1")]
    pub port: u32,
}
