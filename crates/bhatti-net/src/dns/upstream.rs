//! Asking the host's name servers on behalf of a guest.
//!
//! Promises: each question goes from a port of its own with a number of its own, and only its
//! answer, from whom it was asked, is taken; nothing of what the guest sent but the question leaves
//! the host; every wait and every length is bounded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// What we say we take over UDP: what passes every path whole.
const PAYLOAD: u16 = 1232;
/// So many datagrams that are no answer, and the server is given up: somebody guesses.
const MAX_STRAY: u32 = 32;

/// What the first server that knows says; `None` if none does.
pub(super) async fn ask(servers: &[IpAddr], query: &Query, dnssec_ok: bool) -> Option<Message> {
    let mut last = None;
    for &server in servers {
        match tokio::time::timeout(PATIENCE, ask_one(server, query, dnssec_ok)).await {
            Ok(Ok(answer)) => match answer.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => return Some(answer),
                _ => last = Some(answer),
            },
            Ok(Err(error)) => tracing::debug!(%server, %error, "a name server does not answer"),
            Err(_) => tracing::debug!(%server, "a name server does not answer in time"),
        }
    }
    last
}

async fn ask_one(server: IpAddr, query: &Query, dnssec_ok: bool) -> std::io::Result<Message> {
    let server = SocketAddr::new(server, 53);
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_dnssec_ok(dnssec_ok);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(std::io::Error::other)?;
    let answer = over_udp(server, &question, &bytes).await?;
    if answer.metadata.truncation { over_tcp(server, &question, &bytes).await } else { Ok(answer) }
}

async fn over_udp(
    server: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> std::io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel chooses the port, at random; and passes on only what the server sends.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; 4096];
    for _ in 0..MAX_STRAY {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = read(buffer.get(..length).unwrap_or_default(), question) {
            return Ok(answer);
        }
    }
    Err(std::io::Error::other("many datagrams, none of them the answer"))
}

async fn over_tcp(
    server: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    read(&answer, question).ok_or_else(|| std::io::Error::other("it answers another question"))
}

/// The answer to `question`, if that is what the bytes are.
fn read(bytes: &[u8], question: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let ours = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries;
    ours.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Name, RecordType};

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let query = |name: &str| Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        let mut question = Message::query();
        question.add_query(query("a.example."));
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query("a.example."));
        let bytes = |message: &Message| message.to_vec().unwrap();
        assert!(read(&bytes(&answer), &question).is_some());
        assert!(read(&bytes(&question), &question).is_none(), "a question");
        let mut other = answer.clone();
        other.metadata.id ^= 1;
        assert!(read(&bytes(&other), &question).is_none(), "another number");
        other = answer.clone();
        other.queries = vec![query("b.example.")];
        assert!(read(&bytes(&other), &question).is_none(), "another question");
        let whole = bytes(&answer);
        for end in 0..whole.len() {
            assert!(read(&whole[..end], &question).is_none(), "{end} bytes");
        }
    }
}
