//! One file: its known keys, and what it says.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use camino::{Utf8Path, Utf8PathBuf};

use crate::domain::{Domain, DomainKeys, host_name};
use crate::duration;
use crate::node::{Located, Node};
use crate::problem::{ConfigError, Problem, Problems};
use crate::server::{self, EngineChoice, Limits, OnShutdown, PublicLimits, Thermal};

/// No configuration is this long; a wrong path may be.
const MAX_BYTES: u64 = 1 << 20;

/// Keys that do something.
const KEYS: [&str; 17] = [
    "api_url",
    "auth_token",
    "boot_timeout_sec",
    "data_dir",
    "default_image",
    "dns_upstreams",
    "engine",
    "firecracker_bin",
    "firecracker_seccomp_filter",
    "initramfs",
    "jail_uid_base",
    "kernel",
    "listen",
    "network_prefix",
    "on_shutdown",
    "public_proxy_listen",
    "qemu_bin",
];

/// Sections, and the keys in them.
const SECTIONS: [(&str, &[&str]); 5] = [
    (
        "domain",
        &[
            "acme_ca",
            "acme_directory",
            "acme_email",
            "api_host",
            "http_listen",
            "listen",
            "proxy_zone",
            "tls_cert",
            "tls_key",
        ],
    ),
    ("goldens", &["max_count", "max_mb"]),
    ("limits", &["disk_mb_per_sec", "disk_ops_per_sec", "network_mb_per_sec"]),
    ("public_limits", &["alias_per_min", "client_per_min", "requests_per_min"]),
    ("thermal", &["cold_after", "warm_after"]),
];

/// Keys an existing installation's file has and this version does nothing with.
const UNUSED: [&str; 6] = [
    "backup",
    "firecracker_jailer",
    "firecracker_kernel",
    "firecracker_rootfs",
    "jail_gid",
    "jail_uid",
];

/// What one file says, each value checked on its own. `None`: not mentioned.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FileSettings {
    pub(crate) api_url: Option<String>,
    pub(crate) auth_token: Option<String>,
    pub(crate) engine: Option<EngineChoice>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) data_dir: Option<Utf8PathBuf>,
    pub(crate) kernel: Option<Utf8PathBuf>,
    pub(crate) initramfs: Option<Utf8PathBuf>,
    pub(crate) qemu_bin: Option<Utf8PathBuf>,
    pub(crate) firecracker_bin: Option<Utf8PathBuf>,
    pub(crate) firecracker_seccomp_filter: Option<Utf8PathBuf>,
    pub(crate) default_image: Option<String>,
    pub(crate) dns_upstreams: Option<Vec<IpAddr>>,
    pub(crate) network_prefix: Option<String>,
    pub(crate) jail_uid_base: Option<u32>,
    pub(crate) boot_timeout_sec: Option<u32>,
    pub(crate) on_shutdown: Option<OnShutdown>,
    /// The outer `Option` is whether it was mentioned, the inner one `none`.
    pub(crate) public_proxy_listen: Option<Option<SocketAddr>>,
    /// The outer `Option` is whether it was mentioned, the inner one `never`.
    pub(crate) warm_after: Option<Option<std::time::Duration>>,
    pub(crate) cold_after: Option<Option<std::time::Duration>>,
    pub(crate) goldens_max_count: Option<u32>,
    pub(crate) goldens_max_mb: Option<u32>,
    pub(crate) limits: Limits,
    pub(crate) public_limits: PublicLimits,
    pub(crate) domain_keys: DomainKeys,
    pub(crate) domain: Option<Domain>,
}

/// A file that was read to its end: what it says, what is wrong, what is without effect.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) settings: FileSettings,
    pub(crate) problems: Problems,
    pub(crate) unused: Vec<Problem>,
}

/// Reads the text of `path`.
pub(crate) fn read_text(path: &Utf8Path) -> Result<String, ConfigError> {
    let fail = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut text = String::new();
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(fail)?;
    if read as u64 > MAX_BYTES {
        return Err(fail(std::io::Error::other("larger than 1 MiB")));
    }
    Ok(text)
}

/// Reads the settings in `text`. `home` is what a leading `~/` stands for.
pub(crate) fn parse(path: &Utf8Path, text: &str, home: &Utf8Path) -> Result<Reading, ConfigError> {
    let root: Option<Node> = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        // The reader appends a picture of the place; the line number is enough.
        let text = error.without_snippet().to_string();
        let text = text.lines().next().unwrap_or_default().to_owned();
        ConfigError::Syntax(Problem::new(path, line, text))
    })?;
    let mut reader =
        Reader { path, home, reading: Reading::default(), thermal_line: 0, domain_line: 0 };
    match root {
        None | Some(Node::Null) => {}
        Some(Node::Map(entries)) => {
            for (key, value) in entries {
                reader.entry(&key.value, key.referenced.line(), &value);
            }
        }
        Some(other) => {
            let text = format!("expected \"key: value\" lines, not {}", other.kind());
            return Err(ConfigError::Syntax(Problem::new(path, 1, text)));
        }
    }
    reader.check_thermal();
    reader.check_domain();
    Ok(reader.reading)
}

