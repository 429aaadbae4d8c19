//! Makes the machine one particular sandbox: name, addresses, environment.
//!
//! Applied after the first boot, after later boots, and to clones of a running machine. Applying
//! the same settings twice changes nothing; applying others leaves nothing of the former ones.
//! Everything is checked before anything is changed. The files under `/etc` come last and cannot
//! fail it: a machine whose disk is full must be reachable, or nobody could make room. A root disk
//! that does not grow fails it when all else is done, because somebody paid for that disk.

pub mod disk;
pub mod files;
pub mod interface;

use std::net::IpAddr;
use std::path::Path;

use bhatti_wire::message::{Configure, ErrorKind, Failure, Network, Reply};

use crate::console::{Chain, report};
use crate::guest::Guest;
use interface::{Address, BadAddress, InterfaceError};

/// The longest host name the kernel takes, in bytes.
const MAX_HOSTNAME: usize = 64;

/// Most variables in a sandbox's environment.
const MAX_ENV: usize = 4096;

/// Why the machine is not configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    #[error("hostname {hostname:?} is longer than {MAX_HOSTNAME} bytes")]
    LongHostname { hostname: String },
    #[error("machine id {machine_id:?} is not 32 lower-case hex digits")]
    BadMachineId { machine_id: String },
    #[error("environment has more than {MAX_ENV} variables")]
    LargeEnv,
    #[error("environment variable {key:?} cannot exist")]
    BadEnv { key: String },
    #[error("bad network settings")]
    BadAddress(#[from] BadAddress),
    #[error("failed to set the host name")]
    Hostname(#[source] std::io::Error),
    #[error("failed to set up the network")]
    Interface(#[from] InterfaceError),
    #[error("failed to provide the root disk")]
    Disk(#[from] disk::DiskError),
}

impl ConfigureError {
    /// As the host sees it.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::LongHostname { .. }
            | Self::BadMachineId { .. }
            | Self::LargeEnv
            | Self::BadEnv { .. }
            | Self::BadAddress(_) => ErrorKind::Invalid,
            Self::Hostname(_) | Self::Interface(_) | Self::Disk(_) => ErrorKind::Other,
        };
        super::failure(kind, self)
    }
}

/// Applies `request` to this machine.
pub async fn configure(guest: &Guest, request: Configure) -> Result<(), ConfigureError> {
    let root_bytes = request.root_bytes;
    become_sandbox(guest, request)?;
    if root_bytes > 0 {
        disk::grow_root(root_bytes).await?;
    }
    Ok(())
}

/// As [`configure`], for the host.
pub async fn answer(guest: &Guest, request: Configure) -> Reply {
    Reply { failure: configure(guest, request).await.err().map(|error| error.failure()) }
}

/// All but the disk.
fn become_sandbox(guest: &Guest, request: Configure) -> Result<(), ConfigureError> {
    check_hostname(&request.hostname)?;
    check_machine_id(&request.machine_id)?;
    check_env(request.env.iter())?;
    let address = request.network.as_ref().map(Address::parse).transpose()?;

    nix::unistd::sethostname(&request.hostname)
        .map_err(|errno| ConfigureError::Hostname(errno.into()))?;
    let nameservers = set_network(guest, request.network, address)?;
    let etc = Path::new("/etc");
    let mut problems = files::write_identity(etc, &request.hostname, &request.machine_id);
    if let Some(nameservers) = nameservers {
        problems.extend(files::write_resolvers(etc, &nameservers).err());
    }
    for problem in &problems {
        report(format_args!("{}", Chain(problem)));
    }
    let mut settings = guest.settings();
    settings.env = request.env;
    settings.configured = true;
    Ok(())
}

/// Gives the interface its settings. Returns the name servers to use, if that is ours to say: a
/// machine that never had a network of ours keeps its image's.
fn set_network(
    guest: &Guest,
    network: Option<Network>,
    address: Option<Address>,
) -> Result<Option<Vec<IpAddr>>, ConfigureError> {
    let (former, device) = {
        let settings = guest.settings();
        (settings.network.clone(), settings.device.clone())
    };
    let Some(address) = address else {
        if former.is_some() {
            interface::clear()?;
            guest.settings().network = None;
        }
        return Ok(former.map(|_| Vec::new()));
    };
    // Taking a live interface down loses the routes its user added.
    if former != network || !address.is_applied(device.as_deref()) {
        // A part of it may be applied when this fails: then there is nothing to rely on.
        guest.settings().network = None;
        let device = address.apply(device.as_deref())?;
        let mut settings = guest.settings();
        settings.device = Some(device);
        settings.network = network;
    }
    Ok(Some(address.nameservers))
}

/// Only what the kernel would refuse: which names are nice is the host's business.
fn check_hostname(hostname: &str) -> Result<(), ConfigureError> {
    if hostname.len() <= MAX_HOSTNAME {
        return Ok(());
    }
    Err(ConfigureError::LongHostname { hostname: hostname.chars().take(80).collect() })
}

fn check_machine_id(machine_id: &str) -> Result<(), ConfigureError> {
    if machine_id.is_empty() || files::is_machine_id(machine_id) {
        return Ok(());
    }
    Err(ConfigureError::BadMachineId { machine_id: machine_id.chars().take(80).collect() })
}

/// Refuses what cannot be in an environment.
pub fn check_env<'a>(
    env: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), ConfigureError> {
    if env.len() > MAX_ENV {
        return Err(ConfigureError::LargeEnv);
    }
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(ConfigureError::BadEnv { key: key.chars().take(80).collect() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_the_kernel_refuses_is_refused() {
        let longest = "x".repeat(64);
        for good in ["", "a", "dev-1", "a.b", "a_b", "ü", longest.as_str()] {
            assert!(check_hostname(good).is_ok(), "{good}");
        }
        let error = check_hostname(&"ü".repeat(33)).expect_err("66 bytes");
        assert_eq!(error.failure().kind, i32::from(ErrorKind::Invalid));
    }

    #[test]
    fn machine_ids_are_checked() {
        for good in ["", "0123456789abcdef0123456789abcdef"] {
            assert!(check_machine_id(good).is_ok(), "{good}");
        }
        let error = check_machine_id("../x").expect_err("is no id");
        assert_eq!(error.failure().kind, i32::from(ErrorKind::Invalid));
    }

    #[test]
    fn environments_are_checked() {
        let check =
            |key: &str, value: &str| check_env([(&key.to_owned(), &value.to_owned())].into_iter());
        assert!(check("A", "b=c\n").is_ok());
        for (key, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            assert!(check(key, value).is_err(), "{key:?}={value:?}");
        }
    }
}
