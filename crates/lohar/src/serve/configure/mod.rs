//! Makes the machine one particular sandbox: name, addresses, environment.
//!
//! Applied after the first boot, after later boots, and to clones of a running machine. Applying
//! the same settings twice changes nothing; applying others leaves nothing of the former ones.
//! Everything is checked before anything is changed.

pub mod files;
pub mod interface;

use std::path::Path;

use bhatti_wire::message::{Configure, ErrorKind, Failure};

use crate::guest::Guest;
use interface::{Address, BadAddress, InterfaceError};

/// Most variables in a sandbox's environment.
const MAX_ENV: usize = 4096;

/// Why the machine is not configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    #[error(
        "hostname {hostname:?} is not made of letters, digits, - and ., or not 1 to 64 bytes long"
    )]
    BadHostname { hostname: String },
    #[error("environment has more than {MAX_ENV} variables")]
    LargeEnv,
    #[error("environment variable {key:?} cannot exist")]
    BadEnv { key: String },
    #[error("bad network settings")]
    BadAddress(#[from] BadAddress),
    #[error("failed to set the host name")]
    Hostname(#[source] std::io::Error),
    #[error("failed to write {path}")]
    File {
        path: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to set up the network")]
    Interface(#[from] InterfaceError),
}

impl ConfigureError {
    /// As the host sees it.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::BadHostname { .. }
            | Self::LargeEnv
            | Self::BadEnv { .. }
            | Self::BadAddress(_) => ErrorKind::Invalid,
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                ErrorKind::NoSpace
            }
            Self::Hostname(_) | Self::File { .. } | Self::Interface(_) => ErrorKind::Other,
        };
        super::failure(kind, self)
    }
}

/// Applies `request` to this machine.
pub fn configure(guest: &Guest, request: Configure) -> Result<(), ConfigureError> {
    check_hostname(&request.hostname)?;
    check_env(request.env.iter())?;
    let address = request.network.as_ref().map(Address::parse).transpose()?;

    nix::unistd::sethostname(&request.hostname)
        .map_err(|errno| ConfigureError::Hostname(errno.into()))?;
    files::write_identity(Path::new("/etc"), &request.hostname)?;
    if let Some(address) = address {
        let unchanged = guest.settings().network == request.network;
        // Taking a live interface down loses the routes its user added.
        if !unchanged || !address.is_applied() {
            guest.settings().network = None;
            address.apply()?;
            guest.settings().network = request.network;
        }
        files::write_resolvers(Path::new("/etc"), &address.nameservers)?;
    }
    let mut settings = guest.settings();
    settings.env = request.env;
    settings.configured = true;
    Ok(())
}

fn check_hostname(hostname: &str) -> Result<(), ConfigureError> {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if (1..=64).contains(&hostname.len()) && hostname.chars().all(sound) {
        return Ok(());
    }
    Err(ConfigureError::BadHostname { hostname: hostname.chars().take(80).collect() })
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
    fn host_names_are_checked() {
        let longest = "x".repeat(64);
        for good in ["a", "dev-1", "a.b", longest.as_str()] {
            assert!(check_hostname(good).is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", "a b", "a\nb", "ü", "a_b", long.as_str()] {
            let error = check_hostname(bad).expect_err(bad);
            assert_eq!(error.failure().kind, i32::from(ErrorKind::Invalid));
        }
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
