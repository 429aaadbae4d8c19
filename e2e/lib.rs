//! Black-box tests that boot real guests; they are in `tests/`.
