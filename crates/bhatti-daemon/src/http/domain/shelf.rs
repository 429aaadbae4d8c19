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
    #[error(
        "the certificate in {path} is not good yet: put another there, or set this host's clock"
    )]
    NotYet { path: Utf8PathBuf },
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
        Some((begin, _)) if begin > SystemTime::now() => {
            Err(CertificateError::NotYet { path: cert.to_owned() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    /// A certificate for these names, from one year to another, and its key.
    fn issue(names: &[&str], from: i32, to: i32) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        (cert.pem(), key.serialize_pem())
    }

    /// What is said of two files with these texts.
    fn said(cert: Option<&str>, key: &str) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = Utf8Path::from_path(dir.path()).expect("a path of ours");
        let (certs, keys) = (dir.join("cert.pem"), dir.join("key.pem"));
        if let Some(cert) = cert {
            std::fs::write(&certs, cert).expect("written");
        }
        std::fs::write(&keys, key).expect("written");
        let domain = Domain {
            proxy_zone: "box.test".to_owned(),
            api_host: Some("api.box.test".to_owned()),
            certificates: Certificates::Files { cert: certs, key: keys },
            listen: ([127, 0, 0, 1], 443).into(),
            http_listen: None,
        };
        let outcome = check(&domain);
        let said = outcome.map_or_else(|error| error.to_string(), |()| "good".to_owned());
        said.replace(dir.as_str(), "DIR")
    }

    #[test]
    fn a_certificate_that_is_no_good_is_told_in_one_sentence() {
        let good = issue(&["*.box.test"], 2020, 4000);
        let other = issue(&["*.box.test"], 2020, 4000);
        let zone_only = issue(&["box.test"], 2020, 4000);
        let expired = issue(&["*.box.test"], 2020, 2021);
        let early = issue(&["*.box.test"], 3999, 4000);
        let whole = |(cert, key): &(String, String)| said(Some(cert), key);
        assert_eq!(whole(&good), "good");
        assert_eq!(
            whole(&zone_only),
            "the certificate in DIR/cert.pem is not for any-alias.box.test: it takes one for *.box.test"
        );
        assert_eq!(
            whole(&expired),
            "the certificate in DIR/cert.pem has expired: put a new one there"
        );
        assert_eq!(
            whole(&early),
            "the certificate in DIR/cert.pem is not good yet: put another there, or set this host's \
             clock"
        );
        assert_eq!(
            said(Some(&good.0), &other.1),
            "the key in DIR/key.pem is not the one of the certificate in DIR/cert.pem, or of an \
             unknown kind"
        );
        for (cert, key, what) in [
            (Some("garbage"), good.1.as_str(), "DIR/cert.pem holds no certificate in PEM"),
            (Some(good.1.as_str()), &good.1, "DIR/cert.pem holds no certificate in PEM"),
            (Some(good.0.as_str()), "", "DIR/key.pem holds no private key in PEM"),
            (None, &good.1, "failed to read DIR/cert.pem"),
        ] {
            assert_eq!(said(cert, key), format!("{what}: see domain in the configuration"));
        }
    }
}
