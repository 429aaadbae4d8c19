//! Any bytes as a question of a guest, and as the answer of a server outside. Shared by the tests and
//! `fuzz/`; in no daemon.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bhatti_types::{EngineId, NetPolicy};
use hickory_proto::op::Message;
use hickory_proto::rr::RData;

use super::reply::{self, Judged, Transport, Verdict};
use crate::plan::Guest;

const ASKER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

/// Has a name server take `input`: a byte that chooses a policy, two with the length of the question, the
/// question, and the answer from outside.
///
/// # Panics
///
/// If something comes out that no guest may be told.
pub fn names(input: &[u8]) {
    let [choice, high, low, rest @ ..] = input else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (question, outside) = rest.split_at(length);
    let policy = policy(*choice);
    // As its transports do.
    let Ok(message) = Message::from_vec(question) else { return };
    let id = EngineId::random();
    let asker = Guest { name: "me".to_owned(), id, policy: policy.clone() };
    let guests = BTreeMap::from([(ASKER, asker)]);
    match reply::decide(1, &guests, ASKER, &message) {
        None => {}
        Some(Verdict::Answer(answer)) => tell(&message, &answer),
        Some(Verdict::Forward(query)) => {
            let name = reply::plain(query.name());
            assert!(policy.allows_name(&name), "{name:?} is asked of others");
            let Ok(outside) = Message::from_vec(outside) else { return };
            let Judged::Pass(bound) = reply::judge(&policy, &query, &outside) else { return };
            assert!(bound.iter().all(|address| policy.allows_answer(*address)), "{bound:?}");
            let answer = reply::pass_on(&message, &policy, outside);
            for record in &answer.answers {
                if let RData::A(address) = &record.data {
                    let its_own = policy.allow_hosts().is_empty() && address.0.is_loopback();
                    assert!(its_own || policy.allows_answer(address.0), "{record}");
                }
            }
            tell(&message, &answer);
        }
    }
}

fn policy(choice: u8) -> NetPolicy {
    let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let (default, hosts, cidrs): (_, &[&str], &[&str]) = match choice % 3 {
        0 => ("public", &[], &[]),
        1 => ("deny", &["*.example", "a.test"], &["192.168.7.0/24"]),
        _ => ("public", &[], &["10.0.0.0/8"]),
    };
    NetPolicy::parse(default, &own(hosts), &own(cidrs)).expect("a policy that is one")
}

/// What goes back is an answer to the question, and no longer than its transport takes.
fn tell(message: &Message, answer: &Message) {
    for (transport, most) in [(Transport::Udp, 4096), (Transport::Tcp, usize::from(u16::MAX))] {
        let Some(bytes) = reply::encode(message, answer, transport) else { continue };
        assert!(bytes.len() <= most, "{} bytes over {transport:?}", bytes.len());
        let told = Message::from_vec(&bytes).expect("what is sent can be read");
        assert_eq!(told.metadata.id, message.metadata.id);
        assert!(told.queries.len() <= 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::names(&bytes);
        }

        #[test]
        fn a_damaged_exchange(
            choice in 0u8..3,
            at in 0usize..200,
            bytes in proptest::collection::vec(any::<u8>(), 1..4),
        ) {
            for seed in SEEDS {
                let mut input = seed.to_vec();
                input[0] = choice;
                super::names(&input);
                for (to, from) in input.iter_mut().skip(3 + at).zip(&bytes) {
                    *to = *from;
                }
                super::names(&input);
            }
        }
    }

    /// What fuzzing begins with.
    const SEEDS: [&[u8]; 5] = [
        include_bytes!("../../../../fuzz/seeds/names/address"),
        include_bytes!("../../../../fuzz/seeds/names/alias"),
        include_bytes!("../../../../fuzz/seeds/names/pointer"),
        include_bytes!("../../../../fuzz/seeds/names/service"),
        include_bytes!("../../../../fuzz/seeds/names/sibling"),
    ];
}
