//! The name server, asked by guests: siblings, the world, policies.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::Ipv4Addr;

use bhatti_net::Denied;
use bhatti_types::NetPolicy;
use hickory_proto::op::ResponseCode::{NXDomain, NoError, Refused, ServFail};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::guest::Guest;
use crate::host::{
    Nets, WORLD, gateway, guest, guests, inside, ip, is_silent, networks, on_fresh_host, policy,
    receive, run, wait_for, world_socket,
};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(text: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

/// What the guest is told, as soon as somebody answers.
pub(crate) fn ask(guest: &Guest, text: &str, kind: RecordType) -> (ResponseCode, Vec<RData>) {
    ask_of(guest, gateway(1), text, kind)
}

/// What the guest is told in the name of `server`.
fn ask_of(
    guest: &Guest,
    server: Ipv4Addr,
    text: &str,
    kind: RecordType,
) -> (ResponseCode, Vec<RData>) {
    let question = query(text, kind);
    let answer = guest.ask(server, &question.to_vec().unwrap());
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.queries, question.queries);
    let data = answer.answers.into_iter().map(|record| record.data).collect();
    (answer.metadata.response_code, data)
}

pub(crate) fn a(address: Ipv4Addr) -> Vec<RData> {
    vec![RData::A(A(address))]
}

/// The world's name server: it knows a few names.
fn world_knows(question: &Message) -> Message {
    let query = question.queries.first().unwrap();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.add_query(query.clone());
    let mut add = |owner: &str, data| {
        answer.add_answer(Record::from_rdata(name(owner), 86400, data));
    };
    let asked = query.name().to_ascii().to_ascii_lowercase();
    match asked.as_str() {
        "world.example." => add(&asked, RData::A(A(WORLD))),
        "alias.example." => {
            add(&asked, RData::CNAME(CNAME(name("elsewhere.test."))));
            add("elsewhere.test.", RData::A(A(WORLD)));
        }
        // Whoever has this name would have the guest talk to a private network.
        "rebind.example." => add(&asked, RData::A(A(Ipv4Addr::new(192, 168, 7, 1)))),
        "metadata.example." => add(&asked, RData::A(A(Ipv4Addr::new(169, 254, 169, 254)))),
        _ => answer.metadata.response_code = NXDomain,
    }
    answer
}

/// Has the world answer for names, over UDP, until the test ends. Each answer comes after one that
/// somebody else might have sent.
fn serve_names() {
    let socket = inside("world", || std::net::UdpSocket::bind((WORLD, 53)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let answer = world_knows(&question);
            let mut forged = answer.clone();
            forged.metadata.id ^= 1;
            forged.answers = vec![Record::from_rdata(
                question.queries[0].name().clone(),
                9,
                RData::A(A(Ipv4Addr::new(203, 0, 113, 66))),
            )];
            for message in [forged, answer] {
                socket.send_to(&message.to_vec().unwrap(), from).unwrap();
            }
        }
    });
}

#[test]
fn siblings_have_names() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let mine = guests(&nets, 1, 2).await;
        // Somebody else's, and one that sleeps.
        let theirs = nets.people.add(2, NetPolicy::default()).1;
        nets.people.change(2, theirs, |guest| guest.name = "theirs".to_owned());
        let asleep = nets.people.add(1, NetPolicy::default()).1;
        nets.people.change(1, asleep, |guest| guest.name = "Sleepy.One".to_owned());
        let (me, sibling) = (&mine[0], &mine[1]);

        for known in ["g3.", "g3.sb.", "G3.SB."] {
            assert_eq!(ask(me, known, RecordType::A), (NoError, a(sibling.address())), "{known}");
        }
        assert_eq!(ask(me, "g2.", RecordType::A), (NoError, a(me.address())), "itself");
        assert_eq!(ask(me, "sleepy.one.sb.", RecordType::A), (NoError, a(asleep)));
        assert_eq!(ask(me, "g3.sb.", RecordType::AAAA), (NoError, vec![]));
        let pointer = vec![RData::PTR(PTR(name("g3.sb.")))];
        assert_eq!(ask(me, "3.1.0.10.in-addr.arpa.", RecordType::PTR), (NoError, pointer));
        assert_eq!(ask(me, "99.1.0.10.in-addr.arpa.", RecordType::PTR), (NXDomain, vec![]));

        serve_names();
        for nobody in ["theirs.", "theirs.sb.", "g99.sb.", "2.2.0.10.in-addr.arpa."] {
            assert_eq!(ask(me, nobody, RecordType::A), (NXDomain, vec![]), "{nobody}");
        }
        // Two that differ in case only: whoever is asked for as written, else one of them.
        nets.people.change(1, me.address(), |guest| guest.name = "G3".to_owned());
        assert_eq!(ask(me, "g3.", RecordType::A), (NoError, a(sibling.address())));
        assert_eq!(ask(me, "G3.sb.", RecordType::A), (NoError, a(me.address())));
        nets.people.change(1, me.address(), |guest| guest.name = "g2".to_owned());
        // Renamed: at once.
        nets.people.change(1, sibling.address(), |guest| guest.name = "new".to_owned());
        assert_eq!(ask(me, "new.sb.", RecordType::A), (NoError, a(sibling.address())));
        assert_eq!(ask(me, "g3.sb.", RecordType::A), (NXDomain, vec![]));

        // The next daemon answers as the last one did.
        let people = nets.people.clone();
        drop(nets);
        let nets = Nets::again(&prefix, people).await;
        assert!(nets.sweep(&[1]).await.unwrap().is_empty());
        assert_eq!(ask(me, "new.", RecordType::A), (NoError, a(sibling.address())));
    });
}

