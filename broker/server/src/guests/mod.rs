//! Plugins at work: the thread they run on, and what becomes of the records they judge.
//!
//! Every guest runs on one thread beside the network's, [`Guests`]. A chain is loaded and checked
//! once (`chain`), then raised where it is needed: for a topic ([`TopicChain`]), for a
//! subscription ([`SubscriptionChain`]), or for each input partition of a pipeline
//! ([`crate::pipeline`]). `records` are the records between two plugins, `step` is one plugin with
//! its owner's policy, `apply` builds batches of what came through, and `dead_letter` builds those
//! of what did not.
//!
//! Absent: who may attach what (the catalogue and the access rules), what a plugin is and what it
//! may use (`millstream-plugin`), and which order of plugins holds together (`millstream-core`).

mod apply;
mod chain;
mod dead_letter;
mod directory;
mod halt;
mod records;
mod step;
mod subscription;
mod thread;
mod topic;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use millstream_core::pipeline::Place;
use millstream_plugin::{
    Counters, EngineFault, Limits, LogBook, LogLimits, OpenError, Plugin, PluginEngine, Registry,
};
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::message::{Digest, LogLine};
use millstream_proto::pipeline::{ErrorPolicy, PluginKind, PluginUse};
use millstream_proto::{ErrorCode, PluginName, Principal, TopicName, WireError};
use millstream_store::Store;
use tokio::sync::Semaphore;

pub(crate) use apply::{Assembler, Form, Target};
pub(crate) use chain::{Blueprint, Chain, Site};
pub use dead_letter::{ERROR_HEADER, PLUGIN_HEADER, SOURCE_HEADER};
pub use directory::Directory;
pub(crate) use halt::Halt;
pub(crate) use records::Records;
pub(crate) use step::Bounds;
pub use subscription::{SubscriptionChain, Through};
pub(crate) use thread::GuestThread;
pub use topic::{Passed, TopicChain};

use crate::clock::Clock;
use crate::config::PluginsConfig;
use crate::limits::LOG_PAGE;

/// Why plugins cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GuestsError {
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] EngineFault),
    /// The directory of compiled plugins cannot be used.
    #[error(transparent)]
    Artifacts(#[from] OpenError),
    /// The system has no thread to give.
    #[error("no thread for plugins: {0}")]
    Thread(#[from] io::Error),
}

/// What one plugin leaves for its owner, over all its versions and places.
#[derive(Clone, Debug)]
pub(crate) struct Books {
    pub(crate) log: Arc<LogBook>,
    pub(crate) counters: Arc<Counters>,
}

/// The thread of plugins and pipelines. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Guests {
    shared: Arc<Shared>,
}

