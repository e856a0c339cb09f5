//! How a broker's storage stands, and what a check of it has found.

use serde::{Deserialize, Serialize};

use crate::name::TopicName;
use crate::offset::{Offset, PartitionId};

/// How often values of which size occurred. The first bucket counts values up to `first`, each
/// further one those up to twice as large as the one before, and the last one everything above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// The greatest value that the first bucket counts.
    pub first: u64,
    /// How many values fell into each bucket.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// The greatest value that bucket `at` of a histogram counts whose first one counts values up to
    /// `first`; what the last bucket counts may be greater.
    #[must_use]
    pub const fn edge(first: u64, at: usize) -> u64 {
        // A shift as far as this is an overflow, whatever is shifted.
        if at >= 64 {
            return u64::MAX;
        }
        first.saturating_mul(1 << at)
    }

    /// The edge of the bucket up to which at least `per_mille` of a thousand values lay; `None`
    /// without values.
    #[must_use]
    pub fn bound(&self, per_mille: u64) -> Option<u64> {
        let total = self
            .counts
            .iter()
            .fold(0u64, |sum, n| sum.saturating_add(*n));
        let wanted = total.saturating_mul(per_mille).div_ceil(1000).max(1);
        let mut seen = 0u64;
        let reached = |count: &u64| {
            seen = seen.saturating_add(*count);
            seen >= wanted
        };
        let at = self.counts.iter().position(reached)?;
        Some(Self::edge(self.first, at))
    }
}

/// How the storage of one shard stands. Bytes are counted since the broker was started where they
/// are said to be written or appended, else they are what is there now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStorage {
    /// Its number.
    pub shard: u32,
    /// Why records cannot be moved out of the hot file, if they cannot.
    pub trouble: Option<String>,
    /// Bytes that records take in the hot file.
    pub hot_bytes: u64,
    /// Bytes of those that no segment holds yet.
    pub unsealed_bytes: u64,
    /// By how many of those the sealer is behind.
    pub seal_lag_bytes: u64,
    /// Segments in use.
    pub segments: u64,
    /// Length of their files.
    pub sealed_bytes: u64,
    /// Bytes in them that are wanted.
    pub live_bytes: u64,
    /// Bytes in them that are not wanted any more.
    pub garbage_bytes: u64,
    /// Bytes of records appended.
    pub appended_bytes: u64,
    /// Bytes written to the hot file.
    pub hot_written_bytes: u64,
    /// Bytes written to segments.
    pub segment_written_bytes: u64,
    /// Bytes written for each byte appended, in thousandths.
    pub write_amplification_per_mille: Option<u64>,
    /// How long opening the store took, recovery included, in microseconds.
    pub opened_in_us: u64,
    /// Bytes of each group commit.
    pub commit_bytes: Histogram,
    /// How long each group commit took, in microseconds.
    pub commit_us: Histogram,
}

/// What to do about the check of the stored data. A broker runs one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckAction {
    /// Begin one; refused as `Overloaded` while another one runs.
    Start,
    /// Say how far it is.
    Look,
    /// End it.
    Stop,
}

/// How far a check is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckState {
    /// There was none since the broker was started.
    #[default]
    Idle,
    /// It is at work.
    Running,
    /// Everything was looked at.
    Done,
    /// It was told to end.
    Stopped,
    /// It could not go on.
    Failed(String),
}

/// What a check has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// How far it is.
    pub state: CheckState,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes there are, as known when it began.
    pub expected_bytes: u64,
    /// Small rows looked at.
    pub rows: u64,
    /// Record batches looked at.
    pub batches: u64,
    /// Segments looked at.
    pub segments: u64,
    /// Time it has taken, in milliseconds.
    pub elapsed_ms: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How many more there are than `findings` has room for.
    pub findings_left_out: u64,
    /// What was lost and given up before: readers pass over it.
    pub lost: Vec<OffsetRange>,
    /// How many more there are than `lost` has room for.
    pub lost_left_out: u64,
    /// Harmless things that are removed at the next start, such as what a crash has left.
    pub leftovers: Vec<String>,
}

/// Something that is wrong with the stored data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Where in it: a segment and a place within it, a pack, a row.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// The number of the segment, if it is in one: what can be quarantined.
    pub segment: Option<u64>,
    /// Records that cannot be read for it.
    pub records: Vec<OffsetRange>,
}

/// Some offsets of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRange {
    /// The topic; `None` if the catalogue does not have it any more.
    pub topic: Option<TopicName>,
    /// The topic's number.
    pub topic_id: u32,
    /// The partition.
    pub partition: PartitionId,
    /// The first offset.
    pub start: Offset,
    /// Behind the last offset; `None` if that is not known.
    pub end: Option<Offset>,
}

impl std::fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.topic {
            Some(topic) => write!(f, "{topic}")?,
            None => write!(f, "deleted topic #{}", self.topic_id)?,
        }
        write!(f, ", partition {}, offsets {} ", self.partition, self.start)?;
        match self.end {
            // Behind the last one: what people count with is the last one itself.
            Some(end) => write!(f, "to {}", end.0.saturating_sub(1)),
            None => f.write_str("and what follows"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn bounds_come_from_any_counts() {
        let of = |first, counts: &[u64]| Histogram {
            first,
            counts: counts.to_vec(),
        };
        assert_eq!(of(64, &[]).bound(500), None);
        assert_eq!(of(64, &[0, 0]).bound(500), None);
        assert_eq!(of(64, &[1, 1]).bound(500), Some(64));
        assert_eq!(of(64, &[1, 1]).bound(990), Some(128));
        let many = vec![0; 100].into_iter().chain([1]).collect::<Vec<_>>();
        assert_eq!(of(64, &many).bound(1), Some(u64::MAX));
        assert_eq!(
            of(u64::MAX, &[u64::MAX, u64::MAX]).bound(1000),
            Some(u64::MAX)
        );
        assert_eq!(Histogram::edge(0, 64), u64::MAX);
        assert_eq!(Histogram::edge(3, 2), 12);
    }

    #[test]
    fn ranges_name_topic_and_offsets() {
        let mut range = OffsetRange {
            topic: Some("acme/quakes".parse().unwrap()),
            topic_id: 7,
            partition: PartitionId(2),
            start: Offset(10),
            end: Some(Offset(30)),
        };
        assert_eq!(
            range.to_string(),
            "acme/quakes, partition 2, offsets 10 to 29"
        );
        (range.topic, range.end) = (None, None);
        assert_eq!(
            range.to_string(),
            "deleted topic #7, partition 2, offsets 10 and what follows"
        );
    }
}
