//! The whole `--help` tree against `tests/golden/help.txt`.
//!
//! `BHATTI_BLESS=1 cargo test -p bhatti` writes it anew; look at the difference before
//! committing it.

use std::fmt::Write;
use std::path::PathBuf;

use super::world::World;

fn tree(command: &clap::Command, path: &[String], out: &mut Vec<Vec<String>>) {
    out.push(path.to_vec());
    for below in command.get_subcommands() {
        tree(below, &[path, &[below.get_name().to_owned()]].concat(), out);
    }
}

#[test]
fn help_reads_as_it_did() {
    let world = World::new();
    let mut commands = Vec::new();
    tree(&bhatti::command_tree(), &[], &mut commands);
    let mut text = String::new();
    for path in &commands {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let ran = world.run(&args);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
        writeln!(text, "$ bhatti {}\n{}", args.join(" "), ran.stdout).unwrap();
    }
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    if std::env::var_os("BHATTI_BLESS").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(golden).unwrap());
}

#[test]
fn bare_commands_print_their_help() {
    let world = World::new();
    for (bare, asked) in [
        (vec![], vec!["--help"]),
        (vec!["user"], vec!["user", "--help"]),
        (vec!["exec", "dev"], vec!["exec", "-h"]),
        (vec!["help", "exec"], vec!["exec", "--help"]),
        (vec!["help"], vec!["-h"]),
    ] {
        let (bare, asked) = (world.run(&bare), world.run(&asked));
        assert_eq!(bare.code, Some(0));
        assert!(bare.stdout.starts_with(asked.stdout.lines().next().unwrap()), "{bare:?}");
    }
}
