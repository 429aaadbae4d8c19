//! What one machine has in common with every other of its shape, taken from a running one.

use anyhow::{Context as _, Result};

/// Options of a command line, with their values.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Board {
    /// In the order they were found.
    options: Vec<(String, String)>,
}

/// What decides which machine the guest sees and how it is executed.
const SHARED: [&str; 6] = ["-machine", "-accel", "-cpu", "-smp", "-m", "-bios"];
/// What its memory is; where that comes from is replaced.
const MEMORY: &str = "-object";
/// What only a machine that boots is given.
const KERNEL_LINE: &str = "-append";

/// The part of [`MEMORY`] that says where its content comes from.
const SOURCE: &str = "mem-path=";

/// Where a machine's memory comes from, and with it how the machine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Zero; it boots.
    Zero,
    /// What is in the file of that number, which it inherits; it waits for a device state.
    File(i32),
}

impl Board {
    /// Reads a command line as `/proc/<pid>/cmdline` has it. It is of a machine that booted.
    pub(super) fn parse(cmdline: &[u8]) -> Result<Self> {
        let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let value = |option: &str| {
            let at = words.iter().position(|word| word == option);
            let value = at.and_then(|at| words.get(at + 1));
            value.map(ToString::to_string).with_context(|| format!("the VMM was given no {option}"))
        };
        let option = |name: &str| Ok((name.to_owned(), value(name)?));
        let names = SHARED.iter().chain([&MEMORY, &KERNEL_LINE]);
        let options = names.map(|name| option(name)).collect::<Result<_>>()?;
        Ok(Self { options })
    }

    /// The same for a VMM outside: the firmware's path is one in the root the VMM has been given.
    pub(super) fn seen_from_outside(mut self, root: &str) -> Self {
        for (_, value) in self.options.iter_mut().filter(|(name, _)| name == "-bios") {
            value.insert_str(0, root);
        }
        self
    }

    /// The options for a machine that starts so.
    pub(super) fn options(&self, start: Start) -> Vec<(String, String)> {
        let mut options = self.options.clone();
        if let Start::File(number) = start {
            options.retain(|(name, _)| name != KERNEL_LINE);
            for (_, value) in options.iter_mut().filter(|(name, _)| name == MEMORY) {
                *value = from_file(value, number);
            }
        }
        options
    }
}

/// The memory `value` describes, with its content from an inherited file.
fn from_file(value: &str, number: i32) -> String {
    let kept = value.split(',').filter(|part| !part.starts_with(SOURCE));
    let source = format!("{SOURCE}/proc/self/fd/{number}");
    kept.chain([source.as_str()]).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CMDLINE: &str = "qemu\0-machine\0microvm,rtc=on\0-accel\0tcg,tb-size=64\0-cpu\0max\0\
        -smp\x001\0-m\x00512M\0-nodefaults\0-bios\0/q.rom\0\
        -object\0memory-backend-file,id=ram,mem-path=/dev/zero,share=off\0\
        -netdev\0tap,fd=3\0-append\0quiet panic=-1\0";

    #[test]
    fn a_board_is_found_in_a_command_line() {
        let board = Board::parse(CMDLINE.as_bytes()).unwrap();
        let expected = [
            ("-machine", "microvm,rtc=on"),
            ("-accel", "tcg,tb-size=64"),
            ("-cpu", "max"),
            ("-smp", "1"),
            ("-m", "512M"),
            ("-bios", "/q.rom"),
            ("-object", "memory-backend-file,id=ram,mem-path=/dev/zero,share=off"),
            ("-append", "quiet panic=-1"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(board.options(Start::Zero), expected);
    }

    #[test]
    fn a_restored_machine_has_other_memory_and_no_kernel() {
        let board = Board::parse(CMDLINE.as_bytes()).unwrap().seen_from_outside("/root");
        let options = board.options(Start::File(7));
        let value = |name: &str| {
            let found = options.iter().find(|(option, _)| option == name);
            found.map(|(_, value)| value.as_str())
        };
        let memory = "memory-backend-file,id=ram,share=off,mem-path=/proc/self/fd/7";
        assert_eq!(value("-object"), Some(memory));
        assert_eq!((value("-append"), value("-bios")), (None, Some("/root/q.rom")));
    }

    #[test]
    fn a_missing_option_is_named() {
        for cmdline in ["", "qemu\0-machine\0microvm", "qemu\0-machine"] {
            let error = Board::parse(cmdline.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("the VMM was given no -"), "{error}");
        }
    }
}
