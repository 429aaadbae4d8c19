//! Decisions of the name server, one question at a time.
