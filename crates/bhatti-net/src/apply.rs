//! The only module that touches the host: runs `ip` and `nft`, speaks netlink, enters namespaces,
//! writes sysctls.
//!
//! What a create waits for is said to the kernel directly, but for the rules of a new namespace; what is
//! done now and then is left to programs.
//!
//! Promise: a program gets a minute and may print a bounded amount; then it is killed.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::NetError;
use crate::plan::{Carried, Link, LinkStep, Observed, Repair, Seen, UserPlan};

mod carried;
mod elements;
mod firewall;
mod links;
mod namespace;
mod ruleset;
mod tap;
mod transit;

pub(crate) use carried::{Attempt, attempts, carried};
pub(crate) use elements::change_elements;
pub(crate) use firewall::foreign_drops;
pub(crate) use namespace::{Prepared, in_namespace};
pub(crate) use ruleset::generation as rules_generation;
pub(crate) use tap::{
    LINGER, LINGER_STEP, TUN, open_detached_tap, open_tap, remove_unheld, taps_in,
};
pub(crate) use transit::{choose_transit, release_transit};

/// How long `ip` or `nft` may take. Both take milliseconds; but `nft` takes a second for the sets of a
/// namespace in which everything is full, and ten on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most a program may print. The sets of a namespace in which everything is full are 8 MiB, most of
/// it the bindings of names.
const MAX_OUTPUT: u64 = 16 * 1024 * 1024;
/// The most of a program's complaint that goes into an error.
const MAX_MESSAGE: usize = 512;

/// A program this crate runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    Ip,
    Nft,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Nft => "nft",
        }
    }

    /// What Debian, Fedora and Alpine all call the package.
    fn package(self) -> &'static str {
        match self {
            Self::Ip => "iproute2",
            Self::Nft => "nftables",
        }
    }

    /// Runs the program with `input` and gives what it printed. `action` is for the error.
    pub(crate) async fn run(
        self,
        action: &'static str,
        args: &[&str],
        input: &str,
    ) -> Result<Vec<u8>, NetError> {
        let program = self.name();
        let failed = |source: io::Error| NetError::Run { program, source };
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => {
                    NetError::MissingProgram { program, package: self.package() }
                }
                _ => failed(source),
            })?;
        let output = tokio::time::timeout(PATIENCE, converse(&mut child, input))
            .await
            .map_err(|_| NetError::Timeout { program, action, seconds: PATIENCE.as_secs() })?
            .map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let mut message: String = message.trim().chars().take(MAX_MESSAGE).collect();
        if message.is_empty() {
            message = output.status.to_string();
        }
        Err(NetError::Refused { program, action, message })
    }
}

/// Writes `input`, reads both outputs, waits. All at once: a program that prints before it has
/// read everything must not block.
async fn converse(child: &mut tokio::process::Child, input: &str) -> io::Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            match stdin.write_all(input.as_bytes()).await {
                // It stopped reading because it failed; its status and stderr tell more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
        }
        Ok(())
    };
    let ((), stdout, stderr) = tokio::try_join!(write, bounded(stdout), bounded(stderr))?;
    Ok(Output { status: child.wait().await?, stdout, stderr })
}

async fn bounded(source: Option<impl tokio::io::AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        source.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > MAX_OUTPUT {
        return Err(io::Error::other("it printed more than 16 MiB"));
    }
    Ok(bytes)
}

