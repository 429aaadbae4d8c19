//! Sessions: programs that outlive whoever looks at them.
//!
//! ```text
//!                 ┌ table ┐   order    ┌ keeper ───────────────────────────┐
//!  open ─ stream ▶│ s1 s2 ├───────────▶│ client ◀─ scrollback ◀─┐          │
//!  list ─────────▶│ init  │◀── seen ───│    └───── input ──▶ program's end │
//!                 └───────┘            └───────────────────────────────────┘
//! ```
//!
//! One keeper, a task, owns one session: its terminal or pipes, what it printed last, and the one
//! client that is attached, if any. Everybody else sends it orders.
//!
//! Promises, each with the test that holds it (`tests/all/session.rs`):
//! - A client that attaches gets what was printed before and then what is printed, without a gap
//!   or a repetition (`what_was_printed_is_replayed_and_goes_on`).
//! - A client that does not read holds the program up, and nothing is queued for it beyond one
//!   chunk (`a_client_that_does_not_read_holds_the_program_up`); without a client the program is
//!   never held up (`a_program_without_a_client_is_never_held_up`).
//! - Whoever a session is taken from is told, and takes nothing with it
//!   (`who_it_is_taken_from_is_told`).
//! - Two that look for a free session at once do not get the same one
//!   (`two_that_want_a_free_one_get_two`).
//! - Losing the host costs a session its client and nothing else.

mod channel;
mod client;
mod detached;
mod keeper;
mod scrollback;
mod start;
mod table;

pub use detached::Running;
pub use table::Sessions;
