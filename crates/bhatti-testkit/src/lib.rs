//! What tests share: a daemon on port 0, scratch directories, waiting for a state.
