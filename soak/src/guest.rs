//! What is run in a guest: shell scripts, and what they print.

use crate::life::{DISK_FILES, Life, MEMORY_FILES, Seen, Write, file_line};

/// The program whose memory is checked.
pub(crate) const WORKER: &str = include_str!("worker.pl");
/// Where it lies in a guest.
pub(crate) const WORKER_PATH: &str = "/opt/soak/worker.pl";

/// Every script begins with this. One at a time: a write whose client was lost may still run, and
/// what looks at its result has to wait for it.
const PRELUDE: &str = r#"
mkdir -p /home/lohar/soak /tmp/soak && cd /home/lohar/soak || exit 1
exec 9>lock && flock -w 60 9 || { echo 'the lock is held for a minute' >&2; exit 1; }
put() { yes "$3" | head -c "$2" >"$1.new" && mv "$1.new" "$1"; }
ask() { exec 3<>/dev/tcp/127.0.0.1/7007 && echo "$1" >&3 && cat <&3 && exec 3>&-; }
"#;

fn path(name: &str) -> String {
    match name.strip_prefix('t') {
        Some(_) => format!("/tmp/soak/{name}"),
        None => name.to_owned(),
    }
}

fn put(label: &str, name: &str, size: usize, generation: u32) -> String {
    let line = file_line(label, name, generation);
    format!("put {} {size} '{line}' || exit 1\n", path(name))
}

/// Starts the worker and writes all that is in memory; with `disk` also what is on disk, synced.
pub(crate) fn begin(life: &Life, disk: bool) -> String {
    let mut script = PRELUDE.to_owned();
    for (number, size) in DISK_FILES.into_iter().enumerate().filter(|_| disk) {
        script += &put(&life.disk_label, &format!("d{number}"), size, 0);
    }
    for (number, size) in MEMORY_FILES.into_iter().enumerate() {
        script += &put(&life.memory_label, &format!("t{number}"), size, 0);
    }
    script += &format!(
        "sync\nsetsid perl {WORKER_PATH} {} {} </dev/null >/tmp/soak/log 2>&1 9>&- &\n\
         for i in $(seq 100); do ask ticks 2>/dev/null && exit 0; sleep 0.1; done\n\
         cat /tmp/soak/log >&2; exit 1\n",
        life.memory_label,
        life.blocks()
    );
    script
}

/// Makes one change in each kind of place.
pub(crate) fn write(life: &Life, write: &Write) -> String {
    let &Write { block, disk_file, memory_file, sync, generation } = write;
    let disk = put(&life.disk_label, &format!("d{disk_file}"), DISK_FILES[disk_file], generation);
    let name = format!("t{memory_file}");
    let memory = put(&life.memory_label, &name, MEMORY_FILES[memory_file], generation);
    let sync = if sync { "sync\n" } else { "" };
    format!(
        "{PRELUDE}{memory}[ \"$(ask 'set {block} {generation}')\" = ok ] || exit 1\n{disk}{sync}"
    )
}

/// Prints all there is, for [`seen`].
pub(crate) fn look() -> String {
    format!(
        "echo \"clock $(date +%s.%N)\"\n{PRELUDE}\
         t=$(ask ticks) && echo \"ticks $t\" && echo \"memory $(ask dump | sha256sum)\"\n\
         sha256sum d? /tmp/soak/t? | sed 's,^,file ,; s,/tmp/soak/,,'\n"
    )
}

/// Prints what a person would want to see of a sandbox that lost something.
pub(crate) fn explain() -> String {
    "cd /home/lohar/soak; date; uptime; ls -la . /tmp/soak; head -qn1 d? /tmp/soak/t?; \
     cat /tmp/soak/log; pgrep -af perl; exec 3<>/dev/tcp/127.0.0.1/7007 && echo dump >&3 && \
     sort <&3 | uniq -c | grep -v '^ *1 '; sudo dmesg | tail -n 20"
        .to_owned()
}

/// Reads what [`look`] printed.
pub(crate) fn seen(output: &str) -> Seen {
    let mut seen = Seen::default();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("clock"), Some(seconds)) => seen.clock = seconds.parse().ok(),
            (Some("memory"), Some(digest)) => seen.memory = Some(digest.to_owned()),
            (Some("file"), Some(digest)) => {
                if let Some(name) = words.next() {
                    seen.files.insert(name.to_owned(), digest.to_owned());
                }
            }
            (Some("ticks"), Some(first)) => {
                let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
                let all = (number(Some(first)), number(words.next()), number(words.next()));
                if let (Some(ticks), Some(echoes), Some(broken)) = all {
                    seen.ticks = Some([ticks, echoes, broken]);
                }
            }
            _ => {}
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_look_prints_is_read() {
        let output = "clock 1.5\nticks 7 6 0\nmemory ab  -\nfile cd  d0\nfile ef  t1\nnoise\n";
        let seen = seen(output);
        assert_eq!(seen.clock, Some(1.5));
        assert_eq!(seen.ticks, Some([7, 6, 0]));
        assert_eq!(seen.memory.as_deref(), Some("ab"));
        assert_eq!(seen.files.get("d0").map(String::as_str), Some("cd"));
        assert_eq!(seen.files.get("t1").map(String::as_str), Some("ef"));
    }

    #[test]
    fn a_worker_that_is_gone_is_seen_as_gone() {
        let seen = seen("clock 1.5\nticks \nfile cd  d0\n");
        assert_eq!((seen.ticks, seen.memory), (None, None));
    }
}
