//! Decisions of the name server, one question at a time.

use bhatti_types::EngineId;
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::rdata::svcb::SvcParamKey;
use proptest::prelude::*;

use super::*;

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

fn policy(default: &str, hosts: &[&str], cidrs: &[&str]) -> NetPolicy {
    let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    NetPolicy::parse(default, &own(hosts), &own(cidrs)).unwrap()
}

fn guests(policy: NetPolicy) -> BTreeMap<Ipv4Addr, Guest> {
    BTreeMap::from([(ME, Guest { name: "me".to_owned(), id: EngineId::random(), policy })])
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(name(text), kind));
    message
}

/// The code of the answer; `None`: it is asked of others.
fn code(policy: &NetPolicy, message: &Message) -> Option<ResponseCode> {
    match decide(1, &guests(policy.clone()), ME, message).unwrap() {
        Verdict::Answer(reply) => {
            assert!(reply.queries.len() <= 1 && reply.metadata.id == message.metadata.id);
            Some(reply.metadata.response_code)
        }
        Verdict::Forward(query) => {
            assert_eq!(query, message.queries[0]);
            None
        }
    }
}

#[test]
fn what_is_no_question_of_a_guest_is_refused() {
    let open = NetPolicy::default();
    let good = question("a.example.", RecordType::A);
    assert_eq!(code(&open, &good), None);
    let mut update = good.clone();
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&open, &update), Some(ResponseCode::NotImp));
    assert_eq!(code(&open, &Message::query()), Some(ResponseCode::FormErr));
    let mut chaos = good.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&open, &chaos), Some(ResponseCode::ServFail));
    let reply = answer(&good, ResponseCode::NoError);
    assert!(decide(1, &guests(open.clone()), ME, &reply).is_none(), "an answer");
    let stranger = decide(1, &guests(open), Ipv4Addr::new(10, 0, 1, 9), &good).unwrap();
    let Verdict::Answer(reply) = stranger else { panic!("{stranger:?}") };
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn a_policy_decides_before_anybody_is_asked() {
    let narrow = policy("deny", &["*.example"], &[]);
    for (text, kind, expected) in [
        ("a.example.", RecordType::A, None),
        ("A.EXAMPLE.", RecordType::TXT, None),
        ("a.example.", RecordType::AAAA, Some(ResponseCode::NoError)),
        ("a.example.", RecordType::HTTPS, Some(ResponseCode::NoError)),
        ("secret.evil.test.", RecordType::A, Some(ResponseCode::Refused)),
        ("secret.evil.test.", RecordType::AAAA, Some(ResponseCode::Refused)),
        ("1.2.0.192.in-addr.arpa.", RecordType::PTR, Some(ResponseCode::Refused)),
        ("me.", RecordType::A, Some(ResponseCode::NoError)),
    ] {
        assert_eq!(code(&narrow, &question(text, kind)), expected, "{text} {kind}");
    }
}

#[test]
fn a_dot_in_a_label_is_no_end_of_one() {
    let below = policy("deny", &["*.a.example"], &[]);
    let labels: [&[u8]; 2] = [b"x.a", b"example"];
    let mut message = question("b.a.example.", RecordType::A);
    assert_eq!(code(&below, &message), None);
    message.queries[0].set_name(Name::from_labels(labels).unwrap());
    assert_eq!(code(&below, &message), Some(ResponseCode::Refused));
}

/// An answer to a question for `a.example` with these records.
fn outside(records: &[(&str, RData)]) -> Message {
    let asked = question("a.example.", RecordType::A);
    let mut message = answer(&asked, ResponseCode::NoError);
    let record =
        |(owner, data): &(&str, RData)| Record::from_rdata(name(owner), 86_400, data.clone());
    message.insert_answers(records.iter().map(record).collect());
    message
}