/// Walks one file. Each `entry` adds a setting, a problem or a warning, and never stops the walk.
struct Reader<'a> {
    path: &'a Utf8Path,
    home: &'a Utf8Path,
    reading: Reading,
    /// Where the last thermal duration stands.
    thermal_line: u64,
    /// Where the last key of the domain stands.
    domain_line: u64,
}

impl Reader<'_> {
    fn entry(&mut self, key: &str, line: u64, value: &Located) {
        if UNUSED.contains(&key) {
            let text = format!("{key:?} is not used by this version");
            self.reading.unused.push(Problem::new(self.path, line, text));
            return;
        }
        if let Some((_, keys)) = SECTIONS.iter().find(|(name, _)| *name == key) {
            self.section(key, keys, value);
            return;
        }
        if !KEYS.contains(&key) {
            self.problem(line, unknown_key(key));
            return;
        }
        self.value(key, value);
    }

    fn section(&mut self, section: &str, keys: &[&str], value: &Located) {
        let entries = match &value.value {
            Node::Null => return,
            Node::Map(entries) => entries,
            other => {
                let text = format!(
                    "{section:?} must be a section with {}, not {}",
                    keys.join(" and "),
                    other.kind()
                );
                return self.problem(value.referenced.line(), text);
            }
        };
        for (key, value) in entries {
            let dotted = format!("{section}.{}", key.value);
            if keys.contains(&key.value.as_str()) {
                self.value(&dotted, value);
            } else {
                self.problem(key.referenced.line(), unknown_key(&dotted));
            }
        }
    }

    fn value(&mut self, key: &str, value: &Located) {
        // `key:` with nothing after it is how people switch a line off.
        if value.value == Node::Null {
            return;
        }
        if let Err(text) = self.set(key, value) {
            self.problem(value.referenced.line(), text);
        }
    }

    /// Both are counted from the last use, so one cannot come before the other.
    fn check_thermal(&mut self) {
        let (given, defaults) = (&self.reading.settings, Thermal::default());
        let warm = given.warm_after.unwrap_or(defaults.warm_after);
        let cold = given.cold_after.unwrap_or(defaults.cold_after);
        let (Some(warm), Some(cold)) = (warm, cold) else { return };
        if cold < warm {
            let text = format!(
                "\"thermal.cold_after\" ({}{}) must not be below \"thermal.warm_after\" ({}{})",
                duration::show(Some(cold)),
                if given.cold_after.is_none() { ", the default" } else { "" },
                duration::show(Some(warm)),
                if given.warm_after.is_none() { ", the default" } else { "" },
            );
            self.problem(self.thermal_line, text);
        }
    }

    /// What one key says makes sense only with others.
    fn check_domain(&mut self) {
        match self.reading.settings.domain_keys.complete() {
            Ok(domain) => self.reading.settings.domain = domain,
            Err(text) => self.problem(self.domain_line, text),
        }
    }

    fn problem(&mut self, line: u64, text: String) {
        self.reading.problems.0.push(Problem::new(self.path, line, text));
    }

    fn set(&mut self, key: &str, value: &Located) -> Result<(), String> {
        let home = self.home;
        if key.starts_with("thermal.") {
            self.thermal_line = value.referenced.line();
        }
        if let Some(key) = key.strip_prefix("domain.") {
            self.domain_line = value.referenced.line();
            return set_domain(&mut self.reading.settings.domain_keys, key, &value.value, home);
        }
        let settings = &mut self.reading.settings;
        let value = &value.value;
        match key {
            "api_url" => settings.api_url = Some(url(key, value)?),
            "auth_token" => settings.auth_token = Some(text(key, value)?.to_owned()),
            "engine" => settings.engine = Some(engine(key, value)?),
            "listen" => settings.listen = Some(listen(key, value)?),
            "data_dir" => settings.data_dir = Some(absolute(key, value, home)?),
            "kernel" => settings.kernel = Some(absolute(key, value, home)?),
            "initramfs" => settings.initramfs = Some(absolute(key, value, home)?),
            "qemu_bin" => settings.qemu_bin = Some(absolute(key, value, home)?),
            "firecracker_bin" => settings.firecracker_bin = Some(absolute(key, value, home)?),
            "firecracker_seccomp_filter" => {
                settings.firecracker_seccomp_filter = Some(absolute(key, value, home)?);
            }
            "default_image" => settings.default_image = Some(image(key, value)?),
            "dns_upstreams" => settings.dns_upstreams = Some(addresses(key, value)?),
            "network_prefix" => settings.network_prefix = Some(prefix(key, value)?),
            "jail_uid_base" => {
                let last = server::JAIL_UIDS.end - server::JAIL_UID_COUNT;
                settings.jail_uid_base = Some(number(key, value, server::JAIL_UIDS.start, last)?);
            }
            "boot_timeout_sec" => settings.boot_timeout_sec = Some(number(key, value, 1, 3600)?),
            "on_shutdown" => settings.on_shutdown = Some(on_shutdown(key, value)?),
            "public_proxy_listen" => {
                let off = matches!(value, Node::Text(text) if text == "none");
                let at = if off { None } else { Some(listen(key, value)?) };
                settings.public_proxy_listen = Some(at);
            }
            "thermal.warm_after" => settings.warm_after = Some(duration::read(key, value)?),
            "thermal.cold_after" => settings.cold_after = Some(duration::read(key, value)?),
            "goldens.max_count" => settings.goldens_max_count = Some(number(key, value, 1, 1024)?),
            "limits.disk_mb_per_sec" => {
                settings.limits.disk_mb_per_sec = Some(number(key, value, 1, 1 << 20)?);
            }
            "limits.disk_ops_per_sec" => {
                settings.limits.disk_ops_per_sec = Some(number(key, value, 10, 1 << 30)?);
            }
            "limits.network_mb_per_sec" => {
                settings.limits.network_mb_per_sec = Some(number(key, value, 1, 1 << 20)?);
            }
            "public_limits.requests_per_min" => {
                settings.public_limits.requests_per_min = number(key, value, 60, 1 << 30)?;
            }
            "public_limits.client_per_min" => {
                settings.public_limits.client_per_min = number(key, value, 60, 1 << 30)?;
            }
            "public_limits.alias_per_min" => {
                settings.public_limits.alias_per_min = number(key, value, 60, 1 << 30)?;
            }
            "goldens.max_mb" => settings.goldens_max_mb = Some(number(key, value, 0, 16 << 20)?),
            other => unreachable!("{other} is a known key and has no reader"),
        }
        Ok(())
    }
}

