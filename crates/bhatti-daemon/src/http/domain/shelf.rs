//! Certificates at hand, by name; and those that come from files, read anew when they change.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bhatti_config::{Certificates, Domain};
use bhatti_lifecycle::{Tasks, chain};
use camino::{Utf8Path, Utf8PathBuf};
use tokio_rustls::rustls;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// No certificate with its chain is this long, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// Why there is no certificate. Each is one sentence with what to do.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("failed to read {path}: see domain in the configuration")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} holds no {what} in PEM: see domain in the configuration")]
    Pem { path: Utf8PathBuf, what: &'static str },
    #[error("the key in {key} is not the one of the certificate in {cert}, or of an unknown kind")]
    Key {
        cert: Utf8PathBuf,
        key: Utf8PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("the certificate in {path} is not for {name}: it takes one for *.{zone}")]
    Name { path: Utf8PathBuf, name: String, zone: String },
    #[error("the certificate in {path} has expired: put a new one there")]
    Expired { path: Utf8PathBuf },
    #[error("failed to set up TLS")]
    Setup(#[source] rustls::Error),
    #[error("failed to prepare {path} for certificates")]
    Store {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to set up a client of {directory}: see domain.acme_ca in the configuration")]
    Authority {
        directory: String,
        #[source]
        source: instant_acme::Error,
    },
}

/// What a handshake takes its certificate from.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// For every name that has none of its own.
    common: RwLock<Option<Arc<CertifiedKey>>>,
    named: RwLock<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Shelf {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let own = name.and_then(|name| named.get(&name).cloned());
        own.or_else(|| self.common.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Shelf {
    pub(super) fn put(&self, name: &str, key: CertifiedKey) {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        named.insert(name.to_owned(), Arc::new(key));
    }

    pub(super) fn take(&self, name: &str) {
        self.named.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.named.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    fn put_common(&self, key: CertifiedKey) {
        *self.common.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }

    /// Takes the certificate of two files, now and whenever they have changed. One that is no good
    /// is said, and the former one stays.
    pub(super) fn watch(
        self: &Arc<Self>,
        domain: &Domain,
        cert: Utf8PathBuf,
        key: Utf8PathBuf,
        tasks: &Tasks,
    ) -> Result<(), CertificateError> {
        let mut seen = changed(&cert, &key);
        self.put_common(load(domain, &cert, &key)?);
        let (shelf, domain) = (Arc::clone(self), domain.clone());
        tasks.spawn("certificate files", move |stop| async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let now = changed(&cert, &key);
                if now == seen {
                    continue;
                }
                match load(&domain, &cert, &key) {
                    Ok(loaded) => {
                        shelf.put_common(loaded);
                        tracing::info!(%cert, "took a new certificate");
                    }
                    Err(error) => {
                        let error = chain(&error);
                        tracing::error!(
                            error,
                            "a new certificate is no good; the former one stays"
                        );
                    }
                }
                // Once for each change, good or not.
                seen = now;
            }
        });
        Ok(())
    }
}

/// What two files last changed at.
fn changed(cert: &Utf8Path, key: &Utf8Path) -> [Option<SystemTime>; 2] {
    [cert, key].map(|path| std::fs::metadata(path).and_then(|it| it.modified()).ok())
}

/// Whether a daemon could begin with the certificate that a configuration names.
pub(crate) fn check(domain: &Domain) -> Result<(), CertificateError> {
    match &domain.certificates {
        Certificates::Files { cert, key } => load(domain, cert, key).map(drop),
        Certificates::Acme { .. } => Ok(()),
    }
}

/// The certificate of two files, if it is for every name it is to be shown for, today.
fn load(
    domain: &Domain,
    cert: &Utf8Path,
    key: &Utf8Path,
) -> Result<CertifiedKey, CertificateError> {
    let (chain, secret) = (read(cert)?, read(key)?);
    let certified = certified(&chain, &secret, cert, key)?;
    let zone = domain.proxy_zone.clone();
    let leaf = certified.end_entity_cert().map_err(CertificateError::Setup)?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(CertificateError::Setup)?;
    let any_alias = format!("any-alias.{zone}");
    for name in [Some(&any_alias), domain.api_host.as_ref()].into_iter().flatten() {
        let matches = ServerName::try_from(name.as_str())
            .is_ok_and(|server| verify_server_name(&parsed, &server).is_ok());
        if !matches {
            let (path, name) = (cert.to_owned(), name.clone());
            return Err(CertificateError::Name { path, name, zone });
        }
    }
    match validity(leaf) {
        Some((_, end)) if end < SystemTime::now() => {
            Err(CertificateError::Expired { path: cert.to_owned() })
        }
        _ => Ok(certified),
    }
}

/// A chain and its key, as they are shown in a handshake.
pub(super) fn certified(
    chain: &[u8],
    secret: &[u8],
    cert: &Utf8Path,
    key: &Utf8Path,
) -> Result<CertifiedKey, CertificateError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).filter_map(Result::ok).collect();
    if chain.is_empty() {
        return Err(CertificateError::Pem { path: cert.to_owned(), what: "certificate" });
    }
    let secret = PrivateKeyDer::from_pem_slice(secret)
        .map_err(|_| CertificateError::Pem { path: key.to_owned(), what: "private key" })?;
    CertifiedKey::from_der(chain, secret, &aws_lc_rs::default_provider()).map_err(|source| {
        CertificateError::Key { cert: cert.to_owned(), key: key.to_owned(), source }
    })
}

/// From when to when a certificate is good; `None`: it does not say.
pub(super) fn validity(leaf: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let time = |at: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(at.timestamp()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    Some((time(parsed.validity().not_before)?, time(parsed.validity().not_after)?))
}

fn read(path: &Utf8Path) -> Result<Vec<u8>, CertificateError> {
    let fail = |source| CertificateError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_PEM), &mut bytes)
        .map_err(fail)?;
    Ok(bytes)
}
