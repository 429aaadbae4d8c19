//! Changing what is in sets: one transaction, said to the kernel directly.
//!
//! Starting `nft` for it costs more than the rest of what a new sandbox needs of its network, and there
//! is no kept library in Rust for it; of the protocol it takes three messages. Whole rule sets are still
//! loaded by `nft`.
//!
//! Promise: all of it or nothing; `Ok` means that the kernel has said so.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};

use super::in_namespace;
use crate::NetError;
use crate::plan::Step;

// From `linux/netfilter/nfnetlink.h` and `nf_tables.h`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ITEM: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
/// Of an attribute that has others in it.
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const FAMILY_INET: u8 = 1;
const FAMILY_BRIDGE: u8 = 7;
const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;

/// Has `steps` hold in `table` of a namespace.
pub(crate) async fn change_elements(
    namespace: &str,
    table: &str,
    steps: &[Step],
) -> Result<(), NetError> {
    let Some(batch) = batch(table, steps) else { return Ok(()) };
    let name = namespace.to_owned();
    let said = in_namespace(namespace, move || {
        tell(&batch).map_err(|source| NetError::Rules { namespace: name, source })
    })
    .await?;
    // The rules hold. Closing takes until no packet is on its way by what was deleted (5 to 20 ms
    // measured): whoever makes a sandbox need not wait for that.
    tokio::task::spawn_blocking(move || drop(said));
    Ok(())
}

/// The answer is the socket by which it was said, for the caller to close.
fn tell(batch: &[u8]) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    setsockopt(&socket, SndBufForce, &(2 * batch.len() + 4096))?;
    send(socket.as_raw_fd(), batch, MsgFlags::empty())?;
    let mut heard = false;
    let mut answer = [0; 8192];
    loop {
        // The kernel answers before `send` returns, or never.
        match recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => heard |= understand(answer.get(..length).unwrap_or_default())?,
            Err(Errno::EAGAIN) if heard => return Ok(socket),
            Err(Errno::EAGAIN) => return Err(io::Error::other("the kernel does not answer")),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether an answer says that all is well; what it complains of is the error.
fn understand(answer: &[u8]) -> io::Result<bool> {
    let part = |range| answer.get(range).and_then(|bytes: &[u8]| bytes.try_into().ok());
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, part(16..20).map(i32::from_ne_bytes)) {
        (Some(kind), Some(0)) if i32::from(kind) == libc::NLMSG_ERROR => Ok(true),
        (Some(kind), Some(code)) if i32::from(kind) == libc::NLMSG_ERROR => {
            Err(io::Error::from_raw_os_error(code.saturating_neg()))
        }
        _ => Ok(false),
    }
}

/// The messages of a transaction; nothing for no steps.
fn batch(table: &str, steps: &[Step]) -> Option<Vec<u8>> {
    let (last, rest) = steps.split_last()?;
    let mut batch = Vec::new();
    message(&mut batch, BATCH_BEGIN, 0, (0, SUBSYSTEM), &[]);
    for step in rest {
        element(&mut batch, table, step, 0);
    }
    // One answer is enough: any that is refused is complained of in any case.
    element(&mut batch, table, last, libc::NLM_F_ACK);
    message(&mut batch, BATCH_END, 0, (0, SUBSYSTEM), &[]);
    Some(batch)
}

fn element(batch: &mut Vec<u8>, table: &str, step: &Step, flags: i32) {
    let (key, end) = step.element.key();
    let mut content = nested(ELEMENT_KEY, &attribute(DATA_VALUE, &key));
    if let Some(end) = end {
        content.extend(nested(ELEMENT_KEY_END, &attribute(DATA_VALUE, &end)));
    }
    if let Some(seconds) = step.element.lasts().filter(|_| step.comes) {
        let millis = u64::from(seconds) * 1000;
        content.extend(attribute(ELEMENT_TIMEOUT, &millis.to_be_bytes()));
    }
    let text = |text: &str| [text.as_bytes(), &[0]].concat();
    let list = [
        attribute(LIST_TABLE, &text(table)),
        attribute(LIST_SET, &text(step.set.name())),
        nested(LIST_ELEMENTS, &nested(LIST_ITEM, &content)),
    ];
    let (kind, flags) = if step.comes {
        (NEW_ELEMENT, flags | libc::NLM_F_CREATE)
    } else {
        (DELETE_ELEMENT, flags)
    };
    let family = if step.set.is_of_bridge() { FAMILY_BRIDGE } else { FAMILY_INET };
    message(batch, SUBSYSTEM << 8 | kind, flags, (family, 0), &list.concat());
}

/// Adds a message: the header of netlink, that of netfilter (family, version 0, resource), attributes.
fn message(
    batch: &mut Vec<u8>,
    kind: u16,
    flags: i32,
    (family, resource): (u8, u16),
    attributes: &[u8],
) {
    const HEADERS: usize = 16 + 4;
    // A message is a few hundred bytes, and flags are sixteen bits.
    batch.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    batch.extend(kind.to_ne_bytes());
    batch.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    batch.extend([0; 8]); // sequence number and port: nobody else is spoken to
    batch.extend([family, 0]);
    batch.extend(resource.to_be_bytes());
    batch.extend(attributes);
}

fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, content)
}

/// An attribute, filled up to whole words.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Names and keys: far below what sixteen bits can say.
    let length = (4 + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_a_no_and_rubbish_are_told_apart() {
        let answer = |kind: i32, code: i32| {
            let mut answer = vec![0; 36];
            answer[4..6].copy_from_slice(&(kind as u16).to_ne_bytes());
            answer[16..20].copy_from_slice(&code.to_ne_bytes());
            answer
        };
        assert!(understand(&answer(libc::NLMSG_ERROR, 0)).unwrap());
        let no = understand(&answer(libc::NLMSG_ERROR, -libc::ENOENT)).unwrap_err();
        assert_eq!(no.raw_os_error(), Some(libc::ENOENT));
        assert!(!understand(&answer(libc::NLMSG_DONE, 0)).unwrap());
        assert!(!understand(&[]).unwrap());
    }

    #[test]
    fn attributes_are_whole_words() {
        assert_eq!(attribute(2, b"abc\0\0")[..2], 9u16.to_ne_bytes());
        assert_eq!(attribute(2, b"abc\0\0").len(), 12);
        assert!(batch("t", &[]).is_none());
    }
}
