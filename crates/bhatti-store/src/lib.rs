//! SQLite: the record of what should exist.
