//! One file: its known keys, and what it says.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use camino::{Utf8Path, Utf8PathBuf};

use crate::node::{Located, Node};
use crate::problem::{ConfigError, Problem, Problems};
use crate::server::{self, EngineChoice};

/// No configuration is this long; a wrong path may be.
const MAX_BYTES: u64 = 1 << 20;

/// Keys that do something.
const KEYS: [&str; 13] = [
    "api_url",
    "auth_token",
    "boot_timeout_sec",
    "data_dir",
    "default_image",
    "dns_upstreams",
    "engine",
    "initramfs",
    "jail_uid_base",
    "kernel",
    "listen",
    "network_prefix",
    "qemu_bin",
];

/// Keys an existing installation's file has and this version does nothing with.
const UNUSED: [&str; 9] = [
    "backup",
    "domain",
    "firecracker_bin",
    "firecracker_jailer",
    "firecracker_kernel",
    "firecracker_rootfs",
    "jail_gid",
    "jail_uid",
    "public_proxy_listen",
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
    pub(crate) default_image: Option<String>,
    pub(crate) dns_upstreams: Option<Vec<IpAddr>>,
    pub(crate) network_prefix: Option<String>,
    pub(crate) jail_uid_base: Option<u32>,
    pub(crate) boot_timeout_sec: Option<u32>,
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
    let mut reader = Reader { path, home, reading: Reading::default() };
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
    Ok(reader.reading)
}

/// Walks one file. Each `entry` adds a setting, a problem or a warning, and never stops the walk.
struct Reader<'a> {
    path: &'a Utf8Path,
    home: &'a Utf8Path,
    reading: Reading,
}

impl Reader<'_> {
    fn entry(&mut self, key: &str, line: u64, value: &Located) {
        if UNUSED.contains(&key) {
            let text = format!("{key:?} is not used by this version");
            self.reading.unused.push(Problem::new(self.path, line, text));
            return;
        }
        if !KEYS.contains(&key) {
            self.problem(line, unknown_key(key));
            return;
        }
        // `key:` with nothing after it is how people switch a line off.
        if value.value == Node::Null {
            return;
        }
        if let Err(text) = self.set(key, value) {
            self.problem(value.referenced.line(), text);
        }
    }

    fn problem(&mut self, line: u64, text: String) {
        self.reading.problems.0.push(Problem::new(self.path, line, text));
    }

    fn set(&mut self, key: &str, value: &Located) -> Result<(), String> {
        let home = self.home;
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
            "default_image" => settings.default_image = Some(image(key, value)?),
            "dns_upstreams" => settings.dns_upstreams = Some(addresses(key, value)?),
            "network_prefix" => settings.network_prefix = Some(prefix(key, value)?),
            "jail_uid_base" => {
                let last = server::JAIL_UIDS.end - server::JAIL_UID_COUNT;
                settings.jail_uid_base = Some(number(key, value, server::JAIL_UIDS.start, last)?);
            }
            "boot_timeout_sec" => settings.boot_timeout_sec = Some(number(key, value, 1, 3600)?),
            other => unreachable!("{other} is in KEYS and has no reader"),
        }
        Ok(())
    }
}

/// Names the nearest key, if one is near enough to be what was meant.
fn unknown_key(key: &str) -> String {
    let nearest = KEYS
        .iter()
        .chain(&UNUSED)
        .map(|known| (strsim::jaro_winkler(key, known), known))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    // Printed with {:?}, so that a key made of control characters cannot play with a terminal.
    let shown: String = key.chars().take(64).collect();
    match nearest {
        Some((score, known)) if score >= 0.8 => {
            format!("unknown key {shown:?} — did you mean {known:?}?")
        }
        _ => format!("unknown key {shown:?}"),
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
