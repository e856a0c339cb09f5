//! What chains and pipelines ask the rest of the broker: topics, plugins, rights.

use std::sync::Arc;

use bytes::Bytes;
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::message::{Digest, PluginVersion};
use millstream_proto::{PluginName, Principal, TopicName, WireError};

use crate::log::Topic;

/// The part of the broker that knows names. Held weakly by whatever outlives a request, so that
/// a chain never keeps the broker alive.
pub trait Directory: Send + Sync + 'static {
    /// The topic of this name, if there is one.
    fn topic(&self, name: &TopicName) -> Option<Arc<Topic>>;

    /// A version of a plugin; `None` is the newest.
    fn plugin(&self, name: &PluginName, version: Option<u32>) -> Option<PluginVersion>;

    /// The component of a version. Blocking.
    ///
    /// # Errors
    /// When the store cannot be read, or does not have it.
    fn plugin_bytes(&self, digest: Digest) -> Result<Bytes, WireError>;

    /// Whether `who` may do this.
    ///
    /// # Errors
    /// `NotAuthorized`, saying who may not do what.
    fn allow(
        &self,
        who: &Principal,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
    ) -> Result<(), WireError>;
}
