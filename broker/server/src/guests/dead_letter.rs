//! Records on their way to dead-letter topics, with the cause in their headers.
//!
//! A dead letter keeps its key, value, headers and timestamp. What a record may weigh in the
//! dead-letter topic is not asked: it was accepted once, and losing it would defeat the purpose.

use std::fmt::Write;

use millstream_proto::batch::{BatchBuilder, NewHeader, NewRecord, PushError, Stamp};
use millstream_proto::limits::DEFAULT_BATCH_BYTES;
use millstream_proto::{Batch, BatchError, Codec, PartitionId, TopicName};

use super::directory::Directory;
use super::halt::Halt;
use super::records::Records;
use crate::limits::DEAD_LETTER_ERROR_BYTES;
use crate::log::Append;
use crate::route;

/// Header with what went wrong.
pub const ERROR_HEADER: &str = "millstream-error";
/// Header with the plugin and its version.
pub const PLUGIN_HEADER: &str = "millstream-plugin";
/// Header with where the record came from: topic, partition and offset as far as they are known.
pub const SOURCE_HEADER: &str = "millstream-source";

/// Where the records of a batch came from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The topic.
    pub(crate) topic: TopicName,
    /// The partition, once there is one.
    pub(crate) partition: Option<PartitionId>,
}

/// Why records are dead letters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause<'a> {
    /// The plugin and its version.
    pub(crate) plugin: &'a str,
    /// What went wrong.
    pub(crate) error: &'a str,
}

/// The dead letters of one batch.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    open: Vec<(TopicName, BatchBuilder)>,
    done: Vec<(TopicName, Batch)>,
    /// How many there are.
    pub(crate) count: u64,
}

impl DeadLetters {
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.done.clear();
        self.count = 0;
    }

    /// Adds the records of `range`, by index.
    ///
    /// # Errors
    /// When a batch of dead letters cannot be built.
    pub(crate) fn push(
        &mut self,
        topic: &TopicName,
        records: &mut Records,
        range: impl IntoIterator<Item = usize>,
        source: &Source,
        cause: Cause<'_>,
    ) -> Result<(), BatchError> {
        records.want_times();
        let error = cut(cause.error);
        let mut from = String::new();
        for index in range {
            from.clear();
            name_source(&mut from, source, records, index);
            let why: [NewHeader<'_>; 3] = [
                (ERROR_HEADER, error.as_bytes()),
                (PLUGIN_HEADER, cause.plugin.as_bytes()),
                (SOURCE_HEADER, from.as_bytes()),
            ];
            let mut headers = Vec::new();
            records.headers(index, &mut headers);
            headers.extend(why);
            // With its own headers if they fit, else with the cause alone, else without any.
            let forms = [&headers[..], &why[..], &[]];
            let mut forms = forms.map(|form| records.record(index, form)).into_iter();
            let record = forms
                .find(fits)
                .unwrap_or_else(|| records.record(index, &[]));
            self.add(topic, &record)?;
        }
        Ok(())
    }

    fn add(&mut self, topic: &TopicName, record: &NewRecord<'_>) -> Result<(), BatchError> {
        let at = match self.open.iter().position(|(open, _)| open == topic) {
            Some(at) => at,
            None => {
                self.open
                    .push((topic.clone(), BatchBuilder::new(DEFAULT_BATCH_BYTES)));
                self.open.len() - 1
            }
        };
        let builder = &mut self.open[at].1;
        if builder.push(record) == Err(PushError::Full) {
            let batch = builder.build(Codec::None, Stamp::default())?;
            self.done.push((topic.clone(), batch));
            // The builder is empty and the record fits by itself, see `fits`.
            let pushed = builder.push(record);
            debug_assert_eq!(pushed, Ok(()), "an empty batch has room");
        }
        self.count += 1;
        Ok(())
    }

    /// Everything as appends to the dead-letter topics, spread as those topics spread records;
    /// empty afterwards.
    ///
    /// # Errors
    /// [`Halt::Stop`] when a topic is gone.
    pub(crate) fn finish(
        &mut self,
        directory: &dyn Directory,
        appends: &mut Vec<Append>,
    ) -> Result<(), Halt> {
        for (topic, mut builder) in self.open.drain(..) {
            if !builder.is_empty() {
                self.done
                    .push((topic, builder.build(Codec::None, Stamp::default())?));
            }
        }
        for (name, batch) in self.done.drain(..) {
            let gone = || {
                let text = format!("the dead-letter topic {name} does not exist; create it again");
                Halt::Stop(text)
            };
            let topic = directory.topic(&name).filter(|topic| !topic.is_deleted());
            let topic = topic.ok_or_else(gone)?;
            for (partition, batch) in route::spread(&batch, &topic)? {
                appends.push(Append::to(&topic, partition, batch).ok_or_else(gone)?);
            }
        }
        Ok(())
    }
}

