//! Where the daemon is asked: its API, and the public side, which is an address or a domain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bhatti_config::{Domain, PublicProxy, ServerConfig};
use bhatti_lifecycle::Tasks;
use bhatti_store::Db;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::StartError;
use crate::http::{self, Api, Entry, Guests, Routers, Secure, Site, plain_router};

/// Everything that is bound.
pub(crate) struct Listeners {
    api: TcpListener,
    /// The API's; the real port if 0 was configured.
    pub(crate) address: SocketAddr,
    public: Public,
    /// Where published ports are; `None`: nowhere.
    pub(crate) site: Option<Site>,
}

enum Public {
    Nowhere,
    At(TcpListener),
    Domain { tls: TcpListener, http: Option<TcpListener>, secure: Arc<Secure> },
}

impl Listeners {
    /// Binds them all.
    pub(crate) async fn bind(config: &ServerConfig, tasks: &Tasks) -> Result<Self, StartError> {
        let (api, address) = listen(config.listen, "listen").await?;
        let (public, site) = match &config.domain {
            Some(domain) => bind_domain(domain, config, tasks).await?,
            None => bind_publicly(config.public_proxy).await?,
        };
        Ok(Self { api, address, public, site })
    }

    /// What keeps certificates, with a domain.
    pub(crate) fn secure(&self) -> Option<Arc<Secure>> {
        match &self.public {
            Public::Domain { secure, .. } => Some(Arc::clone(secure)),
            Public::Nowhere | Public::At(_) => None,
        }
    }

    /// Serves until `stop` fires. Connections are tasks of `connections`.
    pub(crate) async fn serve(
        self,
        api: &Arc<Api>,
        tasks: &Tasks,
        connections: &Tasks,
        stop: CancellationToken,
    ) {
        let router = http::router(Arc::clone(api));
        let public_router = http::public_router(Arc::clone(api));
        let db = api.db.clone();
        let public = async {
            match self.public {
                Public::Nowhere => {}
                Public::At(listener) => {
                    let entry = Entry::Plain(public_router, Guests::Strangers);
                    http::serve(listener, entry, connections, stop.clone()).await;
                }
                Public::Domain { tls, http, secure } => {
                    secure.keep(tasks, api.events.clone(), published(db.clone()));
                    let routers = Routers::new(router.clone(), public_router, published(db));
                    let entry = Entry::Tls(Arc::clone(&secure), Arc::new(routers));
                    let plain = async {
                        if let Some(http) = http {
                            let entry = Entry::Plain(plain_router(secure), Guests::Strangers);
                            http::serve(http, entry, connections, stop.clone()).await;
                        }
                    };
                    tokio::join!(http::serve(tls, entry, connections, stop.clone()), plain);
                }
            }
        };
        let entry = Entry::Plain(router.clone(), Guests::Known);
        tokio::join!(http::serve(self.api, entry, connections, stop.clone()), public);
    }
}

/// Whose an alias is. What cannot be looked up is nobody's.
fn published(db: Db) -> http::Published {
    Box::new(move |alias| {
        let found = db.read(|store| store.published(alias)).ok()?;
        found.map(|(_, sandbox)| sandbox.owner)
    })
}

async fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Binds what `key` of the configuration says.
async fn listen(
    address: SocketAddr,
    key: &'static str,
) -> Result<(TcpListener, SocketAddr), StartError> {
    bind(address).await.map_err(|source| {
        let why = match source.kind() {
            io::ErrorKind::AddrInUse => "another program has that port; stop it, or set",
            io::ErrorKind::AddrNotAvailable => "this host does not have that address; set",
            _ => "check",
        };
        StartError::Listen { address, hint: format!("{why} {key} in the configuration"), source }
    })
}

async fn bind_domain(
    domain: &Domain,
    config: &ServerConfig,
    tasks: &Tasks,
) -> Result<(Public, Option<Site>), StartError> {
    let (tls, address) = listen(domain.listen, "domain.listen").await?;
    let http = match domain.http_listen {
        Some(address) => Some(listen(address, "domain.http_listen").await?.0),
        None => None,
    };
    if let Some(PublicProxy { address, asked_for: true }) = config.public_proxy {
        tracing::warn!(
            not_used = %address,
            "public_proxy_listen is not used with a domain: published ports are answered at \
             domain.listen alone"
        );
    }
    let secure = Arc::new(Secure::open(domain, address.port(), &config.data_dir, tasks)?);
    tracing::info!(
        listen = %address,
        zone = domain.proxy_zone,
        "published ports are answered here, by name and with TLS"
    );
    let site = Site::Below {
        zone: format!(".{}", domain.proxy_zone),
        port: address.port(),
        api_host: domain.api_host.clone(),
    };
    Ok((Public::Domain { tls, http, secure }, Some(site)))
}

/// Binds the public side. That the usual address is taken is no reason not to start: nobody asked
/// for it.
async fn bind_publicly(config: Option<PublicProxy>) -> Result<(Public, Option<Site>), StartError> {
    let Some(PublicProxy { address, asked_for }) = config else {
        return Ok((Public::Nowhere, None));
    };
    match bind(address).await {
        Ok((listener, address)) => {
            tracing::info!(listen = %address, "published ports are answered here");
            Ok((Public::At(listener), Some(Site::at(address))))
        }
        Err(source) if asked_for => {
            let hint = "set another public_proxy_listen in the configuration, or none".to_owned();
            Err(StartError::Listen { address, hint, source })
        }
        Err(error) => {
            tracing::warn!(
                %address,
                %error,
                "published ports are not answered: set public_proxy_listen in the configuration"
            );
            Ok((Public::Nowhere, None))
        }
    }
}