#[test]
fn other_names_are_asked_of_the_hosts_servers() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        let mine = guests(&nets, 1, 1).await;
        let me = &mine[0];
        assert_eq!(ask(me, "world.example.", RecordType::A).0, ServFail, "nobody is asked");
        serve_names();
        assert_eq!(ask(me, "World.example.", RecordType::A), (NoError, a(WORLD)));
        assert_eq!(ask(me, "nothing.example.", RecordType::A), (NXDomain, vec![]));
        assert_eq!(ask(me, "rebind.example.", RecordType::A), (Refused, vec![]));
        // What is no question is not answered, and disturbs nobody.
        for rubbish in [&b"rubbish"[..], &[0xff; 600]] {
            me.send_bytes(me.address(), gateway(1), 53, rubbish);
        }
        let mut two = query("a.example.", RecordType::A);
        two.add_query(two.queries[0].clone());
        let answer = Message::from_vec(&me.ask(gateway(1), &two.to_vec().unwrap())).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(ask(me, "world.example.", RecordType::A), (NoError, a(WORLD)));
    });
}

/// What a sandbox was told of before the gateway had a name server.
#[test]
fn a_server_out_of_reach_is_answered_for() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        ip("-n world address add 192.168.7.1/32 dev w1");
        ip("route add 192.168.7.1/32 via 192.0.2.2");
        let lan = Ipv4Addr::new(192, 168, 7, 1);
        let clouds = Ipv4Addr::new(169, 254, 169, 253);
        let plain = guest(&nets, 1, NetPolicy::default()).await;
        let friend = guest(&nets, 1, policy("public", &[], &["192.168.7.0/24"])).await;
        let closed = guest(&nets, 1, policy("deny", &["world.example"], &[])).await;
        let server = inside("world", || std::net::UdpSocket::bind((lan, 53)).unwrap());
        serve_names();

        for gone in [lan, clouds, Ipv4Addr::new(10, 9, 9, 9), Ipv4Addr::new(10, 0, 2, 1)] {
            let told = ask_of(&plain, gone, "g3.", RecordType::A);
            assert_eq!(told, (NoError, a(friend.address())), "{gone}");
            assert!(plain.connects_to(gone, 53), "{gone}");
            // The same server judges.
            let told = ask_of(&closed, gone, "other.test.", RecordType::A);
            assert_eq!(told, (Refused, vec![]), "{gone}");
        }
        assert!(is_silent(&server));
        assert_eq!(ask_of(&plain, lan, "world.example.", RecordType::A), (NoError, a(WORLD)));
        // Names, and nothing else.
        plain.send(lan, 54, "no name");
        assert_eq!(plain.refused_with(), Some((3, 13)));

        // Who may ask others asks them.
        friend.send(lan, 53, "asked");
        assert_eq!(receive(&server).0, "asked");
        assert!(!friend.connects_to(lan, 53), "it has nobody there who listens");
        assert_eq!(ask_of(&plain, WORLD, "world.example.", RecordType::A), (NoError, a(WORLD)));
        assert_eq!(ask_of(&plain, WORLD, "g3.", RecordType::A), (NXDomain, vec![]));
        closed.send(WORLD, 53, "elsewhere");
        assert_eq!(closed.refused_with(), Some((3, 13)));
    });
}