/// Whether a batch of its own can hold the record.
fn fits(record: &NewRecord<'_>) -> bool {
    use millstream_proto::limits::{MAX_RECORD_BYTES, MAX_RECORD_HEADERS};
    record.size() <= MAX_RECORD_BYTES && record.headers.len() <= MAX_RECORD_HEADERS
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(DEAD_LETTER_ERROR_BYTES)]
}

fn name_source(text: &mut String, source: &Source, records: &Records, index: usize) {
    text.push_str(source.topic.as_str());
    // Writing to a string does not fail.
    if let Some(partition) = source.partition {
        let _ = write!(text, "/{partition}");
        if let Some(offset) = records.offset(index) {
            let _ = write!(text, "/{offset}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::Offset;
    use millstream_proto::limits::{MAX_BATCH_BYTES, MAX_RECORD_BYTES, MAX_RECORD_HEADERS};

    use super::*;

    fn loaded(record: &NewRecord<'_>, base: Option<Offset>) -> Records {
        let mut builder = BatchBuilder::new(MAX_BATCH_BYTES);
        builder.push(record).unwrap();
        let mut records = Records::default();
        records
            .load(&builder.build(Codec::None, Stamp::default()).unwrap(), base)
            .unwrap();
        records
    }

    fn dead(mut records: Records, partition: Option<u32>, error: &str) -> Vec<(String, Vec<u8>)> {
        let mut dead = DeadLetters::default();
        let source = Source {
            topic: "acme/in".parse().unwrap(),
            partition: partition.map(PartitionId),
        };
        let cause = Cause {
            plugin: "acme/p version 2",
            error,
        };
        dead.push(
            &"acme/dead".parse().unwrap(),
            &mut records,
            0..1,
            &source,
            cause,
        )
        .unwrap();
        assert_eq!(dead.count, 1);
        let batch = dead.open[0].1.build(Codec::None, Stamp::default()).unwrap();
        let body = batch.body().unwrap();
        let record = body.view().unwrap().records().next().unwrap();
        assert_eq!(record.timestamp, 7);
        record
            .headers
            .map(|(name, value)| (name.to_owned(), value.to_vec()))
            .collect()
    }

    #[test]
    fn a_dead_letter_says_why_and_where_from() {
        let own: [NewHeader<'_>; 1] = [("own", b"1")];
        let record = NewRecord {
            key: Some(b"k"),
            value: None,
            headers: &own,
            timestamp: 7,
        };
        let headers = dead(loaded(&record, Some(Offset(40))), Some(3), "no good");
        let expected = [
            ("own", "1"),
            (ERROR_HEADER, "no good"),
            (PLUGIN_HEADER, "acme/p version 2"),
            (SOURCE_HEADER, "acme/in/3/40"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        assert_eq!(headers, expected);
        let headers = dead(loaded(&record, None), None, &"ü".repeat(1000));
        assert_eq!(headers[3].1, b"acme/in");
        assert!(headers[1].1.len() <= DEAD_LETTER_ERROR_BYTES);
        assert!(str::from_utf8(&headers[1].1).is_ok());
    }

    #[test]
    fn a_record_without_room_for_the_cause_is_kept_all_the_same() {
        let own: Vec<NewHeader<'_>> = vec![("h", b""); MAX_RECORD_HEADERS];
        let record = NewRecord {
            headers: &own,
            timestamp: 7,
            ..NewRecord::default()
        };
        let headers = dead(loaded(&record, None), None, "why");
        assert_eq!(headers.len(), 3);
        let value = vec![0; MAX_RECORD_BYTES];
        let record = NewRecord {
            value: Some(&value),
            timestamp: 7,
            ..NewRecord::default()
        };
        assert_eq!(dead(loaded(&record, None), None, "why"), []);
    }
}
