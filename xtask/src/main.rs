//! The project's own tools: guest image, tidy, checks.
fn main() {}