/// Whether our table is there at all; nobody but us changes what is in it.
pub(crate) async fn host_rules_are_there(table: &str) -> Result<bool, NetError> {
    match Program::Nft.run("find our rules", &["list", "table", "inet", table], "").await {
        Ok(_) => Ok(true),
        Err(NetError::Refused { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Makes `nft` load `rules` on the host.
pub(crate) async fn load_host_rules(rules: &str) -> Result<(), NetError> {
    Program::Nft.run("load the host's rules", &["-f", "-"], rules).await.map(drop)
}

/// What exists of one user's network.
pub(crate) async fn observe(plan: &UserPlan) -> Result<Observed, NetError> {
    let namespace = namespace::see(&plan.namespace)?;
    let host = match nix::net::if_::if_nametoindex(plan.veth.as_str()) {
        Ok(_) => links(&["-j", "address", "show", "dev", &plan.veth]).await?.pop(),
        Err(_) => None,
    };
    let inside = match namespace {
        Seen::Present => links(&["-n", &plan.namespace, "-j", "address", "show"]).await?,
        Seen::Absent | Seen::Stale => Vec::new(),
    };
    let carried = match namespace {
        Seen::Present => carried(&plan.namespace, plan.table()).await?,
        Seen::Absent | Seen::Stale => Carried::default(),
    };
    Ok(Observed { namespace, host, inside, carried })
}

/// Makes `nft` load `rules` in a user's namespace.
pub(crate) async fn load_rules(namespace: &str, rules: String) -> Result<(), NetError> {
    nft_inside(namespace, "load a namespace's rules", &["-f", "-"], rules).await.map(drop)
}

/// Runs `nft` in a namespace, without the way through `ip netns exec`, which costs a process more
/// and mounts that nobody needs.
async fn nft_inside(
    namespace: &str,
    action: &'static str,
    args: &'static [&'static str],
    input: String,
) -> Result<Vec<u8>, NetError> {
    let runtime = tokio::runtime::Handle::current();
    // A program is started in the namespace of the thread that starts it.
    let run = move || runtime.block_on(Program::Nft.run(action, args, &input));
    in_namespace(namespace, run).await
}

/// Makes a namespace that has `rules`, and no name yet.
pub(crate) async fn prepare(rules: String) -> Result<Prepared, NetError> {
    let runtime = tokio::runtime::Handle::current();
    namespace::prepare(move || {
        set_namespace_sysctls()?;
        let load = Program::Nft.run("load the rules of the next user", &["-f", "-"], &rules);
        runtime.block_on(load).map(drop)
    })
    .await
}

/// Carries out a repair, with a namespace that has nobody's rules if one has to be made and there is such.
/// May be cut short anywhere and run again.
pub(crate) async fn repair(
    plan: &UserPlan,
    seen: Seen,
    repair: &Repair,
    prepared: Option<Prepared>,
) -> Result<(), NetError> {
    let namespace = plan.namespace.as_str();
    if seen == Seen::Stale {
        namespace::remove_stale(namespace)?;
    }
    let has_rules = prepared.is_some();
    if repair.create_namespace {
        namespace::make(namespace, prepared).await?;
    }
    let rules = async {
        if has_rules {
            return change_elements(namespace, plan.table(), &repair.elements).await;
        }
        load_rules(namespace, repair.rules.clone()).await?;
        in_namespace(namespace, set_namespace_sysctls).await
    };
    // The namespace's end is not up before there are rules.
    let link = async {
        links_inside(namespace, repair.clear.clone()).await?;
        let steps = repair.host.clone();
        tokio::task::spawn_blocking(move || links::carry_out(&steps))
            .await
            .map_err(|_| NetError::TaskDied)?
    };
    // Both to their end: rules that are still being loaded must not be in place of later ones.
    let (rules, link) = tokio::join!(rules, link);
    rules.and(link)?;
    links_inside(namespace, repair.inside.clone()).await
}

async fn links_inside(namespace: &str, steps: Vec<LinkStep>) -> Result<(), NetError> {
    if steps.is_empty() {
        return Ok(());
    }
    in_namespace(namespace, move || links::carry_out(&steps)).await
}

/// Removes a user's link and namespace, whichever exist.
pub(crate) async fn remove(namespace: &str, veth: &str) -> Result<(), NetError> {
    // The link first: the kernel would remove it with the namespace, but some time later, and a
    // new user of the same index would find a name that is about to vanish.
    if nix::net::if_::if_nametoindex(veth).is_ok() {
        let args = ["link", "delete", "dev", veth];
        Program::Ip.run("remove a user's link", &args, "").await?;
    }
    match namespace::see(namespace)? {
        Seen::Absent => Ok(()),
        Seen::Stale => namespace::remove_stale(namespace),
        Seen::Present => {
            let args = ["netns", "delete", namespace];
            Program::Ip.run("remove a network namespace", &args, "").await.map(drop)
        }
    }
}

/// The names of all namespaces, and of all links of the host.
pub(crate) fn names_in_use() -> Result<(Vec<String>, Vec<String>), NetError> {
    let namespaces = namespace::names()?;
    let links = nix::net::if_::if_nameindex()
        .map_err(|errno| NetError::Run { program: "if_nameindex", source: errno.into() })?
        .iter()
        .map(|link| link.name().to_string_lossy().into_owned())
        .collect();
    Ok((namespaces, links))
}

/// Turns IPv4 forwarding on in the caller's namespace. Says whether it was off.
pub(crate) fn enable_forwarding() -> Result<bool, NetError> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    let file = |action| move |source| NetError::File { action, path: PATH.into(), source };
    let was_off = std::fs::read_to_string(PATH).map_err(file("read"))?.trim() == "0";
    if was_off {
        std::fs::write(PATH, "1").map_err(file("write"))?;
    }
    Ok(was_off)
}

/// Every kind of ICMP error that the kernel limits by default (a mask of types) but "unreachable".
/// These are what a guest is told no with, one for each packet of its own and to nobody else: once
/// six had gone to it within seconds, the seventh would be silence, which is not what "denied at once"
/// means; and a guest's refusals would use up the thousand a second that the host has for everything.
const LIMITED_ICMP: u32 = 1 << 4 | 1 << 11 | 1 << 12;

fn set_namespace_sysctls() -> Result<(), NetError> {
    enable_forwarding()?;
    let path = PathBuf::from("/proc/sys/net/ipv4/icmp_ratemask");
    std::fs::write(&path, LIMITED_ICMP.to_string()).map_err(|source| NetError::File {
        action: "write",
        path,
        source,
    })?;
    for scope in ["all", "default"] {
        let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"));
        match std::fs::write(&path, "1") {
            // A kernel without IPv6 has nothing to switch off.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(NetError::File { action: "write", path, source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// One element of what `ip -j address` prints.
#[derive(Deserialize)]
struct IpLink {
    ifname: String,
    ifindex: u32,
    link_index: Option<u32>,
    #[serde(default)]
    addr_info: Vec<IpAddress>,
}

#[derive(Deserialize)]
struct IpAddress {
    family: String,
    local: Option<std::net::IpAddr>,
    prefixlen: u8,
}

async fn links(args: &[&str]) -> Result<Vec<Link>, NetError> {
    let text = Program::Ip.run("list links", args, "").await?;
    let links: Vec<IpLink> = parse("ip", &text)?;
    Ok(links.into_iter().map(Link::from).collect())
}

/// Reads the JSON that `program` printed.
fn parse<T: serde::de::DeserializeOwned>(
    program: &'static str,
    text: &[u8],
) -> Result<T, NetError> {
    serde_json::from_slice(text).map_err(|error| NetError::Output { program, source: error.into() })
}

impl From<IpLink> for Link {
    fn from(link: IpLink) -> Self {
        let ipv4 = |address: IpAddress| match address.local {
            Some(std::net::IpAddr::V4(local)) if address.family == "inet" => {
                Some((local, address.prefixlen))
            }
            _ => None,
        };
        let addresses: Vec<(Ipv4Addr, u8)> = link.addr_info.into_iter().filter_map(ipv4).collect();
        Self { name: link.ifname, index: link.ifindex, peer: link.link_index, addresses }
    }
}
