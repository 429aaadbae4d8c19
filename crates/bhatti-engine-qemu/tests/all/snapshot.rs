//! Machines that sleep and wake, and their copies: what only this engine promises.
