//! What a topic is: its partitions, its retention, its limits and its chain.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_BATCH_BYTES, MAX_PARTITIONS, MAX_RECORD_BYTES};
use crate::name::TopicName;
use crate::offset::{Offset, PartitionId};
use crate::pipeline::PluginUse;

/// When a record counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After fsync. The default.
    #[default]
    Fsync,
    /// After the write; fsync follows within the broker's flush interval. A
    /// power cut or kill can lose acknowledged records of that interval.
    Interval,
}

/// How records without an explicit partition are spread when no partitioner
/// plugin is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// By hash of the key; records without a key take turns by batch. The default.
    #[default]
    KeyHash,
    /// Every batch to the next partition.
    RoundRobin,
}

/// Settings of a topic. Zero means "no limit" where it says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicConfig {
    /// Number of partitions, 1 to [`MAX_PARTITIONS`]. It can be raised, not lowered.
    pub partitions: u32,
    /// Bytes kept per partition; the oldest batches go first. 0 = no limit.
    pub retention_bytes: u64,
    /// Milliseconds that a record is kept, by its timestamp. 0 = no limit.
    pub retention_ms: u64,
    /// When a record counts as stored.
    pub durability: Durability,
    /// How records are spread over partitions.
    pub spread: Spread,
    /// Largest record accepted, in bytes, up to [`MAX_RECORD_BYTES`].
    pub max_record_bytes: u32,
    /// Largest encoded batch accepted, in bytes, up to [`MAX_BATCH_BYTES`].
    pub max_batch_bytes: u32,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            partitions: 1,
            retention_bytes: 0,
            retention_ms: 0,
            durability: Durability::Fsync,
            spread: Spread::KeyHash,
            max_record_bytes: MAX_RECORD_BYTES as u32,
            max_batch_bytes: MAX_BATCH_BYTES as u32,
        }
    }
}

impl TopicConfig {
    /// Checks every setting against its range.
    ///
    /// # Errors
    /// A sentence that names the setting, its value and its range.
    pub fn check(&self) -> Result<(), String> {
        let within = |what: &str, value: u32, max: u32| {
            if (1..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!("{what} is {value}; 1 to {max} are allowed"))
            }
        };
        within("partitions", self.partitions, MAX_PARTITIONS)?;
        within(
            "max_record_bytes",
            self.max_record_bytes,
            MAX_RECORD_BYTES as u32,
        )?;
        within(
            "max_batch_bytes",
            self.max_batch_bytes,
            MAX_BATCH_BYTES as u32,
        )
    }
}

/// Settings to change; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicChange {
    /// See [`TopicConfig::partitions`]; can only grow.
    pub partitions: Option<u32>,
    /// See [`TopicConfig::retention_bytes`].
    pub retention_bytes: Option<u64>,
    /// See [`TopicConfig::retention_ms`].
    pub retention_ms: Option<u64>,
    /// See [`TopicConfig::durability`].
    pub durability: Option<Durability>,
    /// See [`TopicConfig::spread`].
    pub spread: Option<Spread>,
    /// See [`TopicConfig::max_record_bytes`].
    pub max_record_bytes: Option<u32>,
    /// See [`TopicConfig::max_batch_bytes`].
    pub max_batch_bytes: Option<u32>,
}

/// The state of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Its number.
    pub partition: PartitionId,
    /// First offset still kept.
    pub start: Offset,
    /// Offset that the next durable record will get: one behind the last visible.
    pub end: Offset,
    /// Stored bytes.
    pub bytes: u64,
}

/// A topic as `describe` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicInfo {
    /// Its name.
    pub topic: TopicName,
    /// Its settings.
    pub config: TopicConfig,
    /// Its partitions in order.
    pub partitions: Vec<PartitionInfo>,
    /// Plugins that every produced batch passes before storage, in order; a
    /// partitioner comes last.
    pub chain: Vec<PluginUse>,
    /// Why the chain stands still, if a plugin with the policy `stop` failed.
    pub stopped: Option<String>,
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAt {
    /// With the oldest record kept.
    Earliest,
    /// With the next record to come.
    Latest,
    /// At this offset of every chosen partition.
    Offset(Offset),
    /// At the first batch that has a record with this timestamp (milliseconds
    /// since the Unix epoch) or a later one.
    Timestamp(i64),
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_range_are_named() {
        assert!(TopicConfig::default().check().is_ok());
        let e = TopicConfig {
            partitions: 0,
            ..TopicConfig::default()
        }
        .check()
        .unwrap_err();
        assert!(e.contains("partitions"), "{e}");
        let e = TopicConfig {
            max_batch_bytes: u32::MAX,
            ..TopicConfig::default()
        }
        .check()
        .unwrap_err();
        assert!(e.contains("max_batch_bytes"), "{e}");
    }
}
