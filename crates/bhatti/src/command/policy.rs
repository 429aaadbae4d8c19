//! `--egress`, `--allow-host` and `--allow-cidr`: what a sandbox may reach.

use bhatti_api::NetPolicy;

use super::pairs;
use crate::failure::Failure;

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
    /// The whole policy of a new sandbox, if anything was said about it. What is wrong with it in
    /// words of the API, the server says.
    pub(super) fn policy(&self) -> Result<Option<NetPolicy>, Failure> {
        // Empty, as of a variable that is not set, it would mean the server's default.
        if let Some(word) = self.egress.as_deref().filter(|word| !["public", "deny"].contains(word))
        {
            return Err(Failure::text(format!("--egress must be public or deny, not {word:?}")));
        }
        if !self.allow_host.is_empty() && self.egress.as_deref() != Some("deny") {
            return Err(Failure::text(
                "--allow-host needs --egress deny: without it every host on the internet is allowed",
            ));
        }
        let policy = NetPolicy {
            default: self.egress.clone().unwrap_or_default(),
            allow_hosts: pairs::split(&self.allow_host),
            allow_cidrs: pairs::split(&self.allow_cidr),
        };
        Ok((self.egress.is_some() || policy != NetPolicy::default()).then_some(policy))
    }

    /// The same for a sandbox that has one already, which is replaced as a whole: who only adds a
    /// range to a sandbox that may reach nothing must not open the internet to it.
    pub(super) fn replacing(&self) -> Result<Option<NetPolicy>, Failure> {
        if self.egress.is_none() && !(self.allow_host.is_empty() && self.allow_cidr.is_empty()) {
            return Err(Failure::text(
                "--allow-host and --allow-cidr replace the whole policy: say --egress deny or \
                 --egress public too, and all that is to be allowed",
            ));
        }
        self.policy()
    }
}
