//! A domain of one's own: published ports by name, with TLS, in HTTP/2; and where certificates come
//! from.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use camino::{Utf8Path, Utf8PathBuf};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, PublicKeyData as _};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, client};

use crate::files::noise;
use crate::proxy::serve;

/// Signs certificates, and is trusted by whoever asks below.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: Utf8PathBuf,
}

impl Ca {
    pub(crate) fn new(dir: &Utf8Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "a test's authority");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        std::fs::write(dir.join("ca.pem"), issuer.pem()).expect("a file");
        Self { issuer, dir: dir.to_owned() }
    }

    /// Writes `cert.pem` and `key.pem` for these names; the public key.
    pub(crate) fn issue(&self, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        // Not at once, as whoever renews does it: what does not fit together is left alone.
        std::fs::write(self.dir.join("key.pem"), key.serialize_pem()).expect("a file");
        std::fs::write(self.dir.join("cert.pem"), cert.pem()).expect("a file");
        key.subject_public_key_info()
    }
}

/// Asks with curl, in whatever way, for a name that leads here.
pub(crate) fn curl(ca: &Utf8Path, url: &str, args: &[&str]) -> (bool, String) {
    let out = Command::new("curl")
        .args(["-sS", "--max-time", "90", "--cacert", ca.as_str()])
        .args(["--connect-to", "::127.0.0.1:", "-w", "\n%{http_code} %{http_version}"])
        .args(args)
        .arg(url)
        .output()
        .expect("curl runs");
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
}

