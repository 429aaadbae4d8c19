//! What listens in the guest.

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
