//! Making a batch record by record, for the tests of a plugin.

use super::Batch;
use crate::NONE;

/// Builds a [`Batch`] as a broker would send it to a plugin that asked for every column.
#[derive(Clone, Debug, Default)]
pub struct BatchBuilder {
    batch: Batch,
}

impl BatchBuilder {
    /// A builder of a batch of input 0, partition 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets where the batch comes from: the index of the input, and the partition.
    #[must_use]
    pub fn from(mut self, input: u32, partition: u32) -> Self {
        (self.batch.input, self.batch.partition) = (input, partition);
        self
    }

    /// Adds a record. Its offset is its index and its timestamp 0, unless [`at`](Self::at) says
    /// otherwise.
    #[must_use]
    pub fn record(mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        let index = i64::try_from(self.batch.len()).expect("a test's batch is small");
        let (key, key_length) = self.piece(key);
        let (value, value_length) = self.piece(value);
        let header = u32::try_from(self.batch.headers.len() / super::HEADER)
            .expect("a test's batch is small");
        self.batch
            .spans
            .extend([key, key_length, value, value_length, header, 0]);
        self.batch.offsets.push(index);
        self.batch.timestamps.push(0);
        self
    }

    /// Sets offset and timestamp (milliseconds since 1970-01-01T00:00:00Z) of the last record.
    ///
    /// # Panics
    /// If there is no record yet.
    #[must_use]
    pub fn at(mut self, offset: i64, timestamp: i64) -> Self {
        *self
            .batch
            .offsets
            .last_mut()
            .expect("a record was added before") = offset;
        *self
            .batch
            .timestamps
            .last_mut()
            .expect("a record was added before") = timestamp;
        self
    }

    /// Adds a header to the last record.
    ///
    /// # Panics
    /// If there is no record yet.
    #[must_use]
    pub fn header(mut self, name: &str, value: &[u8]) -> Self {
        let (name, name_length) = self.piece(Some(name.as_bytes()));
        let (value, value_length) = self.piece(Some(value));
        self.batch
            .headers
            .extend([name, name_length, value, value_length]);
        *self
            .batch
            .spans
            .last_mut()
            .expect("a record was added before") += 1;
        self
    }

    /// The batch.
    #[must_use]
    pub fn build(self) -> Batch {
        self.batch
    }

    fn piece(&mut self, bytes: Option<&[u8]>) -> (u32, u32) {
        let Some(bytes) = bytes else { return (0, NONE) };
        let offset = u32::try_from(self.batch.data.len()).expect("a test's batch is small");
        self.batch.data.extend_from_slice(bytes);
        (
            offset,
            u32::try_from(bytes.len()).expect("a test's batch is small"),
        )
    }
}
