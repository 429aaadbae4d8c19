//! The records of POSIX extended headers: `<length> <key>=<value>\n`, where the length counts
//! itself and everything else.
//!
//! The tar crate's own reader takes a newline in a value for the end of it.

/// One record.
pub(crate) fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    // Once more if the digits became one more.
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}").into_bytes()
}

/// The records of a header, as key and value. `None`: it is none.
pub(crate) fn records(mut content: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !content.is_empty() {
        let space = content.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&content[..space]).ok()?.parse().ok()?;
        let (head, rest) = content.split_at_checked(length)?;
        let text = head.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = text.iter().position(|byte| *byte == b'=')?;
        records.push((&text[..equals], &text[equals + 1..]));
        content = rest;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_its_own_length() {
        for value in ["x", &"y".repeat(80), &"y".repeat(95), &"é\n=".repeat(200)] {
            let one = record("key", value);
            let both = [&one[..], b"11 mtime=1\n"].concat();
            let wanted = vec![(&b"key"[..], value.as_bytes()), (b"mtime", b"1")];
            assert_eq!(records(&both), Some(wanted));
        }
        assert_eq!(records(b""), Some(vec![]));
    }

    #[test]
    fn nonsense_is_none() {
        for bad in [
            "x",
            "5 a=b",
            "6 a=b",
            "100 a=b\n",
            "0 a=b\n",
            "6 a-b\n",
            "6  ab\n",
            "-6 a=b\n",
            "3 a=b\n",
            "99999999999999999999 a=b\n",
        ] {
            assert_eq!(records(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
