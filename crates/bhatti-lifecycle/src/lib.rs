//! The heart: one actor per sandbox, admission, creation, recovery.
