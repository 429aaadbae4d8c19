//! The project's own tools: guest artefacts, tidy, the checks CI runs.
//!
//! Started as `cargo xtask COMMAND` from anywhere inside the workspace. Every command is safe to
//! repeat, and exits non-zero with one line that says what is wrong.

#![forbid(unsafe_code)]

mod ci;
mod guest;
mod kvm_box;
mod process;
mod tidy;
mod workspace;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask COMMAND

  guest [--arch ARCH] [--boot-only] [--refresh]
                                    build kernel, initramfs and image into target/guest, those of
                                    another architecture into target/guest-ARCH (--boot-only
                                    leaves the image out, --refresh ignores the cache)
  kvm-box [--suite NAME]... [--built] [--shell] [-- FILTER...]
                                    run test suites in a machine that has KVM, emulated: real
                                    hardware virtualisation is not needed (--built takes what
                                    `cargo test --workspace` built, --shell looks around)
  tidy                              check what the compiler cannot: arrows between crates, licences,
                                    links, file headers, addresses, left-overs
  ci                                fmt --check, clippy -D warnings, tidy, advisories";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["guest", options @ ..] => {
            guest::Options::parse(options).and_then(|o| guest::build(&o)).map(drop)
        }
        ["kvm-box", options @ ..] => {
            kvm_box::Options::parse(options).and_then(|o| kvm_box::run(&o))
        }
        ["tidy"] => tidy::run(),
        ["ci"] => ci::run(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
