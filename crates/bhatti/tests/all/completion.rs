//! Completion in a real bash, and with other shells' scripts where those shells are.

use std::process::{Command, Stdio};

use super::world::{World, ran};

/// Completes `line` (the last word is being typed) in bash.
fn complete(world: &World, line: &str) -> Vec<String> {
    let program = r#"
        bhatti() { "$BHATTI" "$@"; }
        source <(bhatti completion bash)
        set -f; COMP_WORDS=($LINE); [[ $LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$LINE; COMP_POINT=${#LINE}
        how=$(complete -p bhatti); how=${how##*-F }; how=${how%% *}
        $how bhatti "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut command = Command::new("bash");
    command.args(["-c", program]).env_clear().stdin(Stdio::null());
    command.env("BHATTI", env!("CARGO_BIN_EXE_bhatti")).env("LINE", line);
    command
        .env("HOME", world.dir.path())
        .env("TMPDIR", world.path("tmp"))
        .env("PATH", "/usr/bin:/bin");
    let ran = ran(&mut command);
    assert_eq!(ran.stderr, "");
    ran.stdout.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_names_without_a_network() {
    let listing = ["dev", "demo", "api"].map(|name| {
        format!(
            r#"{{"id":"0","name":"{name}","status":"running","created_at":"2026-04-01T10:00:00Z"}}"#
        )
    });
    let world = World::with(&[("200 OK", "", &format!("[{}]", listing.join(",")))]);
    assert_eq!(world.run(&["ls"]).code, Some(0));
    assert_eq!(complete(&world, "bhatti exec "), ["dev", "demo", "api"]);
    assert_eq!(complete(&world, "bhatti rm -y d"), ["dev", "demo"]);
    assert_eq!(complete(&world, "bhatti inspect x"), [""; 0]);
    assert!(complete(&world, "bhatti exec dev de").is_empty(), "only the first argument is one");
    assert_eq!(complete(&world, "bhatti ver"), ["version"]);
    assert_eq!(complete(&world, "bhatti exec --tim"), ["--timeout", "--timing"]);
    assert!(!complete(&world, "bhatti ").iter().any(|word| word.starts_with("__")));
    assert_eq!(world.requests().len(), 1, "completion asked nobody");
}

#[test]
fn every_script_is_printed() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let ran = world.run(&["completion", shell]);
        assert_eq!(ran.code, Some(0));
        assert!(ran.stdout.contains("bhatti") && ran.stdout.len() > 1000, "{shell}");
        assert!(!ran.stdout.contains("'__complete"), "{shell} offers a hidden command");
    }
}