fn set_domain(
    keys: &mut DomainKeys,
    name: &str,
    value: &Node,
    home: &Utf8Path,
) -> Result<(), String> {
    let key = &format!("domain.{name}");
    match name {
        "api_host" => keys.api_host = Some(host_name(key, text(key, value)?)?),
        "proxy_zone" => keys.proxy_zone = Some(host_name(key, text(key, value)?)?),
        "tls_cert" => keys.tls_cert = Some(absolute(key, value, home)?),
        "tls_key" => keys.tls_key = Some(absolute(key, value, home)?),
        "acme_email" => keys.acme_email = Some(text(key, value)?.to_owned()),
        "acme_directory" => {
            let directory = url(key, value)?;
            if !directory.starts_with("https://") {
                return Err(format!("{key:?} must start with https://, got {directory:?}"));
            }
            keys.acme_directory = Some(directory);
        }
        "acme_ca" => keys.acme_ca = Some(absolute(key, value, home)?),
        "listen" => keys.listen = Some(listen(key, value)?),
        "http_listen" => {
            let off = matches!(value, Node::Text(text) if text == "none");
            keys.http_listen = Some(if off { None } else { Some(listen(key, value)?) });
        }
        other => unreachable!("domain.{other} is a known key and has no reader"),
    }
    Ok(())
}

/// Names the nearest key, if one is near enough to be what was meant.
fn unknown_key(key: &str) -> String {
    let in_sections = SECTIONS
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")));
    let known = KEYS.iter().chain(&UNUSED).map(|key| (*key).to_owned());
    let known = known.chain(SECTIONS.iter().map(|(name, _)| (*name).to_owned()));
    let nearest = known
        .chain(in_sections)
        .map(|known| {
            // A key outside its section is as good as the key itself.
            let bare = known.rsplit('.').next().unwrap_or_default();
            let score = if bare == key { 1.0 } else { strsim::jaro_winkler(key, &known) };
            (score, known)
        })
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    // Printed with {:?}, so that a key made of control characters cannot play with a terminal.
    let shown: String = key.chars().take(64).collect();
    let meant = match nearest {
        Some((score, known)) if score >= 0.8 => known,
        _ => return format!("unknown key {shown:?}"),
    };
    match meant.split_once('.') {
        // A key with a dot in its name is not what YAML makes of a section.
        Some((section, bare)) if !key.starts_with(&format!("{section}.")) || key == meant => {
            format!("unknown key {shown:?} — put {bare:?} under \"{section}:\"")
        }
        _ => format!("unknown key {shown:?} — did you mean {meant:?}?"),
    }
}

