//! What a daemon's log says: about a freeze, about the parts of a boot, and about what went wrong.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

/// How long a line may be under way from the daemon through the test kit into the file.
const UNDER_WAY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// More than one freeze says.
const MOST: u64 = 4 << 20;

/// One freeze, in the daemon's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frozen {
    /// From its beginning until the record says cold. The process ends afterwards.
    pub(crate) millis: u64,
    /// Bytes of memory and device state written.
    pub(crate) written: u64,
    /// Bytes of the whole generation, what is shared with older ones included.
    pub(crate) bytes: u64,
}

/// A place in the log.
pub(crate) struct Mark {
    file: Utf8PathBuf,
    from: u64,
}

impl Mark {
    /// The end of the log as it is now.
    pub(crate) fn now(file: &Utf8Path) -> Result<Self> {
        let from = file.metadata().with_context(|| format!("cannot look at {file}"))?.len();
        Ok(Self { file: file.to_owned(), from })
    }

    /// The freeze of that sandbox that was logged since.
    pub(crate) async fn frozen(&self, id: &str) -> Result<Frozen> {
        let started = Instant::now();
        loop {
            let mut file = File::open(&self.file)?;
            file.seek(SeekFrom::Start(self.from))?;
            let mut text = String::new();
            file.take(MOST).read_to_string(&mut text)?;
            if let Some(frozen) = find(&text, id) {
                return Ok(frozen);
            }
            ensure!(started.elapsed() < UNDER_WAY, "the daemon did not log a freeze of {id}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The errors in a log: how many, and the first.
pub(crate) fn errors(file: &Utf8Path) -> Result<(usize, Option<String>)> {
    let log = File::open(file).with_context(|| format!("cannot open {file}"))?;
    let (mut count, mut first) = (0, None);
    for line in BufReader::new(log).lines() {
        let line = line?;
        if is_error(&line) {
            count += 1;
            first.get_or_insert(line);
        }
    }
    Ok((count, first))
}

/// The numbers of that name in all lines with that message.
pub(crate) fn numbers(file: &Utf8Path, message: &str, name: &str) -> Result<Vec<u64>> {
    let log = File::open(file).with_context(|| format!("cannot open {file}"))?;
    let mut found = Vec::new();
    for line in BufReader::new(log).lines() {
        // The last one may be half there.
        let Ok(value) = serde_json::from_str::<Value>(&line?) else { continue };
        if value["fields"]["message"] == message {
            found.extend(value["fields"][name].as_u64());
        }
    }
    Ok(found)
}

fn is_error(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|value| value["level"] == "ERROR")
}

fn find(text: &str, id: &str) -> Option<Frozen> {
    text.lines().filter(|line| line.contains(id)).find_map(parse)
}

fn parse(line: &str) -> Option<Frozen> {
    let value: Value = serde_json::from_str(line).ok()?;
    let fields = value.get("fields")?;
    if fields["message"] != "frozen" {
        return None;
    }
    // A number of 128 bits is logged as text.
    let number = |name: &str| {
        let value = &fields[name];
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    let (millis, written, bytes) = (number("millis")?, number("written")?, number("bytes")?);
    Some(Frozen { millis, written, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::try_from(dir.path().join("log")).unwrap();
        let (bad, good) = ("{\"level\":\"ERROR\",\"n\":1}", "{\"level\":\"INFO\"}");
        std::fs::write(&file, format!("{good}\nERROR\n{bad}\n{bad}\n")).unwrap();
        assert_eq!(errors(&file).unwrap(), (2, Some(bad.to_owned())));
    }

    #[test]
    fn numbers_are_those_of_a_message() {
        let dir = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::try_from(dir.path().join("log")).unwrap();
        let line = |message: &str, ms: u64| {
            format!("{{\"fields\":{{\"message\":\"{message}\",\"vmm_ms\":{ms}}}}}\n")
        };
        let text = [line("up", 3), line("down", 4), line("up", 5), "{\"fiel".to_owned()];
        std::fs::write(&file, text.concat()).unwrap();
        assert_eq!(numbers(&file, "up", "vmm_ms").unwrap(), [3, 5]);
        assert_eq!(numbers(&file, "up", "other").unwrap(), [0; 0]);
    }

    #[test]
    fn a_freeze_is_found_by_its_sandbox() {
        let line = |id: &str, message: &str, millis: &str| {
            format!(
                "{{\"fields\":{{\"message\":\"{message}\",\"millis\":{millis},\"written\":7,\
                 \"bytes\":9}},\"span\":{{\"id\":\"{id}\",\"name\":\"s1\",\"name\":\"sandbox\"}}}}\n"
            )
        };
        let text = [
            line("aa", "changing phase", "1"),
            line("bb", "frozen", "2"),
            line("aa", "frozen", "\"3\""),
            "half a li".to_owned(),
        ];
        let text = text.concat();
        assert_eq!(find(&text, "aa"), Some(Frozen { millis: 3, written: 7, bytes: 9 }));
        assert_eq!(find(&text, "bb").map(|frozen| frozen.millis), Some(2));
        assert_eq!(find(&text, "cc"), None);
    }
}
