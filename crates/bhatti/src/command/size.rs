//! Sizes as people write them.

/// A number of MB: bare, or with a unit, which may be small or large and end in `B` or `iB`. A
/// thousand is 1024 here, as in everything that is said of machines.
pub(super) fn megabytes(text: &str) -> Result<i64, String> {
    let wrong = || "expected a number of MB, or a size such as 512MB or 2GB".to_owned();
    let digits = text.find(|c: char| !matches!(c, '0'..='9' | '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let megabytes = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        // `b` alone would be bytes.
        "" if unit.is_empty() => 1.0,
        "m" => 1.0,
        "g" => 1024.0,
        "t" => 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let size = number.parse::<f64>().map_err(|_| wrong())? * megabytes;
    // Below this every whole number is exact.
    if size.fract() == 0.0 && size < 1e15 { Ok(size as i64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, wanted) in [
            ("2048", 2048),
            ("0", 0),
            ("2GB", 2048),
            ("2g", 2048),
            ("2 GiB", 2048),
            ("512m", 512),
            ("512MB", 512),
            ("1.5G", 1536),
            ("1t", 1 << 20),
        ] {
            assert_eq!(megabytes(text), Ok(wanted), "{text}");
        }
        for bad in ["", "GB", "2b", "2ib", "2kb", "-1", "1.5", "1e3", "two", "2GBs", "9e99", "1..5"]
        {
            assert!(megabytes(bad).is_err_and(|why| why.contains("such as 512MB")), "{bad}");
        }
    }
}