/// Over UDP the world's server has no room for anything; over TCP it has, and not always to the end.
fn serve_long_answers() {
    let (udp, tcp) = inside("world", || {
        let udp = std::net::UdpSocket::bind((WORLD, 53)).unwrap();
        (udp, std::net::TcpListener::bind((WORLD, 53)).unwrap())
    });
    let answer = |question: &Message| {
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(question.queries[0].clone());
        answer
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let mut answer = answer(&Message::from_vec(&buffer[..length]).unwrap());
            answer.metadata.truncation = true;
            udp.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            let mut answer = answer(&Message::from_vec(&question).unwrap());
            let asked = answer.queries[0].name().clone();
            let count = if asked == name("many.example.") { 200 } else { 1 };
            for last in 0..count {
                let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
                answer.add_answer(Record::from_rdata(asked.clone(), 60, data));
            }
            let bytes = answer.to_vec().unwrap();
            let end = if asked == name("half.example.") { bytes.len() / 2 } else { bytes.len() };
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length[..], &bytes[..end]].concat()).unwrap();
        }
    });
}

#[test]
fn what_has_no_room_over_udp_is_asked_for_over_tcp() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        let me = guest(&nets, 1, NetPolicy::default()).await;
        serve_long_answers();
        let one = a(Ipv4Addr::new(192, 0, 2, 0));
        assert_eq!(ask(&me, "one.example.", RecordType::A), (NoError, one.clone()));
        assert_eq!(ask(&me, "half.example.", RecordType::A), (ServFail, vec![]));
        // The guest has as little room, and is told to come again by TCP.
        let question = query("many.example.", RecordType::A).to_vec().unwrap();
        let answer = Message::from_vec(&me.ask(gateway(1), &question)).unwrap();
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        assert_eq!(ask(&me, "one.example.", RecordType::A), (NoError, one));
    });
}

#[test]
fn names_under_a_policy() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let rules = policy("deny", &["*.example"], &[]);
        let me = guest(&nets, 1, rules.clone()).await;
        let sibling = guest(&nets, 1, NetPolicy::closed()).await;
        serve_names();
        let (world, port) = world_socket();

        assert_eq!(ask(&me, "g3.", RecordType::A), (NoError, a(sibling.address())), "siblings");
        for refused in ["other.test.", "example.", "secret.elsewhere.test."] {
            assert_eq!(ask(&me, refused, RecordType::A), (Refused, vec![]), "{refused}");
        }
        for refused in ["rebind.example.", "metadata.example."] {
            assert_eq!(ask(&me, refused, RecordType::A), (Refused, vec![]), "{refused}");
        }
        assert_eq!(ask(&me, "world.example.", RecordType::HTTPS), (NoError, vec![]));

        // Not before it was asked for, and for nobody else.
        me.send(WORLD, port, "too early");
        me.fence(gateway(1));
        assert_eq!(ask(&me, "world.example.", RecordType::A), (NoError, a(WORLD)));
        me.send(WORLD, port, "allowed");
        let (text, from) = receive(&world);
        assert_eq!(text, "allowed");
        world.send_to(b"reply", from).unwrap();
        wait_for("the reply", || me.saw("reply"));
        sibling.send(WORLD, port, "not allowed");
        assert_eq!(sibling.refused_with(), Some((3, 13)), "and it is told so");
        assert!(is_silent(&world));

        let early = Denied::Address { to: WORLD, protocol: "udp", port };
        let rebinding =
            Denied::Rebinding("rebind.example".to_owned(), Ipv4Addr::new(192, 168, 7, 1));
        for what in [Denied::Name("other.test".to_owned()), rebinding, early] {
            let told = ("g2".to_owned(), what);
            wait_for("it to be told", || nets.people.denied.lock().unwrap().contains(&told));
        }

        // The next daemon keeps what is bound, and so does a change that leaves the name.
        let people = nets.people.clone();
        drop(nets);
        let nets = Nets::again(&prefix, people).await;
        nets.sweep(&[1]).await.unwrap();
        me.send(WORLD, port, "after a restart");
        assert_eq!(receive(&world).0, "after a restart");
        assert_eq!(nets.denied(1, me.address()).await.unwrap(), 1, "that which was too early");
        assert_eq!(ask(&me, "alias.example.", RecordType::A).0, NoError);
        nets.people.change(1, me.address(), |guest| {
            guest.policy = policy("deny", &["alias.example"], &[]);
        });
        nets.apply(1).await.unwrap();
        me.send(WORLD, port, "by another name");
        assert_eq!(receive(&world).0, "by another name");
        // And the one that does not cuts it, in both directions.
        nets.people.change(1, me.address(), |guest| {
            guest.policy = policy("deny", &["world.example"], &[]);
        });
        nets.apply(1).await.unwrap();
        me.send(WORLD, port, "cut");
        world.send_to(b"cut too", from).unwrap();
        me.fence(gateway(1));
        assert!(is_silent(&world) && !me.saw("cut too"));
        assert_eq!(nets.denied(1, me.address()).await.unwrap(), 2);
        assert_eq!(ask(&me, "world.example.", RecordType::A), (NoError, a(WORLD)));
        me.send(WORLD, port, "again");
        assert_eq!(receive(&world).0, "again");
    });
}

