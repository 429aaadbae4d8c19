//! Each user's network: a pure plan, and the small module that applies it.
