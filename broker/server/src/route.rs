//! The built-in choice of partitions, and splitting a batch over them.
//!
//! A batch that goes whole to one partition is passed on as it is; only a split
//! copies records, each once.

use millstream_proto::batch::{
    BatchBuilder, Body, NewHeader, NewRecord, PushError, RecordRef, Stamp,
};
use millstream_proto::limits::{DEFAULT_BATCH_BYTES, MAX_BATCH_BYTES};
use millstream_proto::partition::key_partition;
use millstream_proto::topic::Spread;
use millstream_proto::{Batch, BatchError, BatchHeader, Codec, PartitionId};

use crate::log::Topic;

/// Spreads a batch over the partitions of `topic` as its settings say.
///
/// # Errors
/// When the batch cannot be looked into; see [`BatchError`].
pub fn spread(batch: &Batch, topic: &Topic) -> Result<Vec<(PartitionId, Batch)>, BatchError> {
    let partitions = topic.partitions().len() as u32;
    let whole = |partition| Ok(vec![(partition, batch.clone())]);
    if partitions == 1 {
        return whole(PartitionId(0));
    }
    if topic.config().spread == Spread::RoundRobin || !batch.header().flags.keys {
        return whole(topic.next_in_turn(partitions));
    }
    let body = batch.body()?;
    let view = body.view()?;
    let mut keyless = None;
    let assignment: Vec<u32> = view
        .records()
        .map(|r| match r.key {
            Some(key) => key_partition(key, partitions).0,
            None => {
                keyless
                    .get_or_insert_with(|| topic.next_in_turn(partitions))
                    .0
            }
        })
        .collect();
    match assignment.split_first() {
        Some((first, rest)) if rest.iter().all(|p| p == first) => whole(PartitionId(*first)),
        _ => by_partition(&body, &assignment),
    }
}

/// Gathers the records of `body` into one batch or more per partition, in the
/// order they have. `assignment` holds one partition per record.
///
/// # Errors
/// When the body does not hold together, or a record is over the limits.
pub fn by_partition(
    body: &Body,
    assignment: &[u32],
) -> Result<Vec<(PartitionId, Batch)>, BatchError> {
    let mut out = Gather::new(body.header());
    for (record, partition) in body.view()?.records().zip(assignment) {
        out.push(PartitionId(*partition), &record)?;
    }
    out.finish()
}

/// Bytes expected of one partition's share of a batch. The tail keeps what is
/// reserved for it alive, not only what was written.
const PIECE_BYTES: usize = 8 << 10;

/// Collects records into batches by partition.
#[derive(Debug)]
pub struct Gather {
    codec: Codec,
    stamp: Stamp,
    limit: usize,
    open: Vec<(PartitionId, BatchBuilder)>,
    done: Vec<(PartitionId, Batch)>,
}

impl Gather {
    /// For the records of a batch with this header: same codec, same stamp.
    #[must_use]
    pub fn new(header: &BatchHeader) -> Self {
        let stamp = Stamp {
            producer: header.producer,
            epoch: header.epoch,
            sequence: header.sequence,
        };
        let limit = header
            .encoded_len()
            .max(header.plain_len())
            .max(DEFAULT_BATCH_BYTES);
        let limit = limit.min(MAX_BATCH_BYTES);
        Self {
            codec: header.codec,
            stamp,
            limit,
            open: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Adds a record as it is.
    ///
    /// # Errors
    /// When no batch can hold it.
    pub fn push(&mut self, to: PartitionId, record: &RecordRef<'_>) -> Result<(), BatchError> {
        if record.headers.len() == 0 {
            return self.push_new(to, &plain(record, &[]));
        }
        let headers: Vec<NewHeader<'_>> = record.headers.clone().collect();
        self.push_new(to, &plain(record, &headers))
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When no batch can hold it.
    pub fn push_new(&mut self, to: PartitionId, record: &NewRecord<'_>) -> Result<(), BatchError> {
        let at = match self.open.iter().position(|(p, _)| *p == to) {
            Some(at) => at,
            None => {
                self.open
                    .push((to, BatchBuilder::new(self.limit).expecting(PIECE_BYTES)));
                self.open.len() - 1
            }
        };
        let builder = &mut self.open[at].1;
        match builder.push(record) {
            Ok(()) => return Ok(()),
            Err(PushError::Full) => {}
            Err(e) => return Err(not_a_record(&e, record)),
        }
        self.done.push((to, builder.build(self.codec, self.stamp)?));
        builder.push(record).map_err(|e| not_a_record(&e, record))
    }

    /// The batches; those of one partition are in the order of their records.
    ///
    /// # Errors
    /// When a codec fails.
    pub fn finish(mut self) -> Result<Vec<(PartitionId, Batch)>, BatchError> {
        for (partition, mut builder) in self.open {
            if !builder.is_empty() {
                self.done
                    .push((partition, builder.build(self.codec, self.stamp)?));
            }
        }
        Ok(self.done)
    }
}

fn plain<'a>(record: &RecordRef<'a>, headers: &'a [NewHeader<'a>]) -> NewRecord<'a> {
    NewRecord {
        key: record.key,
        value: record.value,
        headers,
        timestamp: record.timestamp,
    }
}

fn not_a_record(e: &PushError, record: &NewRecord<'_>) -> BatchError {
    match e {
        PushError::RecordTooLarge { len, max } => BatchError::RecordTooLarge {
            index: 0,
            len: *len,
            max: *max,
        },
        PushError::Full => BatchError::TooLarge {
            len: record.size(),
            max: MAX_BATCH_BYTES,
        },
        PushError::Headers => BatchError::Malformed("a record has too many or too long headers"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_split_keeps_every_record_and_the_order_within_partitions(
            records in vec((0u32..5, vec(any::<u8>(), 0..300), any::<bool>()), 1..200),
        ) {
            let mut builder = BatchBuilder::new(MAX_BATCH_BYTES);
            for (i, (_, value, header)) in records.iter().enumerate() {
                let headers: &[NewHeader<'_>] = if *header { &[("h", b"1")] } else { &[] };
                let key = (i as u32).to_le_bytes();
                let record = NewRecord { key: Some(&key), value: Some(value), headers, timestamp: i as i64 };
                builder.push(&record).unwrap();
            }
            let body = builder.build(Codec::None, Stamp::default()).unwrap().body().unwrap();
            let assignment: Vec<u32> = records.iter().map(|r| r.0).collect();
            let mut seen = vec![Vec::new(); 5];
            for (partition, batch) in by_partition(&body, &assignment).unwrap() {
                let body = batch.body().unwrap();
                for record in body.view().unwrap().records() {
                    let i = u32::from_le_bytes(record.key.unwrap().try_into().unwrap()) as usize;
                    prop_assert_eq!(record.value.unwrap(), &records[i].1[..]);
                    prop_assert_eq!(record.timestamp, i as i64);
                    prop_assert_eq!(record.headers.len(), usize::from(records[i].2));
                    seen[partition.0 as usize].push(i);
                }
            }
            for (partition, seen) in seen.iter().enumerate() {
                let expected: Vec<usize> = (0..records.len()).filter(|i| assignment[*i] as usize == partition).collect();
                prop_assert_eq!(seen, &expected);
            }
        }
    }
}
