//! A stream of the host joined to a TCP port of this machine.
//!
//! Nothing of it goes through the machine's network: what listens on the loopback only is reached,
//! and a broken `eth0` or firewall is in nobody's way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bhatti_link::write_message;
use bhatti_wire::message::{Dial, ErrorKind, Failure, Reply};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a connection may take to be made. On the loopback only a full queue of the listener
/// takes longer than nothing.
const CONNECT: Duration = Duration::from_secs(5);

/// What is held of each direction, in bytes.
const BUFFER: usize = 32 * 1024;

/// Connects, answers, and passes bytes on until both directions have ended, or one broke.
pub async fn dial<S>(request: Dial, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match connect(request.port).await {
        Ok(connection) => {
            // If it cannot be said, the host is gone, and the connection with it.
            if write_message(&mut stream, &Reply { failure: None }).await.is_ok() {
                join(stream, connection).await;
            }
        }
        Err(failure) => super::send_last(&mut stream, &Reply { failure: Some(failure) }).await,
    }
}

/// How one direction ended.
#[derive(Debug)]
enum End {
    /// It was half-closed, and so was the other side.
    Closed,
    /// There is nothing more to be read.
    FromBroke,
    /// There is nobody left to write to.
    ToBroke,
}

/// Returns when both have ended. Both are dropped then: after a break whoever is left sees that it
/// was no good end, the host a reset stream, the program a connection that broke off.
async fn join(stream: impl AsyncRead + AsyncWrite, mut connection: TcpStream) {
    let (mut from_host, mut to_host) = split(stream);
    let (mut from_program, mut to_program) = connection.split();
    let mut up = std::pin::pin!(pass_on(&mut from_host, &mut to_program));
    let mut down = std::pin::pin!(pass_on(&mut from_program, &mut to_host));
    tokio::select! {
        end = &mut up => match end {
            // A program that takes no more may have said why: that is how a server refuses what is
            // too large.
            End::Closed | End::ToBroke => {
                down.await;
            }
            End::FromBroke => {}
        },
        end = &mut down => match end {
            End::Closed => {
                up.await;
            }
            End::FromBroke | End::ToBroke => {}
        },
    }
}

/// Passes bytes on until there are no more, holding a few at a time.
async fn pass_on(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> End {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => {
                return if to.shutdown().await.is_ok() { End::Closed } else { End::ToBroke };
            }
            Ok(n) => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return End::ToBroke;
                }
            }
            Err(_) => return End::FromBroke,
        }
    }
}

async fn connect(port: u32) -> Result<TcpStream, Failure> {
    let port = match u16::try_from(port) {
        Ok(port @ 1..) => port,
        _ => {
            return Err(Failure {
                kind: ErrorKind::Invalid.into(),
                message: format!("{port} is no port"),
            });
        }
    };
    let first = match connect_to(Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    // What was wrong with the address everybody means is what is told.
    connect_to(Ipv6Addr::LOCALHOST.into(), port).await.map_err(|_| failed(port, &first))
}

async fn connect_to(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect(SocketAddr::new(address, port));
    let connection = timeout(CONNECT, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // What the host sends in pieces is meant to arrive in pieces.
    connection.set_nodelay(true)?;
    Ok(connection)
}

fn failed(port: u16, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure {
            kind: ErrorKind::Refused.into(),
            message: format!("nothing listens on port {port}"),
        },
        io::ErrorKind::TimedOut => Failure {
            kind: ErrorKind::Other.into(),
            message: format!("port {port} took no connection within {} s", CONNECT.as_secs()),
        },
        _ => Failure {
            kind: ErrorKind::Other.into(),
            message: format!("port {port} cannot be connected to: {error}"),
        },
    }
}
