//! Millstream's wire and batch formats.
//!
//! Everything that more than one side must agree on lives here: names, offsets,
//! the record batch, frames, messages, error codes and limits. It is bytes and
//! types only: no sockets, no clock, no threads, no storage. Decoders in this
//! crate accept any input and answer with an error; they never panic.

pub mod acl;
pub mod backup;
pub mod batch;
mod checksum;
pub mod code;
pub mod frame;
pub mod limits;
pub mod message;
pub mod name;
pub mod offset;
pub mod partition;
pub mod pipeline;
pub mod storage;
pub mod topic;
pub mod version;

pub use batch::{Batch, BatchError, BatchHeader, BatchView, Codec, RecordRef};
pub use code::{ErrorClass, ErrorCode, WireError};
pub use name::{ConsumerName, NameError, PipelineName, PluginName, Principal, Tenant, TopicName};
pub use offset::{Offset, PartitionId, ProducerEpoch, ProducerId, Sequence};
