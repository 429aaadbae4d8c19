//! The bhatti command: client and daemon in one binary.
fn main() {}
