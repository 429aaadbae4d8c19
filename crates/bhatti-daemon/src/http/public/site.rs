//! How aliases and URLs belong together.
//!
//! On a loopback address an alias is a host, `http://<alias>.localhost:<port>/`: browsers and curl
//! take every such name for this machine, and an application's absolute links work. Elsewhere, and
//! on the loopback for programs that do not know those names, it is the first segment of the path.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use axum::http::header;
use bhatti_types::Alias;

/// What every name of this machine ends in.
const ZONE: &str = ".localhost";

/// Where the public side is.
#[derive(Clone, Debug)]
pub(crate) enum Site {
    /// An address, without TLS.
    At(SocketAddr),
    /// Names below a zone, on a port.
    Below {
        /// With the dot it begins with.
        zone: String,
        port: u16,
        /// A name that may be below it and is no alias.
        api_host: Option<String>,
    },
}

/// Which program a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sought {
    /// What need not be an alias, and how many segments of the path that took.
    Alias(String, usize),
    /// What is answered elsewhere: another connection is needed.
    Api,
    /// No name of ours.
    Nothing,
}

impl Site {
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self::At(address)
    }

    /// Whether clients come by TLS.
    pub(super) fn is_secure(&self) -> bool {
        matches!(self, Self::Below { .. })
    }

    /// Whether an alias would be what the API is called.
    pub(super) fn is_apis(&self, alias: &Alias) -> bool {
        let Self::Below { zone, api_host: Some(api), .. } = self else { return false };
        api.strip_suffix(zone.as_str()) == Some(alias.as_str())
    }

    /// Where an alias is reached. An address that is no particular one is left out, for who asked
    /// to fill in: they know how they got here.
    pub(in crate::http) fn url(&self, alias: &Alias) -> String {
        let address = match self {
            Self::At(address) => address,
            Self::Below { zone, port: 443, .. } => return format!("https://{alias}{zone}"),
            Self::Below { zone, port, .. } => return format!("https://{alias}{zone}:{port}"),
        };
        let port = address.port();
        if address.ip().is_loopback() {
            format!("http://{alias}{ZONE}:{port}/")
        } else if address.ip().is_unspecified() {
            format!("http://:{port}/{alias}/")
        } else {
            format!("http://{address}/{alias}/")
        }
    }

    /// What a request is for.
    pub(super) fn sought(&self, request: &Request) -> Sought {
        let host = host(request).unwrap_or_default();
        match self {
            Self::At(address) => at(*address, &host, request),
            Self::Below { api_host: Some(api), .. } if *api == host => Sought::Api,
            Self::Below { zone, .. } => match host.strip_suffix(zone) {
                Some(alias) => Sought::Alias(alias.to_owned(), 0),
                None => Sought::Nothing,
            },
        }
    }
}

fn at(address: SocketAddr, host: &str, request: &Request) -> Sought {
    if let Some(alias) = host.strip_suffix(ZONE) {
        return Sought::Alias(alias.to_owned(), 0);
    }
    // A page of elsewhere whose name has come to mean this machine is not let in: what is
    // published here is for who is here.
    let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if address.ip().is_loopback() && !literal && host != "localhost" {
        return Sought::Nothing;
    }
    match request.uri().path().split('/').nth(1) {
        Some(first) if !first.is_empty() => Sought::Alias(first.to_owned(), 1),
        _ => Sought::Nothing,
    }
}

