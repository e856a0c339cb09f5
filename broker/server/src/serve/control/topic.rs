//! Requests about topics.

use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::limits::MAX_PAGE;
use millstream_proto::message::Response;
use millstream_proto::topic::{TopicChange, TopicConfig};
use millstream_proto::{Tenant, TopicName, WireError};

use crate::session::Peer;

/// Refuses who may not do this with topics of this name, whether there is one or not.
pub(super) fn allow(peer: &Peer, to: Operation, topic: &TopicName) -> Result<(), WireError> {
    peer.broker
        .access
        .check(&peer.principal, to, ResourceKind::Topic, topic.as_str())
}

/// A topic as whoever just changed it may see it.
pub(super) fn shown(peer: &Peer, topic: &TopicName) -> Result<Response, WireError> {
    Ok(Response::Topic(peer.broker.catalog.describe(topic)?))
}

pub(super) fn describe(peer: &Peer, topic: &TopicName) -> Result<Response, WireError> {
    allow(peer, Operation::Describe, topic)?;
    shown(peer, topic)
}

pub(super) fn list(peer: &Peer, tenant: Option<Tenant>, after: Option<TopicName>) -> Response {
    let wanted = |name: &TopicName| {
        tenant
            .as_ref()
            .is_none_or(|tenant| name.tenant_str() == tenant.as_str())
            && allow(peer, Operation::Describe, name).is_ok()
    };
    Response::Topics(
        peer.broker
            .catalog
            .topic_names(after.as_ref(), MAX_PAGE, wanted),
    )
}

pub(super) async fn create(
    peer: &Peer,
    topic: &TopicName,
    config: TopicConfig,
) -> Result<Response, WireError> {
    allow(peer, Operation::Manage, topic)?;
    peer.broker.catalog.create_topic(topic, config).await?;
    shown(peer, topic)
}

pub(super) async fn alter(
    peer: &Peer,
    topic: &TopicName,
    change: &TopicChange,
) -> Result<Response, WireError> {
    allow(peer, Operation::Manage, topic)?;
    peer.broker.catalog.alter_topic(topic, change).await?;
    shown(peer, topic)
}

pub(super) async fn delete(peer: &Peer, topic: &TopicName) -> Result<Response, WireError> {
    allow(peer, Operation::Manage, topic)?;
    peer.broker.catalog.delete_topic(topic).await?;
    Ok(Response::Done)
}
