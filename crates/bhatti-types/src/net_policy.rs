//! What a sandbox may reach beyond its owner's other sandboxes.
//!
//! An address is judged in this order: [`NEVER`] is denied; what `allow_cidrs` names is allowed;
//! [`PRIVATE`] is denied; what one of `allow_hosts` was resolved to for this sandbox is allowed; for
//! the rest `default` decides.
//!
//! Promise: a policy that exists can be enforced as it is. It is bounded, its ranges are apart, and
//! nothing in it is without effect.

use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::range::{Ipv4Net, NEVER, PRIVATE};

/// The most names, and the most ranges, of one policy.
const MAX_RULES: usize = 64;
/// The longest a name may be: what DNS has room for.
const MAX_NAME: usize = 253;

/// What a sandbox may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct NetPolicy {
    default: Egress,
    allow_hosts: Vec<HostPattern>,
    allow_cidrs: Vec<Ipv4Net>,
}

/// What holds where no rule does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Egress {
    /// The internet, and no private network.
    #[default]
    Public,
    /// Nothing.
    Deny,
}

/// One name, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This name.
    Exact(String),
    /// Whatever ends in a dot and this.
    Below(String),
}

/// A policy as text has it: in the HTTP contract and in the database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    default: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_hosts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_cidrs: Vec<String>,
}

/// Why a policy is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicy {
    #[error("default must be \"public\" or \"deny\", not {0:?}")]
    Default(String),
    #[error(
        "allow_hosts needs default \"deny\": with \"public\" every name on the internet is allowed"
    )]
    HostsWithoutDeny,
    #[error("at most {MAX_RULES} {0}")]
    TooMany(&'static str),
    #[error("{0:?} is not a host name such as example.com or *.example.com")]
    Host(String),
    #[error("{0:?} is an address: use allow_cidrs for it")]
    HostIsAddress(String),
    #[error("{0:?} is not an IPv4 range such as 192.0.2.0/24")]
    Cidr(String),
    #[error("{0:?} has bits set after its prefix: did you mean {1}?")]
    HostBits(String, Ipv4Net),
    #[error("{0:?} is an IPv6 range: sandboxes have no IPv6")]
    Ipv6(String),
    #[error("{0} cannot be allowed: {1} is never reachable from a sandbox")]
    Never(Ipv4Net, Ipv4Net),
}

impl NetPolicy {
    /// Nothing at all.
    pub fn closed() -> Self {
        Self { default: Egress::Deny, ..Self::default() }
    }

    /// A policy from its parts as text has them; an empty `default` is `public`.
    pub fn parse(default: &str, hosts: &[String], cidrs: &[String]) -> Result<Self, BadPolicy> {
        let default = match default {
            "" | "public" => Egress::Public,
            "deny" => Egress::Deny,
            other => return Err(BadPolicy::Default(shown(other))),
        };
        if hosts.len() > MAX_RULES {
            return Err(BadPolicy::TooMany("allow_hosts"));
        }
        if cidrs.len() > MAX_RULES {
            return Err(BadPolicy::TooMany("allow_cidrs"));
        }
        if default == Egress::Public && !hosts.is_empty() {
            return Err(BadPolicy::HostsWithoutDeny);
        }
        let mut allow_hosts: Vec<HostPattern> =
            hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>()?;
        allow_hosts.sort();
        allow_hosts.dedup();
        let mut ranges = cidrs.iter().map(|text| range(text)).collect::<Result<Vec<_>, _>>()?;
        // The widest first: two ranges are apart or one is in the other, so what stays is apart.
        ranges.sort_by_key(|range| (range.prefix_len(), range.network()));
        let mut allow_cidrs: Vec<Ipv4Net> = Vec::new();
        for range in ranges {
            if !allow_cidrs.iter().any(|wider| wider.covers(range)) {
                allow_cidrs.push(range);
            }
        }
        allow_cidrs.sort();
        Ok(Self { default, allow_hosts, allow_cidrs })
    }

    /// What holds where no rule does.
    pub fn default_egress(&self) -> Egress {
        self.default
    }

    /// Names it allows, in order.
    pub fn allow_hosts(&self) -> &[HostPattern] {
        &self.allow_hosts
    }

    /// Ranges it allows, in order and apart.
    pub fn allow_cidrs(&self) -> &[Ipv4Net] {
        &self.allow_cidrs
    }

    /// Whether `name`, without a dot at its end and in lower case, may be resolved.
    pub fn allows_name(&self, name: &str) -> bool {
        match self.default {
            Egress::Public => true,
            Egress::Deny => self.allow_hosts.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// Whether an allowed name may lead to `address`: not into what is denied whatever it is called,
    /// or whoever is asked for a name could open a private network with the answer.
    pub fn allows_answer(&self, address: Ipv4Addr) -> bool {
        let within = |ranges: &[Ipv4Net]| ranges.iter().any(|range| range.contains(address));
        !within(&NEVER) && (within(&self.allow_cidrs) || !within(&PRIVATE))
    }
}

/// For an error message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A range, or one address.
fn range(text: &str) -> Result<Ipv4Net, BadPolicy> {
    let bad = || BadPolicy::Cidr(shown(text));
    if text.contains(':') {
        return Err(BadPolicy::Ipv6(shown(text)));
    }
    let (address, len) = text.split_once('/').unwrap_or((text, "32"));
    let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
    let digits = len.len() <= 2 && len.bytes().all(|byte| byte.is_ascii_digit());
    let len: u8 = len.parse().ok().filter(|len| digits && *len <= 32).ok_or_else(bad)?;
    let range = Ipv4Net::around(address, len);
    if range.network() != address {
        return Err(BadPolicy::HostBits(shown(text), range));
    }
    match NEVER.into_iter().find(|never| never.covers(range)) {
        Some(never) => Err(BadPolicy::Never(range, never)),
        None => Ok(range),
    }
}

impl HostPattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Below(suffix) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bad = || BadPolicy::Host(shown(text));
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_prefix("*.").unwrap_or(&lower);
        let is_pattern = name.len() != lower.len();
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Err(BadPolicy::HostIsAddress(shown(text)));
        }
        let label = |label: &str| {
            let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(byte)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > MAX_NAME || !name.split('.').all(label) {
            return Err(bad());
        }
        Ok(if is_pattern { Self::Below(name.to_owned()) } else { Self::Exact(name.to_owned()) })
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

impl std::fmt::Display for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Deny => "deny",
        })
    }
}

