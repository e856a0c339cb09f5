//! A topic at run time: settings, partitions, producers, chain.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use millstream_proto::topic::TopicConfig;
use millstream_proto::{BatchHeader, PartitionId, TopicName};
use millstream_store::key::partition::{PartitionKey, PartitionRow};
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{Direction, ReadError, ScanLimit, Snapshot, Space, Store};
use tokio::sync::watch;

use super::partition::{Applied, Partition};
use super::producers::Producers;
use super::tail::TailBudget;
use crate::guests::TopicChain;
use crate::limits::READ_CHUNK_BYTES;

/// What can be replaced while streams are open. Readers take the `Arc` and let go.
struct Current {
    config: Arc<TopicConfig>,
    partitions: Arc<[Arc<Partition>]>,
    chain: Option<Arc<TopicChain>>,
}

/// A topic, open.
pub struct Topic {
    id: u32,
    name: TopicName,
    store: Arc<dyn Store>,
    tails: TailBudget,
    current: RwLock<Current>,
    pub(super) producers: Producers,
    changed: watch::Sender<()>,
    deleted: watch::Sender<bool>,
    /// Names of consumers that have committed offsets, once somebody had to know.
    pub(crate) consumers: tokio::sync::Mutex<Option<BTreeSet<String>>>,
    round_robin: std::sync::atomic::AtomicU32,
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Topic({})", self.name)
    }
}

impl Topic {
    /// Opens a topic and finds the ends of its partitions in the store; a new
    /// topic has none there. A partition whose newest records lie where the store
    /// cannot read stays shut, see [`Partition::unreadable`]. Blocking.
    ///
    /// # Errors
    /// When the store cannot be read as a whole, or a partition's row makes no sense.
    pub fn open(
        id: u32,
        name: TopicName,
        config: TopicConfig,
        store: Arc<dyn Store>,
        tails: TailBudget,
    ) -> Result<Arc<Self>, ReadError> {
        let snapshot = store.snapshot()?;
        let partitions = (0..config.partitions)
            .map(|p| {
                let mut at = counted(&*snapshot, id, p)?;
                let unreadable = match recover(&*snapshot, id, p, &mut at) {
                    Ok(()) => None,
                    Err(error) => Some(shut(&*store, &name, p, error)?),
                };
                let (store, tails) = (Arc::clone(&store), tails.clone());
                let p = PartitionId(p);
                Ok(Partition::new(id, p, store, tails, at, unreadable))
            })
            .collect::<Result<Arc<[_]>, ReadError>>()?;
        drop(snapshot);
        let current = Current {
            config: Arc::new(config),
            partitions,
            chain: None,
        };
        Ok(Arc::new(Self {
            id,
            name,
            store,
            tails,
            current: RwLock::new(current),
            producers: Producers::default(),
            changed: watch::Sender::new(()),
            deleted: watch::Sender::new(false),
            consumers: tokio::sync::Mutex::default(),
            round_robin: std::sync::atomic::AtomicU32::new(0),
        }))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, which keys in the store begin with. Never used again.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// The store that holds it.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Its settings at present.
    #[must_use]
    pub fn config(&self) -> Arc<TopicConfig> {
        Arc::clone(&self.read().config)
    }

    /// Replaces the settings, which are durable already, and adds partitions.
    pub fn set_config(&self, config: TopicConfig) {
        let mut current = self.write();
        let have = current.partitions.len() as u32;
        if config.partitions > have {
            let empty = Applied {
                next: 0,
                start: 0,
                bytes: 0,
                uncounted: 0,
            };
            let add = |p| {
                let (store, tails) = (Arc::clone(&self.store), self.tails.clone());
                Partition::new(self.id, PartitionId(p), store, tails, empty, None)
            };
            let all = current
                .partitions
                .iter()
                .cloned()
                .chain((have..config.partitions).map(add));
            current.partitions = all.collect();
        }
        current.config = Arc::new(config);
        drop(current);
        self.notify();
    }

    /// Its partitions at present, in order.
    #[must_use]
    pub fn partitions(&self) -> Arc<[Arc<Partition>]> {
        Arc::clone(&self.read().partitions)
    }

    /// One partition, if there is one of that number.
    #[must_use]
    pub fn partition(&self, id: PartitionId) -> Option<Arc<Partition>> {
        self.read().partitions.get(id.0 as usize).cloned()
    }

    /// The plugins that produced batches pass, if any.
    #[must_use]
    pub fn chain(&self) -> Option<Arc<TopicChain>> {
        self.read().chain.clone()
    }

    /// Replaces the chain: batches that arrive from now on pass the new one.
    pub fn set_chain(&self, chain: Option<Arc<TopicChain>>) {
        self.write().chain = chain;
        self.notify();
    }

    /// Wakes when records became visible, settings or chain changed, or the
    /// topic was deleted.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Ends every stream of the topic. Its rows are the catalogue's to remove.
    pub fn delete(&self) {
        self.deleted.send_replace(true);
        self.notify();
    }

    /// Whether the topic was deleted.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        *self.deleted.borrow()
    }

