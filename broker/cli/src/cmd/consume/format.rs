//! A record as it is shown: its value alone, a line with everything, or a JSON object.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::clock;

/// A record, wherever it comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'a> {
    pub(super) partition: u32,
    pub(super) offset: u64,
    /// Milliseconds since the Unix epoch.
    pub(super) timestamp: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
}

/// How records are shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The value's bytes and a line break.
    Value,
    /// Partition, offset, time, key, headers and value.
    Full,
}

/// Writes the value as it is. A tombstone is an empty line.
pub(super) fn value(out: &mut impl Write, record: Shown<'_>) -> io::Result<()> {
    out.write_all(record.value.unwrap_or_default())?;
    out.write_all(b"\n")
}

/// Writes one line with everything. What is not text is shown as text with its odd bytes
/// replaced: for machines there is JSON.
pub(super) fn full<'a>(
    out: &mut impl Write,
    record: Shown<'_>,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> io::Result<()> {
    let Shown {
        partition,
        offset,
        timestamp,
        key,
        value,
    } = record;
    write!(out, "{partition}:{offset} {}", clock::rfc3339(timestamp))?;
    match key {
        Some(key) => write!(out, " key={}", printable(key))?,
        None => write!(out, " no key")?,
    }
    for (name, value) in headers {
        write!(out, " {}={}", printable(name.as_bytes()), printable(value))?;
    }
    match value {
        Some(value) => writeln!(out, " {}", printable(value)),
        None => writeln!(out, " (tombstone)"),
    }
}

/// Text in which nothing drives the terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Writes one JSON object and a line break. Bytes that are not UTF-8 stand in base64 under
/// another name, so that a reader cannot take one for the other.
pub(super) fn json<'a>(
    out: &mut impl Write,
    record: Shown<'_>,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> io::Result<()> {
    let mut object = Map::new();
    object.insert("partition".to_owned(), record.partition.into());
    object.insert("offset".to_owned(), record.offset.into());
    object.insert("timestamp".to_owned(), record.timestamp.into());
    bytes(&mut object, "key", record.key);
    bytes(&mut object, "value", record.value);
    let headers: Vec<Value> = headers
        .map(|(name, value)| {
            let mut header = Map::new();
            header.insert("name".to_owned(), name.into());
            bytes(&mut header, "value", Some(value));
            Value::Object(header)
        })
        .collect();
    if !headers.is_empty() {
        object.insert("headers".to_owned(), headers.into());
    }
    serde_json::to_writer(&mut *out, &object)?;
    out.write_all(b"\n")
}

fn bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => object.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => object.insert(name.to_owned(), text.into()),
        Some(Err(bytes)) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Shown<'a> {
        Shown {
            partition: 3,
            offset: 7,
            timestamp: 0,
            key,
            value,
        }
    }

    fn shown(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_see_all_and_the_terminal_is_safe() {
        let headers = [("h", &b"v"[..])];
        let line = shown(|out| {
            full(
                out,
                record(Some(b"k"), Some(b"a\x1b[2J")),
                headers.into_iter(),
            )
        });
        assert_eq!(line, "3:7 1970-01-01T00:00:00Z key=k h=v a\u{fffd}[2J\n");
        let line = shown(|out| full(out, record(None, None), std::iter::empty()));
        assert_eq!(line, "3:7 1970-01-01T00:00:00Z no key (tombstone)\n");
    }

    #[test]
    fn programs_can_tell_text_from_bytes() {
        let line = shown(|out| json(out, record(None, Some(b"\xff")), std::iter::empty()));
        let parsed: Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "partition": 3, "offset": 7, "timestamp": 0, "key": null, "value_base64": "/w=="
        });
        assert_eq!(parsed, expected);
    }

    proptest! {
        #[test]
        fn every_record_is_one_json_line_that_gives_its_bytes_back(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            value in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let line = shown(|out| json(out, record(key.as_deref(), Some(&value)), std::iter::empty()));
            prop_assert_eq!(line.matches('\n').count(), 1);
            let parsed: Value = serde_json::from_str(&line).unwrap();
            let back = match (&parsed["value"], &parsed["value_base64"]) {
                (Value::String(text), Value::Null) => text.clone().into_bytes(),
                (Value::Null, Value::String(text)) => STANDARD.decode(text).unwrap(),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(back, value);
        }
    }
}
