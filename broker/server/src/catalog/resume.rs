//! What the catalogue does when the broker starts, and what the guests' side may ask of it.

use std::sync::Arc;

use bytes::Bytes;
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::message::{Digest, PluginVersion};
use millstream_proto::{PluginName, Principal, TopicName, WireError};

use super::Catalog;
use crate::broker::Broker;
use crate::guests::{Directory, TopicChain};
use crate::log::Topic;

impl Catalog {
    /// Starts the chains of all topics, and the sweeper of deleted ones. A chain that does not
    /// start leaves its topic standing still with the reason: its records must not pass
    /// unfiltered, and nobody else's topic has to wait for it.
    pub(crate) async fn resume(&self, broker: &Arc<Broker>) {
        for (topic, uses, owner) in self.attached() {
            let directory = Arc::clone(broker) as Arc<dyn Directory>;
            let name = topic.name();
            let started = broker
                .guests
                .topic_chain_again(name, &owner, uses.clone(), directory)
                .await;
            let chain = started.unwrap_or_else(|e| {
                tracing::warn!(topic = %name, "the topic's chain does not start: {e}");
                TopicChain::broken(name, uses, e.message)
            });
            topic.set_chain(Some(chain));
        }
        let broker = Arc::clone(broker);
        tokio::spawn(async move { broker.catalog.sweep(&broker.gate).await });
    }
}

impl Directory for Broker {
    fn topic(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.catalog.topic(name)
    }

    fn plugin(&self, name: &PluginName, version: Option<u32>) -> Option<PluginVersion> {
        self.catalog.plugin(name, version)
    }

    fn plugin_bytes(&self, digest: Digest) -> Result<Bytes, WireError> {
        self.catalog.plugin_bytes(digest)
    }

    fn allow(
        &self,
        who: &Principal,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
    ) -> Result<(), WireError> {
        self.access.check(who, operation, kind, name)
    }
}
