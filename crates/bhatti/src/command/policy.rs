//! `--egress`, `--allow-host` and `--allow-cidr`: what a sandbox may reach.

use bhatti_api::NetPolicy;

use super::pairs;

/// The flags of every command that says what a sandbox may reach.
#[derive(clap::Args, Debug)]
pub(crate) struct PolicyArgs {
    /// What it may reach where nothing else is said: public (the internet, no private network) or
    /// deny (nothing but its siblings)
    #[arg(long, value_name = "public|deny")]
    egress: Option<String>,
    /// With --egress deny: a host it may reach, as example.com or *.example.com (repeatable)
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// An IPv4 range it may reach, private ones too (repeatable)
    #[arg(long, value_name = "CIDR")]
    allow_cidr: Vec<String>,
}

impl PolicyArgs {
    /// The whole policy, if anything was said about it. What is wrong with it, the server says.
    pub(super) fn policy(&self) -> Option<NetPolicy> {
        let policy = NetPolicy {
            default: self.egress.clone().unwrap_or_default(),
            allow_hosts: pairs::split(&self.allow_host),
            allow_cidrs: pairs::split(&self.allow_cidr),
        };
        (self.egress.is_some() || policy != NetPolicy::default()).then_some(policy)
    }
}
