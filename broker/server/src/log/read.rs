//! Reading batches that are no longer in the tail: from the store, checked.

use std::sync::Arc;

use millstream_proto::{Batch, ErrorCode, Offset, PartitionId, TopicName, WireError};
use millstream_store::key::lost;
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{Direction, Key, ReadError, ScanLimit, ScanPage, Snapshot, Space};
use tokio::sync::Semaphore;

use super::partition::{Partition, Stored, TailRead};
use crate::limits::COLD_READERS;

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// The offset is not among those kept.
    #[error("offset {wanted} is out of range: offsets {start} to {end} are there")]
    OutOfRange {
        /// What was asked for.
        wanted: Offset,
        /// First offset kept.
        start: Offset,
        /// The durable end.
        end: Offset,
    },
    /// It was lost with a damaged segment, and given up: whoever reads on begins behind it.
    #[error("offsets {wanted} to {next} were lost with a damaged segment; what follows is there")]
    Lost {
        /// What was asked for.
        wanted: Offset,
        /// The first offset behind what is lost.
        next: Offset,
    },
    /// The store cannot read it.
    #[error("{0}")]
    Store(#[from] ReadError),
    /// What the store has there does not fit together.
    #[error("partition {partition} is damaged at offset {offset}: {why}; it is not served")]
    Damaged {
        /// The partition.
        partition: PartitionId,
        /// Where.
        offset: Offset,
        /// What is wrong.
        why: String,
    },
    /// The broker is going down.
    #[error("the broker is shutting down")]
    Closing,
}

impl ReadFault {
    /// As a peer hears of it.
    #[must_use]
    pub fn to_wire(&self, topic: &TopicName) -> WireError {
        let code = match self {
            ReadFault::OutOfRange { .. } | ReadFault::Lost { .. } => ErrorCode::OffsetOutOfRange,
            ReadFault::Store(ReadError::Corrupt { .. }) | ReadFault::Damaged { .. } => {
                ErrorCode::Corrupt
            }
            ReadFault::Store(_) => ErrorCode::StorageStopped,
            ReadFault::Closing => ErrorCode::ShuttingDown,
        };
        WireError::new(code, format!("topic {topic}: {self}"))
    }
}

/// Bounds how many threads read the store for subscriptions at the same time.
static COLD: Semaphore = Semaphore::const_new(COLD_READERS);

impl Partition {
    /// Batches from the one that holds `from`, up to `max_bytes` but at least
    /// one; empty at the durable end. From the tail if they are there, else from
    /// the store on a blocking thread.
    ///
    /// # Errors
    /// See [`ReadFault`].
    pub async fn read(
        self: &Arc<Self>,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, ReadFault> {
        match self.read_tail(from, max_bytes) {
            TailRead::Batches(batches) => Ok(batches),
            TailRead::AtEnd => Ok(Vec::new()),
            TailRead::OutOfRange { start, end } => Err(ReadFault::OutOfRange {
                wanted: from,
                start,
                end,
            }),
            TailRead::Older => {
                let _turn = COLD.acquire().await.map_err(|_| ReadFault::Closing)?;
                let partition = Arc::clone(self);
                tokio::task::spawn_blocking(move || partition.read_store(from, max_bytes))
                    .await
                    .unwrap_or(Err(ReadFault::Closing))
            }
        }
    }

    /// As [`Partition::read`], from the store only. Blocking.
    ///
    /// # Errors
    /// See [`ReadFault`]; every batch is checked before it is returned, and none
    /// may be missing between two.
    pub fn read_store(&self, from: Offset, max_bytes: usize) -> Result<Vec<Stored>, ReadFault> {
        self.check_readable()?;
        // The end first: whatever lies before it is in every later snapshot.
        let end = self.end();
        if from >= end {
            return Ok(Vec::new());
        }
        let (topic, partition) = (self.topic_id(), self.id().0);
        let key = |base_offset| {
            RecordKey {
                topic,
                partition,
                base_offset,
            }
            .encode()
        };
        let snapshot = self.store.snapshot()?;
        let damaged = |offset, why: String| ReadFault::Damaged {
            partition: self.id(),
            offset,
            why,
        };
        let stop = record::range_all(topic, partition).end;
        let limit = ScanLimit::bytes(max_bytes);
        let scan = |first: &Key| {
            let range = &first[..]..&stop[..];
            snapshot.scan(Space::Records, range, Direction::Forward, limit)
        };
        // Whoever reads on asks for the first offset of a batch. Looking for the batch that holds
        // an offset may read one.
        let exact = key(from.0);
        let begins = |page: &ScanPage| page.rows.first().is_some_and(|row| row.key == exact);
        let page = match scan(&exact) {
            Ok(page) if begins(&page) => page,
            _ => match snapshot.floor_key(Space::Records, &key(0), &exact)? {
                Some(first) => scan(&first)?,
                None => return self.gone_or_damaged(&*snapshot, from),
            },
        };
        let mut found: Vec<Stored> = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            let at = RecordKey::decode(&row.key).map_err(|e| damaged(from, e.to_string()))?;
            let base = Offset(at.base_offset);
            if base >= end {
                break;
            }
            if let Some(expected) = found.last().map(Stored::end)
                && expected != base
            {
                if lost::end_of_loss(&*snapshot, topic, partition, expected.0)?.is_some() {
                    // What lies before is read; what lies behind comes with the next read.
                    break;
                }
                return Err(damaged(
                    expected,
                    format!("the next batch begins at {base}"),
                ));
            }
            let batch = Batch::check(row.value).map_err(|e| damaged(base, e.to_string()))?;
            found.push(Stored { base, batch });
        }
        match found.first() {
            Some(first) if first.end() > from => Ok(found),
            _ => self.gone_or_damaged(&*snapshot, from),
        }
    }

    /// That it is known where the partition ends.
    pub(super) fn check_readable(&self) -> Result<(), ReadFault> {
        match self.unreadable() {
            None => Ok(()),
            Some(why) => Err(ReadFault::Damaged {
                partition: self.id(),
                offset: self.end(),
                why: why.to_owned(),
            }),
        }
    }

    /// No batch holds `from`: either retention has just removed it, or it is lost, which may be
    /// known.
    pub(super) fn gone_or_damaged(
        &self,
        snapshot: &dyn Snapshot,
        from: Offset,
    ) -> Result<Vec<Stored>, ReadFault> {
        // A removal shows in the store a moment before the durable start moves: what is decided
        // counts, not what has been told.
        let (start, end) = (Offset(self.applied().start), self.end());
        if from < start {
            return Err(ReadFault::OutOfRange {
                wanted: from,
                start,
                end,
            });
        }
        let (topic, partition) = (self.topic_id(), self.id().0);
        if let Some(next) = lost::end_of_loss(snapshot, topic, partition, from.0)? {
            return Err(ReadFault::Lost {
                wanted: from,
                next: Offset(next).min(end),
            });
        }
        let why = "no stored batch holds it".to_owned();
        Err(ReadFault::Damaged {
            partition: self.id(),
            offset: from,
            why,
        })
    }
}
