//! On which ports something listens.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};

use bhatti_wire::message::{ErrorKind, PortsReply};

/// The most that is read of one table, in bytes. What listens comes first in it.
const MAX_TEXT: u64 = 4 << 20;

/// The state of a socket that listens.
const LISTEN: &str = "0A";

/// The tables cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {path}")]
struct PortsError {
    path: &'static str,
    #[source]
    source: io::Error,
}

/// Answers with the TCP ports, in order. The agent itself listens on none.
pub async fn ports() -> PortsReply {
    let failed = |error: &dyn std::error::Error| PortsReply {
        failure: Some(super::failure(ErrorKind::Other, error)),
        ports: Vec::new(),
    };
    // A table of many connections takes the kernel a while.
    match tokio::task::spawn_blocking(listening).await {
        Ok(Ok(ports)) => {
            PortsReply { failure: None, ports: ports.into_iter().map(u32::from).collect() }
        }
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn listening() -> Result<BTreeSet<u16>, PortsError> {
    let mut ports = in_table(&table("/proc/net/tcp")?);
    match table("/proc/net/tcp6") {
        Ok(text) => ports.extend(in_table(&text)),
        // A kernel without IPv6 has no such file.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(ports)
}

fn table(path: &'static str) -> Result<String, PortsError> {
    let failed = |source| PortsError { path, source };
    let mut text = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_TEXT).read_to_end(&mut text).map_err(failed)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn in_table(table: &str) -> BTreeSet<u16> {
    let port = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (own, _peer, state) = (fields.next()?, fields.next()?, fields.next()?);
        let (_address, port) = own.split_once(':')?;
        (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listens_counts_and_each_port_once() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
             0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
             1: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
             2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
             3: 0100007F:1F91 0100007F:9C40 01 00000000:00000000 00:00000000 00000000\n\
             rubbish\n\
             5: 00000000 00000000:0000 0A\n\
             6: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(in_table(table), BTreeSet::from([22, 3000, 8080]));
        assert!(in_table("").is_empty());
    }

    #[tokio::test]
    async fn a_port_of_this_machine_is_found_while_somebody_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = u32::from(listener.local_addr().unwrap().port());
        let reply = ports().await;
        assert_eq!(reply.failure, None);
        assert!(reply.ports.contains(&port) && reply.ports.is_sorted(), "{reply:?}");
    }
}
