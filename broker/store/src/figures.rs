//! What a shard counts for its operator: how its storage stands, and how its commits go.
//!
//! Everything here is read without a lock and without looking at the data: writers add to counters
//! as they go along. Figures read at the same moment may be one commit apart.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 24;

/// How often values of which size occurred. Bucket 0 counts values up to `first`, each further one
/// those up to twice as large as the one before, and the last one everything above. Where a bucket
/// ends, [`millstream_proto::storage::Histogram::edge`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// The greatest value that the first bucket counts.
    pub first: u64,
    /// How many values fell into each bucket.
    pub counts: [u64; BUCKETS],
    /// The sum of all values.
    pub sum: u64,
}

impl Histogram {
    /// How many values there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A [`Histogram`] that is being counted.
pub(crate) struct Tally {
    first: u64,
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Tally {
    /// Values up to `first`, which is not 0, go to the first bucket.
    pub(crate) const fn new(first: u64) -> Self {
        Self {
            first,
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
        }
    }

    pub(crate) fn count(&self, value: u64) {
        let bucket = (value.saturating_sub(1) / self.first)
            .checked_ilog2()
            .map_or(0, |log| log + 1);
        let bucket = (bucket as usize).min(BUCKETS - 1);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        Histogram {
            first: self.first,
            counts: std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed)),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

/// How the storage of a shard stands. All 0 for an engine without files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageFigures {
    /// Bytes that records take in the hot file, those that are sealed and not yet swept included.
    pub hot_bytes: u64,
    /// Bytes of records in the hot file that no segment holds yet.
    pub unsealed_bytes: u64,
    /// By how many of those the sealer is behind: what is above the size at which it begins.
    pub seal_lag_bytes: u64,
    /// Segments in use.
    pub segments: u64,
    /// Length of their files.
    pub sealed_bytes: u64,
    /// Bytes of keys and values in them that are wanted.
    pub live_bytes: u64,
    /// Bytes of keys and values in them that are not wanted any more.
    pub garbage_bytes: u64,
    /// Bytes of records appended since the store was opened.
    pub appended_bytes: u64,
    /// Bytes written to the hot file since, for whatever reason.
    pub hot_written_bytes: u64,
    /// Bytes written to segments since.
    pub segment_written_bytes: u64,
    /// How long opening the store took, recovery included, in microseconds.
    pub opened_in_us: u64,
}

impl StorageFigures {
    /// Bytes written for each byte appended, in thousandths; `None` before anything was appended.
    #[must_use]
    pub fn write_amplification_per_mille(&self) -> Option<u64> {
        let written = u128::from(self.hot_written_bytes) + u128::from(self.segment_written_bytes);
        let share = (written * 1000).checked_div(u128::from(self.appended_bytes))?;
        Some(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use millstream_proto::storage;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_that_is_an_edge_belongs_below_it() {
        for (value, bucket) in [(0, 0), (64, 0), (65, 1), (128, 1), (129, 2), (1 << 40, 23)] {
            let tally = Tally::new(64);
            tally.count(value);
            let read = tally.read();
            assert_eq!(read.counts[bucket], 1, "{value}");
            assert_eq!((read.total(), read.sum), (1, value));
        }
    }

    proptest! {
        #[test]
        fn values_lie_between_the_edges_of_their_bucket(value: u64, first in 1..1u64 << 20) {
            let tally = Tally::new(first);
            tally.count(value);
            let bucket = tally.read().counts.iter().position(|count| *count == 1).unwrap();
            let edge = |at| storage::Histogram::edge(first, at);
            prop_assert!(bucket == 0 || value > edge(bucket - 1));
            prop_assert!(bucket == BUCKETS - 1 || value <= edge(bucket));
        }
    }

    #[test]
    fn amplification_is_what_was_written_for_what_was_appended() {
        let mut figures = StorageFigures::default();
        assert_eq!(figures.write_amplification_per_mille(), None);
        figures.appended_bytes = 1000;
        figures.hot_written_bytes = 1500;
        figures.segment_written_bytes = 1000;
        assert_eq!(figures.write_amplification_per_mille(), Some(2500));
    }
}