#[test]
fn only_what_the_name_leads_to_is_bound() {
    let narrow = policy("deny", &["a.example"], &["192.168.7.0/24"]);
    let asked = question("a.example.", RecordType::A);
    let query = &asked.queries[0];
    let a = |text: &str| RData::A(A(text.parse().unwrap()));
    let alias = |text: &str| RData::CNAME(CNAME(name(text)));
    let judged =
        |policy: &NetPolicy, records: &[(&str, RData)]| judge(policy, query, &outside(records));
    let bound =
        |texts: &[&str]| Judged::Pass(texts.iter().map(|text| text.parse().unwrap()).collect());
    // A chain in the wrong order, and a record about a name nobody asked for.
    let chain = [
        ("c.example.", a("192.0.2.1")),
        ("b.example.", alias("c.example.")),
        ("a.example.", alias("b.example.")),
        ("other.example.", a("192.0.2.66")),
    ];
    assert_eq!(judged(&narrow, &chain), bound(&["192.0.2.1"]));
    assert_eq!(judged(&NetPolicy::default(), &chain), bound(&[]), "nothing to bind");
    let lan = [("a.example.", a("192.168.7.1"))];
    assert_eq!(judged(&narrow, &lan), bound(&["192.168.7.1"]));
    for (policy, address) in [
        (&narrow, "192.168.8.1"),
        (&narrow, "169.254.169.254"),
        (&narrow, "127.0.0.1"),
        (&NetPolicy::default(), "192.168.7.1"),
    ] {
        let refused = judged(policy, &[("a.example.", a("192.0.2.1")), ("a.example.", a(address))]);
        assert_eq!(refused, Judged::Rebinding(address.parse().unwrap()));
    }
    // A hint is an address too, and nobody bound one.
    let hint = |text: &str| {
        let hint = SvcParamValue::Ipv4Hint(IpHint(vec![A(text.parse().unwrap())]));
        let params = vec![(SvcParamKey::Ipv4Hint, hint)];
        [("a.example.", RData::HTTPS(HTTPS(SVCB::new(1, name("."), params))))]
    };
    assert_eq!(judged(&NetPolicy::default(), &hint("192.0.2.1")), bound(&[]));
    let refused = judged(&NetPolicy::default(), &hint("10.0.1.3"));
    assert_eq!(refused, Judged::Rebinding("10.0.1.3".parse().unwrap()));
    let loopback = [("a.example.", a("127.0.0.1"))];
    assert_eq!(judged(&NetPolicy::default(), &loopback), bound(&[]), "its own");
}

#[test]
fn a_guest_is_told_to_ask_again_before_the_binding_ends() {
    let asked = question("a.example.", RecordType::A);
    let data = [("a.example.", RData::A(A(Ipv4Addr::new(192, 0, 2, 1))))];
    let ttl = |policy: &NetPolicy| pass_on(&asked, policy, outside(&data)).answers[0].ttl;
    assert_eq!(ttl(&NetPolicy::default()), 86_400);
    assert!(ttl(&policy("deny", &["a.example"], &[])) < crate::plan::BOUND);
}

#[test]
fn what_does_not_fit_is_cut_over_udp_alone() {
    let asked = question("a.example.", RecordType::A);
    let many: Vec<_> =
        (0..200).map(|i| ("a.example.", RData::A(A(Ipv4Addr::from_bits(i))))).collect();
    let reply = pass_on(&asked, &NetPolicy::default(), outside(&many));
    let udp = Message::from_vec(&encode(&asked, &reply, Transport::Udp).unwrap()).unwrap();
    assert!(udp.metadata.truncation && udp.answers.is_empty());
    let tcp = Message::from_vec(&encode(&asked, &reply, Transport::Tcp).unwrap()).unwrap();
    assert!(!tcp.metadata.truncation && tcp.answers.len() == 200);
}

proptest! {
    /// Whatever a guest sends: no panic, and an answer to nobody else's question.
    #[test]
    fn bytes_of_a_guest(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let Ok(message) = Message::from_vec(&bytes) else { return Ok(()) };
        let guests = guests(NetPolicy::closed());
        if let Some(Verdict::Answer(reply)) = decide(1, &guests, ME, &message) {
            prop_assert_eq!(reply.metadata.id, message.metadata.id);
            prop_assert!(encode(&message, &reply, Transport::Udp).is_none_or(|b| b.len() <= 4096));
        }
    }
}
