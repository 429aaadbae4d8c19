//! Sandboxes and what runs in them.

use std::fmt::Write as _;

use bhatti_api::{ExecDetached, HeldBack, PatchSandbox, PublishRule, Sandbox, Transition};
use bhatti_client::Created;
use bhatti_types::{Labels, Status, Thermal};
use serde::Serialize;

/// What a create made, or found.
pub(crate) fn created(created: &Created) -> String {
    let Created { sandbox, existing } = created;
    let name = &sandbox.name;
    if *existing {
        return format!("sandbox/{name} unchanged (already exists)\n");
    }
    let mut out = format!("sandbox/{name} created ({} vCPU, {} MB", cpus(sandbox), memory(sandbox));
    if sandbox.disk_size_mb > 0 {
        put(&mut out, format_args!(", {} MB disk", sandbox.disk_size_mb));
    }
    out.push_str(")\n");
    if !sandbox.ip.is_empty() {
        put(&mut out, format_args!("  IP:    {}\n", sandbox.ip));
    }
    put(&mut out, format_args!("  Shell: bhatti shell {name}\n"));
    out
}

/// What an edit of `sandbox`, as it was typed, changed.
pub(crate) fn edited(sandbox: &str, change: &PatchSandbox) -> String {
    let mut out = format!("Updated {sandbox}\n");
    if let Some(name) = &change.name {
        put(&mut out, format_args!("  name:     {name}\n"));
        out.push_str("  Note: in-guest hostname unchanged (set at create time)\n");
    }
    match change.keep_hot {
        Some(true) => out.push_str("  keep_hot: true (thermal transitions disabled)\n"),
        Some(false) => out.push_str("  keep_hot: false (thermal transitions re-enabled)\n"),
        None => {}
    }
    if change.net_policy.is_some() {
        out.push_str("  egress:   in force; connections it denies are cut\n");
    }
    out
}

/// One sandbox of `list --json`: fewer fields than the API's, in this order.
#[derive(Serialize)]
pub(crate) struct ListRow<'a> {
    id: &'a str,
    name: &'a str,
    status: Status,
    thermal: String,
    ip: &'a str,
    urls: Option<&'a [String]>,
    cpus: f64,
    memory_mb: u32,
    disk_size_mb: u32,
    image: &'a str,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: &'a Labels,
}

impl<'a> From<&'a Sandbox> for ListRow<'a> {
    fn from(sandbox: &'a Sandbox) -> Self {
        Self {
            id: &sandbox.id,
            name: &sandbox.name,
            status: sandbox.status,
            thermal: sandbox.thermal.as_ref().map(Thermal::to_string).unwrap_or_default(),
            ip: &sandbox.ip,
            urls: (!sandbox.urls.is_empty()).then_some(&sandbox.urls),
            cpus: sandbox.cpus,
            memory_mb: sandbox.memory_mb,
            disk_size_mb: sandbox.disk_size_mb,
            image: &sandbox.image,
            labels: &sandbox.labels,
        }
    }
}

fn thermal(sandbox: &Sandbox) -> String {
    sandbox.thermal.map_or_else(|| "-".to_owned(), |thermal| thermal.to_string())
}

/// The ordinary listing. The padding of the last column is kept. Scripts read the contract's first
/// URL; `for_people`, how many more there are stands behind it.
pub(crate) fn list(sandboxes: &[Sandbox], for_people: bool) -> String {
    let with_urls = sandboxes.iter().any(|sandbox| !sandbox.urls.is_empty());
    let mut out = String::new();
    let mut row = |name: &str, status: &str, thermal: &str, ip: &str, url: &str| {
        put(&mut out, format_args!("{name:<20} {status:<10} {thermal:<8} {ip:<16}"));
        if with_urls {
            put(&mut out, format_args!(" {url}"));
        }
        out.push('\n');
    };
    row("NAME", "STATUS", "THERMAL", "IP", "URL");
    for sandbox in sandboxes {
        let url = match sandbox.urls.as_slice() {
            [] => String::new(),
            [first, more @ ..] if for_people && !more.is_empty() => {
                format!("{first} +{}", more.len())
            }
            [first, ..] => first.clone(),
        };
        let status = sandbox.status.to_string();
        row(&sandbox.name, &status, &thermal(sandbox), &sandbox.ip, &url);
    }
    out
}

/// The listing with resources, and with URLs if there are any.
pub(crate) fn list_wide(sandboxes: &[Sandbox]) -> String {
    let with_urls = sandboxes.iter().any(|sandbox| !sandbox.urls.is_empty());
    let mut out = String::new();
    let mut row = |cells: [&str; 10]| {
        let [name, status, thermal, ip, cpus, memory, disk, image, labels, urls] = cells;
        put(
            &mut out,
            format_args!(
                "{name:<20} {status:<10} {thermal:<8} {ip:<16} {cpus:<6} {memory:<8} {disk:<8} {image:<12} "
            ),
        );
        match with_urls {
            true => put(&mut out, format_args!("{labels:<20} {urls}\n")),
            false => put(&mut out, format_args!("{labels}\n")),
        }
    };
    row(["NAME", "STATUS", "THERMAL", "IP", "CPUS", "MEMORY", "DISK", "IMAGE", "LABELS", "URLS"]);
    for sandbox in sandboxes {
        row([
            &sandbox.name,
            &sandbox.status.to_string(),
            &thermal(sandbox),
            &sandbox.ip,
            &cpus(sandbox),
            &memory(sandbox).to_string(),
            &disk(sandbox),
            image(sandbox),
            &labels(sandbox),
            &sandbox.urls.join(","),
        ]);
    }
    out
}

