//! What is answered to a question, as far as that is known without asking anybody. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use bhatti_types::{Egress, NetPolicy};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamValue};
use hickory_proto::rr::rdata::{A, HTTPS, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::plan::Guest;
use crate::{Ipv4Net, guest_subnet};

/// How long a guest may remember a sibling's address, in seconds.
const SIBLING_TTL: u32 = 5;
/// How long a guest under a policy may remember an address: less than it stays bound.
const MAX_TTL: u32 = 300;
/// How many other names an answer may lead through; resolvers follow no more.
const MAX_CHAIN: usize = 16;
/// What we take over UDP.
const PAYLOAD: u16 = 1232;
/// The most a guest can make us send over UDP.
const MAX_UDP: u16 = 4096;

/// What is to be done about a question.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The answer.
    Answer(Box<Message>),
    /// To be asked of others.
    Forward(Query),
}

/// What an answer from outside comes to for one guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// To be passed on, once these addresses are bound.
    Pass(BTreeSet<Ipv4Addr>),
    /// It leads to this address, which is denied.
    Rebinding(Ipv4Addr),
}

/// The name as policies and siblings are compared with it.
pub(super) fn plain(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    text.trim_end_matches('.').to_owned()
}

/// Decides about a message from `from`. `None`: it is no question.
pub(super) fn decide(
    index: u32,
    guests: &BTreeMap<Ipv4Addr, Guest>,
    from: Ipv4Addr,
    message: &Message,
) -> Option<Verdict> {
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let failed = |code| Some(Verdict::Answer(Box::new(answer(message, code))));
    if message.metadata.op_code != OpCode::Query {
        return failed(ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else { return failed(ResponseCode::FormErr) };
    let Some(asker) = guests.get(&from) else { return failed(ResponseCode::Refused) };
    if query.query_class() != DNSClass::IN {
        return failed(ResponseCode::ServFail);
    }
    let name = plain(query.name());
    if let Some(known) = sibling(index, guests, &name, query) {
        let mut reply = answer(message, ResponseCode::NoError);
        reply.metadata.authoritative = true;
        match known {
            Known::Data(data) => {
                let record = Record::from_rdata(query.name().clone(), SIBLING_TTL, data);
                reply.add_answer(record);
            }
            Known::NoData => {}
            Known::NoName => reply.metadata.response_code = ResponseCode::NXDomain,
        }
        return Some(Verdict::Answer(Box::new(reply)));
    }
    // Policies compare text, where a dot in a label would look like the end of one. No host has it.
    let is_dotted = query.name().iter().any(|label| label.contains(&b'.'));
    if is_dotted || !asker.policy.allows_name(&name) {
        return failed(ResponseCode::Refused);
    }
    // What a guest would do with these is not bound, so it is better off without.
    let unbound = matches!(
        query.query_type(),
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB | RecordType::ANY
    );
    if asker.policy.default_egress() == Egress::Deny && unbound {
        return failed(ResponseCode::NoError);
    }
    Some(Verdict::Forward(query.clone()))
}

/// What we know of a name by ourselves.
enum Known {
    Data(RData),
    /// There is such a name, and it has nothing of that type.
    NoData,
    NoName,
}

fn sibling(
    index: u32,
    guests: &BTreeMap<Ipv4Addr, Guest>,
    name: &str,
    query: &Query,
) -> Option<Known> {
    if let Some(address) = reverse(name) {
        let subnet: Ipv4Net = guest_subnet(index).ok().filter(|net| net.contains(address))?;
        let target = guests.get(&address).filter(|_| address != subnet.network());
        let name = target.and_then(|guest| Name::from_ascii(format!("{}.sb.", guest.name)).ok());
        return Some(match name {
            Some(name) if query.query_type() == RecordType::PTR => {
                Known::Data(RData::PTR(PTR(name)))
            }
            Some(_) => Known::NoData,
            None => Known::NoName,
        });
    }
    // Somebody's sandbox may be called "x.sb" too, so both are looked for; and "Dev" beside "dev",
    // where it counts how the name was written.
    let named = |name: &str, same: fn(&str, &str) -> bool| {
        let short = name.strip_suffix(".sb");
        let is = |guest: &Guest| {
            same(&guest.name, name) || short.is_some_and(|short| same(&guest.name, short))
        };
        guests.iter().find(|(_, guest)| is(guest))
    };
    let written = query.name().to_ascii();
    let written = named(written.trim_end_matches('.'), |one, other| one == other);
    let (address, _) = written.or_else(|| named(name, str::eq_ignore_ascii_case))?;
    Some(match query.query_type() {
        RecordType::A => Known::Data(RData::A(A(*address))),
        _ => Known::NoData,
    })
}

/// The address a name of the reverse tree is about.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let labels: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').collect();
    let [d, c, b, a] = labels.as_slice() else { return None };
    [a, b, c, d].map(|label| label.to_string()).join(".").parse().ok()
}

/// An answer to `message` without anything in it.
pub(super) fn answer(message: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.response_code = code;
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.checking_disabled = message.metadata.checking_disabled;
    // More than one is not looked at, and not sent back either.
    reply.add_queries(message.queries.first().cloned());
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        reply.set_edns(edns);
    }
    reply
}

