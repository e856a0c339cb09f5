//! Sizes, durations and `key=value` pairs as people type and read them.

use std::time::Duration;

const BYTE_UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

/// In nanoseconds.
const TIME_UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Splits `12.5MiB` into its number and its unit in lower case.
fn split(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim().to_ascii_lowercase()))
}

/// Beyond 2^53 a float no longer counts single bytes; nobody types such sizes.
const MOST_BYTES: f64 = 9_007_199_254_740_992.0;
/// Longest duration in nanoseconds: 292 years. Long ones are not exact to the nanosecond.
const MOST_NANOS: f64 = 9_223_372_036_854_775_807.0;

fn scaled(text: &str, units: &[(&str, u64)], most: f64) -> Option<u64> {
    let (number, unit) = split(text)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    let value = number * *factor as f64;
    (value <= most).then_some(value.round() as u64)
}

/// A number of bytes: `65536`, `64KiB`, `1.5MB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    scaled(text, &BYTE_UNITS, MOST_BYTES)
        .ok_or_else(|| format!("{text:?} is not a size: write 4096, 64KiB, 10MB or 1GiB"))
}

/// A number of bytes that fits 32 bits.
pub(crate) fn bytes32(text: &str) -> Result<u32, String> {
    let n = bytes(text)?;
    u32::try_from(n).map_err(|_| format!("{text:?} is {n} bytes; less than 4 GiB are allowed"))
}

/// A number of bytes that fits memory.
pub(crate) fn bytes_usize(text: &str) -> Result<usize, String> {
    let n = bytes(text)?;
    usize::try_from(n).map_err(|_| format!("{text:?} is {n} bytes, more than memory can address"))
}

/// A duration: `0`, `5ms`, `30s`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    scaled(text, &TIME_UNITS, MOST_NANOS)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("{text:?} is not a duration: write 5ms, 30s, 15m, 12h or 7d"))
}

/// A duration in whole milliseconds.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let ms = duration(text)?.as_millis();
    u64::try_from(ms).map_err(|_| format!("{text:?} is too long"))
}

/// `key=value`; the value may have further `=`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form key=value")),
    }
}

/// Bytes as people read them.
pub(crate) fn show_bytes(n: u64) -> String {
    const STEPS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut step = 0;
    while value >= 1024.0 && step + 1 < STEPS.len() {
        value /= 1024.0;
        step += 1;
    }
    format!("{value:.1} {}", STEPS[step])
}

/// A duration in milliseconds as people read it: its two largest parts.
pub(crate) fn show_ms(ms: u64) -> String {
    const PARTS: [(u64, &str); 4] = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    let mut rest = ms;
    let mut shown = Vec::new();
    for (size, unit) in PARTS {
        if rest >= size && shown.len() < 2 {
            shown.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    if shown.is_empty() {
        format!("{ms}ms")
    } else {
        shown.join(" ")
    }
}

/// A count with a comma between each three digits.
pub(crate) fn show_count(n: u64) -> String {
    let digits = n.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("4096", 4096),
            ("64KiB", 65_536),
            ("1.5 MB", 1_500_000),
            ("1gib", 1 << 30),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "KiB", "1 potato", "-1", "1e3", "99999999999GiB"] {
            assert!(bytes(bad).unwrap_err().contains("64KiB"), "{bad}");
        }
        assert!(bytes32("5GiB").unwrap_err().contains("4 GiB"));
    }

    #[test]
    fn durations_need_a_unit_unless_they_are_nothing() {
        assert_eq!(duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration_ms("7d"), Ok(7 * 86_400_000));
        assert_eq!(duration_ms("3650d"), Ok(3650 * 86_400_000));
        assert!(duration("1000000d").is_err());
        assert!(duration("5").unwrap_err().contains("5ms"));
    }

    #[test]
    fn a_pair_splits_at_its_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("=b").is_err() && pair("ab").is_err());
    }

    #[test]
    fn people_read_rounded_numbers() {
        assert_eq!(show_bytes(1023), "1023 B");
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(show_ms(90_000), "1m 30s");
        assert_eq!(show_ms(12), "12ms");
        assert_eq!(show_count(1_234_567), "1,234,567");
        assert_eq!(show_count(12), "12");
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC{0,20}") {
            let _ = (bytes(&text), duration(&text), pair(&text));
        }

        #[test]
        fn plain_numbers_are_bytes(n in 0u64..1 << 53) {
            prop_assert_eq!(bytes(&n.to_string()), Ok(n));
        }
    }
}
