//! The library behind `bhatti serve`: configuration, wiring, HTTP.