    /// Resolves when the topic is deleted, at once if it was.
    pub(crate) async fn deletion(&self) {
        let mut deleted = self.deleted.subscribe();
        // The sender is the topic's own, and outlives this.
        let _ = deleted.wait_for(|deleted| *deleted).await;
    }

    /// The partition whose turn it is.
    pub(crate) fn next_in_turn(&self, partitions: u32) -> PartitionId {
        PartitionId(self.round_robin.fetch_add(1, Ordering::Relaxed) % partitions.max(1))
    }
}

/// What a partition that could not be opened answers, if the store is well but for that.
fn shut(
    store: &dyn Store,
    topic: &TopicName,
    partition: u32,
    error: ReadError,
) -> Result<String, ReadError> {
    let is_over = matches!(error, ReadError::Closed { .. });
    if is_over || store.health().borrow().cause().is_some() {
        return Err(error);
    }
    let why = format!(
        "{error}; restart the broker once the file can be read again, or stop it and run \
         `millstream check --quarantine`, which keeps what can still be read"
    );
    tracing::error!(%topic, partition, "neither served nor appended to: {why}");
    Ok(why)
}

/// What a partition's row says of it.
fn counted(snapshot: &dyn Snapshot, topic: u32, partition: u32) -> Result<Applied, ReadError> {
    let key = PartitionKey { topic, partition }.encode();
    let row = match snapshot.get(Space::Partitions, &key)? {
        Some(bytes) => {
            PartitionRow::decode(&bytes).map_err(|e| corrupt(Space::Partitions, &key, &e))?
        }
        None => PartitionRow::default(),
    };
    Ok(Applied {
        next: row.counted_to.max(row.log_start),
        start: row.log_start,
        bytes: row.bytes,
        uncounted: 0,
    })
}

/// Finds a partition's next offset and how large it is, from what its row says on.
fn recover(
    snapshot: &dyn Snapshot,
    topic: u32,
    partition: u32,
    at: &mut Applied,
) -> Result<(), ReadError> {
    let end = record::range_all(topic, partition).end;
    loop {
        let from = RecordKey {
            topic,
            partition,
            base_offset: at.next,
        }
        .encode();
        let limit = ScanLimit::bytes(READ_CHUNK_BYTES);
        let range = &from[..]..&end[..];
        let page = snapshot.scan(Space::Records, range, Direction::Forward, limit)?;
        for row in &page.rows {
            let found =
                RecordKey::decode(&row.key).map_err(|e| corrupt(Space::Records, &row.key, &e))?;
            // The store vouches for the header; what is behind it matters to readers only, who
            // hear of damage when they come there.
            let header = BatchHeader::decode(&row.value)
                .map_err(|e| corrupt(Space::Records, &row.key, &e))?;
            at.next = found.base_offset;
            at.append(header.count, row.value.len());
        }
        if !page.more {
            return Ok(());
        }
    }
}

/// A row that the store vouches for and that makes no sense all the same.
fn corrupt(space: Space, key: &[u8], why: &dyn std::fmt::Display) -> ReadError {
    ReadError::Corrupt {
        file: "the shard's store".into(),
        space,
        key: key.to_vec(),
        detail: why.to_string(),
    }
}