/// Used and free space of a guest's root, in MB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskUse {
    total: u64,
    used: u64,
    free: u64,
}

impl DiskUse {
    /// From what `df -m /` prints: fields two to four of the second line. The guest may print
    /// anything.
    pub(crate) fn parse(df: &str) -> Option<Self> {
        let mut fields = df.lines().nth(1)?.split_whitespace().skip(1).map(|f| f.parse().ok());
        Some(Self { total: fields.next()??, used: fields.next()??, free: fields.next()?? })
    }
}

/// Everything about one sandbox. `disk` is known for running ones that answer, `published` unless
/// the server is old.
pub(crate) fn inspected(
    sandbox: &Sandbox,
    disk: Option<DiskUse>,
    published: &[PublishRule],
) -> String {
    let mut out = String::new();
    let mut line =
        |caption: &str, value: &str| put(&mut out, format_args!("{caption:<12}{value}\n"));
    line("Name:", &sandbox.name);
    line("ID:", &sandbox.id);
    line("Status:", &sandbox.status.to_string());
    if let Some(Transition { to, reason, at }) = &sandbox.last_transition {
        // What is cold or stopped has the one status, and wakes very differently.
        if matches!(to.as_str(), "hot" | "warm" | "cold") {
            line("Thermal:", to);
        }
        let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        line("Since:", &format!("{at}{why}"));
    }
    line("Image:", image(sandbox));
    line("Created:", &sandbox.created_at.to_string());
    // What runs again was stopped too, once.
    if let Some(stopped) = sandbox.stopped_at.filter(|_| sandbox.status != Status::Running) {
        line("Stopped:", &stopped.to_string());
    }
    if !sandbox.template_id.is_empty() {
        line("Template:", &sandbox.template_id);
    }
    out.push_str("\nResources:\n");
    let mut line =
        |caption: &str, value: &str| put(&mut out, format_args!("  {caption:<10}{value}\n"));
    line("CPUs:", &cpus(sandbox));
    line("Memory:", &format!("{} MB", memory(sandbox)));
    match (sandbox.status, disk, sandbox.disk_size_mb) {
        (Status::Running, Some(DiskUse { total, used, free }), _) => {
            line("Disk:", &format!("{total} MB ({used} MB used, {free} MB free)"));
        }
        (Status::Running, None, _) => {}
        (Status::Stopped | Status::Unknown, _, 0) => line("Disk:", "— (stopped)"),
        (Status::Stopped | Status::Unknown, _, size) => line("Disk:", &format!("{size} MB")),
    }
    if let Some(held_back) = sandbox.held_back {
        line("Limits:", &reached(held_back));
    }
    out.push_str("\nNetwork:\n");
    let mut line =
        |caption: &str, value: &str| put(&mut out, format_args!("  {caption:<10}{value}\n"));
    line("IP:", &sandbox.ip);
    if let Some(policy) = &sandbox.net_policy {
        line("Egress:", &policy.default);
        let allowed = [&policy.allow_hosts, &policy.allow_cidrs].map(|list| list.join(", "));
        for (caption, list) in ["Hosts:", "Ranges:"].iter().zip(allowed) {
            if !list.is_empty() {
                line(caption, &list);
            }
        }
    }
    if let Some(denied) = sandbox.egress_denied {
        let packets = if denied == 1 { "packet" } else { "packets" };
        line("Denied:", &format!("{denied} {packets}"));
    }
    for PublishRule { port, url, auth, .. } in published {
        let who = if *auth { ", asks for a token" } else { "" };
        put(&mut out, format_args!("  Published: port {port} at {url}{who}\n"));
    }
    if sandbox.keep_hot {
        out.push_str("\n  keep_hot: true\n");
    }
    out
}

/// Which limits it has come to, and how often.
fn reached(HeldBack { disk, sent, received }: HeldBack) -> String {
    let uses = [("disk", disk), ("sending", sent), ("receiving", received)];
    let said = uses.iter().filter(|(_, times)| *times > 0).map(|(what, times)| match times {
        1 => format!("{what} once"),
        _ => format!("{what} {times} times"),
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() {
        "never reached".to_owned()
    } else {
        format!("reached: {}", said.join(", "))
    }
}

/// Where a detached command's output goes.
pub(crate) fn detached(started: &ExecDetached) -> String {
    format!("pid: {}\noutput: {}\n", started.pid, started.output_file)
}

/// The shortest form; servers of old send 0 for the default.
fn cpus(sandbox: &Sandbox) -> String {
    if sandbox.cpus == 0.0 { "1".to_owned() } else { sandbox.cpus.to_string() }
}

fn memory(sandbox: &Sandbox) -> u32 {
    if sandbox.memory_mb == 0 { 1024 } else { sandbox.memory_mb }
}

/// What was asked for; what was not is as large as the image.
fn disk(sandbox: &Sandbox) -> String {
    match sandbox.disk_size_mb {
        0 => "image".to_owned(),
        size => size.to_string(),
    }
}

fn image(sandbox: &Sandbox) -> &str {
    if sandbox.image.is_empty() { "minimal" } else { &sandbox.image }
}

fn labels(sandbox: &Sandbox) -> String {
    let pairs: Vec<String> = sandbox.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if pairs.is_empty() { "-".to_owned() } else { pairs.join(",") }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes all text");
}

#[cfg(test)]
mod tests;
