//! What is said, and with which exit code, when something is wrong.

use super::world::{World, ran};

const POLICY_IS_WHOLE: &str = "--allow-host and --allow-cidr replace the whole policy: say --egress \
                               deny or --egress public too, and all that is to be allowed";
const HOSTS_NEED_DENY: &str =
    "--allow-host needs --egress deny: without it every host on the internet is allowed";

#[test]
fn unknown_commands_are_named_and_guessed() {
    let world = World::new();
    world.run(&["lst"]).check(
        1,
        "",
        "Error: unknown command \"lst\" for \"bhatti\"\n\nDid you mean this?\n\tlist\n\tls\n\nRun 'bhatti --help' for usage.\n",
    );
    world.run(&["xyzzy"]).check(
        1,
        "",
        "Error: unknown command \"xyzzy\" for \"bhatti\"\nRun 'bhatti --help' for usage.\n",
    );
    world.run(&["user", "bogus"]).check(
        1,
        "",
        "Error: unknown command \"bogus\" for \"bhatti user\"\nRun 'bhatti user --help' for usage.\n",
    );
}

#[test]
fn flags_that_are_none_and_values_that_fit_none() {
    let world = World::new();
    for (args, text) in [
        (&["list", "--bogus"][..], "unknown flag: --bogus"),
        (&["list", "--bogus=1"], "unknown flag: --bogus"),
        (&["list", "-x"], "unknown shorthand flag: 'x' in -x"),
        (&["exec", "dev", "-la"], "unknown shorthand flag: 'l' in -l"),
        (&["create", "--name"], "flag needs an argument: --name"),
        (
            &["create", "--cpus", "two"],
            "invalid argument \"two\" for \"--cpus\": invalid float literal",
        ),
        (
            &["completion", "tcsh"],
            "invalid argument \"tcsh\" for \"<bash|zsh|fish|powershell>\": must be bash, zsh, fish or powershell",
        ),
        (
            &["exec", "dev", "--timeout", "-5", "ls"],
            "--timeout must be from 1 to 86400 seconds, got -5",
        ),
        (
            &["edit", "dev"],
            "nothing to update — use --name, --keep-hot, --allow-cold, --label, --label-delete, or \
             --egress with --allow-host and --allow-cidr",
        ),
        (
            &["edit", "dev", "--keep-hot", "--allow-cold"],
            "cannot use --keep-hot and --allow-cold together",
        ),
        (&["edit", "dev", "--allow-cidr", "192.168.8.0/24"], POLICY_IS_WHOLE),
        (&["edit", "dev", "--allow-host", "a.example"], POLICY_IS_WHOLE),
        (&["snapshot", "resume", "s", "--allow-cidr", "192.168.8.0/24"], POLICY_IS_WHOLE),
        (&["edit", "dev", "--egress="], "--egress must be public or deny, not \"\""),
        (&["create", "--egress", "none"], "--egress must be public or deny, not \"none\""),
        (&["create", "--allow-host", "a.example"], HOSTS_NEED_DENY),
        (&["create", "--egress=public", "--allow-host", "a.example"], HOSTS_NEED_DENY),
        (&["edit", "dev", "--egress=public", "--allow-host", "a.example"], HOSTS_NEED_DENY),
        (&["user", "create"], "--name is required"),
        (&["snapshot", "create", "dev"], "--name is required"),
        (
            &["--url", "nonsense", "ls"],
            "\"nonsense\" is not an API address: it must look like http://host:port or https://host",
        ),
    ] {
        world.run(args).check(1, "", &format!("Error: {text}\n"));
    }
}

#[test]
fn wrong_counts_come_after_the_help() {
    let world = World::new();
    for (args, help, text) in [
        (&["destroy"][..], "destroy", "accepts 1 arg(s), received 0"),
        (&["--json", "rm", "-y", "a", "b", "c"], "destroy", "accepts 1 arg(s), received 3"),
        (&["exec"], "exec", "requires at least 1 arg(s), only received 0"),
        (&["forward", "dev"], "forward", "accepts between 2 and 3 arg(s), received 1"),
        (&["publish", "dev", "web"], "publish", "accepts 1 arg(s), received 2"),
        (&["list", "a"], "list", "accepts 0 arg(s), received 1"),
        (&["user", "delete", "a", "b"], "user delete", "accepts 1 arg(s), received 2"),
    ] {
        let ran = world.run(args);
        let mut wanted: Vec<&str> = help.split(' ').collect();
        wanted.push("-h");
        let short = world.run(&wanted).stdout;
        ran.check(1, &short, &format!("\nError: {text}\n"));
    }
}

