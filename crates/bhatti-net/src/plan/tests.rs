//! Golden texts, and every partial state led to the wanted one by a model of `ip`.

use bhatti_types::NetPolicy;

use super::*;

fn names() -> Names {
    Names::new("bhatti-").unwrap()
}

fn transit() -> Ipv4Net {
    "100.127.0.0/16".parse().unwrap()
}

fn wanted(index: u32) -> Wanted {
    Wanted { index, guests: BTreeMap::new() }
}

fn plan(index: u32) -> UserPlan {
    UserPlan::new(&names(), transit(), wanted(index)).unwrap()
}

fn nothing() -> Observed {
    Observed {
        namespace: Seen::Absent,
        host: None,
        inside: Vec::new(),
        carried: Carried::default(),
    }
}

#[test]
fn host_rules_are_golden() {
    assert_eq!(host_rules(&names(), transit()), include_str!("golden/host.nft"));
}

fn policy(default: &str, hosts: &[&str], cidrs: &[&str]) -> NetPolicy {
    let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    NetPolicy::parse(default, &own(hosts), &own(cidrs)).unwrap()
}

fn guest(id: &str, policy: NetPolicy) -> Guest {
    Guest { name: "g".to_owned(), id: id.parse().unwrap(), policy }
}

fn two_guests() -> BTreeMap<Ipv4Addr, Guest> {
    let open = guest("0123456789abcdef", NetPolicy::default());
    let narrow = policy("deny", &["a.example"], &["198.51.100.0/24", "192.168.7.0/24"]);
    [("10.1.1.2", open), ("10.1.1.3", guest("fedcba9876543210", narrow))]
        .map(|(address, guest)| (address.parse().unwrap(), guest))
        .into()
}

#[test]
fn namespace_rules_are_golden() {
    let [narrow, gone, bound] = ["10.1.1.3", "10.1.1.9", "192.0.2.9"].map(|a| a.parse().unwrap());
    let carried = Carried {
        bindings: vec![(narrow, bound, 299), (gone, bound, 9)],
        denials: [(narrow, 7), (gone, 8)].into(),
    };
    let rules = namespace_rules(&names(), &two_guests(), &carried);
    assert_eq!(rules, include_str!("golden/namespace.nft"));
}

/// A change as one would write it.
fn text(steps: &[Step]) -> String {
    let line = |Step { comes, set, element }: &Step| {
        let verb = if *comes { "add" } else { "delete" };
        let family = if set.is_of_bridge() { "bridge" } else { "inet" };
        format!("{verb} element {family} bhatti {} {{ {element} }}\n", set.name())
    };
    steps.iter().map(line).collect()
}

#[test]
fn a_change_is_what_differs() {
    let none = BTreeMap::new();
    let mut guests = two_guests();
    assert_eq!(change(&guests, &guests), []);
    assert_eq!(text(&change(&none, &guests)), include_str!("golden/two-come.nft"));
    let before = guests.clone();
    let addresses: Vec<Ipv4Addr> = guests.keys().copied().collect();
    let [open, narrow] = addresses.as_slice() else { panic!("two") };
    guests.insert(*open, guest("0123456789abcdef", NetPolicy::closed()));
    guests.insert(*narrow, guest("00000000000000aa", policy("deny", &[], &["192.168.7.0/24"])));
    assert_eq!(text(&change(&before, &guests)), include_str!("golden/change.nft"));
    assert_eq!(unbound(&before, &guests).collect::<Vec<_>>(), [*narrow]);
    assert_eq!(unbound(&guests, &none).count(), 2);
}

#[test]
fn rule_sets_are_transactions() {
    let rules = namespace_rules(&names(), &BTreeMap::new(), &Carried::default());
    for rules in [&host_rules(&names(), transit()), &rules, &no_rules(&names())] {
        assert!(rules.starts_with("table inet bhatti\ndelete table inet bhatti\n"), "{rules}");
    }
    assert!(rules.contains("table bridge bhatti\ndelete table bridge bhatti\n"), "{rules}");
}

#[test]
fn building_from_nothing_is_golden() {
    let repair = plan(256).repair(&nothing());
    assert!(repair.create_namespace);
    assert!(repair.clear.is_empty());
    let lines =
        |steps: &[LinkStep]| steps.iter().map(|step| format!("{step}\n")).collect::<String>();
    let text = format!("host:\n{}inside:\n{}", lines(&repair.host), lines(&repair.inside));
    assert_eq!(text, include_str!("golden/build.txt"));
}

#[test]
fn users_beyond_the_address_plan_are_refused() {
    let wanted = wanted(crate::MAX_INDEX + 1);
    let error = UserPlan::new(&names(), transit(), wanted).unwrap_err();
    assert!(matches!(error, NetError::IndexTooLarge { .. }));
}

