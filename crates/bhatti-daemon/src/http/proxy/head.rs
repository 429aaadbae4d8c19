//! What of a request's head a program gets to see, and of an answer's head a client.
//!
//! Removed both ways: what is about one connection only (hop-by-hop). Removed on the way in: our
//! own keys, and what the client says of itself that only we can know. Removed on the way out: the
//! headers in which we speak to our own clients.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// About one connection, whatever `Connection` says.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What our own headers begin with.
const OURS: &str = "x-bhatti-";

/// What an `Authorization` begins with that holds one of our keys.
const OUR_KEY: &str = "bearer bht_";

/// What becomes of `Authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Keys {
    /// It was said to us: no program gets it.
    Ours,
    /// It is for the program, unless somebody says one of our keys by mistake.
    Theirs,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Asker {
    pub(in crate::http) peer: IpAddr,
    pub(in crate::http) keys: Keys,
    /// By TLS.
    pub(in crate::http) https: bool,
}

/// The headers as the program on `port` gets them. With `upgrade`, those that ask for one stay.
pub(super) fn request(headers: &mut HeaderMap, asker: Asker, port: u16, upgrade: bool) {
    let protocol = headers.get(header::UPGRADE).cloned().filter(|_| upgrade);
    let trailers = says(headers, &header::TE, "trailers");
    let host = headers.get(header::HOST).cloned();
    remove_hop_by_hop(headers);
    // The answer to it comes from us.
    headers.remove(header::EXPECT);
    match asker.keys {
        Keys::Ours => drop(headers.remove(header::AUTHORIZATION)),
        Keys::Theirs => {
            let ours = |value: &HeaderValue| {
                let start = value.as_bytes().get(..OUR_KEY.len()).unwrap_or_default();
                start.eq_ignore_ascii_case(OUR_KEY.as_bytes())
            };
            if headers.get_all(header::AUTHORIZATION).iter().any(ours) {
                headers.remove(header::AUTHORIZATION);
            }
        }
    }
    let said: Vec<HeaderName> =
        headers.keys().filter(|name| is_about_client(name)).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    let text = |text: &str| HeaderValue::from_str(text).expect("an address or a number is plain");
    headers.insert(FORWARDED_FOR, text(&asker.peer.to_canonical().to_string()));
    let proto = if asker.https { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    join_cookies(headers);
    match host {
        Some(host) => drop(headers.insert(FORWARDED_HOST, host)),
        None => drop(headers.remove(FORWARDED_HOST)),
    }
    headers.insert(header::HOST, text(&format!("localhost:{port}")));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Whether a header is said of a client by what stands before the program. Many programs take an
/// underscore for a hyphen.
fn is_about_client(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
}

/// HTTP/2 may send each cookie by itself; programs expect one line.
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(b"; ".as_slice()))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// How long a program keeps a connection, if its answer says.
pub(super) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let said = headers.get("keep-alive")?.to_str().ok()?;
    let timeout = said.split(',').find_map(|item| item.trim().strip_prefix("timeout="))?;
    timeout.trim().parse().ok().map(Duration::from_secs)
}

/// The headers of an answer as the client gets them.
pub(super) fn answer(headers: &mut HeaderMap, upgraded: bool) {
    let protocol = headers.get(header::UPGRADE).cloned().filter(|_| upgraded);
    remove_hop_by_hop(headers);
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // Whoever names these does not mean that the program should do without.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.into_iter().chain(HOP_BY_HOP).chain([PROXY_CONNECTION]) {
        headers.remove(name);
    }
}

/// Whether the client asks for another protocol on this connection. Another HTTP is none: in there
/// requests would say of themselves what they like.
pub(super) fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && !says(headers, &header::UPGRADE, "h2c")
        && says(headers, &header::CONNECTION, "upgrade")
}

/// Whether a request can be understood in two ways, or not at all: two hosts, a coding of the body
/// that is not undone here, or the wish for a connection to elsewhere. A program behind this, or
/// what stands before it, may choose another way than we do.
pub(in crate::http) fn is_ambiguous(method: &Method, headers: &HeaderMap) -> bool {
    let coded =
        |value: &HeaderValue| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    let codings = headers.get_all(header::TRANSFER_ENCODING);
    headers.get_all(header::HOST).iter().count() > 1
        || codings.iter().count() > 1
        || codings.iter().any(coded)
        || *method == Method::CONNECT
}

fn says(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
}

