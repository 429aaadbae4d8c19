//! Networks that cannot be built at once, and daemons that die while they build one.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};

use bhatti_net::plan::Names;
use bhatti_net::{Closed, Released};
use bhatti_types::{EngineId, NetPolicy};
use hickory_proto::op::ResponseCode::NoError;
use hickory_proto::rr::RecordType;

use crate::host::{
    Nets, WORLD, disarm, gateway, guests, inside, ip, networks, on_fresh_host, run, wait_for,
};
use crate::lifetime::picture;
use crate::names::{a, ask};

#[test]
fn one_broken_network_keeps_nobody_else_waiting() {
    on_fresh_host(async || {
        let (former, prefix) = networks().await;
        let mut machines = Vec::new();
        for index in [1, 2, 3] {
            machines.extend(guests(&former, index, 1).await);
        }
        let people = former.people.clone();
        drop(former);
        // No daemon makes that; nobody can take it for a namespace, or remove it as one.
        let odd = format!("/run/netns/{prefix}8");
        std::fs::create_dir(&odd).unwrap();
        // Somebody else's name server is in the way, where it may still come to let go.
        let squatter = || UdpSocket::bind((gateway(1), 53));
        let mut taken = None;
        wait_for("the port of the former name server", || {
            taken = inside(&format!("{prefix}1"), squatter).ok();
            taken.is_some()
        });

        let nets = Nets::again(&prefix, people).await;
        assert_eq!(nets.sweep(&[1, 2]).await.unwrap(), [3], "what could be removed");
        assert!(machines[0].pings(WORLD) && machines[1].pings(WORLD));
        assert_eq!(ask(&machines[1], "g2.", RecordType::A).0, NoError);
        // Nobody is asked for anything; it comes back by itself.
        drop(taken);
        assert_eq!(ask(&machines[0], "g2.", RecordType::A).0, NoError);
        std::fs::remove_dir(&odd).unwrap();
        machines.extend(guests(&nets, 8, 1).await);
        assert!(machines[3].pings(WORLD), "and what was in the way of one");
    });
}

/// A firewall manager of a kind: while it lives nobody else may change the table.
fn hold_table(prefix: &str, index: u32) -> Child {
    let table = prefix.trim_end_matches('-').to_owned();
    disarm(prefix, index);
    inside(&format!("{prefix}{index}"), || {
        let mut nft = Command::new("nft");
        let mut holder = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let line = format!("add table inet {table} {{ flags owner; }}\n");
        holder.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        wait_for("the table to have an owner", || run("nft", "list ruleset").contains("owner"));
        holder
    })
}

#[test]
fn a_failed_rebuild_is_made_up_for() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let machines = guests(&nets, 1, 1).await;
        let me = &machines[0];
        let mut holder = hold_table(&prefix, 1);
        let (id, sibling) = nets.people.add(1, NetPolicy::default());
        nets.apply(1).await.unwrap_err();
        nets.open_tap(1, &id).await.unwrap_err();
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(ask(me, "g3.", RecordType::A), (NoError, a(sibling)));
        assert!(me.pings(WORLD));
    });
}

#[test]
fn what_nobody_needs_is_not_mended() {
    on_fresh_host(async || {
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let (nets, prefix) = networks().await;
        wait_for("the tasks of the start to end", || tasks() == 0);
        let machines = guests(&nets, 1, 1).await;
        let mut holder = hold_table(&prefix, 1);
        nets.people.add(1, NetPolicy::default());
        nets.apply(1).await.unwrap_err();
        assert!(tasks() > 0, "somebody goes on trying");
        drop(machines);
        assert_eq!(nets.release_user(1).await.unwrap(), Released::Removed);
        holder.kill().unwrap();
        holder.wait().unwrap();
        wait_for("nobody to go on trying", || tasks() == 0);
        assert!(!std::fs::exists(format!("/run/netns/{prefix}1")).unwrap());
    });
}

#[test]
fn rebuilds_at_once_are_one_after_the_other() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let machines = guests(&nets, 1, 1).await;
        for round in 0..3 {
            disarm(&prefix, 1);
            ip(&format!("-n {prefix}1 link delete up0"));
            let (_, sibling) = nets.people.add(1, NetPolicy::default());
            let asked: Vec<_> = (0..6)
                .map(|n| {
                    let nets = nets.clone();
                    tokio::spawn(async move {
                        match n % 3 {
                            0 => nets.apply(1).await,
                            1 => nets.open_tap(1, &EngineId::random()).await.map(drop),
                            _ => nets.sweep(&[1]).await.map(drop),
                        }
                    })
                })
                .collect();
            for answer in asked {
                answer.await.unwrap().unwrap();
            }
            assert!(machines[0].pings(WORLD));
            let name = format!("g{}.", 3 + round);
            assert_eq!(ask(&machines[0], &name, RecordType::A), (NoError, a(sibling)));
        }
    });
}

/// Says to this program that it is to be a daemon that builds a network, and goes on until it is killed.
const BUILDER: &str = "BHATTI_NET_TEST_BUILDER";

/// Only in a process of its own, which the next test starts and kills.
#[test]
fn builder() {
    if std::env::var_os(BUILDER).is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let nets = Nets::open("bhatti-").await;
            let _machines = guests(&nets, 1, 1).await;
            std::future::pending::<()>().await;
        });
    }
}

fn start_builder() -> Child {
    let mut program = Command::new(std::env::current_exe().unwrap());
    let quiet = program.stdout(Stdio::null()).stderr(Stdio::null()).env(BUILDER, "1");
    quiet.args(["--exact", "mending::builder"]).spawn().unwrap()
}

#[test]
fn a_daemon_killed_while_it_builds_leaves_what_the_next_repairs() {
    on_fresh_host(async || {
        let before = picture();
        let veth = Names::new("bhatti-").unwrap().veth(1);
        let has = |args: &str, text: &str| {
            // What is asked about may not be there yet.
            let output = Command::new("ip").args(args.split_whitespace()).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains(text)
        };
        let states: [(&str, &dyn Fn() -> bool); 7] = [
            ("its claim", &|| has("route show type unreachable", "100.127.0.0/16")),
            ("its rules", &|| run("nft", "list tables").contains("bhatti")),
            ("a namespace", &|| std::fs::exists("/run/netns/bhatti-1").unwrap()),
            ("a link", &|| nix::net::if_::if_nametoindex(veth.as_str()).is_ok()),
            ("a bridge", &|| has("-n bhatti-1 link", "br0")),
            ("a way out", &|| has("-n bhatti-1 route", "default")),
            ("a guest", &|| has("-n bhatti-1 link", ": t")),
        ];
        for (what, is_there) in states {
            let mut builder = start_builder();
            wait_for(what, is_there);
            builder.kill().unwrap();
            builder.wait().unwrap();
            let nets = Nets::open("bhatti-").await;
            nets.sweep(&[1]).await.unwrap();
            let machines = guests(&nets, 1, 2).await;
            assert!(machines[0].pings(WORLD), "killed when there was {what}");
            assert_eq!(ask(&machines[0], "g3.", RecordType::A).0, NoError, "{what}");
            drop(machines);
            assert_eq!(nets.release_user(1).await.unwrap(), Released::Removed, "{what}");
            assert_eq!(nets.close().await.unwrap(), Closed::Everything, "{what}");
            assert_eq!(picture(), before, "{what}");
        }
    });
}
