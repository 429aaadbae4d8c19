//! Golden texts: every format a script may depend on.

use super::*;

fn sandbox(json: &str) -> Sandbox {
    let base = r#"{"id":"0123456789abcdef","name":"dev","status":"running","thermal":"hot",
        "ip":"10.0.1.2","created_at":"2026-04-01T10:00:00.123456789Z","cpus":1,"memory_mb":1024,
        "image":"minimal"}"#;
    let mut value: serde_json::Value = serde_json::from_str(base).expect("JSON");
    let more: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let (value_map, more) =
        (value.as_object_mut().expect("an object"), more.as_object().expect("an object"));
    value_map.extend(more.clone());
    serde_json::from_value(value).expect("a sandbox")
}

/// Stopped, with everything a running one lacks.
fn stopped() -> Sandbox {
    sandbox(
        r#"{"name":"api","status":"stopped","thermal":null,"ip":"","cpus":0.5,"memory_mb":0,
            "disk_size_mb":8192,"image":"","stopped_at":"2026-04-02T00:00:00Z",
            "template_id":"t1","keep_hot":true,"labels":{"b":"2","a":"1"}}"#,
    )
}

#[test]
fn a_create_is_summed_up() {
    let shown = |sandbox, existing| created(&Created { sandbox, existing });
    assert_eq!(
        shown(sandbox("{}"), false),
        "sandbox/dev created (1 vCPU, 1024 MB)\n  IP:    10.0.1.2\n  Shell: bhatti shell dev\n"
    );
    assert_eq!(
        shown(stopped(), false),
        "sandbox/api created (0.5 vCPU, 1024 MB, 8192 MB disk)\n  Shell: bhatti shell api\n"
    );
    assert_eq!(shown(sandbox("{}"), true), "sandbox/dev unchanged (already exists)\n");
}

