//! A domain of one's own: TLS for the names of its zone, and for the API's.
//!
//! ```text
//!  :443 ─▶ ClientHello: which name? ─┬─ the API's ───────▶ the API, HTTP/1.1
//!                                    └─ below the zone ──▶ published ports, HTTP/2 or 1.1
//!  :80  ─▶ a challenge of the certificate authority, or on to https://
//! ```
//!
//! Promises:
//! - A client that does not get through its handshake in time is let go.
//! - WebSockets work: a client that speaks HTTP/2 makes another connection for one, with HTTP/1.1.
//! - What a connection was let in for is what it gets: a request for the API on a connection to a
//!   published port is answered with 421, so that browsers make another.

mod acme;
mod pace;
mod shelf;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_config::{Certificates, Domain};
use bhatti_lifecycle::{Events, Tasks};
use bhatti_types::UserId;
use camino::Utf8Path;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::connection::Guests;
use super::public::host;
use acme::Acme;
pub(crate) use pace::Owner;
use shelf::Shelf;
pub(crate) use shelf::{CertificateError, check};

/// How long a handshake may take, without the time a first certificate takes.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a client is let in for.
pub(super) struct Entrance {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) guests: Guests,
    pub(super) http2: bool,
}

/// Everything behind the two listeners.
pub(crate) struct Secure {
    zone: String,
    api_host: Option<String>,
    port: u16,
    /// For the API, and for published ports.
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    acme: Option<Arc<Acme>>,
}

impl Secure {
    /// Reads what certificates there are, and keeps them fresh as long as `tasks` run. `port` is
    /// the real one.
    pub(crate) fn open(
        domain: &Domain,
        port: u16,
        data_dir: &Utf8Path,
        tasks: &Tasks,
    ) -> Result<Self, CertificateError> {
        let shelf = Arc::new(Shelf::default());
        let acme = match &domain.certificates {
            Certificates::Files { cert, key } => {
                shelf.watch(domain, cert.clone(), key.clone(), tasks)?;
                None
            }
            Certificates::Acme { email, directory, ca } => {
                let authority = acme::Authority {
                    email: email.clone(),
                    directory: directory.clone(),
                    ca: ca.clone(),
                };
                Some(Acme::open(authority, data_dir, Arc::clone(&shelf), tasks.clone())?)
            }
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = |protocols: &[&[u8]]| -> Result<Arc<ServerConfig>, rustls::Error> {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
            let mut config = builder
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_cert_resolver(shelf.clone());
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Ok(Arc::new(config))
        };
        let setup = CertificateError::Setup;
        Ok(Self {
            zone: format!(".{}", domain.proxy_zone),
            api_host: domain.api_host.clone(),
            port,
            http1: config(&[b"http/1.1"]).map_err(setup)?,
            http2: config(&[b"h2", b"http/1.1"]).map_err(setup)?,
            acme,
        })
    }

    /// Whether a name is one of ours.
    fn knows(&self, name: &str) -> bool {
        self.api_host.as_deref() == Some(name) || name.ends_with(&self.zone)
    }

    /// The handshake; `None`: there is nobody to talk to. `published` says whose a name below the
    /// zone is: only somebody's is worth a certificate.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        published: &Published,
    ) -> Option<Entrance> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let started = match timeout(HANDSHAKE, hello).await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a handshake did not begin");
                return None;
            }
            Err(_) => return None,
        };
        let name = started.client_hello().server_name().map(str::to_ascii_lowercase);
        let api = name.is_some() && name == self.api_host;
        if let (Some(acme), Some(name)) = (&self.acme, &name)
            && let Some(owner) = self.owner(name, published)
        {
            acme.provide(name, owner).await;
        }
        let config = if api { &self.http1 } else { &self.http2 };
        let stream = match timeout(HANDSHAKE, started.into_stream(Arc::clone(config))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "a handshake failed");
                return None;
            }
            Err(_) => return None,
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let guests = if api { Guests::Known } else { Guests::Strangers };
        Some(Entrance { stream, guests, http2 })
    }

    /// In whose name there is a certificate for `name`; `None`: there is none.
    fn owner(&self, name: &str, published: &Published) -> Option<Owner> {
        if self.api_host.as_deref() == Some(name) {
            return Some(None);
        }
        published(name.strip_suffix(&self.zone)?).map(Some)
    }

    /// Has a certificate made before anybody waits for it.
    pub(super) fn prepare(&self, alias: &str, owner: &UserId) {
        if let Some(acme) = &self.acme {
            acme.prepare(&format!("{alias}{}", self.zone), Some(owner.clone()));
        }
    }

    /// Renews what is `published`, until the daemon stops.
    pub(crate) fn keep(self: &Arc<Self>, tasks: &Tasks, events: Events, published: Published) {
        let Some(acme) = self.acme.clone() else { return };
        let secure = Arc::clone(self);
        tasks.spawn("renewals", move |stop| async move {
            let wanted = |name: &str| secure.owner(name, &published);
            tokio::select! {
                () = stop.cancelled() => {}
                () = acme.renew(events, wanted) => {}
            }
        });
    }
}

/// Whose alias a name below the zone is, if it is one.
pub(crate) type Published = Box<dyn Fn(&str) -> Option<UserId> + Send + Sync>;

/// What answers without TLS: challenges, and where to go instead.
pub(crate) fn plain_router(secure: Arc<Secure>) -> Router {
    Router::new().fallback(plain).with_state(secure)
}

async fn plain(State(secure): State<Arc<Secure>>, request: Request) -> Response {
    let token = request.uri().path().strip_prefix("/.well-known/acme-challenge/");
    if let (Some(acme), Some(token)) = (&secure.acme, token) {
        return match acme.proof(token) {
            Some(proof) => proof.into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        };
    }
    let Some(name) = host(&request).filter(|name| secure.knows(name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let port = if secure.port == 443 { String::new() } else { format!(":{}", secure.port) };
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let Ok(to) = HeaderValue::try_from(format!("https://{name}{port}{path}")) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to)]).into_response()
}
