//! Records as they go in and come out.

use bytes::Bytes;
use millstream_proto::batch::{NewHeader, NewRecord};
use millstream_proto::{Offset, PartitionId};

use crate::ambient::Clock;

/// A record to be produced. It borrows what it is made of: the bytes are copied
/// once, into the batch that carries them.
///
/// ```
/// use millstream::Record;
///
/// let record = Record::value(b"4.7 Mw, 12 km SE of Volcano")
///     .key(b"hv71234567")
///     .headers(&[("source", b"usgs".as_slice())]);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [NewHeader<'a>],
    pub(crate) timestamp: Option<i64>,
    pub(crate) partition: Option<PartitionId>,
}

impl<'a> Record<'a> {
    /// A record with a value.
    #[must_use]
    pub fn value(value: &'a [u8]) -> Self {
        Self {
            value: Some(value),
            ..Self::default()
        }
    }

    /// A record that says its key has no value any more.
    #[must_use]
    pub fn tombstone(key: &'a [u8]) -> Self {
        Self {
            key: Some(key),
            ..Self::default()
        }
    }

    /// Gives it a key.
    #[must_use]
    pub fn key(mut self, key: &'a [u8]) -> Self {
        self.key = Some(key);
        self
    }

    /// Gives it headers: names and values, in order.
    #[must_use]
    pub fn headers(mut self, headers: &'a [NewHeader<'a>]) -> Self {
        self.headers = headers;
        self
    }

    /// Sets its time in milliseconds since the Unix epoch. Default: now.
    #[must_use]
    pub fn timestamp(mut self, ms: i64) -> Self {
        self.timestamp = Some(ms);
        self
    }

    /// Sends it to this partition, whatever its key.
    #[must_use]
    pub fn partition(mut self, partition: PartitionId) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The record as a batch takes it, with the time now where it has none.
    pub(crate) fn stamped(&self, clock: &impl Clock) -> NewRecord<'a> {
        NewRecord {
            key: self.key,
            value: self.value,
            headers: self.headers,
            timestamp: self.timestamp.unwrap_or_else(|| clock.millis()),
        }
    }

    /// Bytes of key, value and headers.
    pub(crate) fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(n, v)| n.len() + v.len());
        self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + headers.sum::<usize>()
    }
}

/// A consumed record. Its bytes are slices of the batch it came in: keeping one
/// small record keeps the batch in memory; copy what is to be kept for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is stored.
    pub partition: PartitionId,
    /// Its position there.
    pub offset: Offset,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The headers in the producer's order.
    pub headers: Vec<(String, Bytes)>,
}
