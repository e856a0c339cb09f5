//! Attaching plugins to topics and taking them off.
//!
//! Starting a chain compiles and runs guests, which takes as long as the guest likes within its
//! limits. So the new chain is started without holding up other changes, and put in place only if
//! the topic is still as it was; else it is started again on what the topic has become.

use std::future::Future;
use std::sync::Arc;

use millstream_proto::limits::MAX_CHAIN_STEPS;
use millstream_proto::pipeline::{ErrorPolicy, PluginKind, PluginUse};
use millstream_proto::{ErrorCode, PluginName, Principal, TopicName, WireError};
use millstream_store::WriteBatch;

use super::row::{Row, TopicRow};
use super::{AttachError, Catalog, Entry};
use crate::guests::TopicChain;
use crate::limits::MAX_CHAIN_BYTES;
use crate::log::Topic;

/// How often a chain is started again because the topic changed meanwhile.
const ATTEMPTS: usize = 4;

/// The chain of a topic as it is to be, in order.
type Uses = Vec<PluginUse>;

impl Catalog {
    /// Puts a plugin on a topic: a partitioner in the partitioner's place, a plugin that is there
    /// already where it stands, any other behind the rest. `start` makes a running chain of what
    /// is to be attached; it is called again if the topic changed meanwhile.
    ///
    /// # Errors
    /// [`AttachError`]; the topic is as it was then, unless the storage failed midway.
    pub async fn attach<S, F>(
        &self,
        topic: &TopicName,
        plugin: PluginUse,
        owner: &Principal,
        start: S,
    ) -> Result<(), AttachError>
    where
        S: Fn(Uses) -> F,
        F: Future<Output = Result<Arc<TopicChain>, WireError>>,
    {
        let unfit = |why: String| AttachError::Unfit {
            topic: topic.clone(),
            plugin: plugin.plugin.clone(),
            why,
        };
        plugin.check().map_err(unfit)?;
        if plugin.on_error == ErrorPolicy::DeadLetter(topic.clone()) {
            return Err(unfit(
                "its dead letters would go to the topic itself; name another".into(),
            ));
        }
        let version = self.find_plugin(&plugin.plugin, plugin.version)?;
        let plugin = PluginUse {
            version: Some(version.version),
            ..plugin
        };
        let change = |chain: Uses| {
            let kind_of = |u: &PluginUse| self.plugin(&u.plugin, u.version).map(|v| v.kind);
            Ok(placed(chain, plugin.clone(), version.kind, kind_of))
        };
        self.change_chain(topic, owner, change, start).await?;
        tracing::info!(%topic, plugin = %plugin.plugin, version = version.version, by = %owner, "attached");
        Ok(())
    }

    /// Takes a plugin off a topic. See [`Catalog::attach`].
    ///
    /// # Errors
    /// [`AttachError`]; the topic is as it was then, unless the storage failed midway.
    pub async fn detach<S, F>(
        &self,
        topic: &TopicName,
        plugin: &PluginName,
        owner: &Principal,
        start: S,
    ) -> Result<(), AttachError>
    where
        S: Fn(Uses) -> F,
        F: Future<Output = Result<Arc<TopicChain>, WireError>>,
    {
        let change = |mut chain: Uses| {
            let before = chain.len();
            chain.retain(|u| u.plugin != *plugin);
            if chain.len() == before {
                let (topic, plugin) = (topic.clone(), plugin.clone());
                return Err(AttachError::NotAttached { topic, plugin });
            }
            Ok(chain)
        };
        self.change_chain(topic, owner, change, start).await?;
        tracing::info!(%topic, %plugin, by = %owner, "detached");
        Ok(())
    }

    async fn change_chain<S, F>(
        &self,
        name: &TopicName,
        owner: &Principal,
        change: impl Fn(Uses) -> Result<Uses, AttachError>,
        start: S,
    ) -> Result<(), AttachError>
    where
        S: Fn(Uses) -> F,
        F: Future<Output = Result<Arc<TopicChain>, WireError>>,
    {
        for _ in 0..ATTEMPTS {
            let seen = self.view().entry(name)?.row.clone();
            let uses = change(seen.chain.clone())?;
            check_size(name, &seen, &uses)?;
            let chain = match uses.is_empty() {
                true => None,
                false => Some(start(uses.clone()).await.map_err(AttachError::Start)?),
            };
            let _turn = self.changing.lock().await;
            let Entry { topic, mut row } = self.view().entry(name)?.clone();
            if row.id != seen.id || row.chain != seen.chain {
                continue;
            }
            // A version may have been deleted while the chain was started.
            for u in &uses {
                self.find_plugin(&u.plugin, u.version)?;
            }
            row.chain = uses;
            row.chain_owner = Some(owner.clone());
            let mut batch = WriteBatch::new();
            row.put(&mut batch);
            self.commit_topic(name, batch).await?;
            topic.set_chain(chain);
            self.show()
                .topics
                .insert(name.clone(), Entry { topic, row });
            return Ok(());
        }
        let text = format!("the chain of topic {name} is being changed by others; try again");
        Err(AttachError::Start(WireError::new(
            ErrorCode::Overloaded,
            text,
        )))
    }

    /// The topics that have plugins attached, with them and whoever attached them last. Chains do
    /// not survive a restart; whoever starts the broker starts them again.
    pub(crate) fn attached(&self) -> Vec<(Arc<Topic>, Uses, Principal)> {
        let view = self.view();
        let attached = view
            .topics
            .values()
            .filter(|entry| !entry.row.chain.is_empty());
        attached
            .filter_map(|Entry { topic, row }| {
                Some((
                    Arc::clone(topic),
                    row.chain.clone(),
                    row.chain_owner.clone()?,
                ))
            })
            .collect()
    }
}

/// The chain with `plugin` in its place.
fn placed(
    mut chain: Uses,
    plugin: PluginUse,
    kind: PluginKind,
    kind_of: impl Fn(&PluginUse) -> Option<PluginKind>,
) -> Uses {
    let is_partitioner = |u: &PluginUse| kind_of(u) == Some(PluginKind::Partitioner);
    if kind == PluginKind::Partitioner {
        chain.retain(|u| u.plugin != plugin.plugin && !is_partitioner(u));
        chain.push(plugin);
        return chain;
    }
    let same = chain.iter().position(|u| u.plugin == plugin.plugin);
    match same {
        Some(at) if !is_partitioner(&chain[at]) => chain[at] = plugin,
        _ => {
            // A new version may be of another kind than the one attached.
            chain.retain(|u| u.plugin != plugin.plugin);
            let end = chain.iter().position(is_partitioner).unwrap_or(chain.len());
            chain.insert(end, plugin);
        }
    }
    chain
}

fn check_size(topic: &TopicName, row: &TopicRow, uses: &Uses) -> Result<(), AttachError> {
    if uses.len() > MAX_CHAIN_STEPS {
        return Err(AttachError::TooLong {
            topic: topic.clone(),
        });
    }
    let bytes = TopicRow {
        chain: uses.clone(),
        ..row.clone()
    }
    .encode()
    .len();
    if bytes > MAX_CHAIN_BYTES && uses.len() >= row.chain.len() {
        return Err(AttachError::TooLarge {
            topic: topic.clone(),
            bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
