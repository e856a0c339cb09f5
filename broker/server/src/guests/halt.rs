//! Why a batch does not get through a chain, by what has to happen next.

use millstream_proto::{BatchError, ErrorCode, WireError};

use crate::limits::PLUGIN_RETRY_AFTER_MS;

/// Why a batch did not get through. Nothing of it may be stored.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Halt {
    /// A plugin failed and its policy is to stop, or it cannot go on: nothing passes any more.
    #[error("{0}")]
    Stop(String),
    /// A plugin wants the batch again later.
    #[error("{0}")]
    Later(String),
    /// There is no room to run the plugin now.
    #[error("{0}")]
    Busy(String),
    /// The producer asked for a partition that is not there.
    #[error("{0}")]
    Nowhere(String),
    /// The batch does not hold together.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The broker's own fault.
    #[error("{0}")]
    Fault(String),
}

impl Halt {
    /// As a peer hears of it; `what` is the place, `remedy` what to do after a stop.
    pub(crate) fn to_wire(&self, remedy: &str) -> WireError {
        match self {
            Halt::Stop(why) => WireError::new(ErrorCode::PluginFailed, format!("{why}; {remedy}")),
            Halt::Later(why) => WireError::new(ErrorCode::PluginRetry, why.clone())
                .retry_after_ms(PLUGIN_RETRY_AFTER_MS),
            Halt::Busy(why) => WireError::new(ErrorCode::Overloaded, why.clone())
                .retry_after_ms(PLUGIN_RETRY_AFTER_MS),
            Halt::Batch(error) => error.clone().into(),
            Halt::Nowhere(why) => WireError::new(ErrorCode::UnknownPartition, why.clone()),
            Halt::Fault(why) => WireError::new(ErrorCode::Internal, why.clone()),
        }
    }
}