impl TryFrom<Written> for NetPolicy {
    type Error = BadPolicy;
    fn try_from(text: Written) -> Result<Self, BadPolicy> {
        Self::parse(&text.default, &text.allow_hosts, &text.allow_cidrs)
    }
}

impl From<NetPolicy> for Written {
    fn from(policy: NetPolicy) -> Self {
        Self {
            default: policy.default.to_string(),
            allow_hosts: policy.allow_hosts.iter().map(ToString::to_string).collect(),
            allow_cidrs: policy.allow_cidrs.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn parse(default: &str, hosts: &[&str], cidrs: &[&str]) -> Result<NetPolicy, String> {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        NetPolicy::parse(default, &own(hosts), &own(cidrs)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence() {
        for (default, hosts, cidrs, sentence) in [
            ("closed", "", "", "default must be \"public\" or \"deny\", not \"closed\""),
            (
                "public",
                "a.example",
                "",
                "allow_hosts needs default \"deny\": with \"public\" every name on the internet is \
                 allowed",
            ),
            ("deny", "*", "", "\"*\" is not a host name such as example.com or *.example.com"),
            (
                "deny",
                "a.*.b",
                "",
                "\"a.*.b\" is not a host name such as example.com or *.example.com",
            ),
            (
                "deny",
                "a..b",
                "",
                "\"a..b\" is not a host name such as example.com or *.example.com",
            ),
            (
                "deny",
                "https://x.y/",
                "",
                "\"https://x.y/\" is not a host name such as example.com or *.example.com",
            ),
            ("deny", "192.0.2.1", "", "\"192.0.2.1\" is an address: use allow_cidrs for it"),
            ("deny", "", "x", "\"x\" is not an IPv4 range such as 192.0.2.0/24"),
            (
                "deny",
                "",
                "192.0.2.0/+4",
                "\"192.0.2.0/+4\" is not an IPv4 range such as 192.0.2.0/24",
            ),
            (
                "deny",
                "",
                "192.0.2.0/33",
                "\"192.0.2.0/33\" is not an IPv4 range such as 192.0.2.0/24",
            ),
            (
                "deny",
                "",
                "192.0.2.7/24",
                "\"192.0.2.7/24\" has bits set after its prefix: did you mean 192.0.2.0/24?",
            ),
            ("deny", "", "fd00::/8", "\"fd00::/8\" is an IPv6 range: sandboxes have no IPv6"),
            (
                "public",
                "",
                "169.254.169.254",
                "169.254.169.254/32 cannot be allowed: 169.254.0.0/16 is never reachable from a \
                 sandbox",
            ),
        ] {
            let list = |text: &'static str| if text.is_empty() { vec![] } else { vec![text] };
            assert_eq!(parse(default, &list(hosts), &list(cidrs)).unwrap_err(), sentence);
        }
        let many: Vec<String> = (0..65).map(|i| format!("h{i}.example")).collect();
        let error = NetPolicy::parse("deny", &many, &[]).unwrap_err();
        assert_eq!(error.to_string(), "at most 64 allow_hosts");
    }

    #[test]
    fn names_match_whole_labels() {
        let policy = parse("deny", &["Example.com.", "*.Example.org"], &[]).unwrap();
        for allowed in ["example.com", "a.example.org", "a.b.example.org"] {
            assert!(policy.allows_name(allowed), "{allowed}");
        }
        for denied in ["a.example.com", "example.org", "notexample.org", "", "com"] {
            assert!(!policy.allows_name(denied), "{denied}");
        }
        assert!(NetPolicy::default().allows_name("whatever"));
        assert!(!NetPolicy::closed().allows_name("whatever"));
    }

    #[test]
    fn an_answer_does_not_open_what_is_denied() {
        let lan = parse("public", &[], &["192.168.7.0/24"]).unwrap();
        for (policy, address, allowed) in [
            (&NetPolicy::default(), "93.184.216.34", true),
            (&NetPolicy::default(), "192.168.7.1", false),
            (&lan, "192.168.7.1", true),
            (&lan, "192.168.8.1", false),
            (&lan, "169.254.169.254", false),
            (&lan, "127.0.0.1", false),
        ] {
            assert_eq!(policy.allows_answer(address.parse().unwrap()), allowed, "{address}");
        }
    }

    #[test]
    fn ranges_end_up_apart() {
        let policy =
            parse("deny", &[], &["192.0.2.9", "192.0.2.0/24", "192.0.2.0/25", "198.51.100.0/24"]);
        let policy = policy.unwrap();
        let ranges: Vec<String> = policy.allow_cidrs().iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["192.0.2.0/24", "198.51.100.0/24"]);
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(text, r#"{"default":"deny","allow_cidrs":["192.0.2.0/24","198.51.100.0/24"]}"#);
        assert_eq!(serde_json::from_str::<NetPolicy>(&text).unwrap(), policy);
        assert!(serde_json::from_str::<NetPolicy>(r#"{"default":"x"}"#).is_err());
    }
}