#[test]
fn what_newcomers_type_is_understood_or_said_in_one_line() {
    let world = World::new();
    world.run(&["create", "big"]).check(
        1,
        "",
        "Error: the name of a new sandbox goes after --name: bhatti create --name big\n",
    );
    for verb in ["publish", "unpublish"] {
        let why = format!("Error: the port goes after -p: bhatti {verb} <sandbox> -p 8000\n");
        world.run(&[verb, "dev", "8000"]).check(1, "", &why);
        let why =
            "Error: invalid argument \"http\" for \"--port\": a port is a number from 1 to 65535\n";
        world.run(&[verb, "dev", "-p", "http"]).check(1, "", why);
    }
    let why =
        "Error: invalid argument \"pg\" for \"<GUEST_PORT>\": a port is a number from 1 to 65535\n";
    world.run(&["forward", "dev", "pg"]).check(1, "", why);
    let why = "Error: --alias must not be empty; leave it out for one that is made up\n";
    world.run(&["publish", "dev", "-p", "80", "-a", ""]).check(1, "", why);
    world.run(&["create", "--memory", "lots"]).check(
        1,
        "",
        "Error: invalid argument \"lots\" for \"--memory\": expected a number of MB, or a size such as \
         512MB or 2GB\n",
    );
}

#[test]
fn nobody_at_the_address() {
    let world = World::new();
    let ran = world.run(&["--url", "http://127.0.0.1:1/", "ls"]);
    ran.check(
        1,
        "",
        "Error: cannot connect to http://127.0.0.1:1: Connection refused (os error 111)\n\n  Is the daemon running? Start it on its host, or point the CLI at another:\n    sudo make up         # in bhatti's source tree\n    sudo bhatti serve    # by itself, in a terminal\n    bhatti setup         # for another address\n",
    );
}

#[test]
fn api_errors_come_with_their_hints() {
    let world = World::with(&[
        ("404 Not Found", "", "{\"error\":\"not found\"}\n"),
        ("429 Too Many Requests", "", "{\"error\":\"sandbox limit reached (5/5)\"}\n"),
        (
            "500 Internal Server Error",
            "",
            "{\"error\":\"internal error\",\"request_id\":\"req_1\"}\n",
        ),
        ("401 Unauthorized", "", "{\"error\":\"invalid api key\"}\n"),
    ]);
    world.run(&["inspect", "dev"]).check(
        1,
        "",
        "Error: 404 Not Found: sandbox \"dev\" not found\n\n  Check sandbox name:\n    bhatti ls\n",
    );
    world.run(&["create", "--name", "a"]).check(
        1,
        "",
        "Error: 429 Too Many Requests: sandbox limit reached (5/5)\n\n  Destroy unused sandboxes to free capacity:\n    bhatti ls\n    bhatti destroy <sandbox>\n",
    );
    world.run(&["destroy", "a", "-y"]).check(
        1,
        "",
        "Error: 500 Internal Server Error: internal error (request req_1)\n",
    );
    let stderr = world.run(&["ls"]).stderr;
    assert_eq!(
        stderr,
        "Error: 401 Unauthorized: invalid api key\n\n  Set the API key:\n    bhatti setup\n"
    );
}

#[test]
fn nothing_is_destroyed_unasked() {
    let world = World::with(&[]);
    world.run(&["destroy", "dev"]).check(1, "", "Use --yes to confirm in non-interactive mode\n");
    assert!(world.requests().is_empty());
}

#[test]
fn a_wrong_configuration_stops_the_server_but_not_a_client() {
    let world = World::with(&[("200 OK", "", "[]")]);
    let file = world.path("c.yaml");
    std::fs::write(&file, "\nlisen: x\n").unwrap();
    let file = file.to_str().unwrap();
    let with_config = |args: &[&str]| {
        let mut command = world.command(args);
        super::world::ran(command.env("BHATTI_CONFIG", file))
    };
    let sentence = format!("{file}:2: unknown key \"lisen\" — did you mean \"listen\"?\n");
    for args in [&["serve"][..], &["user", "list"]] {
        with_config(args).check(1, "", &format!("Error: load config: {sentence}"));
    }
    let ran = with_config(&["ls"]);
    assert_eq!((ran.code, ran.stderr), (Some(0), format!("config ignored: {sentence}")));
}

/// The file goes before the environment, which is said when it matters.
#[test]
fn an_exported_key_that_is_not_used_is_said() {
    let answer = ("200 OK", "", "[]");
    let world = World::with(&[answer; 4]);
    let dir = world.path(".bhatti");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("config.yaml"), "auth_token: of-the-file\n").unwrap();
    let run = |args: &[&str], token: Option<&str>| {
        let mut command = world.command(args);
        ran(command.envs(token.map(|token| ("BHATTI_TOKEN", token)))).stderr
    };
    let why = "Warning: BHATTI_TOKEN is not used, the configuration file says something else; use \
               --token, or another file with BHATTI_CONFIG\n";
    assert_eq!(run(&["ls"], Some("exported")), why);
    assert_eq!(run(&["ls"], None), "");
    assert_eq!(run(&["ls"], Some("of-the-file")), "");
    assert_eq!(run(&["ls", "--token", "given"], Some("exported")), "");
}

#[test]
fn an_old_client_is_told_once() {
    let world = World::with(&[("200 OK", "x-bhatti-min-cli: 99.0.0\r\n", "[]")]);
    let stderr = world.run(&["ls"]).stderr;
    assert_eq!(stderr.matches("is below server minimum 99.0.0").count(), 1, "{stderr}");
}
