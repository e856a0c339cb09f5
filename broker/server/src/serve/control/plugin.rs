//! Requests about plugins, and about what is attached to topics.

use std::sync::Arc;

use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::limits::MAX_PAGE;
use millstream_proto::message::Response;
use millstream_proto::pipeline::PluginUse;
use millstream_proto::{PluginName, Tenant, TopicName, WireError};

use super::{page, topic};
use crate::guests::{Directory, TopicChain};
use crate::session::Peer;

/// Refuses who may not do this with plugins of this name, whether there is one or not.
fn allow(peer: &Peer, to: Operation, plugin: &PluginName) -> Result<(), WireError> {
    peer.broker
        .access
        .check(&peer.principal, to, ResourceKind::Plugin, plugin.as_str())
}

pub(super) fn list(peer: &Peer, tenant: Option<Tenant>, after: Option<PluginName>) -> Response {
    let wanted = |name: &PluginName| {
        tenant
            .as_ref()
            .is_none_or(|tenant| name.tenant_str() == tenant.as_str())
            && allow(peer, Operation::Describe, name).is_ok()
    };
    Response::Plugins(
        peer.broker
            .catalog
            .plugin_versions(after.as_ref(), MAX_PAGE, wanted),
    )
}

pub(super) fn log(peer: &Peer, plugin: &PluginName, from: u64) -> Result<Response, WireError> {
    allow(peer, Operation::Upload, plugin)?;
    peer.broker.catalog.find_plugin(plugin, None)?;
    Ok(Response::Log(page(
        peer.broker.guests.log(plugin, from, MAX_PAGE),
    )))
}

pub(super) async fn delete(
    peer: &Peer,
    plugin: &PluginName,
    version: Option<u32>,
) -> Result<Response, WireError> {
    allow(peer, Operation::Manage, plugin)?;
    let broker = &peer.broker;
    let in_pipeline = |plugin: &PluginName, version| {
        let pipeline = broker.pipelines.user_of(plugin, Some(version))?;
        Some(format!("pipeline {pipeline}"))
    };
    broker
        .catalog
        .delete_plugin(plugin, version, in_pipeline)
        .await?;
    if broker.catalog.plugin(plugin, None).is_none() {
        broker.guests.forget(plugin);
    }
    Ok(Response::Done)
}

/// Starts a chain for a topic on the principal's behalf.
async fn start(
    peer: Peer,
    topic: TopicName,
    uses: Vec<PluginUse>,
) -> Result<Arc<TopicChain>, WireError> {
    let directory = Arc::clone(&peer.broker) as Arc<dyn Directory>;
    peer.broker
        .guests
        .topic_chain(&topic, &peer.principal, uses, directory)
        .await
}

pub(super) async fn attach(
    peer: &Peer,
    topic: &TopicName,
    plugin: PluginUse,
) -> Result<Response, WireError> {
    topic::allow(peer, Operation::Manage, topic)?;
    allow(peer, Operation::Attach, &plugin.plugin)?;
    let start = |uses| start(peer.clone(), topic.clone(), uses);
    peer.broker
        .catalog
        .attach(topic, plugin, &peer.principal, start)
        .await?;
    topic::shown(peer, topic)
}

pub(super) async fn detach(
    peer: &Peer,
    topic: &TopicName,
    plugin: &PluginName,
) -> Result<Response, WireError> {
    topic::allow(peer, Operation::Manage, topic)?;
    let start = |uses| start(peer.clone(), topic.clone(), uses);
    peer.broker
        .catalog
        .detach(topic, plugin, &peer.principal, start)
        .await?;
    topic::shown(peer, topic)
}