/// The host a request names, without its port, in lower case. What is none is not passed on: we
/// answer with URLs that hold it.
pub(in crate::http) fn host(request: &Request) -> Option<String> {
    let named = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    let named = request.uri().authority().map(|authority| authority.as_str()).or(named)?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let host = match named.rsplit_once(':') {
        Some((host, port)) if digits(port) => host,
        _ => named,
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if !host.bytes().all(fits) {
        return None;
    }
    // One dot at the end says only that this is the whole name.
    Some(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn alias(address: &str, host: &str, path: &str) -> Option<(String, usize)> {
        let request = Request::builder().uri(path).header(header::HOST, host);
        let request = request.body(Body::empty()).expect("a request");
        match Site::at(address.parse().expect("an address")).sought(&request) {
            Sought::Alias(alias, ours) => Some((alias, ours)),
            Sought::Api | Sought::Nothing => None,
        }
    }

    #[test]
    fn with_a_domain_an_alias_is_a_name_below_it() {
        let name: Alias = "dev".parse().expect("an alias");
        let site = |port| Site::Below {
            zone: ".box.example".to_owned(),
            port,
            api_host: Some("api.box.example".to_owned()),
        };
        assert_eq!(site(443).url(&name), "https://dev.box.example");
        assert_eq!(site(8443).url(&name), "https://dev.box.example:8443");
        for (host, wanted) in [
            ("dev.box.example", Sought::Alias("dev".to_owned(), 0)),
            ("DEV.box.example.:443", Sought::Alias("dev".to_owned(), 0)),
            ("api.box.example", Sought::Api),
            ("box.example", Sought::Nothing),
            ("dev.localhost", Sought::Nothing),
            ("evil.example", Sought::Nothing),
        ] {
            let request = Request::builder().uri("/other/").header(header::HOST, host);
            let request = request.body(Body::empty()).expect("a request");
            assert_eq!(site(443).sought(&request), wanted, "{host}");
        }
    }

    #[test]
    fn no_alias_is_what_the_api_is_called() {
        let site = |api: &str| Site::Below {
            zone: ".box.example".to_owned(),
            port: 443,
            api_host: Some(api.to_owned()),
        };
        let dev: Alias = "dev".parse().expect("an alias");
        assert!(site("dev.box.example").is_apis(&dev));
        assert!(!site("api.box.example").is_apis(&dev));
        assert!(!site("dev.example").is_apis(&dev));
        assert!(!Site::at(SocketAddr::from(([127, 0, 0, 1], 80))).is_apis(&dev));
    }

    #[test]
    fn what_is_no_name_names_no_host() {
        for named in
            ["evil.example/.box.example", "evil.example#.box.example", "a@b", "a\\b", "a b"]
        {
            let request = Request::builder().uri("/").header(header::HOST, named);
            let request = request.body(Body::empty()).expect("a request");
            assert_eq!(host(&request), None, "{named}");
        }
    }

    #[test]
    fn a_url_leads_to_its_alias() {
        let name: Alias = "dev-1".parse().expect("an alias");
        for (address, url) in [
            ("127.0.0.1:8090", "http://dev-1.localhost:8090/"),
            ("[::1]:80", "http://dev-1.localhost:80/"),
            ("0.0.0.0:8443", "http://:8443/dev-1/"),
            ("192.0.2.1:8443", "http://192.0.2.1:8443/dev-1/"),
        ] {
            let site = Site::at(address.parse().expect("an address"));
            assert_eq!(site.url(&name), url);
            let (host, path) = url["http://".len()..].split_once('/').expect("a path");
            let found = alias(address, host, &format!("/{path}x"));
            assert_eq!(found.map(|found| found.0).as_deref(), Some("dev-1"), "{url}");
        }
    }

    #[test]
    fn an_alias_is_in_the_host_or_else_in_the_path() {
        let here = |host, path| alias("127.0.0.1:8090", host, path);
        let found = |text: &str, ours| Some((text.to_owned(), ours));
        assert_eq!(here("dev.localhost:8090", "/x"), found("dev", 0));
        assert_eq!(here("DEV.localhost.", "/x"), found("dev", 0));
        assert_eq!(here("a.b.localhost", "/x"), found("a.b", 0));
        for host in ["127.0.0.1:8090", "localhost:8090", "localhost", "[::1]:8090"] {
            assert_eq!(here(host, "/dev/x"), found("dev", 1), "{host}");
            assert_eq!((here(host, "/"), here(host, "//x")), (None, None));
        }
        assert_eq!(here("evil.example", "/dev/x"), None, "a name that was made to mean us");
        assert_eq!(here("", "/dev/x"), None);
        assert_eq!(alias("0.0.0.0:80", "box.example:80", "/dev/x"), found("dev", 1));
    }
}