struct Shared {
    thread: GuestThread,
    registry: Registry,
    limits: Limits,
    clock: Clock,
    books: Mutex<HashMap<PluginName, Books>>,
    /// One compilation at a time, so that compiling leaves threads to read the store.
    compiling: Arc<Semaphore>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

/// The broker is going down.
fn closing() -> WireError {
    WireError::new(ErrorCode::ShuttingDown, "the broker is shutting down")
}

impl Guests {
    /// Starts the engine and the thread. Compiled plugins are kept in `artifacts`, which must be
    /// this broker's alone. Blocking, for a moment.
    ///
    /// # Errors
    /// See [`GuestsError`].
    pub fn start(
        config: &PluginsConfig,
        artifacts: &Path,
        clock: Clock,
    ) -> Result<Self, GuestsError> {
        let engine = PluginEngine::new(config.engine)?;
        let registry = Registry::open(engine, artifacts.to_owned())?;
        let shared = Shared {
            thread: GuestThread::start()?,
            registry,
            limits: config.limits.clone(),
            clock,
            books: Mutex::default(),
            compiling: Arc::new(Semaphore::new(1)),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Ends every chain and pipeline where it waits, and the thread.
    pub async fn stop(&self) {
        let thread = self.thread().clone();
        // Joining blocks, and this is called on the network's thread.
        let stopped = tokio::task::spawn_blocking(move || thread.stop()).await;
        if stopped.is_err() {
            tracing::error!("stopping the guest thread was interrupted");
        }
    }

    pub(crate) fn thread(&self) -> &GuestThread {
        &self.shared.thread
    }

    pub(crate) fn engine(&self) -> &PluginEngine {
        self.shared.registry.engine()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Checks that an upload is a plugin, and compiles it, so that attaching it is quick.
    ///
    /// # Errors
    /// `UploadRejected`, saying what is wrong and what was expected.
    pub async fn inspect_and_compile(
        &self,
        wasm: Bytes,
    ) -> Result<(Digest, PluginKind), WireError> {
        let plugin = self.compile(move || Ok(wasm)).await?;
        Ok((plugin.digest(), plugin.kind()))
    }

    async fn compile(
        &self,
        wasm: impl FnOnce() -> Result<Bytes, WireError> + Send + 'static,
    ) -> Result<Arc<Plugin>, WireError> {
        let turn = Arc::clone(&self.shared.compiling)
            .acquire_owned()
            .await
            .map_err(|_| closing())?;
        let shared = Arc::clone(&self.shared);
        let compile = move || {
            // Kept to the end of the work, whether or not somebody still waits for it.
            let _turn = turn;
            let refused = |refusal: millstream_plugin::Refusal| {
                WireError::new(ErrorCode::UploadRejected, refusal.to_string())
            };
            shared.registry.load(&wasm()?).map_err(refused)
        };
        self.thread()
            .spawn_blocking(compile)
            .await
            .map_err(|_| closing())?
    }

    /// The plugin with this digest: from memory, or from the catalogue's bytes.
    pub(crate) async fn load(
        &self,
        digest: Digest,
        directory: &Arc<dyn Directory>,
    ) -> Result<Arc<Plugin>, WireError> {
        if let Some(plugin) = self.shared.registry.get(&digest) {
            return Ok(plugin);
        }
        let directory = Arc::clone(directory);
        self.compile(move || directory.plugin_bytes(digest)).await
    }

    pub(crate) fn books(&self, plugin: &PluginName) -> Books {
        let mut books = self
            .shared
            .books
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let clock = self.shared.clock.clone();
            let log = LogBook::new(LogLimits::default(), Arc::new(move || clock.now_ms()));
            let log = log.counting(self.engine().usage_of(&plugin.tenant()));
            Books {
                log: Arc::new(log),
                counters: Arc::default(),
            }
        };
        books.entry(plugin.clone()).or_insert_with(open).clone()
    }

    /// Lines that a plugin wrote, from line number `from` on, `max` at most and never more than a
    /// page. A plugin that has not run since the broker started has none.
    #[must_use]
    pub fn log(&self, plugin: &PluginName, from: u64, max: usize) -> Vec<LogLine> {
        let books = self
            .shared
            .books
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(log) = books.get(plugin).map(|books| Arc::clone(&books.log)) else {
            return Vec::new();
        };
        drop(books);
        let (lines, _) = log.read(from, max.min(LOG_PAGE));
        lines.into_iter().map(LogLine::from).collect()
    }

    /// Forgets the log and the counters of a plugin that was deleted. Chains that still hold them
    /// write into the void.
    pub fn forget(&self, plugin: &PluginName) {
        self.shared
            .books
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(plugin);
    }

    /// Prepares a chain for a topic: loads its plugins, checks their order and starts an instance
    /// of each, so that a plugin that refuses its configuration is refused here. `uses` may be
    /// empty of versions; [`TopicChain::uses`] has them filled in. `owner` is who attaches; it must
    /// be allowed to produce to the dead-letter topics. Whether it may attach is for the caller.
    ///
    /// # Errors
    /// `UnknownPlugin`, `UnknownTopic` (a dead-letter topic), `AttachInvalid`, `NotAuthorized`.
    pub async fn topic_chain(
        &self,
        topic: &TopicName,
        owner: &Principal,
        uses: Vec<PluginUse>,
        directory: Arc<dyn Directory>,
    ) -> Result<Arc<TopicChain>, WireError> {
        let blueprint = self.draw_for_topic(topic, owner, &uses, &directory).await?;
        let start = TopicChain::start(topic.clone(), blueprint, Arc::downgrade(&directory));
        let chain = self.thread().spawn(start).await.map_err(|_| closing())??;
        Ok(Arc::new(chain))
    }

    /// The chain of a topic that had it before the broker was started: as
    /// [`Guests::topic_chain`], but no plugin runs before the first batch, so that nobody's
    /// plugins hold up the start.
    ///
    /// # Errors
    /// As [`Guests::topic_chain`].
    pub(crate) async fn topic_chain_again(
        &self,
        topic: &TopicName,
        owner: &Principal,
        uses: Vec<PluginUse>,
        directory: Arc<dyn Directory>,
    ) -> Result<Arc<TopicChain>, WireError> {
        let blueprint = self.draw_for_topic(topic, owner, &uses, &directory).await?;
        let start = TopicChain::start_again(topic.clone(), blueprint, Arc::downgrade(&directory));
        let chain = self.thread().spawn(start).await.map_err(|_| closing())??;
        Ok(Arc::new(chain))
    }

    async fn draw_for_topic(
        &self,
        topic: &TopicName,
        owner: &Principal,
        uses: &[PluginUse],
        directory: &Arc<dyn Directory>,
    ) -> Result<Arc<Blueprint>, WireError> {
        let name = format!("topic {topic}");
        let site = Site {
            place: Place::Topic,
            name: &name,
            tenant: &topic.tenant(),
            input: topic,
            refusal: ErrorCode::AttachInvalid,
        };
        self.draw(site, owner, uses, directory).await
    }

    /// Prepares a chain for one subscription; see [`Guests::topic_chain`]. `store` is where its
    /// dead letters are committed.
    ///
    /// # Errors
    /// As [`Guests::topic_chain`].
    pub async fn subscription_chain(
        &self,
        topic: &TopicName,
        consumer: &Principal,
        uses: Vec<PluginUse>,
        directory: Arc<dyn Directory>,
        store: Arc<dyn Store>,
    ) -> Result<SubscriptionChain, WireError> {
        let name = format!("subscription to {topic}");
        let site = Site {
            place: Place::Subscription,
            name: &name,
            tenant: consumer.tenant(),
            input: topic,
            refusal: ErrorCode::AttachInvalid,
        };
        let blueprint = self.draw(site, consumer, &uses, &directory).await?;
        let directory = Arc::downgrade(&directory);
        let start = SubscriptionChain::start(topic.clone(), blueprint, directory, store);
        self.thread().spawn(start).await.map_err(|_| closing())?
    }

    async fn draw(
        &self,
        site: Site<'_>,
        owner: &Principal,
        uses: &[PluginUse],
        directory: &Arc<dyn Directory>,
    ) -> Result<Arc<Blueprint>, WireError> {
        allow_dead_letters(owner, uses, &**directory)?;
        Ok(Arc::new(
            Blueprint::draw(self, site, uses, directory).await?,
        ))
    }
}

/// Whether `who` may produce to every dead-letter topic of `uses`.
pub(crate) fn allow_dead_letters(
    who: &Principal,
    uses: &[PluginUse],
    directory: &dyn Directory,
) -> Result<(), WireError> {
    uses.iter()
        .try_for_each(|plugin_use| match &plugin_use.on_error {
            ErrorPolicy::DeadLetter(topic) => {
                directory.allow(who, Operation::Produce, ResourceKind::Topic, topic.as_str())
            }
            ErrorPolicy::Stop | ErrorPolicy::Skip => Ok(()),
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
