//! The door: everything is in the library.

fn main() -> std::process::ExitCode {
    bhatti::main(std::env::args_os())
}
