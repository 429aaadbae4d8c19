//! The section `domain`: a zone whose names lead to published ports, over TLS.

use std::net::{Ipv4Addr, SocketAddr};

use camino::Utf8PathBuf;

/// Where Let's Encrypt takes orders.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// A domain of one's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// `domain.proxy_zone`: an alias is a name directly below it.
    pub proxy_zone: String,
    /// `domain.api_host`: what the API is called, if it is to be reached here too.
    pub api_host: Option<String>,
    /// `domain.listen`; `:443` by default.
    pub listen: SocketAddr,
    /// `domain.http_listen`; `:80` by default. `None`: nothing listens there.
    pub http_listen: Option<SocketAddr>,
    /// Where certificates come from.
    pub certificates: Certificates,
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// `domain.tls_cert` and `domain.tls_key`: one for all names, in PEM.
    Files { cert: Utf8PathBuf, key: Utf8PathBuf },
    /// One a name, when it is first asked for.
    Acme {
        /// `domain.acme_email`
        email: String,
        /// `domain.acme_directory`; Let's Encrypt's by default.
        directory: String,
        /// `domain.acme_ca`: whom to trust about the directory, in PEM; the usual by default.
        ca: Option<Utf8PathBuf>,
    },
}

/// What a file says of it, key by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DomainKeys {
    pub(crate) api_host: Option<String>,
    pub(crate) proxy_zone: Option<String>,
    pub(crate) tls_cert: Option<Utf8PathBuf>,
    pub(crate) tls_key: Option<Utf8PathBuf>,
    pub(crate) acme_email: Option<String>,
    pub(crate) acme_directory: Option<String>,
    pub(crate) acme_ca: Option<Utf8PathBuf>,
    pub(crate) listen: Option<SocketAddr>,
    /// The inner `Option` is `none`.
    pub(crate) http_listen: Option<Option<SocketAddr>>,
}

impl DomainKeys {
    /// The whole, if it is one; `None`: nothing was said. An error is one sentence.
    pub(crate) fn complete(&self) -> Result<Option<Domain>, String> {
        if *self == Self::default() {
            return Ok(None);
        }
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let Some(proxy_zone) = self.proxy_zone.clone() else {
            return Err("\"domain\" needs proxy_zone, the name below which aliases are".to_owned());
        };
        let http_listen = self.http_listen.unwrap_or(Some(any(80)));
        let certificates = match (&self.tls_cert, &self.tls_key, &self.acme_email) {
            (Some(cert), Some(key), None) => {
                Certificates::Files { cert: cert.clone(), key: key.clone() }
            }
            (None, None, Some(_)) if http_listen.is_none() => {
                let text = "\"domain.acme_email\" needs http_listen: names are proved there";
                return Err(text.to_owned());
            }
            (None, None, Some(email)) => Certificates::Acme {
                email: email.clone(),
                directory: self.acme_directory.clone().unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
                ca: self.acme_ca.clone(),
            },
            _ => {
                let text = "\"domain\" needs either tls_cert and tls_key, or acme_email";
                return Err(text.to_owned());
            }
        };
        Ok(Some(Domain {
            proxy_zone,
            api_host: self.api_host.clone(),
            listen: self.listen.unwrap_or(any(443)),
            http_listen,
            certificates,
        }))
    }
}

/// A name as it is looked up: lower-case labels with dots between them.
pub(crate) fn host_name(key: &str, text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let digits = name.split('.').all(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if name.len() <= 190 && name.split('.').all(label) && !digits {
        Ok(name)
    } else {
        Err(format!("{key:?} must be a host name such as \"example.com\", got {text:?}"))
    }
}