#[test]
fn listings_stand_in_columns() {
    assert_eq!(list(&[], false), "NAME                 STATUS     THERMAL  IP              \n");
    assert_eq!(
        list(&[sandbox("{}"), stopped()], true),
        "NAME                 STATUS     THERMAL  IP              \n\
         dev                  running    hot      10.0.1.2        \n\
         api                  stopped    -                        \n"
    );
    let urls = |urls: &str| sandbox(&format!(r#"{{"urls":{urls}}}"#));
    let shown = list(&[urls(r#"["https://a","b","c"]"#), urls(r#"["https://d"]"#)], true);
    assert!(shown.contains(" https://a +2\n") && shown.ends_with(" https://d\n"), "{shown}");
    assert_eq!(
        list(&[urls(r#"["https://a","https://b"]"#), stopped()], false),
        "NAME                 STATUS     THERMAL  IP               URL\n\
         dev                  running    hot      10.0.1.2         https://a\n\
         api                  stopped    -                         \n"
    );
    assert_eq!(
        list_wide(&[sandbox("{}"), stopped()]),
        "NAME                 STATUS     THERMAL  IP               CPUS   MEMORY   DISK     IMAGE        LABELS\n\
         dev                  running    hot      10.0.1.2         1      1024     image    minimal      -\n\
         api                  stopped    -                         0.5    1024     8192     minimal      a=1,b=2\n"
    );
}

#[test]
fn json_listings_have_their_fields_in_order() {
    let json = |sandbox: &Sandbox| serde_json::to_string(&ListRow::from(sandbox)).expect("JSON");
    assert_eq!(
        json(&sandbox("{}")),
        r#"{"id":"0123456789abcdef","name":"dev","status":"running","thermal":"hot","ip":"10.0.1.2","urls":null,"cpus":1.0,"memory_mb":1024,"disk_size_mb":0,"image":"minimal"}"#
    );
    assert_eq!(
        json(&stopped()),
        r#"{"id":"0123456789abcdef","name":"api","status":"stopped","thermal":"","ip":"","urls":null,"cpus":0.5,"memory_mb":0,"disk_size_mb":8192,"image":"","labels":{"a":"1","b":"2"}}"#
    );
}

#[test]
fn details_are_described() {
    let df = "Filesystem 1M-blocks Used Available Use% Mounted on\n/dev/vda 984 310 657 33% /\n";
    assert_eq!(
        inspected(&sandbox("{}"), DiskUse::parse(df), &[]),
        "Name:       dev
ID:         0123456789abcdef
Status:     running
Image:      minimal
Created:    2026-04-01T10:00:00.123456789Z

Resources:
  CPUs:     1
  Memory:   1024 MB
  Disk:     984 MB (310 MB used, 657 MB free)

Network:
  IP:       10.0.1.2
"
    );
    assert_eq!(
        inspected(&stopped(), None, &[]),
        "Name:       api
ID:         0123456789abcdef
Status:     stopped
Image:      minimal
Created:    2026-04-01T10:00:00.123456789Z
Stopped:    2026-04-02T00:00:00Z
Template:   t1

Resources:
  CPUs:     0.5
  Memory:   1024 MB
  Disk:     8192 MB

Network:
  IP:       \n
  keep_hot: true
"
    );
    let frozen = r#"{"status":"stopped","last_transition":
        {"to":"cold","reason":"idle for 30m","at":"2026-04-02T00:00:00Z"}}"#;
    let frozen = inspected(&sandbox(frozen), None, &[]);
    let wanted =
        "Status:     stopped\nThermal:    cold\nSince:      2026-04-02T00:00:00Z (idle for 30m)\n";
    assert!(frozen.contains(wanted), "{frozen}");
    let off = r#"{"last_transition":{"to":"stopped","reason":"","at":"2026-04-02T00:00:00Z"}}"#;
    let off = inspected(&sandbox(off), None, &[]);
    assert!(off.contains("running\nSince:      2026-04-02T00:00:00Z\nImage:"), "{off}");
    let no_answer = inspected(&sandbox("{}"), None, &[]);
    assert!(!no_answer.contains("Disk:"), "{no_answer}");
    let no_size = inspected(&sandbox(r#"{"status":"stopped"}"#), None, &[]);
    assert!(no_size.contains("  Disk:     — (stopped)\n"), "{no_size}");
    let rule = r#"{"id":"pub_0123456789abcdef","sandbox_id":"0123456789abcdef",
        "user_id":"usr_1a2b3c4d","port":80,"alias":"web","url":"http://web.localhost:8090/",
        "created_at":"2026-04-01T10:00:00Z"}"#;
    let rule: PublishRule = serde_json::from_str(rule).expect("a rule");
    let protected = PublishRule { port: 81, auth: true, ..rule.clone() };
    let published = inspected(&sandbox("{}"), None, &[rule, protected]);
    assert!(
        published.ends_with(
            "  Published: port 80 at http://web.localhost:8090/\n  \
             Published: port 81 at http://web.localhost:8090/, asks for a token\n"
        ),
        "{published}"
    );
    let again = inspected(&sandbox(r#"{"stopped_at":"2026-04-02T00:00:00Z"}"#), None, &[]);
    assert!(!again.contains("Stopped:"), "it runs: {again}");
    let limits = |held_back: &str| {
        let shown = sandbox(&format!(r#"{{"held_back":{held_back}}}"#));
        let shown = inspected(&shown, None, &[]);
        let line = shown.lines().find_map(|line| line.strip_prefix("  Limits:   "));
        line.expect("a line").to_owned()
    };
    assert_eq!(limits("{}"), "never reached");
    assert_eq!(
        limits(r#"{"disk":1,"sent":0,"received":12}"#),
        "reached: disk once, receiving 12 times"
    );
}

#[test]
fn what_df_prints_is_not_trusted() {
    for bad in ["", "one line", "a\nb c d e", "a\n/dev 1 2", "a\n/dev -1 2 3"] {
        assert_eq!(DiskUse::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn edits_and_detached_commands_are_reported() {
    let change = |json: &str| serde_json::from_str::<PatchSandbox>(json).expect("JSON");
    assert_eq!(
        edited("dev", &change(r#"{"keep_hot":true,"name":"dev-old"}"#)),
        "Updated dev\n  name:     dev-old\n  Note: in-guest hostname unchanged (set at create time)\n  keep_hot: true (thermal transitions disabled)\n"
    );
    assert_eq!(
        edited("dev", &change(r#"{"keep_hot":false}"#)),
        "Updated dev\n  keep_hot: false (thermal transitions re-enabled)\n"
    );
    assert_eq!(edited("dev", &change(r#"{"labels_remove":["a"]}"#)), "Updated dev\n");
    let started = ExecDetached { detached: true, output_file: "/o.log".to_owned(), pid: 4218 };
    assert_eq!(detached(&started), "pid: 4218\noutput: /o.log\n");
}
