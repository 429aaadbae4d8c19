//! The built binary: exit codes, streams, help, completion. No daemon, no network beyond the
//! loopback, no virtual machine.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod all {
    mod completion;
    mod cp;
    mod errors;
    mod exec;
    mod help;
    mod host;
    mod publish;
    mod sandbox;
    mod setup;
    mod share;
    mod snapshot;
    mod world;
}
