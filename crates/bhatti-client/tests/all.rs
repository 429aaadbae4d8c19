//! The client against real servers on the loopback: a well-behaved one, and scripted ones that
//! break the rules byte by byte.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod all {
    mod behaved;
    mod broken;
    mod exec_socket;
    mod server;
    mod session;
}
