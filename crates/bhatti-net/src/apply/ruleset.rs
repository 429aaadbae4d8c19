//! Whether anybody has changed nftables rules: one question to the kernel, no process.
//!
//! The kernel counts the transactions that changed the rules of a network namespace. While the
//! number is what it was when our table was last seen, the table is still there: so opening a TAP
//! need not start `nft` each time.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket};

/// From `linux/netfilter/nf_tables.h` and `nfnetlink.h`: "get generation" of that subsystem.
const GET_GENERATION: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | 16;
/// The attribute with the number, a big-endian `u32`.
const GENERATION_ID: u16 = 1;
/// Bytes of a netlink header and of the netfilter header behind it.
const HEADERS: usize = 16 + 4;

/// The number of the present rules of this thread's network namespace; `None` if the kernel does
/// not say, and nothing may be concluded.
pub(crate) fn generation() -> Option<u32> {
    ask().ok().flatten()
}

fn ask() -> io::Result<Option<u32>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        nix::sys::socket::SockProtocol::NetlinkNetFilter,
    )?;
    let mut request = Vec::with_capacity(HEADERS);
    request.extend((HEADERS as u32).to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend([0; 8]); // sequence number and port: one question, one answer
    request.extend([0; 4]); // no family, version 0, no resource
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 512];
    // The kernel answers before `send` returns, or never.
    let bytes = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    Ok(read(answer.get(..bytes).unwrap_or_default()))
}

/// The number in an answer.
fn read(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    // The answer is called "new generation", one less than the question.
    if kind != GET_GENERATION - 1 {
        return None;
    }
    let mut rest = answer.get(HEADERS..)?;
    while let Some(head) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = rest.get(4..length)?;
        if kind == GENERATION_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        // Attributes begin at multiples of four.
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_rubbish_is_not() {
        let mut answer = vec![0; HEADERS];
        answer[4..6].copy_from_slice(&(GET_GENERATION - 1).to_ne_bytes());
        // Another attribute of five bytes first, then the number.
        answer.extend([5u16.to_ne_bytes(), 7u16.to_ne_bytes()].concat());
        answer.extend([1, 0, 0, 0]);
        answer.extend([8u16.to_ne_bytes(), GENERATION_ID.to_ne_bytes()].concat());
        answer.extend(0x0102_0304u32.to_be_bytes());
        assert_eq!(read(&answer), Some(0x0102_0304));
        for end in 0..answer.len() {
            assert_eq!(read(&answer[..end]), None, "{end}");
        }
        answer[4] ^= 1;
        assert_eq!(read(&answer), None, "an error, or something else");
    }

    #[test]
    fn an_attribute_without_length_ends_the_search() {
        let mut answer = vec![0; HEADERS + 8];
        answer[4..6].copy_from_slice(&(GET_GENERATION - 1).to_ne_bytes());
        assert_eq!(read(&answer), None);
    }
}
