//! What exists: topics, plugins and their versions, attachments.
//!
//! The catalogue is rows in the store and a copy of them in memory. A change is decided on the
//! copy, committed, and only then shown: what anybody sees is durable. Changes happen one at a
//! time; looking things up never waits for one. A change must be driven to its end once begun: if
//! it is dropped between its commit and its showing, memory lags behind the store until the
//! restart, so requests run as tasks that outlive their connection.
//!
//! * [`row`]: how everything is stored.
//! * `topics`, `chain`, `plugins`: the changes.
//! * `resume`: what happens at the start.
//! * `sweep`: removes the records of deleted topics, a few MiB at a time.
//!
//! Absent: access rules, which are [`crate::access`]'s, and pipelines, which are
//! [`crate::pipeline`]'s.

mod chain;
mod error;
mod plugins;
mod resume;
pub mod row;
mod sweep;
mod topics;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use millstream_proto::message::PluginVersion;
use millstream_proto::topic::{PartitionInfo, TopicInfo};
use millstream_proto::{PluginName, TopicName};
use millstream_store::Store;
use tokio::sync::{Mutex, Notify, Semaphore};

use crate::limits::MAX_UPLOADS;
use crate::log::{TailBudget, Topic};

pub use error::{AttachError, PluginError, TopicError};
pub(crate) use error::{read_error, storage_error};
pub use plugins::NewPlugin;
pub use row::{CatalogError, RowError};
use row::{DoomedRow, NextTopicRow, NextVersionRow, PluginRow, TopicRow};

/// What exists.
pub struct Catalog {
    store: Arc<dyn Store>,
    tails: TailBudget,
    view: RwLock<View>,
    /// Held by whoever changes something; the number of the next topic.
    changing: Mutex<u32>,
    /// Tells the sweeper that there is a deleted topic.
    doomed: Notify,
    /// Bounds the memory of uploads, over all connections.
    uploads: Arc<Semaphore>,
}

/// The rows of the catalogue as they are in the store.
#[derive(Default)]
struct View {
    topics: BTreeMap<TopicName, Entry>,
    plugins: BTreeMap<PluginName, Versions>,
    /// Deleted topics whose records are not removed yet, by number.
    doomed: BTreeMap<u32, Doomed>,
}

/// A topic and its row.
#[derive(Clone)]
struct Entry {
    topic: Arc<Topic>,
    row: TopicRow,
}

/// A deleted topic.
#[derive(Clone)]
struct Doomed {
    row: DoomedRow,
    /// Gone once nobody can write to the topic any more.
    topic: Weak<Topic>,
}

/// The versions of one plugin.
#[derive(Default)]
struct Versions {
    next: u32,
    all: BTreeMap<u32, PluginVersion>,
}

impl View {
    fn partitions(&self) -> u64 {
        self.topics
            .values()
            .map(|entry| u64::from(entry.row.config.partitions))
            .sum()
    }

    fn entry(&self, name: &TopicName) -> Result<&Entry, TopicError> {
        self.topics
            .get(name)
            .ok_or_else(|| TopicError::Unknown(name.clone()))
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let view = self.view();
        write!(
            f,
            "Catalog({} topics, {} plugins)",
            view.topics.len(),
            view.plugins.len()
        )
    }
}

impl Catalog {
    /// Reads everything from the store and opens every topic, without chains. Blocking.
    ///
    /// # Errors
    /// When the store cannot be read, or holds a row that makes no sense.
    pub fn load(store: Arc<dyn Store>, tails: TailBudget) -> Result<Self, CatalogError> {
        let snapshot = store.snapshot()?;
        let mut view = View::default();
        for row in row::all::<DoomedRow>(&*snapshot)? {
            view.doomed.insert(
                row.id,
                Doomed {
                    row,
                    topic: Weak::new(),
                },
            );
        }
        for NextVersionRow { plugin, next } in row::all(&*snapshot)? {
            view.plugins.insert(
                plugin,
                Versions {
                    next,
                    all: BTreeMap::new(),
                },
            );
        }
        for PluginRow(version) in row::all(&*snapshot)? {
            let versions = view.plugins.entry(version.plugin.clone()).or_default();
            versions.next = versions.next.max(version.version.saturating_add(1));
            versions.all.insert(version.version, version);
        }
        let rows = row::all::<TopicRow>(&*snapshot)?;
        let counter = row::all::<NextTopicRow>(&*snapshot)?;
        drop(snapshot);
        let next_topic = counter.first().map_or(1, |row| row.next);
        for row in rows {
            let (store, tails) = (Arc::clone(&store), tails.clone());
            let topic = Topic::open(row.id, row.name.clone(), row.config.clone(), store, tails)?;
            view.topics.insert(row.name.clone(), Entry { topic, row });
        }
        Ok(Self {
            store,
            tails,
            view: RwLock::new(view),
            changing: Mutex::new(next_topic),
            doomed: Notify::new(),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
        })
    }

    fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only for showing what is committed.
    fn show(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic of this name, if there is one.
    #[must_use]
    pub fn topic(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.view()
            .topics
            .get(name)
            .map(|entry| Arc::clone(&entry.topic))
    }

    /// Every topic, in the order of names.
    #[must_use]
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.view()
            .topics
            .values()
            .map(|entry| Arc::clone(&entry.topic))
            .collect()
    }

    /// At most `count` names of topics behind `after` that `wanted` accepts, in order.
    #[must_use]
    pub fn topic_names(
        &self,
        after: Option<&TopicName>,
        count: usize,
        wanted: impl Fn(&TopicName) -> bool,
    ) -> Vec<TopicName> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let view = self.view();
        let names = view
            .topics
            .range::<TopicName, _>((from, Bound::Unbounded))
            .map(|(n, _)| n);
        names
            .filter(|name| wanted(name))
            .take(count)
            .cloned()
            .collect()
    }

    /// A topic as it is now.
    ///
    /// # Errors
    /// [`TopicError::Unknown`].
    pub fn describe(&self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        let Entry { topic, row } = self.view().entry(name)?.clone();
        let partitions = topic.partitions();
        let partitions = partitions.iter().map(|p| PartitionInfo {
            partition: p.id(),
            start: p.start(),
            end: p.end(),
            bytes: p.bytes(),
        });
        Ok(TopicInfo {
            topic: row.name,
            config: row.config,
            partitions: partitions.collect(),
            chain: row.chain,
            stopped: topic.chain().and_then(|chain| chain.stopped()),
        })
    }
}

#[cfg(test)]
mod tests;
