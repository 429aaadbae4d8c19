//! Black-box tests that boot real guests.
