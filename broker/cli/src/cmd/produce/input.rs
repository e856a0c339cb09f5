//! Records out of lines: read on a thread of its own, since reading a pipe blocks.
//!
//! Absent: any other framing than lines. A value with line breaks cannot be produced from the
//! command line, except as NDJSON.

use std::io::{self, BufRead, BufReader, Read};
use std::thread;

use bytes::Bytes;
use millstream_proto::limits::MAX_RECORD_BYTES;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::clock;
use crate::pointer::{Pointer, key_bytes};

/// Records handed over at once; a hand-over wakes the sending side once.
const CHUNK_RECORDS: usize = 256;
/// Bytes of values after which a chunk is handed over, whatever its number of records.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait for the sending side; reading then pauses.
const CHUNKS_WAITING: usize = 4;

/// What becomes of a line.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    /// Every line must be JSON; empty lines are passed over.
    pub(super) ndjson: bool,
    /// Where the key is.
    pub(super) key: Option<Pointer>,
    /// Where the timestamp is.
    pub(super) timestamp: Option<Pointer>,
}

/// A line as a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Key, if the rules give it one.
    pub(super) key: Option<Bytes>,
    /// The line without its end.
    pub(super) value: Bytes,
    /// Milliseconds since the Unix epoch, if the rules give it one.
    pub(super) timestamp: Option<i64>,
}

/// Why a line is not a record.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// The file or pipe broke off.
    #[error("cannot read the input behind line {line}: {source}")]
    Read {
        /// The last good line.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// A line that no topic takes.
    #[error("line {line} is longer than {MAX_RECORD_BYTES} bytes, the largest record there is")]
    TooLong {
        /// Which.
        line: u64,
    },
    /// `--ndjson`, and a line is something else.
    #[error("line {line} is not JSON: {why}")]
    NotJson {
        /// Which.
        line: u64,
        /// What the parser says.
        why: String,
    },
    /// The pointer points at nothing, or at something that is not a key.
    #[error("line {line} has nothing at {pointer:?} that could be its key")]
    NoKey {
        /// Which.
        line: u64,
        /// Where.
        pointer: String,
    },
    /// The pointer points at nothing, or at something that is not a time.
    #[error(
        "line {line} has no time at {pointer:?}: milliseconds since 1970 as a number, or an RFC 3339 text"
    )]
    NoTime {
        /// Which.
        line: u64,
        /// Where.
        pointer: String,
    },
}

/// What the reading thread hands over.
pub(super) type Chunk = Result<Vec<Line>, InputError>;

/// Reads `source` to its end on a thread of its own. The thread ends after a bad line, or when the
/// receiver is dropped and it has a chunk to hand over.
pub(super) fn read<R>(source: R, rules: Rules) -> mpsc::Receiver<Chunk>
where
    R: Read + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    thread::spawn(move || {
        let source = BufReader::with_capacity(CHUNK_BYTES, source);
        let mut lines = Lines {
            source,
            rules,
            number: 0,
            failed: None,
            ended: false,
        };
        while let Some(chunk) = lines.chunk() {
            if sender.blocking_send(chunk).is_err() {
                return;
            }
        }
    });
    receiver
}

struct Lines<R> {
    source: BufReader<R>,
    rules: Rules,
    number: u64,
    /// What ended the reading, until it is handed over.
    failed: Option<InputError>,
    /// A bad line has been handed over; nothing behind it is read.
    ended: bool,
}

