//! One file per kind of stream.

mod answers;
pub(crate) mod control;
pub(crate) mod producer;
pub(crate) mod subscription;
pub(crate) mod upload;

use std::sync::Arc;

use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::{ErrorCode, TopicName, WireError};

use crate::log::Topic;
use crate::session::Peer;

/// The topic of this name, if the peer may do this to it. The right is looked
/// at first: who has none does not learn whether the topic exists.
pub(crate) fn topic(peer: &Peer, name: &TopicName, to: Operation) -> Result<Arc<Topic>, WireError> {
    peer.broker
        .access
        .check(&peer.principal, to, ResourceKind::Topic, name.as_str())?;
    peer.broker.catalog.topic(name).ok_or_else(|| {
        let text =
            format!("there is no topic {name}: create it with `millstream topic create {name}`");
        WireError::new(ErrorCode::UnknownTopic, text)
    })
}
