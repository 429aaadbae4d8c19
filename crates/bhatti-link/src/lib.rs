//! Byte streams over one carrier: the multiplexer of bhatti-wire driven by tokio, for both ends.
