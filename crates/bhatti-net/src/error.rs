//! What can go wrong with a network, one variant per thing an operator or a caller can act on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::Ipv4Net;

/// A network could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// All addresses of one user are taken. The text is part of the HTTP contract.
    #[error("IP pool exhausted (253 VMs per user)")]
    PoolExhausted,
    /// More users than the address plan holds.
    #[error("user index {index} is above {max}, the last one with a network")]
    IndexTooLarge { index: u32, max: u32 },
    /// The configured prefix cannot name interfaces and tables.
    #[error("network prefix {prefix:?} must be up to 12 lower-case letters or digits, then a dash")]
    BadPrefix { prefix: String },
    /// The configured transit range cannot be used.
    #[error("transit range {transit} must be a /16 outside 10.0.0.0/8")]
    BadTransit { transit: Ipv4Net },
    /// The configured and all alternative transit ranges are in use on the host.
    #[error("no free transit range: the host uses parts of {}", list(tried))]
    NoTransit { tried: Vec<Ipv4Net> },
    /// A program is not installed.
    #[error("{program} is not installed: install the package {package}")]
    MissingProgram { program: &'static str, package: &'static str },
    /// A program could not be started or spoken to.
    #[error("failed to run {program}")]
    Run {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    /// A program said no; `message` is the beginning of what it said.
    #[error("{program} failed to {action}: {message}")]
    Refused { program: &'static str, action: &'static str, message: String },
    /// A program did not end in time and was killed.
    #[error("{program} did not {action} within {seconds} s")]
    Timeout { program: &'static str, action: &'static str, seconds: u64 },
    /// A program printed something we cannot read.
    #[error("failed to read what {program} printed")]
    Output {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be used.
    #[error("failed to {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel does not change a link, an address or a route; `step` is how `ip` would be told to.
    #[error("failed to do what \"ip {step}\" does")]
    Link {
        step: String,
        #[source]
        source: io::Error,
    },
    /// The kernel does not change the rules of a user's namespace.
    #[error("failed to change the rules of network namespace {namespace}")]
    Rules {
        namespace: String,
        #[source]
        source: io::Error,
    },
    /// The user's namespace is not there.
    #[error("network namespace {namespace} cannot be entered")]
    Namespace {
        namespace: String,
        #[source]
        source: io::Error,
    },
    /// A TAP with this name exists and is held by a process.
    #[error("network device {tap} is still held by a process")]
    TapBusy { tap: String },
    /// A step of making a TAP failed.
    #[error("failed to {step} network device {tap}")]
    Tap {
        step: &'static str,
        tap: String,
        #[source]
        source: io::Error,
    },
    /// The name server of a user cannot listen.
    #[error("failed to listen for names on {address}, port 53, in a user's namespace")]
    Listen {
        address: Ipv4Addr,
        #[source]
        source: io::Error,
    },
    /// A socket to reach a guest with could not be made.
    #[error("failed to make a socket in a user's network")]
    Socket(#[source] io::Error),
    /// A guest does not take a connection at its address.
    #[error("{address} took no connection")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// No such machine is in the user's network.
    #[error("no machine {id} is at {address}")]
    NotThere { id: String, address: Ipv4Addr },
    /// A guest had more names resolved than are bound at a time.
    #[error("{guest} has as many addresses bound as it may have")]
    TooManyBindings { guest: Ipv4Addr },
    /// Who is in a user's network could not be found out.
    #[error("failed to look up who is in a user's network")]
    Directory(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread or task of ours died; a bug, or the daemon is shutting down.
    #[error("the task applying a network change ended early")]
    TaskDied,
}

fn list(nets: &[Ipv4Net]) -> String {
    nets.iter().map(Ipv4Net::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sentences_without_their_cause() {
        let source = || io::Error::other("the cause");
        let tap = "t00000000".to_owned();
        for error in [
            NetError::Run { program: "ip", source: source() },
            NetError::Output { program: "ip", source: source() },
            NetError::File { action: "open", path: "/x".into(), source: source() },
            NetError::Namespace { namespace: "n".into(), source: source() },
            NetError::Link { step: "link delete dev v".into(), source: source() },
            NetError::Rules { namespace: "n".into(), source: source() },
            NetError::Tap { step: "make", tap, source: source() },
        ] {
            assert!(!error.to_string().contains("the cause"), "{error}");
            assert!(std::error::Error::source(&error).is_some(), "{error}");
        }
        let missing = NetError::MissingProgram { program: "nft", package: "nftables" };
        assert_eq!(missing.to_string(), "nft is not installed: install the package nftables");
    }
}
