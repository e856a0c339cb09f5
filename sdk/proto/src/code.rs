//! Error codes: numbers that never change meaning, each with a class that tells
//! the client what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_ERROR_BYTES;

/// What a client can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// The same request may succeed later.
    Retry,
    /// The request, or the right to make it, must change first.
    Fix,
    /// This stream or connection cannot go on.
    Fatal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident;)*) => {
        /// The kind of an error on the wire. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code that this version does not know.
            Unknown(u16),
        }

        impl ErrorCode {
            /// Every code this version knows.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self {
                    $(ErrorCode::$name => $number,)*
                    ErrorCode::Unknown(n) => n,
                }
            }

            /// The code with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Self {
                match number {
                    $($number => ErrorCode::$name,)*
                    n => ErrorCode::Unknown(n),
                }
            }

            /// What the client can do. A code from a newer broker counts as fatal.
            #[must_use]
            pub const fn class(self) -> ErrorClass {
                match self {
                    $(ErrorCode::$name => ErrorClass::$class,)*
                    ErrorCode::Unknown(_) => ErrorClass::Fatal,
                }
            }

            /// The code's name, as written in documentation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$name => stringify!($name),)*
                    ErrorCode::Unknown(_) => "Unknown",
                }
            }
        }
    };
}

codes! {
    /// A frame or message that cannot be decoded.
    Malformed = 100, Fatal;
    /// A frame that does not belong here in the conversation.
    UnexpectedFrame = 101, Fatal;
    /// No protocol version that both sides speak.
    UnsupportedVersion = 102, Fatal;
    /// A frame larger than its kind allows.
    FrameTooLarge = 103, Fatal;
    /// The certificate carries no usable identity.
    NoIdentity = 200, Fatal;
    /// The principal has no rule that allows this.
    NotAuthorized = 201, Fix;
    /// The certificate that the connection was opened with is not accepted any more.
    CertificateRejected = 202, Fix;
    /// No such topic.
    UnknownTopic = 300, Fix;
    /// The topic exists already.
    TopicExists = 301, Fix;
    /// No such partition of the topic.
    UnknownPartition = 302, Fix;
    /// A setting with a value that is not allowed.
    InvalidConfig = 303, Fix;
    /// The offset lies before the first or behind the last record.
    OffsetOutOfRange = 304, Fix;
    /// The topic was deleted while the stream was open.
    TopicDeleted = 305, Fatal;
    /// A name outside the alphabet or too long.
    InvalidName = 306, Fix;
    /// The batch's checksum does not match its bytes.
    BadChecksum = 400, Fix;
    /// The batch's lengths and counts do not fit together.
    MalformedBatch = 401, Fix;
    /// A compression codec that this broker does not know.
    UnknownCodec = 402, Fix;
    /// A record larger than the topic or the protocol allows.
    RecordTooLarge = 403, Fix;
    /// A batch larger than the topic or the protocol allows.
    BatchTooLarge = 404, Fix;
    /// A batch of a format version that this broker does not read.
    StaleBatchVersion = 405, Fix;
    /// A newer producer with the same id has taken over.
    ProducerFenced = 406, Fatal;
    /// Batches are missing between this one and the last accepted.
    SequenceGap = 407, Fatal;
    /// The upload is not a plugin that can run here.
    UploadRejected = 500, Fix;
    /// No such plugin, or no such version of it.
    UnknownPlugin = 501, Fix;
    /// The plugin cannot stand where it was attached.
    AttachInvalid = 502, Fix;
    /// The plugin failed and its policy is to stop.
    PluginFailed = 503, Fix;
    /// The plugin is in use and cannot be deleted.
    PluginInUse = 504, Fix;
    /// The plugin asks that the batch be sent again.
    PluginRetry = 505, Retry;
    /// No such pipeline.
    UnknownPipeline = 600, Fix;
    /// The pipeline's definition does not hold together.
    InvalidPipeline = 601, Fix;
    /// The shard has stopped after a storage error; nothing was stored.
    StorageStopped = 700, Retry;
    /// Stored data does not match its checksum; it is not served.
    Corrupt = 701, Fatal;
    /// The broker is shutting down.
    ShuttingDown = 702, Retry;
    /// A limit on concurrent work is reached.
    Overloaded = 703, Retry;
    /// A fault of the broker's own.
    Internal = 704, Fatal;
    /// Something that a later version may offer.
    NotSupported = 705, Fix;
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u16(self.number())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        u16::deserialize(d).map(Self::from_number)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.number())
    }
}

/// An error as it crosses the wire: what happened, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} [{code}]")]
pub struct WireError {
    /// The kind.
    pub code: ErrorCode,
    /// For a person: names the topic, offset, plugin or file, and the next step.
    pub message: String,
    /// For [`ErrorClass::Retry`]: how long to wait first, in milliseconds.
    pub retry_after_ms: Option<u32>,
}

impl WireError {
    /// An error with a message, cut at [`MAX_ERROR_BYTES`].
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_ERROR_BYTES {
            let cut = (0..=MAX_ERROR_BYTES)
                .rev()
                .find(|&i| message.is_char_boundary(i));
            message.truncate(cut.unwrap_or(0));
        }
        Self {
            code,
            message,
            retry_after_ms: None,
        }
    }

    /// The same with a hint when to try again, in milliseconds.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// What the client can do.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.code.class()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_distinct_and_go_both_ways() {
        let numbers: HashSet<u16> = ErrorCode::ALL.iter().map(|c| c.number()).collect();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), code);
        }
        assert_eq!(ErrorCode::from_number(9).class(), ErrorClass::Fatal);
    }

    #[test]
    fn numbers_never_change() {
        // A broker and a client of different versions meet in these numbers.
        assert_eq!(ErrorCode::NotAuthorized.number(), 201);
        assert_eq!(ErrorCode::UnknownTopic.number(), 300);
        assert_eq!(ErrorCode::BadChecksum.number(), 400);
        assert_eq!(ErrorCode::UploadRejected.number(), 500);
        assert_eq!(ErrorCode::StorageStopped.number(), 700);
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let e = WireError::new(ErrorCode::Internal, "ü".repeat(MAX_ERROR_BYTES));
        assert!(e.message.len() <= MAX_ERROR_BYTES);
        let bytes = postcard::to_allocvec(&e).unwrap();
        assert_eq!(postcard::from_bytes::<WireError>(&bytes).unwrap(), e);
    }
}