/// What `outside`, the answer of others to `query`, comes to under `policy`.
pub(super) fn judge(policy: &NetPolicy, query: &Query, outside: &Message) -> Judged {
    let mut addresses = BTreeSet::new();
    // The name asked for, and what it is another name of.
    let mut owners = BTreeSet::from([plain(query.name())]);
    // In whatever order they come: each turn finds one more link of the chain, or was the last.
    for _ in 0..MAX_CHAIN {
        let known = owners.len();
        for record in &outside.answers {
            if let RData::CNAME(target) = &record.data
                && owners.contains(&plain(&record.name))
            {
                owners.insert(plain(&target.0));
            }
        }
        if owners.len() == known {
            break;
        }
    }
    let public = policy.default_egress() == Egress::Public;
    for record in &outside.answers {
        let (told, is_hint) = match &record.data {
            RData::A(A(address)) => (vec![*address], false),
            RData::SVCB(service) | RData::HTTPS(HTTPS(service)) => (hints(service), true),
            _ => continue,
        };
        for address in told {
            // A guest's own loopback is no network of anybody's.
            let its_own = public && address.is_loopback();
            if !its_own && !policy.allows_answer(address) {
                return Judged::Rebinding(address);
            }
            if !is_hint && owners.contains(&plain(&record.name)) {
                addresses.insert(address);
            }
        }
    }
    if public || query.query_type() != RecordType::A {
        addresses.clear();
    }
    Judged::Pass(addresses)
}

/// The addresses that the description of a service has beside it.
fn hints(service: &SVCB) -> Vec<Ipv4Addr> {
    let hint = |(_, value): &(_, SvcParamValue)| match value {
        SvcParamValue::Ipv4Hint(IpHint(addresses)) => addresses.iter().map(|a| a.0).collect(),
        _ => Vec::new(),
    };
    service.svc_params.iter().flat_map(hint).collect()
}

/// What `outside` is passed on as.
pub(super) fn pass_on(message: &Message, policy: &NetPolicy, outside: Message) -> Message {
    let mut reply = answer(message, outside.metadata.response_code);
    reply.metadata.authentic_data = outside.metadata.authentic_data;
    let (mut answers, mut authorities) = (outside.answers, outside.authorities);
    if policy.default_egress() == Egress::Deny {
        for record in answers.iter_mut().chain(&mut authorities) {
            record.ttl = record.ttl.min(MAX_TTL);
        }
    }
    reply.insert_answers(answers);
    reply.insert_authorities(authorities);
    reply
}

/// The bytes of `reply`: whole, or over UDP without its records if the guest has no room for them.
pub(super) fn encode(message: &Message, reply: &Message, transport: Transport) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    let most = match transport {
        Transport::Udp => usize::from(message.max_payload().clamp(512, MAX_UDP)),
        Transport::Tcp => usize::from(u16::MAX),
    };
    if bytes.len() <= most { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

#[cfg(test)]
mod tests;