#[test]
fn a_name_does_not_keep_a_private_address_open() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        ip("-n world address add 192.168.7.1/32 dev w1");
        ip("route add 192.168.7.1/32 via 192.0.2.2");
        let lan = Ipv4Addr::new(192, 168, 7, 1);
        let me = guest(&nets, 1, policy("deny", &["*.example"], &["192.168.7.0/24"])).await;
        serve_names();
        let (world, port) = world_socket();
        assert_eq!(ask(&me, "rebind.example.", RecordType::A), (NoError, a(lan)), "it is named");
        me.send(lan, port, "named");
        assert_eq!(receive(&world).0, "named");
        // The range is taken back, the name is not.
        nets.people.change(1, me.address(), |guest| {
            guest.policy = policy("deny", &["*.example"], &[]);
        });
        nets.apply(1).await.unwrap();
        me.send(lan, port, "no longer");
        assert_eq!(me.refused_with(), Some((3, 13)));
        assert!(is_silent(&world));
    });
}

#[test]
fn who_asks_again_is_bound_anew() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let me = guest(&nets, 1, policy("deny", &["*.example"], &[])).await;
        serve_names();
        assert_eq!(ask(&me, "world.example.", RecordType::A), (NoError, a(WORLD)));
        let table = prefix.trim_end_matches('-');
        let names = format!("inet {table} names");
        let element = format!("{} . {WORLD}", me.address());
        inside(&format!("{prefix}1"), || {
            run("nft", &format!("delete element {names} {{ {element} }}"));
            let old = format!("{element} timeout 600s expires 100s");
            run("nft", &format!("add element {names} {{ {old} }}"));
        });
        // Who comes next knows how old it is.
        let people = nets.people.clone();
        drop(nets);
        let nets = Nets::again(&prefix, people).await;
        nets.sweep(&[1]).await.unwrap();
        assert_eq!(ask(&me, "world.example.", RecordType::A), (NoError, a(WORLD)));
        let listed = inside(&format!("{prefix}1"), || run("nft", &format!("list set {names}")));
        // Nine, or still ten, if nothing has passed since.
        let new = ["expires 9m", "expires 10m"].iter().any(|new| listed.contains(new));
        assert!(new, "{listed}");
    });
}

#[test]
fn a_full_set_of_bindings_is_taken_over() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let me = guest(&nets, 1, policy("deny", &["*.example"], &[])).await;
        let address = |i: u32| Ipv4Addr::from_bits(u32::from_be_bytes([223, 100, 100, 0]) + i);
        let element = |i: u32| format!("10.0.1.{} . {}", 100 + i / 1024, address(i % 1024));
        let elements: Vec<String> = (0..65_536).map(element).collect();
        let set = format!("inet {} names", prefix.trim_end_matches('-'));
        let rules = format!("add element {set} {{ {} }}\n", elements.join(", "));
        let path = std::env::temp_dir().join(format!("{prefix}full.nft"));
        std::fs::write(&path, rules).unwrap();
        inside(&format!("{prefix}1"), || run("nft", &format!("-f {}", path.display())));
        std::fs::remove_file(&path).unwrap();
        // Neither the one that counts nor the next daemon chokes on it.
        assert_eq!(nets.denied(1, me.address()).await.unwrap(), 0);
        let people = nets.people.clone();
        drop(nets);
        Nets::again(&prefix, people).await.sweep(&[1]).await.unwrap();
    });
}

#[test]
fn a_guest_with_many_questions_keeps_no_sibling_waiting() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        let guests = guests(&nets, 1, 2).await;
        let [many, other] = guests.as_slice() else { unreachable!("two") };
        // Whom it asks says nothing.
        let silent = inside("world", || std::net::UdpSocket::bind((WORLD, 53)).unwrap());
        for i in 0..200 {
            let question = query(&format!("n{i}.example."), RecordType::A).to_vec().unwrap();
            many.send_bytes(many.address(), gateway(1), 53, &question);
        }
        silent.recv_from(&mut [0; 4096]).unwrap();
        assert_eq!(ask(other, "g2.", RecordType::A), (NoError, a(many.address())));
    });
}
