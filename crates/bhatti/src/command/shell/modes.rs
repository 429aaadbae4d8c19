//! What a program in the sandbox has switched on in our terminal, so that it can be switched off
//! when we leave without that program knowing.

use std::collections::BTreeSet;

/// Private modes that make a terminal useless for a shell if they stay, in the order in which
/// they are switched off: reports of mouse, focus and pastes, keys, then other screens.
const SWITCHED_OFF: [u16; 16] =
    [9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004, 2026, 1, 47, 1047, 1049];

/// Switched on, as every terminal has it: the cursor is seen, lines wrap.
const SWITCHED_ON: [u16; 2] = [25, 7];

/// The longest list of modes that is read, in bytes. Programs use up to twenty.
const MAX_PARAMETERS: usize = 64;

/// Reads what is shown and remembers what is not as it was.
#[derive(Debug, Default)]
pub(super) struct Modes {
    state: State,
    off: BTreeSet<u16>,
    on: BTreeSet<u16>,
    keypad: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    Escape,
    /// After `ESC [`.
    Sequence,
    /// After `ESC [ ?`: digits and semicolons.
    Private(String),
}

impl Modes {
    pub(super) fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = match (std::mem::take(&mut self.state), *byte) {
                (_, 0x1b) => State::Escape,
                (State::Escape, b'[') => State::Sequence,
                (State::Escape, b'=' | b'>') => {
                    self.keypad = *byte == b'=';
                    State::Text
                }
                // A full reset.
                (State::Escape, b'c') => {
                    *self = Self::default();
                    State::Text
                }
                (State::Sequence, b'?') => State::Private(String::new()),
                (State::Private(mut list), b'0'..=b'9' | b';') if list.len() < MAX_PARAMETERS => {
                    list.push(char::from(*byte));
                    State::Private(list)
                }
                (State::Private(list), b'h') => self.switch(&list, true),
                (State::Private(list), b'l') => self.switch(&list, false),
                _ => State::Text,
            };
        }
    }

    fn switch(&mut self, list: &str, to: bool) -> State {
        for mode in list.split(';').filter_map(|number| number.parse().ok()) {
            let (changed, usual) = match SWITCHED_ON.contains(&mode) {
                true => (&mut self.off, true),
                false => (&mut self.on, false),
            };
            if to == usual {
                changed.remove(&mode);
            } else {
                changed.insert(mode);
            }
        }
        State::Text
    }

    /// What makes the terminal as it was.
    pub(super) fn undo(&self) -> String {
        let mut undo = String::new();
        for mode in SWITCHED_OFF.iter().filter(|mode| self.on.contains(mode)) {
            undo.push_str(&format!("\u{1b}[?{mode}l"));
        }
        for mode in SWITCHED_ON.iter().filter(|mode| self.off.contains(mode)) {
            undo.push_str(&format!("\u{1b}[?{mode}h"));
        }
        if self.keypad {
            undo.push_str("\u{1b}>");
        }
        // Colours are everybody's; the terminal may be in the middle of a sequence.
        undo.push_str("\u{1b}[0m");
        undo
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undo(parts: &[&str]) -> String {
        let mut modes = Modes::default();
        parts.iter().for_each(|part| modes.read(part.as_bytes()));
        modes.undo().replace('\u{1b}', "^")
    }

    #[test]
    fn what_is_still_on_is_switched_off() {
        assert_eq!(undo(&["plain", "^[?1049h"]), "^[0m", "text is no sequence");
        assert_eq!(undo(&["\u{1b}[?1049h\u{1b}[?25l"]), "^[?1049l^[?25h^[0m");
        assert_eq!(undo(&["\u{1b}[?1049h", "x\u{1b}[?1049l"]), "^[0m");
        assert_eq!(undo(&["\u{1b}[?1002;1006h\u{1b}[?1h\u{1b}="]), "^[?1002l^[?1006l^[?1l^>^[0m");
        assert_eq!(undo(&["\u{1b}[?1049h\u{1b}[?2004h\u{1b}=\u{1b}c"]), "^[0m");
        assert_eq!(undo(&["\u{1b}[?25l\u{1b}[?25h\u{1b}=\u{1b}>"]), "^[0m");
        // Of no consequence for a shell.
        assert_eq!(undo(&["\u{1b}[?12h\u{1b}[4h"]), "^[0m");
    }

    #[test]
    fn a_sequence_may_come_in_pieces_or_not_at_all() {
        for at in 0..8 {
            let (first, second) = "\u{1b}[?1049h".split_at(at);
            assert_eq!(undo(&[first, second]), "^[?1049l^[0m", "{at}");
        }
        assert_eq!(undo(&["\u{1b}[?10", "\u{1b}[?1049h"]), "^[?1049l^[0m", "begun anew");
        assert_eq!(undo(&["\u{1b}[?", &"1;".repeat(100_000), "1049h"]), "^[0m");
        assert_eq!(undo(&["\u{1b}[?99999999999;2004h"]), "^[?2004l^[0m");
    }
}
