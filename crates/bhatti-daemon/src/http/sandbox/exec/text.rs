//! Output bytes as JSON text, without tearing a character that spans two chunks.

/// One stream's decoder. Bytes that are no UTF-8 become U+FFFD.
#[derive(Default)]
pub(in crate::http::sandbox) struct Utf8Stream {
    /// The start of a character whose end has not come: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// The text that is certain after `bytes`.
    pub(in crate::http::sandbox) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.pending);
        all.extend_from_slice(bytes);
        let keep = unfinished(&all);
        self.pending = all.split_off(all.len() - keep);
        String::from_utf8_lossy(&all).into_owned()
    }

    /// What was left when the stream ended.
    pub(in crate::http::sandbox) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// How many bytes at the end may be the start of one character.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needs > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_survive_any_split() {
        let text = "aé€😀z\u{fffd}";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut stream = Utf8Stream::default();
                let bytes = text.as_bytes();
                let parts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let mut out: String = parts.iter().map(|part| stream.push(part)).collect();
                out.push_str(&stream.finish());
                assert_eq!(out, text);
            }
        }
    }

    #[test]
    fn garbage_is_replaced_and_never_kept() {
        let mut stream = Utf8Stream::default();
        assert_eq!(stream.push(&[0xff, b'a', 0x80]), "\u{fffd}a\u{fffd}");
        assert_eq!(stream.push(&[0xe2, 0x82]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        let mut stream = Utf8Stream::default();
        for _ in 0..1000 {
            stream.push(&[0xf0]);
            assert!(stream.pending.len() <= 3);
        }
    }
}
