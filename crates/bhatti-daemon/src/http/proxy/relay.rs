//! Two byte streams joined, when neither is HTTP any more.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

use super::meter::Meter;

/// What is held of each direction, in bytes.
const BUFFER: usize = 16 * 1024;

/// How long one direction may go on without a byte once the other has ended: most who hang up do
/// not mean to be told any more.
const AFTER_HALF: Duration = Duration::from_secs(600);

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Relay {
    /// Both sides have half-closed.
    Closed,
    /// One of the two is gone.
    Broke,
    /// No byte moved for too long.
    Quiet,
}

/// Joins `client` and `program` until both directions have ended, one broke, or no byte has moved
/// for `idle`. Dropping this ends both.
pub(in crate::http) async fn relay(
    client: impl AsyncRead + AsyncWrite + Send,
    program: impl AsyncRead + AsyncWrite + Send,
    idle: Option<Duration>,
) -> Relay {
    let meter = Meter::new();
    let (mut from_client, mut to_client) = split(client);
    let (mut from_program, mut to_program) = split(program);
    let mut up = std::pin::pin!(pass_on(&mut from_client, &mut to_program, &meter));
    let mut down = std::pin::pin!(pass_on(&mut from_program, &mut to_client, &meter));
    let quiet = async {
        match idle {
            Some(idle) => meter.quiet_for(idle).await,
            None => std::future::pending().await,
        }
    };
    let mut quiet = std::pin::pin!(quiet);
    let other: std::pin::Pin<&mut (dyn Future<Output = bool> + Send)> = tokio::select! {
        whole = &mut up => if whole { down } else { return Relay::Broke },
        whole = &mut down => if whole { up } else { return Relay::Broke },
        () = &mut quiet => return Relay::Quiet,
    };
    tokio::select! {
        whole = other => if whole { Relay::Closed } else { Relay::Broke },
        () = meter.quiet_for(AFTER_HALF) => Relay::Quiet,
        () = quiet => Relay::Quiet,
    }
}

/// True: the half-close was passed on too.
async fn pass_on(
    from: &mut (impl AsyncRead + Unpin + Send),
    to: &mut (impl AsyncWrite + Unpin + Send),
    meter: &Meter,
) -> bool {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => return to.shutdown().await.is_ok(),
            Ok(n) => n,
            Err(_) => return false,
        };
        meter.touch();
        let mut left = &buffer[..n];
        while !left.is_empty() {
            match to.write(left).await {
                Ok(0) | Err(_) => return false,
                Ok(n) => {
                    // One who takes a little now and then is there.
                    meter.touch();
                    left = &left[n..];
                }
            }
        }
        if to.flush().await.is_err() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;
    use tokio::time::Instant;

    const IDLE: Option<Duration> = Some(Duration::from_secs(600));

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let ((client, one), (two, mut program)) = (duplex(64), duplex(64));
        let (mut hear, mut say) = split(client);
        let ask = async {
            say.write_all(b"ask").await.expect("taken");
            say.shutdown().await.expect("half-closed");
        };
        let answer = async {
            let mut asked = String::new();
            program.read_to_string(&mut asked).await.expect("an end");
            program.write_all(asked.repeat(1000).as_bytes()).await.expect("taken");
            program.shutdown().await.expect("half-closed");
        };
        let mut heard = String::new();
        let listen = hear.read_to_string(&mut heard);
        let (end, (), (), heard_whole) = tokio::join!(relay(one, two, IDLE), ask, answer, listen);
        assert_eq!((end, heard_whole.expect("an end")), (Relay::Closed, 3000));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let ((_client, one), (two, _program)) = (duplex(64), duplex(64));
        let started = Instant::now();
        assert_eq!(relay(one, two, IDLE).await, Relay::Quiet);
        assert_eq!(started.elapsed().as_secs(), 600);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_stays_half_closed_ends_even_without_a_limit() {
        let ((mut client, one), (two, _program)) = (duplex(64), duplex(64));
        client.shutdown().await.expect("half-closed");
        assert_eq!(relay(one, two, None).await, Relay::Quiet);
    }
}
