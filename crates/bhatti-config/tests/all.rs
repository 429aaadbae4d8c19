//! What the configuration promises, file by file, in scratch directories.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use bhatti_config::{
    Certificates, Config, ConfigError, EngineChoice, Goldens, OnShutdown, Places, Thermal, load,
    load_endpoint,
};
use camino::{Utf8Path, Utf8PathBuf};

struct Scratch {
    _dir: tempfile::TempDir,
    root: Utf8PathBuf,
    places: Places,
}

fn scratch() -> Scratch {
    let dir = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    let places = Places {
        only: None,
        system: root.join("etc.yaml"),
        deprecated: root.join("var.yaml"),
        home: root.join("home"),
    };
    fs::create_dir_all(root.join("home/.bhatti")).unwrap();
    Scratch { _dir: dir, root, places }
}

fn system(text: &str) -> (Scratch, Result<Config, ConfigError>) {
    let scratch = scratch();
    fs::write(&scratch.places.system, text).unwrap();
    let loaded = load(&scratch.places);
    (scratch, loaded)
}

/// The problems of a system file, without its directory.
fn problems(text: &str) -> String {
    let (scratch, loaded) = system(text);
    let error = loaded.expect_err("this file is wrong");
    error.to_string().replace(scratch.root.as_str(), "")
}

