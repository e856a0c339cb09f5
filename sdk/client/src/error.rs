//! Errors, one type per operation. Each says what happened, what to do next,
//! and by [`ErrorClass`] whether trying again can help.

mod connect;

use std::time::Duration;

use millstream_proto::batch::{BatchError, PushError};
use millstream_proto::message::Gap;
use millstream_proto::{ErrorClass, Offset, PartitionId, TopicName, WireError};

pub use self::connect::ConnectError;

/// Why a request on the control stream failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker said no.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// The connection went while the answer was outstanding, and the request is
    /// not one that can be repeated blindly.
    #[error(
        "the connection was lost before the answer came: see whether {what} took effect, then try again"
    )]
    OutcomeUnknown {
        /// The request.
        what: &'static str,
    },
    /// No answer in time.
    #[error("no answer to {what} within {after:?}: the broker may be overloaded; try again")]
    Timeout {
        /// The request.
        what: &'static str,
        /// How long it waited.
        after: Duration,
    },
    /// The broker answered something else.
    #[error(
        "the broker answered {what} with something else: client and broker versions do not match"
    )]
    Protocol {
        /// The request.
        what: &'static str,
    },
}

impl RequestError {
    /// Whether trying again can help.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            RequestError::Connect(e) => e.class(),
            RequestError::Refused(wire) => wire.class(),
            RequestError::OutcomeUnknown { .. } | RequestError::Timeout { .. } => ErrorClass::Retry,
            RequestError::Protocol { .. } => ErrorClass::Fatal,
        }
    }

    /// What the broker said, where it said something.
    #[must_use]
    pub fn wire(&self) -> Option<&WireError> {
        match self {
            RequestError::Refused(wire) => Some(wire),
            RequestError::Connect(e) => e.wire(),
            _ => None,
        }
    }
}

/// Why a plugin was not uploaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker said no: the component is not one that can run there.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// More bytes than a component may have.
    #[error(
        "the component has {len} bytes; at most {max} are allowed: build it with LTO and strip it"
    )]
    TooLarge {
        /// Its size.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The connection went in the middle.
    #[error(
        "the connection was lost during the upload: upload again; what is there already is recognised"
    )]
    Lost,
    /// The broker answered something else.
    #[error("the broker does not keep to the protocol: {why}")]
    Protocol {
        /// What it did.
        why: String,
    },
}

impl UploadError {
    /// Whether trying again can help.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            UploadError::Connect(e) => e.class(),
            UploadError::Refused(wire) => wire.class(),
            UploadError::TooLarge { .. } => ErrorClass::Fix,
            UploadError::Lost => ErrorClass::Retry,
            UploadError::Protocol { .. } => ErrorClass::Fatal,
        }
    }

    /// What the broker said, where it said something.
    #[must_use]
    pub fn wire(&self) -> Option<&WireError> {
        match self {
            UploadError::Refused(wire) => Some(wire),
            UploadError::Connect(e) => e.wire(),
            _ => None,
        }
    }
}

/// Why a record was not taken, or not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProduceError {
    /// There is no connection, and there was none until the deadline.
    #[error("cannot produce to {topic}: {error}")]
    Connect {
        /// Where to.
        topic: TopicName,
        /// Why.
        #[source]
        error: ConnectError,
    },
    /// The broker said no to the batch that holds the record, or to the producer.
    #[error("cannot produce to {topic}: {error}")]
    Refused {
        /// Where to.
        topic: TopicName,
        /// What it said.
        #[source]
        error: WireError,
    },
    /// The connection went before the acknowledgement came, and the producer is
    /// not idempotent: the record may or may not be stored.
    #[error(
        "the connection was lost before {topic} acknowledged the batch: it may or may not be stored; use an idempotent producer to have this resolved"
    )]
    OutcomeUnknown {
        /// Where to.
        topic: TopicName,
    },
    /// The record is larger than the topic allows.
    #[error(
        "a record of {len} bytes for {topic}, which allows {max}: make it smaller, or raise max_record_bytes"
    )]
    RecordTooLarge {
        /// Where to.
        topic: TopicName,
        /// Bytes of key, value and headers.
        len: usize,
        /// The topic's limit in bytes.
        max: usize,
    },
    /// No batch can hold the record.
    #[error("a record for {topic} cannot be encoded: {error}")]
    Record {
        /// Where to.
        topic: TopicName,
        /// Why.
        #[source]
        error: PushError,
    },
    /// The batch cannot be encoded.
    #[error("a batch for {topic} cannot be encoded: {error}")]
    Encode {
        /// Where to.
        topic: TopicName,
        /// Why.
        #[source]
        error: BatchError,
    },
    /// The record names a partition that the topic does not have.
    #[error("{topic} has no partition {partition}; it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// Where to.
        topic: TopicName,
        /// What was named.
        partition: PartitionId,
        /// How many there are.
        partitions: u32,
    },
    /// The producer was closed.
    #[error("the producer for {topic} is closed")]
    Closed {
        /// Where to.
        topic: TopicName,
    },
    /// The broker does not keep to the protocol.
    #[error("the broker does not keep to the protocol while storing to {topic}: {why}")]
    Protocol {
        /// Where to.
        topic: TopicName,
        /// What it did.
        why: String,
    },
}

