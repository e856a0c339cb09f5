//! Why a change of the catalogue is refused, by what was to be changed.

use millstream_proto::limits::{MAX_CHAIN_STEPS, MAX_PARTITIONS};
use millstream_proto::{ErrorCode, PluginName, TopicName, WireError};
use millstream_store::{CommitError, ReadError};

use crate::limits::{
    MAX_CHAIN_BYTES, MAX_PLUGIN_VERSIONS, MAX_TOPICS, MAX_TOTAL_PARTITIONS,
    MAX_TOTAL_PLUGIN_VERSIONS,
};

/// A commit that was not acknowledged, for whoever asked for it.
pub(crate) fn storage_error(e: &CommitError) -> WireError {
    let code = match e {
        CommitError::Closed => ErrorCode::ShuttingDown,
        CommitError::Refused(_) => ErrorCode::Internal,
        _ => ErrorCode::StorageStopped,
    };
    WireError::new(code, e.to_string()).retry_after_ms(STORAGE_RETRY_MS)
}

/// A read that gave nothing, for whoever asked for it.
pub(crate) fn read_error(e: &ReadError) -> WireError {
    let code = match e {
        ReadError::Corrupt { .. } => ErrorCode::Corrupt,
        _ => ErrorCode::StorageStopped,
    };
    WireError::new(code, e.to_string())
}

/// A stopped shard waits for its operator; asking more often does not help.
const STORAGE_RETRY_MS: u32 = 1000;

/// Why a topic was not created, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// There is none of that name.
    #[error("there is no topic {0}; `millstream topic list` shows those there are")]
    Unknown(TopicName),
    /// There is one already.
    #[error("topic {0} exists already; alter it, or choose another name")]
    Exists(TopicName),
    /// A setting outside its range.
    #[error("topic {name}: {why}")]
    Setting {
        /// The topic.
        name: TopicName,
        /// Which setting, its value and its range.
        why: String,
    },
    /// Fewer partitions than there are.
    #[error(
        "topic {name} has {have} partitions and cannot shrink to {wanted}: records would be lost \
         and keys would move; create another topic"
    )]
    Shrink {
        /// The topic.
        name: TopicName,
        /// Partitions that it has.
        have: u32,
        /// Partitions that were asked for.
        wanted: u32,
    },
    /// The broker has as many topics as it may.
    #[error("topic {0}: the broker has {MAX_TOPICS} topics, and that is the limit; delete some")]
    TooMany(TopicName),
    /// The broker has as many partitions as it may.
    #[error(
        "topic {0}: the broker would have more than {MAX_TOTAL_PARTITIONS} partitions (at most \
         {MAX_PARTITIONS} for one topic); delete topics or use fewer partitions"
    )]
    TooManyPartitions(TopicName),
    /// The store did not take it.
    #[error("topic {name}: {source}")]
    Storage {
        /// The topic.
        name: TopicName,
        /// What the store says.
        source: CommitError,
    },
    /// The store cannot be read.
    #[error("topic {name}: {source}")]
    Read {
        /// The topic.
        name: TopicName,
        /// What the store says.
        source: ReadError,
    },
    /// The broker is going down.
    #[error("topic {0}: the broker is shutting down; try again in a moment")]
    Closing(TopicName),
}

impl From<TopicError> for WireError {
    fn from(e: TopicError) -> Self {
        let code = match &e {
            TopicError::Unknown(_) => ErrorCode::UnknownTopic,
            TopicError::Exists(_) => ErrorCode::TopicExists,
            TopicError::Setting { .. }
            | TopicError::Shrink { .. }
            | TopicError::TooMany(_)
            | TopicError::TooManyPartitions(_) => ErrorCode::InvalidConfig,
            TopicError::Storage { source, .. } => storage_error(source).code,
            TopicError::Read { source, .. } => read_error(source).code,
            TopicError::Closing(_) => ErrorCode::ShuttingDown,
        };
        WireError::new(code, e.to_string())
    }
}

/// Why a plugin was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No such topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// No such plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// It is not attached.
    #[error("plugin {plugin} is not attached to topic {topic}")]
    NotAttached {
        /// The topic.
        topic: TopicName,
        /// The plugin.
        plugin: PluginName,
    },
    /// Too many.
    #[error(
        "topic {topic} has {MAX_CHAIN_STEPS} plugins attached, and that is the limit; detach one"
    )]
    TooLong {
        /// The topic.
        topic: TopicName,
    },
    /// Too much configuration.
    #[error(
        "the chain of topic {topic} with its configuration would take {bytes} bytes; at most \
         {MAX_CHAIN_BYTES} are allowed"
    )]
    TooLarge {
        /// The topic.
        topic: TopicName,
        /// Bytes that it would take.
        bytes: usize,
    },
    /// It cannot stand there.
    #[error("plugin {plugin} cannot be attached to topic {topic}: {why}")]
    Unfit {
        /// The topic.
        topic: TopicName,
        /// The plugin.
        plugin: PluginName,
        /// Why not.
        why: String,
    },
    /// It does not start.
    #[error("{0}")]
    Start(WireError),
}

impl From<AttachError> for WireError {
    fn from(e: AttachError) -> Self {
        let code = match e {
            AttachError::Topic(e) => return e.into(),
            AttachError::Plugin(e) => return e.into(),
            AttachError::Start(e) => return e,
            AttachError::NotAttached { .. }
            | AttachError::TooLong { .. }
            | AttachError::TooLarge { .. }
            | AttachError::Unfit { .. } => ErrorCode::AttachInvalid,
        };
        WireError::new(code, e.to_string())
    }
}

/// Why a plugin was not stored, found or deleted.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// There is none of that name.
    #[error("there is no plugin {0}; `millstream plugin list` shows those there are")]
    Unknown(PluginName),
    /// There is no such version of it.
    #[error("plugin {plugin} has no version {version}; it has {have}")]
    UnknownVersion {
        /// The plugin.
        plugin: PluginName,
        /// The version asked for.
        version: u32,
        /// The versions there are, for people.
        have: String,
    },
    /// Something runs it.
    #[error("plugin {plugin} version {version} is in use by {by}; take it out there first")]
    InUse {
        /// The plugin.
        plugin: PluginName,
        /// Its version.
        version: u32,
        /// By what.
        by: String,
    },
    /// As many versions as there may be.
    #[error(
        "plugin {plugin} cannot be stored: at most {MAX_PLUGIN_VERSIONS} versions of one plugin \
         and {MAX_TOTAL_PLUGIN_VERSIONS} of all are kept; delete some"
    )]
    TooMany {
        /// The plugin.
        plugin: PluginName,
    },
    /// The store did not take it.
    #[error("plugin {plugin}: {source}")]
    Storage {
        /// The plugin.
        plugin: PluginName,
        /// What the store says.
        source: CommitError,
    },
}

impl From<PluginError> for WireError {
    fn from(e: PluginError) -> Self {
        let code = match &e {
            PluginError::Unknown(_) | PluginError::UnknownVersion { .. } => {
                ErrorCode::UnknownPlugin
            }
            PluginError::InUse { .. } => ErrorCode::PluginInUse,
            PluginError::TooMany { .. } => ErrorCode::InvalidConfig,
            PluginError::Storage { source, .. } => storage_error(source).code,
        };
        WireError::new(code, e.to_string())
    }
}