fn text<'a>(key: &str, value: &'a Node) -> Result<&'a str, String> {
    match value {
        Node::Text(text) => Ok(text),
        Node::Int(_) | Node::Float(_) | Node::Bool(_) => {
            Err(format!("{key:?} must be text, not {}; put it in quotes", value.kind()))
        }
        other => Err(format!("{key:?} must be text, not {}", other.kind())),
    }
}

fn url(key: &str, value: &Node) -> Result<String, String> {
    let url = text(key, value)?.trim_end_matches('/');
    if url.starts_with("http://") || url.starts_with("https://") {
        Ok(url.to_owned())
    } else {
        Err(format!("{key:?} must start with http:// or https://, got {url:?}"))
    }
}

fn engine(key: &str, value: &Node) -> Result<EngineChoice, String> {
    match text(key, value)? {
        "auto" => Ok(EngineChoice::Auto),
        "qemu" => Ok(EngineChoice::Qemu),
        "firecracker" => Ok(EngineChoice::Firecracker),
        other => Err(format!("{key:?} must be auto, qemu or firecracker, got {other:?}")),
    }
}

fn on_shutdown(key: &str, value: &Node) -> Result<OnShutdown, String> {
    match text(key, value)? {
        "keep" => Ok(OnShutdown::Keep),
        "freeze" => Ok(OnShutdown::Freeze),
        other => Err(format!("{key:?} must be keep or freeze, got {other:?}")),
    }
}

fn listen(key: &str, value: &Node) -> Result<SocketAddr, String> {
    let bad = |got: &str| {
        format!("{key:?} must be an address such as \":8080\" or \"127.0.0.1:8080\", got {got}")
    };
    let text = match value {
        Node::Text(text) => text,
        Node::Int(port) => return Err(bad(&port.to_string())),
        other => return Err(bad(other.kind())),
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(|| bad(&format!("{text:?}")))?;
    let any = match host {
        "" => Some(Ipv4Addr::UNSPECIFIED),
        "localhost" => Some(Ipv4Addr::LOCALHOST),
        _ => None,
    };
    let parsed = match any {
        Some(ip) => port.parse().map(|port| SocketAddr::from((ip, port))).ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| bad(&format!("{text:?}")))
}

fn absolute(key: &str, value: &Node, home: &Utf8Path) -> Result<Utf8PathBuf, String> {
    let text = text(key, value)?;
    let path = match text.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => Utf8PathBuf::from(text),
    };
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("{key:?} must be an absolute path, got {text:?}"))
    }
}

fn image(key: &str, value: &Node) -> Result<String, String> {
    // The rule for names; spelled here because this crate sits below everything.
    let name = text(key, value)?;
    let ok = name.len() <= 63
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if ok {
        Ok(name.to_owned())
    } else {
        Err(format!("{key:?} must match [a-zA-Z0-9][a-zA-Z0-9._-]{{0,62}}, got {name:?}"))
    }
}

fn prefix(key: &str, value: &Node) -> Result<String, String> {
    let prefix = text(key, value)?;
    let ok = (1..=8).contains(&prefix.len())
        && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if ok {
        Ok(prefix.to_owned())
    } else {
        Err(format!("{key:?} must match [a-z0-9-]{{1,8}}, got {prefix:?}"))
    }
}

fn addresses(key: &str, value: &Node) -> Result<Vec<IpAddr>, String> {
    let Node::List(items) = value else {
        return Err(format!("{key:?} must be a list of IP addresses, not {}", value.kind()));
    };
    if items.len() > 8 {
        return Err(format!("{key:?} has {} addresses, more than 8", items.len()));
    }
    items
        .iter()
        .map(|item| {
            let text = match &item.value {
                Node::Text(text) => text.as_str(),
                other => {
                    return Err(format!("{key:?} must hold IP addresses, not {}", other.kind()));
                }
            };
            text.parse().map_err(|_| format!("{key:?} must hold IP addresses, got {text:?}"))
        })
        .collect()
}

fn number(key: &str, value: &Node, least: u32, most: u32) -> Result<u32, String> {
    let Node::Int(number) = value else {
        return Err(format!("{key:?} must be a whole number, not {}", value.kind()));
    };
    u32::try_from(*number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("{key:?} must be from {least} to {most}, got {number}"))
}