impl ProduceError {
    /// Whether sending the record again, with a new producer, can help.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            ProduceError::Connect { error, .. } => error.class(),
            ProduceError::Refused { error, .. } => error.class(),
            ProduceError::OutcomeUnknown { .. } => ErrorClass::Retry,
            ProduceError::RecordTooLarge { .. }
            | ProduceError::Record { .. }
            | ProduceError::Encode { .. }
            | ProduceError::UnknownPartition { .. } => ErrorClass::Fix,
            ProduceError::Closed { .. } | ProduceError::Protocol { .. } => ErrorClass::Fatal,
        }
    }

    /// What the broker said, where it said something.
    #[must_use]
    pub fn wire(&self) -> Option<&WireError> {
        match self {
            ProduceError::Refused { error, .. } => Some(error),
            ProduceError::Connect { error, .. } => error.wire(),
            _ => None,
        }
    }
}

/// Why a consumer cannot go on, or one partition cannot: see [`ConsumeError::is_setback`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// There is no connection, and there was none until the deadline.
    #[error("cannot consume {topic}: {error}")]
    Connect {
        /// What is read.
        topic: TopicName,
        /// Why.
        #[source]
        error: ConnectError,
    },
    /// The broker said no.
    #[error("cannot consume {topic}: {error}")]
    Refused {
        /// What is read.
        topic: TopicName,
        /// What it said.
        #[source]
        error: WireError,
    },
    /// Bytes that are not a good batch.
    #[error("{topic} partition {partition}: a batch came damaged: {error}")]
    Batch {
        /// What is read.
        topic: TopicName,
        /// Where in it.
        partition: PartitionId,
        /// What is wrong.
        #[source]
        error: BatchError,
    },
    /// The partition stands still, since what comes next in it cannot be read. The others go on.
    #[error("{error}")]
    Shut {
        /// What is read.
        topic: TopicName,
        /// Where in it.
        partition: PartitionId,
        /// The offset that cannot be read.
        at: Offset,
        /// Why, and what to do about it.
        #[source]
        error: WireError,
    },
    /// Records are not there that the consumer stood before, or had read. The partition goes on.
    #[error("{topic}, {gap}")]
    Gap {
        /// What is read.
        topic: TopicName,
        /// Which records, and where reading goes on.
        gap: Gap,
    },
    /// The offsets were not committed.
    #[error("the offsets of {topic} were not committed: {error}")]
    Commit {
        /// What is read.
        topic: TopicName,
        /// Why.
        #[source]
        error: RequestError,
    },
    /// Offsets are committed under a name, and the consumer has none.
    #[error("the consumer of {topic} has no name to commit under: give it one with named()")]
    Unnamed {
        /// What is read.
        topic: TopicName,
    },
    /// The broker does not keep to the protocol.
    #[error("the broker does not keep to the protocol while delivering {topic}: {why}")]
    Protocol {
        /// What is read.
        topic: TopicName,
        /// What it did.
        why: String,
    },
}

impl ConsumeError {
    /// Whether consuming again from the last position can help.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            ConsumeError::Connect { error, .. } => error.class(),
            ConsumeError::Refused { error, .. } => error.class(),
            ConsumeError::Commit { error, .. } => error.class(),
            ConsumeError::Shut { error, .. } => error.class(),
            // Asked again, it goes on.
            ConsumeError::Gap { .. } => ErrorClass::Retry,
            ConsumeError::Unnamed { .. } => ErrorClass::Fix,
            ConsumeError::Batch { .. } | ConsumeError::Protocol { .. } => ErrorClass::Fatal,
        }
    }

    /// Whether it concerns one partition, so that the consumer goes on with the others when it is
    /// asked for more, unless it was told to stop ([`OnSetback`](crate::OnSetback)).
    #[must_use]
    pub fn is_setback(&self) -> bool {
        matches!(self, ConsumeError::Shut { .. } | ConsumeError::Gap { .. })
    }

    /// What the broker said, where it said something.
    #[must_use]
    pub fn wire(&self) -> Option<&WireError> {
        match self {
            ConsumeError::Refused { error, .. } => Some(error),
            ConsumeError::Connect { error, .. } => error.wire(),
            ConsumeError::Commit { error, .. } => error.wire(),
            ConsumeError::Shut { error, .. } => Some(error),
            _ => None,
        }
    }
}
