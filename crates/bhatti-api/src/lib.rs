//! The HTTP contract: bodies, paths and errors, without a server.