/// What trusts `ca`.
pub(crate) fn trusting(ca: &Utf8Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(ca.as_std_path()).expect("a certificate");
    roots.add(root).expect("a root");
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// A connection to `name`, and the certificate it was shown.
pub(crate) fn connect(
    ca: &Utf8Path,
    name: &str,
) -> (StreamOwned<ClientConnection, TcpStream>, CertificateDer<'static>) {
    let config = trusting(ca);
    let server = ServerName::try_from(name.to_owned()).expect("a name");
    let client = ClientConnection::new(Arc::new(config), server).expect("a client");
    let stream = TcpStream::connect("127.0.0.1:443").expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let mut stream = StreamOwned::new(client, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    }
    let shown = stream.conn.peer_certificates().expect("a chain")[0].clone().into_owned();
    (stream, shown)
}

/// A configuration with the files a [`Ca`] writes in `dir`.
pub(crate) fn with_files(dir: &Utf8Path) -> String {
    format!(
        "domain:\n  proxy_zone: box.test\n  api_host: api.box.test\n  tls_cert: {dir}/cert.pem\n  \
         tls_key: {dir}/key.pem\n"
    )
}

#[test]
fn a_domain_of_ones_own_is_answered_by_name_with_tls() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::prepared("");
        let dir = daemon.scratch_path().to_owned();
        let ca = Ca::new(&dir);
        daemon.reconfigure(&with_files(&dir));
        ca.issue(&["*.elsewhere.test"]);
        for args in [["serve", "--check"].as_slice(), &["serve"]] {
            let refused = daemon.prepare(None, args).output().expect("it runs");
            let said = [refused.stdout, refused.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            // However it is broken into lines.
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(!refused.status.success(), "{args:?}: {said}");
            assert!(said.contains("is not for any-alias.box.test"), "{args:?}: {said}");
        }
        ca.issue(&["*.box.test"]);
        daemon.run();
        assert!(daemon.logged("public_proxy_listen is not used with a domain"), "it has both");
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        let published = daemon.cli(&["publish", "dev", "-p", "8000", "-a", "web"]).ok();
        assert_eq!(published, "Published: https://web.box.test\n");
        let ca_file = dir.join("ca.pem");
        names_lead_where_they_should(&daemon, &ca_file);
        events_come_one_by_one(&daemon, &ca_file);
        sockets_work(&ca_file);
        much_is_passed_on_in_little(&daemon, &ca_file);
        certificates_are_taken_anew(&mut daemon, &ca, &ca_file);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

fn names_lead_where_they_should(daemon: &TestDaemon, ca: &Utf8Path) {
    let ask = |url: &str, args: &[&str]| curl(ca, url, args).1.to_lowercase();
    let answer = ask("https://web.box.test/a?x", &["-H", "Cookie: a=1", "-H", "Cookie: b=2"]);
    for wanted in [
        "get /a?x http/1.1",
        "host: localhost:8000",
        "x-forwarded-proto: https",
        "x-forwarded-host: web.box.test",
        "cookie: a=1; b=2",
    ] {
        assert!(answer.lines().any(|line| line.trim_end() == wanted), "{wanted}: {answer}");
    }
    assert!(answer.ends_with("\n200 2"), "HTTP/2: {answer}");
    assert!(ask("https://web.box.test/", &["--http1.1"]).ends_with("\n200 1.1"));
    let api = ask("https://api.box.test/health", &[]);
    assert!(api.contains("\"status\":\"ok\"") && api.ends_with("\n200 1.1"), "{api}");
    let key = format!("Authorization: Bearer {}", daemon.admin().key);
    let proxied = ask("https://api.box.test/sandboxes/dev/proxy/8000/", &["-H", &key]);
    assert!(proxied.contains("x-forwarded-proto: https"), "{proxied}");
    assert!(ask("https://nobody.box.test/", &[]).ends_with("\n404 2"));
    // On a connection to an alias.
    assert!(ask("https://web.box.test/", &["-H", "Host: api.box.test"]).ends_with("\n421 2"));
    let moved = ask("http://web.box.test/a?x", &["-i"]);
    assert!(moved.contains("location: https://web.box.test/a?x\r\n"), "{moved}");
    assert!(moved.ends_with("\n301 1.1"), "{moved}");
    assert!(ask("http://elsewhere.test/", &[]).ends_with("\n404 1.1"));
}

fn events_come_one_by_one(daemon: &TestDaemon, ca: &Utf8Path) {
    let mut events = Command::new("curl")
        .args(["-sSN", "--max-time", "90", "--cacert", ca.as_str()])
        .args(["--connect-to", "::127.0.0.1:", "https://web.box.test/events"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl runs");
    let mut lines = BufReader::new(events.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    assert_eq!((next().as_str(), next().as_str()), ("data: one", ""));
    daemon.sh("dev", "touch /tmp/go");
    assert_eq!((next().as_str(), next().as_str()), ("data: two", ""));
    assert!(events.wait().expect("it ends").success());
}

fn sockets_work(ca: &Utf8Path) {
    let request = "wss://web.box.test/ws".into_client_request().expect("a URL");
    let (mut socket, _) = client(request, connect(ca, "web.box.test").0).expect("an upgrade");
    for message in [Message::text("hello"), Message::binary(noise(100_000))] {
        socket.send(message.clone()).expect("it is taken");
        assert_eq!(socket.read().expect("an echo"), message);
    }
}

/// A body in chunks, longer than anything that is held of it.
fn much_is_passed_on_in_little(daemon: &TestDaemon, ca: &Utf8Path) {
    let file = daemon.scratch_path().join("large");
    std::fs::write(&file, noise(20 << 20)).expect("a file");
    let before = daemon.memory_mib("VmHWM");
    for version in ["--http1.1", "--http2"] {
        let chunked = ["-X", "POST", "-H", "Transfer-Encoding: chunked"];
        let args = [&[version, "-T", file.as_str()], chunked.as_slice()].concat();
        let answer = curl(ca, "https://web.box.test/sum", &args).1;
        assert!(answer.starts_with(&format!("{} ", 20 << 20)), "{answer}");
    }
    let after = daemon.memory_mib("VmHWM");
    assert!(after - before < 16, "{before} MiB, then {after}");
}

fn certificates_are_taken_anew(daemon: &mut TestDaemon, ca: &Ca, ca_file: &Utf8Path) {
    let shown = || connect(ca_file, "web.box.test").1;
    let first = shown();
    ca.issue(&["*.box.test"]);
    let second = wait_for("another is shown", || Some(shown()).filter(|shown| *shown != first));
    daemon.allow_error("a new certificate is no good");
    ca.issue(&["*.elsewhere.test"]);
    wait_for("it is told", || daemon.logged("a new certificate is no good").then_some(()));
    assert_eq!(shown(), second, "the former one stays");
}

/// A configuration with an [`authority`].
fn with_authority(dir: &Utf8Path) -> String {
    format!(
        "domain:\n  proxy_zone: box.test\n  api_host: api.box.test\n  acme_email: me@box.test\n  \
         acme_directory: https://localhost:14000/dir\n  acme_ca: {dir}/ca.pem\n"
    )
}

/// Programs that a test has started; they end with it.
struct Programs(Vec<Child>);

impl Drop for Programs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().expect("ours to kill");
            child.wait().expect("it ends");
        }
    }
}

/// An authority that speaks ACME: Pebble, which Let's Encrypt tests with. All names lead here. What it
/// issues is good for `valid`.
fn authority(dir: &Utf8Path, valid: Duration) -> Programs {
    Ca::new(dir).issue(&["localhost"]);
    let config = serde_json::json!({ "pebble": {
        "listenAddress": "127.0.0.1:14000",
        "managementListenAddress": "127.0.0.1:15000",
        "certificate": dir.join("cert.pem"),
        "privateKey": dir.join("key.pem"),
        "httpPort": 80,
        "tlsPort": 443,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": false,
        "certificateValidityPeriod": valid.as_secs(),
    }});
    std::fs::write(dir.join("pebble.json"), config.to_string()).expect("a file");
    start_authority(dir)
}

/// One that knows nobody, and signs with a key of its own.
fn start_authority(dir: &Utf8Path) -> Programs {
    let start = |program: &str, args: &[&str]| {
        let log = std::fs::File::create(dir.join(program)).expect("a log");
        let mut command = Command::new(program);
        command.args(args).env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0");
        let log = (log.try_clone().expect("another handle"), log);
        let command = command.stdin(Stdio::null()).stdout(log.0).stderr(log.1);
        command.spawn().unwrap_or_else(|error| panic!("{program} is missing: {error}"))
    };
    let dns = ["-defaultIPv6", "", "-defaultIPv4", "127.0.0.1", "-dns01", "127.0.0.1:8053"];
    let off = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:8055"];
    let programs = Programs(vec![
        start("pebble-challtestsrv", &[dns.as_slice(), &off].concat()),
        start(
            "pebble",
            &["-config", dir.join("pebble.json").as_str(), "-dnsserver", "127.0.0.1:8053"],
        ),
    ]);
    wait_for("the authority answers", || {
        let roots = ["-k", "-o", dir.join("roots.pem").as_str()].map(str::to_owned);
        let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
        curl(&dir.join("ca.pem"), "https://127.0.0.1:15000/roots/0", &roots).0.then_some(())
    });
    programs
}

/// A daemon whose names an [`authority`] certifies, with `web` published and answered, and whom to trust.
fn published(valid: Duration) -> (TestDaemon, Programs, Utf8PathBuf) {
    let mut daemon = TestDaemon::prepared("");
    let dir = daemon.scratch_path().to_owned();
    let authority = authority(&dir, valid);
    daemon.reconfigure(&with_authority(&dir));
    daemon.run();
    let roots = dir.join("roots.pem");
    daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
    serve(&daemon, "dev", 8000, "127.0.0.1");
    daemon.cli(&["publish", "dev", "-p", "8000", "-a", "web"]).ok();
    // At once, while the certificate is being made.
    let (_, answer) = curl(&roots, "https://web.box.test/a", &[]);
    assert!(answer.contains("GET /a HTTP/1.1"), "{answer}");
    (daemon, authority, roots)
}

#[test]
fn certificates_are_issued_when_a_name_is_published_and_kept() {
    on_fresh_host(|| {
        let (mut daemon, authority, roots) = published(Duration::from_secs(90 * 86_400));
        let (_, api) = curl(&roots, "https://api.box.test/health", &[]);
        assert!(api.contains("ok"), "{api}");
        let (reached, nothing) = curl(&roots, "https://nobody.box.test/", &[]);
        assert!(!reached, "{nothing}");
        assert_eq!(daemon.count_logged("a certificate was issued"), 2, "for who is there only");
        let first = connect(&roots, "web.box.test").1;
        daemon.terminate();
        drop(authority);
        daemon.run();
        assert_eq!(connect(&roots, "web.box.test").1, first, "without the authority");
        // It cannot be had now: the others are none the worse for it.
        daemon.cli(&["publish", "dev", "-p", "8001", "-a", "late"]).ok();
        assert!(!curl(&roots, "https://late.box.test/", &["--max-time", "60"]).0);
        assert!(daemon.logged("no certificate was issued"));
        let (_, answer) = curl(&roots, "https://web.box.test/b", &[]);
        assert!(answer.contains("GET /b HTTP/1.1"), "{answer}");
        let certs = daemon.data_dir().join("certs");
        let mode = std::fs::metadata(&certs).expect("it is there").permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

#[test]
fn certificates_are_renewed_in_time_and_stay_while_they_cannot_be() {
    on_fresh_host(|| {
        // So long that a busy machine has time for all that is done in the last third of it.
        let (daemon, authority, roots) = published(Duration::from_secs(75));
        let request = "wss://web.box.test/ws".into_client_request().expect("a URL");
        let (stream, first) = connect(&roots, "web.box.test");
        let (mut socket, _) = client(request, stream).expect("an upgrade");
        let shown = || connect(&roots, "web.box.test").1;
        let second = wait_for("it is renewed", || Some(shown()).filter(|shown| *shown != first));
        socket.send(Message::text("still here")).expect("a connection of before goes on");
        assert_eq!(socket.read().expect("an echo"), Message::text("still here"));
        drop(authority);
        let failed = ["admin", "events", "--type", "certificate.failed"];
        let event = wait_for("that it fails is told", || daemon.json(&failed).get(0).cloned());
        assert_eq!(shown(), second, "the former one stays");
        assert_eq!(event["meta"]["name"], "web.box.test");
        assert_eq!(event["meta"]["renewal"], true);
        assert!(event["meta"]["again_s"].as_u64().is_some_and(|s| (5..60).contains(&s)), "{event}");
        assert!(event["user_id"].is_string(), "{event}");
        // Another, which has never heard of our account.
        let issued = daemon.count_logged("a certificate was issued");
        let _authority = start_authority(daemon.scratch_path());
        wait_for("it is renewed after all", || {
            (daemon.count_logged("a certificate was issued") > issued).then_some(())
        });
        let third = connect(&roots, "web.box.test").1;
        assert!(third != first && third != second);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}
