//! Where the API is.

use std::fmt;

use http::Uri;

use crate::ClientError;

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// A parsed API address. The path is kept, so an API behind a prefix works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) scheme: Scheme,
    /// Without the brackets of an IPv6 literal.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What the `Host` header says.
    pub(crate) authority: String,
    /// Prefix of every path, without a trailing slash.
    base: String,
}

impl Endpoint {
    /// Reads `http://host[:port][/prefix]` or `https://…`; trailing slashes do not matter.
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadUrl { url: url.to_owned() };
        let uri: Uri = url.trim_end_matches('/').parse().map_err(|_| bad())?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, 80),
            Some("https") => (Scheme::Https, 443),
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        // A name or password in the address would end up in error messages.
        if authority.as_str().contains('@') || uri.query().is_some() || authority.host().is_empty()
        {
            return Err(bad());
        }
        let host = authority.host();
        // Not `authority.port()`: to it a port out of range is no port.
        let port = match &authority.as_str()[host.len()..] {
            "" => default_port,
            port => port.trim_start_matches(':').parse().map_err(|_| bad())?,
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Ok(Self {
            scheme,
            host: bare.unwrap_or(host).to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The path to ask for.
    pub(crate) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}{}", self.authority, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_into_their_parts() {
        let check = |url: &str, host: &str, port: u16, shown: &str| {
            let endpoint = Endpoint::parse(url).expect(url);
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port), "{url}");
            assert_eq!(endpoint.to_string(), shown);
        };
        check("http://localhost:8080///", "localhost", 8080, "http://localhost:8080");
        check("https://api.x.org", "api.x.org", 443, "https://api.x.org");
        check("http://[::1]:9", "::1", 9, "http://[::1]:9");
        check("http://a/b/c/", "a", 80, "http://a/b/c");
        let prefixed = Endpoint::parse("http://a/b/").expect("parses");
        assert_eq!(prefixed.path("/sandboxes"), "/b/sandboxes");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "localhost:8080",
            "ftp://x",
            "http://",
            "http://u:p@x",
            "http://x:99999",
            "http://x?y",
        ] {
            assert!(matches!(Endpoint::parse(bad), Err(ClientError::BadUrl { .. })), "{bad}");
        }
    }
}
