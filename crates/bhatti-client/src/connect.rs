//! Making a connection, one timed phase after the other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, InvalidMessage, RootCertStore};

use crate::{ClientError, Endpoint, Scheme, Timing};

/// For resolving, connecting and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a request.
pub(crate) type Outgoing = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Sender = http1::SendRequest<Outgoing>;

/// A fresh connection, and how long its phases took.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<(Sender, Timing), ClientError> {
    let fail = |source| ClientError::Connect { url: endpoint.to_string(), source };
    timeout(CONNECT_TIMEOUT, open(endpoint))
        .await
        .unwrap_or_else(|_| {
            let text = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })
        .map_err(fail)
}

async fn open(endpoint: &Endpoint) -> io::Result<(Sender, Timing)> {
    let mut timing = Timing::default();
    let started = Instant::now();
    let literal = endpoint.host.parse().ok().map(|ip| SocketAddr::new(ip, endpoint.port));
    let addresses: Vec<SocketAddr> = match literal {
        Some(address) => vec![address],
        None => {
            let name = (endpoint.host.as_str(), endpoint.port);
            let found = tokio::net::lookup_host(name).await?.collect();
            timing.dns = Some(started.elapsed());
            found
        }
    };
    let started = Instant::now();
    let stream = dial(&addresses).await?;
    stream.set_nodelay(true)?;
    timing.connect = Some(started.elapsed());
    let sender = match endpoint.scheme {
        Scheme::Http => handshake(stream).await?,
        Scheme::Https => {
            let started = Instant::now();
            let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(tls_config()?);
            let stream = connector.connect(name, stream).await;
            let stream = stream.map_err(|error| without_tls(error, endpoint))?;
            timing.tls = Some(started.elapsed());
            handshake(stream).await?
        }
    };
    Ok((sender, timing))
}

/// Who answers with something else altogether most likely speaks plain HTTP, as the daemon does by
/// itself.
fn without_tls(error: io::Error, endpoint: &Endpoint) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            let mut plain = endpoint.clone();
            plain.scheme = Scheme::Http;
            let text = format!("the server does not speak TLS; did you mean {plain}?");
            io::Error::new(io::ErrorKind::InvalidData, text)
        }
        _ => error,
    }
}

/// Tries the addresses in the resolver's order; the last failure is the one reported.
async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (index, address) in addresses.iter().enumerate() {
        // A silent first address must leave time for the others.
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        match timeout(CONNECT_TIMEOUT / (left + 1), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::Error::new(io::ErrorKind::TimedOut, "no answer"),
        }
    }
    Err(failure)
}

async fn handshake<S>(stream: S) -> io::Result<Sender>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends by itself when the sender and the last body are dropped; what it fails with also
    // reaches whoever waits for the answer.
    drop(tokio::spawn(connection.with_upgrades()));
    Ok(sender)
}

fn tls_config() -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (usable, _unusable) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "this system has no CA certificates (package ca-certificates)",
        ));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_server_of_plain_http_is_recognised() {
        let (near, mut far) = tokio::io::duplex(4096);
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("taken");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        let refused = TlsConnector::from(Arc::new(config)).connect(name, near).await;
        let endpoint = Endpoint::parse("https://localhost:8080/api").expect("an address");
        let error = without_tls(refused.expect_err("no TLS"), &endpoint);
        assert_eq!(
            error.to_string(),
            "the server does not speak TLS; did you mean http://localhost:8080/api?"
        );
        let other = without_tls(io::ErrorKind::UnexpectedEof.into(), &endpoint);
        assert_eq!(other.kind(), io::ErrorKind::UnexpectedEof);
    }
}