impl<R: Read> Lines<R> {
    /// The next lines, or what is wrong with the line behind the last good one; none at the end.
    fn chunk(&mut self) -> Option<Chunk> {
        if let Some(error) = self.failed.take() {
            self.ended = true;
            return Some(Err(error));
        }
        let mut chunk = Vec::new();
        let mut size = 0;
        while !self.ended && chunk.len() < CHUNK_RECORDS && size < CHUNK_BYTES {
            // Somebody who types expects each line to be sent when it ends, so a chunk is never
            // filled by waiting.
            if !chunk.is_empty() && self.source.buffer().is_empty() {
                break;
            }
            match self.line() {
                Ok(Some(line)) => {
                    size += line.value.len();
                    chunk.push(line);
                }
                Ok(None) => break,
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        match (chunk.is_empty(), self.failed.is_some()) {
            (false, _) => Some(Ok(chunk)),
            (true, true) => self.chunk(),
            (true, false) => None,
        }
    }

    fn line(&mut self) -> Result<Option<Line>, InputError> {
        loop {
            let Some(bytes) = self.raw()? else {
                return Ok(None);
            };
            if self.rules.ndjson && bytes.trim_ascii().is_empty() {
                continue;
            }
            return self.record(bytes).map(Some);
        }
    }

    /// The next line without its end, or none at the end of the input.
    fn raw(&mut self) -> Result<Option<Vec<u8>>, InputError> {
        // One byte more than fits tells a line that is too long from one that just fits.
        let most = MAX_RECORD_BYTES as u64 + 2;
        let mut bytes = Vec::new();
        let mut limited = Read::take(&mut self.source, most);
        let read = limited
            .read_until(b'\n', &mut bytes)
            .map_err(|source| InputError::Read {
                line: self.number,
                source,
            })?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(InputError::TooLong { line: self.number });
        }
        Ok(Some(bytes))
    }

    fn record(&self, bytes: Vec<u8>) -> Result<Line, InputError> {
        let Rules {
            ndjson,
            key,
            timestamp,
        } = &self.rules;
        let line = self.number;
        let mut record = Line {
            key: None,
            value: bytes.into(),
            timestamp: None,
        };
        if !ndjson && key.is_none() && timestamp.is_none() {
            return Ok(record);
        }
        let document: Value =
            serde_json::from_slice(&record.value).map_err(|e| InputError::NotJson {
                line,
                why: e.to_string(),
            })?;
        if let Some(pointer) = key {
            let found = pointer.find(&document).and_then(key_bytes);
            let none = || InputError::NoKey {
                line,
                pointer: pointer.as_str().to_owned(),
            };
            record.key = Some(found.ok_or_else(none)?.into());
        }
        if let Some(pointer) = timestamp {
            let found = pointer.find(&document).and_then(time_of);
            let none = || InputError::NoTime {
                line,
                pointer: pointer.as_str().to_owned(),
            };
            record.timestamp = Some(found.ok_or_else(none)?);
        }
        Ok(record)
    }
}

fn time_of(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => clock::parse_rfc3339(text),
        number => number.as_i64(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn rules(ndjson: bool, key: Option<&str>, timestamp: Option<&str>) -> Rules {
        let pointer = |text: &str| text.parse().unwrap();
        Rules {
            ndjson,
            key: key.map(pointer),
            timestamp: timestamp.map(pointer),
        }
    }

    #[test]
    fn what_is_good_before_a_bad_line_is_handed_over_first() {
        let mut receiver = read(
            Cursor::new(b"1\n2\n{\n3\n".to_vec()),
            rules(true, None, None),
        );
        assert_eq!(receiver.blocking_recv().unwrap().unwrap().len(), 2);
        assert!(receiver.blocking_recv().unwrap().is_err());
        assert!(receiver.blocking_recv().is_none());
    }

    fn all(input: &[u8], rules: Rules) -> Result<Vec<Line>, InputError> {
        let mut receiver = read(Cursor::new(input.to_vec()), rules);
        let mut lines = Vec::new();
        while let Some(chunk) = receiver.blocking_recv() {
            lines.extend(chunk?);
        }
        Ok(lines)
    }

    fn values(lines: &[Line]) -> Vec<&[u8]> {
        lines.iter().map(|line| &line.value[..]).collect()
    }

    #[test]
    fn a_line_is_a_record_also_an_empty_one_and_the_last_without_an_end() {
        let lines = all(b"a\r\n\nb", Rules::default()).unwrap();
        assert_eq!(values(&lines), [&b"a"[..], b"", b"b"]);
        assert!(all(b"", Rules::default()).unwrap().is_empty());
    }

    #[test]
    fn keys_and_times_are_found_by_pointer() {
        let input = br#"{"id":"q1","at":{"ms":7}}

{"id":2,"at":{"ms":"1970-01-01T00:00:01Z"}}
"#;
        let lines = all(input, rules(true, Some("/id"), Some("/at/ms"))).unwrap();
        assert_eq!(lines[0].key.as_deref(), Some(&b"q1"[..]));
        assert_eq!(lines[1].key.as_deref(), Some(&b"2"[..]));
        assert_eq!(
            (lines[0].timestamp, lines[1].timestamp),
            (Some(7), Some(1000))
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        let check = |input: &[u8], rules, expected: &str| {
            let error = all(input, rules).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(b"{}\n{\n", rules(true, None, None), "line 2 is not JSON");
        check(b"{}\n", rules(false, Some("/id"), None), "\"/id\"");
        check(
            b"{\"id\":null}\n",
            rules(false, Some("/id"), None),
            "line 1",
        );
        check(
            b"{\"t\":\"noon\"}\n",
            rules(false, None, Some("/t")),
            "no time at \"/t\"",
        );
        check(
            &vec![b'x'; MAX_RECORD_BYTES + 1],
            Rules::default(),
            "line 1 is longer",
        );
        check(
            &vec![b'x'; 3 * MAX_RECORD_BYTES],
            Rules::default(),
            "line 1 is longer",
        );
    }

    #[test]
    fn the_longest_line_passes() {
        let mut input = vec![b'x'; MAX_RECORD_BYTES];
        input.push(b'\n');
        assert_eq!(
            all(&input, Rules::default()).unwrap()[0].value.len(),
            MAX_RECORD_BYTES
        );
    }

    proptest! {
        #[test]
        fn lines_come_out_as_they_went_in(lines in prop::collection::vec("[^\r\n]{0,20}", 0..700)) {
            let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let read = all(input.as_bytes(), Rules::default()).unwrap();
            let expected: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
            prop_assert_eq!(values(&read), expected);
        }
    }
}