/// Just enough of `ip` to carry out a repair: what the kernel would refuse, panics.
#[derive(Clone)]
struct Model {
    observed: Observed,
    next_index: u32,
}

impl Model {
    fn run(&mut self, plan: &UserPlan) {
        let repair = plan.repair(&self.observed);
        if repair.create_namespace {
            assert!(self.observed.inside.is_empty());
            self.observed.namespace = Seen::Present;
            self.add("lo", None);
        }
        for step in repair.clear.iter().chain(&repair.host).chain(&repair.inside) {
            self.line(&step.to_string());
        }
    }

    fn add(&mut self, name: &str, peer: Option<u32>) -> u32 {
        self.next_index += 1;
        let link = Link { name: name.into(), index: self.next_index, peer, addresses: Vec::new() };
        match name.starts_with("bh") {
            true => assert!(self.observed.host.replace(link).is_none(), "{name} exists"),
            false => {
                assert!(self.observed.inside.iter().all(|l| l.name != name), "{name} exists");
                self.observed.inside.push(link);
            }
        }
        self.next_index
    }

    fn link(&mut self, name: &str) -> &mut Link {
        let links = self.observed.inside.iter_mut().chain(&mut self.observed.host);
        links.into_iter().find(|link| link.name == name).expect(name)
    }

    fn delete(&mut self, name: &str) {
        let (index, peer) = (self.link(name).index, self.link(name).peer);
        let gone = |l: &Link| l.index == index || (l.peer == Some(index) && peer == Some(l.index));
        self.observed.inside.retain(|link| !gone(link));
        self.observed.host = self.observed.host.take().filter(|link| !gone(link));
    }

    fn line(&mut self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        match words.as_slice() {
            ["link", "delete", "dev", name] => self.delete(name),
            ["link", "add", "name", name, "type", "veth", "peer", "name", peer, ..] => {
                let host = self.add(name, None);
                let inside = self.add(peer, Some(host));
                self.link(name).peer = Some(inside);
            }
            ["link", "add", "name", name, ..] => drop(self.add(name, None)),
            ["address", verb, address, "dev", dev] => {
                let (ip, len) = address.split_once('/').unwrap();
                let address = (ip.parse().unwrap(), len.parse().unwrap());
                let addresses = &mut self.link(dev).addresses;
                assert_eq!(addresses.contains(&address), *verb == "delete", "{line}");
                match *verb {
                    "delete" => addresses.retain(|there| *there != address),
                    _ => addresses.push(address),
                }
            }
            ["link", "set", "dev", dev, ..] | ["route", .., dev] => {
                drop(self.link(dev).name.clone())
            }
            other => panic!("unknown line {other:?}"),
        }
    }

    fn check(&self, plan: &UserPlan) {
        let inside = |name: &str| self.observed.inside.iter().find(|l| l.name == name).unwrap();
        let (host, uplink) = (self.observed.host.as_ref().unwrap(), inside("up0"));
        assert_eq!((host.peer, uplink.peer), (Some(uplink.index), Some(host.index)));
        assert_eq!(host.addresses, [(plan.pair.host, 31)]);
        assert_eq!(uplink.addresses, [(plan.pair.inside, 31)]);
        assert_eq!(inside("br0").addresses, [(plan.gateway, 24)]);
    }
}

#[test]
fn repair_completes_every_partial_state() {
    let plan = plan(3);
    let mut whole = Model { observed: nothing(), next_index: 0 };
    whole.run(&plan);
    whole.check(&plan);
    let full = whole.observed.clone();

    let mut again = whole.clone();
    again.run(&plan);
    assert_eq!(again.observed, full, "a whole network keeps its links");

    // Every subset of links gone, and the rest with right, wrong or no addresses.
    let wrong = ("192.0.2.9".parse().unwrap(), 24);
    for missing in 0..8u32 {
        for addresses in 0..3 {
            let mut model = whole.clone();
            let keep = |bit: u32| missing & bit == 0;
            model.observed.host = full.host.clone().filter(|_| keep(1));
            model.observed.inside.retain(|l| match l.name.as_str() {
                "up0" => keep(2),
                "br0" => keep(4),
                _ => true,
            });
            for link in model.observed.inside.iter_mut().chain(&mut model.observed.host) {
                match addresses {
                    0 => {}
                    1 => link.addresses.clear(),
                    _ => link.addresses.push(wrong),
                }
            }
            model.run(&plan);
            model.check(&plan);
        }
    }

    // The namespace was deleted by hand; the host's end has not vanished yet.
    let mut model = whole.clone();
    model.observed.namespace = Seen::Absent;
    model.observed.inside.clear();
    model.run(&plan);
    model.check(&plan);

    // Both ends exist, but of two pairs.
    let mut model = whole;
    model.link("up0").peer = Some(99);
    model.run(&plan);
    model.check(&plan);
}