#[test]
fn without_files_there_are_defaults() {
    let scratch = scratch();
    let config = load(&scratch.places).unwrap();
    let server = config.server(None);
    let home = &scratch.places.home;
    assert_eq!(server.engine, EngineChoice::Auto);
    assert_eq!(server.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(server.data_dir, home.join(".bhatti"));
    assert_eq!(server.kernel, home.join(".bhatti/kernel/vmlinux"));
    assert_eq!(server.initramfs, home.join(".bhatti/kernel/initramfs.cpio"));
    assert_eq!(server.default_image, "minimal");
    assert_eq!(server.network_prefix, "bhatti-");
    assert_eq!(server.jail_uid_base, 2_063_597_568);
    assert_eq!(server.boot_timeout_sec, 60);
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(server.thermal, Thermal { warm_after: seconds(30), cold_after: seconds(1800) });
    assert_eq!(server.goldens, Goldens { max_count: 8, max_mb: 4096 });
    assert_eq!(server.on_shutdown, OnShutdown::Keep);
    assert_eq!((server.qemu_bin, server.source), (None, None));
    assert!(server.dns_upstreams.is_empty());
    assert!(config.warnings.is_empty());
}

#[test]
fn every_key_is_read() {
    let (scratch, loaded) = system(
        "engine: qemu\nlisten: \"[::1]:80\"\ndata_dir: /srv/b\nkernel: /k\ninitramfs: ~/i\n\
         qemu_bin: /usr/bin/q\ndefault_image: browser\ndns_upstreams: [1.1.1.1, \"::1\"]\n\
         network_prefix: b2-\njail_uid_base: 100000\nboot_timeout_sec: 5\n\
         thermal:\n  warm_after: 45s\n  cold_after: 1h30m\non_shutdown: freeze\n\
         goldens: {max_count: 2, max_mb: 0}\n\
         api_url: https://a.b/\nauth_token: bht_x\n",
    );
    let config = loaded.unwrap();
    let server = config.server(None);
    assert_eq!(server.engine, EngineChoice::Qemu);
    assert_eq!(server.listen.to_string(), "[::1]:80");
    assert_eq!(server.data_dir, "/srv/b");
    assert_eq!(server.kernel, "/k");
    assert_eq!(server.initramfs, scratch.places.home.join("i"));
    assert_eq!(server.qemu_bin.as_deref(), Some(Utf8Path::new("/usr/bin/q")));
    assert_eq!(server.default_image, "browser");
    let wanted: Vec<IpAddr> = vec!["1.1.1.1".parse().unwrap(), "::1".parse().unwrap()];
    assert_eq!(server.dns_upstreams, wanted);
    assert_eq!(server.network_prefix, "b2-");
    assert_eq!((server.jail_uid_base, server.boot_timeout_sec), (100_000, 5));
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(server.thermal, Thermal { warm_after: seconds(45), cold_after: seconds(5400) });
    assert_eq!(server.goldens, Goldens { max_count: 2, max_mb: 0 });
    assert_eq!(server.on_shutdown, OnShutdown::Freeze);
    assert_eq!(server.source.as_ref(), Some(&scratch.places.system));
    assert_eq!(config.endpoint.api_url.as_deref(), Some("https://a.b"));
    assert_eq!(config.endpoint.auth_token.as_deref(), Some("bht_x"));
    assert!(!format!("{config:?}").contains("bht_x"), "a key must not reach a log");
}

#[test]
fn the_command_line_moves_the_data_and_what_follows_it() {
    let (_scratch, loaded) = system("data_dir: /srv/a\ninitramfs: /boot/i\n");
    let server = loaded.unwrap().server(Some(Utf8Path::new("/srv/b")));
    assert_eq!(server.data_dir, "/srv/b");
    assert_eq!(server.kernel, "/srv/b/kernel/vmlinux");
    assert_eq!(server.initramfs, "/boot/i");
}

#[test]
fn listen_has_its_forms() {
    for (text, wanted) in [
        (":8080", "0.0.0.0:8080"),
        ("127.0.0.1:9", "127.0.0.1:9"),
        ("localhost:9", "127.0.0.1:9"),
        ("\"[::]:9\"", "[::]:9"),
    ] {
        let (_scratch, loaded) = system(&format!("listen: {text}\n"));
        assert_eq!(loaded.unwrap().server(None).listen.to_string(), wanted);
    }
}

#[test]
fn a_typo_names_its_line_and_the_nearest_key() {
    assert_eq!(
        problems("engine: qemu\n# a comment\nlisen: \":8080\"\n"),
        "/etc.yaml:3: unknown key \"lisen\" — did you mean \"listen\"?"
    );
    assert_eq!(
        problems("firecraker_bin: /x\n"),
        "/etc.yaml:1: unknown key \"firecraker_bin\" — did you mean \"firecracker_bin\"?"
    );
    assert_eq!(problems("xyzzy: 1\n"), "/etc.yaml:1: unknown key \"xyzzy\"");
}

#[test]
fn sleep_can_be_switched_off() {
    for (text, warm, cold) in [
        ("thermal: {cold_after: never}", Some(30), None),
        ("thermal: {warm_after: never}", None, Some(1800)),
        ("thermal: {warm_after: never, cold_after: never}", None, None),
        ("thermal: {warm_after: 10m, cold_after: 10m}", Some(600), Some(600)),
        ("thermal:\n  warm_after:\n", Some(30), Some(1800)),
        ("thermal:\ngoldens: ~\n", Some(30), Some(1800)),
    ] {
        let (_scratch, loaded) = system(text);
        let wanted = Thermal {
            warm_after: warm.map(Duration::from_secs),
            cold_after: cold.map(Duration::from_secs),
        };
        assert_eq!(loaded.unwrap().server(None).thermal, wanted, "{text}");
    }
}

#[test]
fn sections_are_as_strict_as_the_rest() {
    let must = "must be a duration such as 45s, 10m or 1h30m, or never";
    for (text, wanted) in [
        (
            "thermal:\n  warm_after: 30\n",
            format!(
                "2: \"thermal.warm_after\" {must}, not a number; 30s is 30 seconds, 30m minutes"
            ),
        ),
        (
            "thermal:\n  cold_after: soon\n",
            format!("2: \"thermal.cold_after\" {must}, got \"soon\""),
        ),
        ("thermal:\n  cold_after: [1h]\n", format!("2: \"thermal.cold_after\" {must}, not a list")),
        (
            "thermal: {warm_after: 0s}",
            "1: \"thermal.warm_after\" must be at least 1s, got \"0s\"".to_owned(),
        ),
        (
            "thermal: {cold_after: 9000h}",
            "1: \"thermal.cold_after\" must be at most 8784h, or never, got \"9000h\"".to_owned(),
        ),
        (
            "thermal:\n  warm_after: 5m\n  cold_after: 1m\n",
            "3: \"thermal.cold_after\" (1m) must not be below \"thermal.warm_after\" (5m)"
                .to_owned(),
        ),
        (
            "# idle\nthermal:\n  warm_after: 1h\n",
            "3: \"thermal.cold_after\" (30m, the default) must not be below \
             \"thermal.warm_after\" (1h)"
                .to_owned(),
        ),
        (
            "thermal:\n  warm_aftr: 1m\n",
            "2: unknown key \"thermal.warm_aftr\" — did you mean \"thermal.warm_after\"?"
                .to_owned(),
        ),
        (
            "warm_after: 1m\n",
            "1: unknown key \"warm_after\" — put \"warm_after\" under \"thermal:\"".to_owned(),
        ),
        (
            "goldens.max_mb: 1\n",
            "1: unknown key \"goldens.max_mb\" — put \"max_mb\" under \"goldens:\"".to_owned(),
        ),
        (
            "golden:\n  max_mb: 1\n",
            "1: unknown key \"golden\" — did you mean \"goldens\"?".to_owned(),
        ),
        (
            "thermal: 30s\n",
            "1: \"thermal\" must be a section with cold_after and warm_after, not text".to_owned(),
        ),
        (
            "goldens: {max_count: 0}",
            "1: \"goldens.max_count\" must be from 1 to 1024, got 0".to_owned(),
        ),
        ("on_shutdown: stop", "1: \"on_shutdown\" must be keep or freeze, got \"stop\"".to_owned()),
    ] {
        assert_eq!(problems(text), format!("/etc.yaml:{wanted}"));
    }
}

#[test]
fn every_problem_is_named_at_once() {
    let text = "listen: 8080\nengine: sim\ndata_dir: relative\ndns_upstreams: 1.1.1.1\n\
                network_prefix: Way-too-long\njail_uid_base: 5\nboot_timeout_sec: soon\n\
                auth_token: 12345\ndefault_image: a/b\nkernel: [a]\nlisten2: x\napi_url: host\n";
    let told = problems(text);
    let wanted = [
        "/etc.yaml:1: \"listen\" must be an address such as \":8080\" or \"127.0.0.1:8080\", got 8080",
        "/etc.yaml:2: \"engine\" must be auto, qemu or firecracker, got \"sim\"",
        "/etc.yaml:3: \"data_dir\" must be an absolute path, got \"relative\"",
        "/etc.yaml:4: \"dns_upstreams\" must be a list of IP addresses, not text",
        "/etc.yaml:5: \"network_prefix\" must match [a-z0-9-]{1,8}, got \"Way-too-long\"",
        "/etc.yaml:6: \"jail_uid_base\" must be from 65536 to 2147418112, got 5",
        "/etc.yaml:7: \"boot_timeout_sec\" must be a whole number, not text",
        "/etc.yaml:8: \"auth_token\" must be text, not a number; put it in quotes",
        "/etc.yaml:9: \"default_image\" must match [a-zA-Z0-9][a-zA-Z0-9._-]{0,62}, got \"a/b\"",
        "/etc.yaml:10: \"kernel\" must be text, not a list",
        "/etc.yaml:11: unknown key \"listen2\" — did you mean \"listen\"?",
        "/etc.yaml:12: \"api_url\" must start with http:// or https://, got \"host\"",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn a_port_out_of_range_and_a_missing_port_are_refused() {
    for bad in [":65536", "\":\"", "127.0.0.1", "example.org:80", ":-1"] {
        let told = problems(&format!("listen: {bad}\n"));
        assert!(told.starts_with("/etc.yaml:1: \"listen\" must be an address"), "{bad}: {told}");
    }
}

#[test]
fn what_is_not_yaml_names_its_line() {
    for (text, line) in
        [("a: b\nengine: [\n", 0), ("engine: qemu\nengine: qemu\n", 2), ("a: b: c\n", 1)]
    {
        let told = problems(text);
        assert!(told.starts_with("parse config /etc.yaml:"), "{told}");
        assert!(line == 0 || told.contains(&format!("yaml:{line}: ")), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    assert!(problems("- a\n").contains("expected \"key: value\" lines, not a list"));
    assert!(problems("just text\n").contains("not text"));
}

#[test]
fn empty_files_and_empty_keys_say_nothing() {
    for text in ["", "# only a comment\n", "---\n", "listen:\n", "listen: ~\n"] {
        let (_scratch, loaded) = system(text);
        assert_eq!(loaded.unwrap().server(None).listen.port(), 8080, "{text:?}");
    }
}

#[test]
fn a_file_of_the_existing_service_is_accepted_with_warnings() {
    let (scratch, loaded) = system(
        "engine: firecracker\nlisten: \":8080\"\ndata_dir: /var/lib/bhatti\n\
         firecracker_bin: /usr/local/bin/firecracker\nfirecracker_jailer: /j\njail_uid: 10000\n\
         backup:\n  schedule:\n    - volume: v\n",
    );
    let config = loaded.unwrap();
    let server = config.server(None);
    assert_eq!(server.engine, EngineChoice::Firecracker);
    assert_eq!(server.firecracker_bin.as_deref(), Some("/usr/local/bin/firecracker".into()));
    let file = scratch.places.system.as_str();
    let wanted = [(5, "firecracker_jailer"), (6, "jail_uid"), (7, "backup")]
        .map(|(line, key)| format!("{file}:{line}: \"{key}\" is not used by this version"));
    assert_eq!(config.warnings, wanted);
    assert!(load_endpoint(&scratch.places).1.is_empty(), "a client need not hear of them");
}

#[test]
fn a_domain_is_whole_or_a_problem() {
    let of = |text: &str| system(&format!("domain:\n{text}")).1.unwrap().server(None);
    let files = of("  proxy_zone: Box.Example.\n  tls_cert: /c\n  tls_key: ~/k\n");
    let domain = files.domain.unwrap();
    assert_eq!((domain.proxy_zone.as_str(), domain.listen.port()), ("box.example", 443));
    assert!(matches!(domain.certificates, Certificates::Files { .. }));
    assert!(files.listen.ip().is_loopback());
    let acme = of("  proxy_zone: a.b\n  api_host: api.a.b\n  acme_email: me@a.b\n").domain.unwrap();
    assert_eq!(acme.api_host.as_deref(), Some("api.a.b"));
    assert!(matches!(acme.certificates, Certificates::Acme { ca: None, .. }));
    for (text, wanted) in [
        ("  api_host: a.b\n", "needs proxy_zone"),
        ("  proxy_zone: a.b\n", "either tls_cert and tls_key, or acme_email"),
        ("  proxy_zone: a.b\n  tls_cert: /c\n", "either tls_cert and tls_key"),
        ("  proxy_zone: a.b\n  acme_email: x\n  http_listen: none\n", "names are proved there"),
        ("  proxy_zone: 1.2.3.4\n", "must be a host name"),
        ("  proxy_zone: a..b\n", "must be a host name"),
        ("  proxy_zone: a.b\n  zone: x\n", "unknown key"),
    ] {
        let found = problems(&format!("domain:\n{text}"));
        assert!(found.contains(wanted), "{text}: {found}");
    }
    assert_eq!(system("domain:\n").1.unwrap().server(None).domain, None);
}

#[test]
fn the_user_file_adds_only_address_and_key_and_only_where_empty() {
    let scratch = scratch();
    fs::write(&scratch.places.system, "auth_token: of-the-system\nlisten: \":1\"\n").unwrap();
    fs::write(
        scratch.places.user(),
        "api_url: http://user:1\nauth_token: of-the-user\nlisten: \":2\"\ndata_dir: /user\n",
    )
    .unwrap();
    let config = load(&scratch.places).unwrap();
    assert_eq!(config.endpoint.api_url.as_deref(), Some("http://user:1"));
    assert_eq!(config.endpoint.auth_token.as_deref(), Some("of-the-system"));
    let server = config.server(None);
    assert_eq!(server.listen.port(), 1);
    assert_eq!(server.data_dir, scratch.places.home.join(".bhatti"));
}

#[test]
fn a_wrong_user_file_stops_nothing() {
    let scratch = scratch();
    for text in ["api_url: [", "auth_tokn: x\n"] {
        fs::write(scratch.places.user(), text).unwrap();
        let config = load(&scratch.places).unwrap();
        assert_eq!(config.endpoint.auth_token, None);
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    }
}

#[test]
fn the_deprecated_place_is_read_last_and_warned_about() {
    let scratch = scratch();
    let places = &scratch.places;
    fs::write(&places.deprecated, "listen: \":7\"\n").unwrap();
    let config = load(places).unwrap();
    assert_eq!(config.server(None).listen.port(), 7);
    assert_eq!(
        config.warnings,
        [format!(
            "⚠ config loaded from deprecated location {}\n  move to {}\n",
            places.deprecated, places.system
        )]
    );
    fs::write(&places.system, "listen: \":8\"\n").unwrap();
    let config = load(places).unwrap();
    assert_eq!(config.server(None).listen.port(), 8);
    assert!(config.warnings.is_empty());
}

#[test]
fn a_named_file_is_the_only_one() {
    let mut scratch = scratch();
    fs::write(&scratch.places.system, "listen: \":1\"\n").unwrap();
    fs::write(scratch.places.user(), "auth_token: user\n").unwrap();
    let only = scratch.root.join("only.yaml");
    scratch.places.only = Some(only.clone());
    let error = load(&scratch.places).expect_err("it is not there");
    assert_eq!(error.to_string(), format!("read config {only}"));
    assert!(std::error::Error::source(&error).is_some());
    fs::write(&only, "api_url: http://x\n").unwrap();
    let config = load(&scratch.places).unwrap();
    assert_eq!(config.endpoint.api_url.as_deref(), Some("http://x"));
    assert_eq!(config.endpoint.auth_token, None);
    assert_eq!(config.server(None).listen.port(), 8080);
}

#[test]
fn a_client_survives_a_wrong_system_file_and_hears_of_it_once() {
    let scratch = scratch();
    fs::write(&scratch.places.system, "lisen: x\n").unwrap();
    fs::write(scratch.places.user(), "api_url: http://x\n").unwrap();
    let (endpoint, warnings) = load_endpoint(&scratch.places);
    assert_eq!(endpoint.api_url.as_deref(), Some("http://x"));
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(warning.starts_with("config ignored: ") && warning.contains("lisen"), "{warning}");
}

#[test]
fn a_file_without_end_is_not_read_to_it() {
    let mut scratch = scratch();
    scratch.places.only = Some("/dev/zero".into());
    let error = load(&scratch.places).expect_err("endless");
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    // Neither is one that nests without end.
    let deep = scratch.root.join("deep.yaml");
    fs::write(&deep, format!("domain: {}", "[".repeat(200_000))).unwrap();
    scratch.places.only = Some(deep);
    assert!(matches!(load(&scratch.places), Err(ConfigError::Syntax(_))));
}

#[test]
fn limits_are_numbers_that_make_sense() {
    let text = "limits:\n  disk_mb_per_sec: 100\n  disk_ops_per_sec: 5000\n";
    let (_scratch, loaded) = system(text);
    let limits = loaded.unwrap().server(None).limits;
    assert_eq!((limits.disk_mb_per_sec, limits.disk_ops_per_sec), (Some(100), Some(5000)));
    assert_eq!(limits.network_mb_per_sec, None);
    let (_scratch, loaded) = system("limits:\n  network_mb_per_sec: 0\n");
    let error = loaded.unwrap_err().to_string();
    assert!(error.contains("must be from 1 to"), "{error}");
    let (_scratch, loaded) = system("limits:\n  network_mb: 5\n");
    let error = loaded.unwrap_err().to_string();
    assert!(error.contains("network_mb_per_sec"), "{error}");
}

#[test]
fn published_ports_are_answered_here_or_where_one_says_or_nowhere() {
    for (text, wanted) in [
        ("", Some(("127.0.0.1:8090", false))),
        ("public_proxy_listen:\n", Some(("127.0.0.1:8090", false))),
        ("public_proxy_listen: \":8443\"\n", Some(("0.0.0.0:8443", true))),
        ("public_proxy_listen: none\n", None),
    ] {
        let (_scratch, loaded) = system(text);
        let found = loaded.unwrap().server(None).public_proxy;
        let found = found.map(|proxy| (proxy.address.to_string(), proxy.asked_for));
        assert_eq!(found, wanted.map(|(text, asked)| (text.to_owned(), asked)), "{text}");
    }
    let told = problems("public_proxy_listen: nowhere\n");
    assert!(told.starts_with("/etc.yaml:1: \"public_proxy_listen\" must be an address"), "{told}");
}