/// What a program is asked for: everything of the path after its first `segments` segments, as it
/// was written, and the query.
pub(in crate::http) fn target(uri: &Uri, segments: usize) -> Uri {
    // Before the first one there is a slash.
    let rest = uri.path().splitn(segments + 2, '/').nth(segments + 1).unwrap_or_default();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = PathAndQuery::try_from(format!("/{rest}{query}"));
    // What was in a URI is fit to be in one.
    path.map_or_else(|_| Uri::from_static("/"), Uri::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| {
                let name: HeaderName = name.parse().expect("a name");
                (name, HeaderValue::from_str(value).expect("a value"))
            })
            .collect()
    }

    /// As `name: value` lines, sorted.
    fn lines(headers: &HeaderMap) -> Vec<String> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("text"))
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    fn asked(keys: Keys, upgrade: bool, list: &[(&str, &str)]) -> Vec<String> {
        let mut headers = headers(list);
        let peer = "::ffff:192.0.2.7".parse().expect("an address");
        request(&mut headers, Asker { peer, keys, https: false }, 8000, upgrade);
        lines(&headers)
    }

    #[test]
    fn a_program_is_told_who_asks_and_no_secret() {
        let list = [
            ("x-real-ip", "10.0.0.1"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x-forwarded-port", "1"),
            ("host", "dev.localhost:8090"),
            ("authorization", "Bearer bht_secret"),
            ("cookie", "a=b"),
            ("cookie", "c=d"),
            ("connection", "close, X-Mine, Content-Length"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("proxy-connection", "keep-alive"),
        ];
        let wanted = [
            "cookie: a=b; c=d",
            "host: localhost:8000",
            "te: trailers",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: dev.localhost:8090",
            "x-forwarded-proto: http",
        ];
        assert_eq!(asked(Keys::Ours, false, &list), wanted);
        assert_eq!(asked(Keys::Theirs, false, &list), wanted, "a key said by mistake");
    }

    #[test]
    fn a_programs_own_authorization_reaches_it_from_the_public_side_only() {
        let list = [("authorization", "Basic dXNlcjpwYXNz")];
        let has = |keys| asked(keys, false, &list).iter().any(|l| l.starts_with("authorization"));
        assert!(has(Keys::Theirs) && !has(Keys::Ours));
        // Two of them: what is one of ours spoils both.
        let two = [("authorization", "Basic x"), ("authorization", "bearer BHT_x")];
        assert!(!asked(Keys::Theirs, false, &two).iter().any(|l| l.contains("authorization")));
    }

    #[test]
    fn an_upgrade_is_passed_on_whole() {
        let list = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "x"),
        ];
        assert!(asks_for_upgrade(&headers(&list)));
        let passed = asked(Keys::Ours, true, &list);
        for line in ["connection: Upgrade", "upgrade: websocket", "sec-websocket-key: x"] {
            assert!(passed.iter().any(|l| l == line), "{passed:?}");
        }
        assert!(!asks_for_upgrade(&headers(&[("upgrade", "websocket")])));
        assert!(!asks_for_upgrade(&headers(&[("connection", "upgrade")])));
        // In there it could be asked for anything in anybody's name.
        assert!(!asks_for_upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "H2C")])));
    }

    #[test]
    fn what_can_be_understood_in_two_ways_is_not_passed_on() {
        let ambiguous = |list: &[(&str, &str)]| is_ambiguous(&Method::POST, &headers(list));
        for list in [
            &[("host", "a"), ("host", "a")][..],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert!(ambiguous(list), "{list:?}");
        }
        assert!(!ambiguous(&[("host", "a"), ("transfer-encoding", " Chunked ")]));
        assert!(is_ambiguous(&Method::CONNECT, &HeaderMap::new()));
    }

    #[test]
    fn an_answer_does_not_speak_for_us() {
        let mut answered = headers(&[
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-bhatti-warning", "all is lost"),
        ]);
        answer(&mut answered, false);
        assert_eq!(lines(&answered), ["set-cookie: a=1", "set-cookie: b=2", "trailer: x-sum"]);
    }

    #[test]
    fn the_rest_of_a_path_is_passed_on_as_it_was_written() {
        for (uri, segments, wanted) in [
            ("/sandboxes/a/proxy/80", 4, "/"),
            ("/sandboxes/a/proxy/80?q=%20", 4, "/?q=%20"),
            ("/sandboxes/a%2Fb/proxy/80/x%2Fy/z/?q=1?2", 4, "/x%2Fy/z/?q=1?2"),
            ("/alias", 1, "/"),
            ("/alias//x", 1, "//x"),
            ("/x/y", 0, "/x/y"),
            ("/", 0, "/"),
        ] {
            let uri: Uri = uri.parse().expect("a URI");
            assert_eq!(target(&uri, segments).to_string(), wanted, "{uri}");
        }
    }
}
