//! The broker as a whole: what is shared, how it starts and how it ends.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_store::{OpenError, ReadError, RedbConfig, RedbStore, Store};
use quinn::{Endpoint, ServerConfig, TokioRuntime};
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::backup::job::Backups;
use crate::catalog::{Catalog, CatalogError};
use crate::check::Checks;
use crate::clock::Clock;
use crate::config::Config;
use crate::credentials::{Credentials, Material, ReloadError, Reloaded};
use crate::door::Door;
use crate::gate::Gate;
use crate::guests::{Guests, GuestsError};
use crate::limits::{COUNT_INTERVAL, DRAIN_TIMEOUT, PRODUCER_SWEEP_INTERVAL, RETENTION_INTERVAL};
use crate::listen;
use crate::log::{RetainError, TailBudget, Topic, expire_producers, note_ends, retain};
use crate::metrics::{self, Counters, MetricsError};
use crate::pipeline::{PipelineError, Pipelines};
use crate::reload::{self, Stamps};
use crate::session::shutting_down;
use crate::sessions::Sessions;
use crate::tls::{self, TlsError};
use crate::transport;

/// Name of the shard's file in the data directory.
pub(crate) const SHARD_FILE: &str = "shard-0.redb";
/// Name of the directory of compiled plugins in the data directory.
const ARTIFACTS_DIR: &str = "artifacts";

/// Everything that sessions, actors and requests share.
pub struct Broker {
    /// The shard's store.
    pub store: Arc<dyn Store>,
    /// Topics, plugins and rules.
    pub catalog: Catalog,
    /// Who may do what.
    pub access: Access,
    /// The thread of plugins and pipelines.
    pub guests: Guests,
    /// The pipelines.
    pub pipelines: Pipelines,
    /// The memory of recent batches.
    pub tails: TailBudget,
    /// The backup under way.
    pub backups: Backups,
    /// What is counted as it goes along.
    pub counters: Arc<Counters>,
    /// The check of the stored data.
    pub checks: Checks,
    /// The time.
    pub clock: Clock,
    /// How it was set up.
    pub config: Config,
    /// Certificates and what goes with them, which are replaced while it runs.
    pub credentials: Credentials,
    /// Who is connected.
    pub sessions: Arc<Sessions>,
    /// Who is about to be.
    pub(crate) door: Arc<Door>,
    /// Shutdown.
    pub gate: Gate,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// The listener; connections are counted there.
    pub endpoint: Endpoint,
}

/// Why the broker did not start. Nothing keeps running after it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}: {source}", dir.display())]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The catalogue's rows make no sense.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The plugin engine does not start.
    #[error(transparent)]
    Guests(#[from] GuestsError),
    /// The pipelines' rows make no sense.
    #[error(transparent)]
    Pipelines(#[from] PipelineError),
    /// A thread that starts the broker died.
    #[error("starting was interrupted")]
    Interrupted,
}

/// A broker that serves.
pub struct Running {
    broker: Arc<Broker>,
    addr: SocketAddr,
    metrics: Option<metrics::Endpoint>,
    tasks: Vec<JoinHandle<()>>,
}

impl Broker {
    /// Opens the store in `config.data_dir`, recovers, and serves. Must be called
    /// on a tokio runtime; a current-thread one is the fastest.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, clock: Clock) -> Result<Running, StartError> {
        let opening = config.clone();
        let store = tokio::task::spawn_blocking(move || open_store(&opening))
            .await
            .map_err(|_| StartError::Interrupted)??;
        Self::start_with_store(config, clock, store).await
    }

    /// As [`Broker::start`], on a store that is open already.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_with_store(
        config: Config,
        clock: Clock,
        store: Arc<dyn Store>,
    ) -> Result<Running, StartError> {
        let metrics = metrics::Listener::bind(&config)?;
        // Before the files are read: what changes from here on is read again.
        let stamps = Stamps::of(config.source.as_deref(), &config.tls);
        let credentials = Credentials::new(Material::first(&config)?, |server| {
            transport::listener(server, config.transport.mtu);
        });
        let endpoint = listen_on(&config, credentials.server_config())?;
        let listening = |source| StartError::Listen {
            addr: config.listen,
            source,
        };
        let addr = endpoint.local_addr().map_err(listening)?;
        let tails = TailBudget::new(config.storage.tail_bytes);
        let artifacts = config.data_dir.join(ARTIFACTS_DIR);
        make_dir(&artifacts)?;
        let guests = Guests::start(&config.plugins, &artifacts, clock.clone())?;
        let (loading, budget) = (Arc::clone(&store), tails.clone());
        let catalog = tokio::task::spawn_blocking(move || Catalog::load(loading, budget))
            .await
            .map_err(|_| StartError::Interrupted)??;
        let (loading, admins) = (Arc::clone(&store), config.admins.clone());
        let access = tokio::task::spawn_blocking(move || Access::load(loading, admins))
            .await
            .map_err(|_| StartError::Interrupted)??;
        let started_ms = clock.now_ms();
        let broker = Arc::new(Self {
            pipelines: Pipelines::default(),
            checks: Checks::default(),
            counters: Arc::default(),
            credentials,
            sessions: Arc::default(),
            door: Arc::default(),
            backups: Backups::default(),
            gate: Gate::default(),
            store,
            catalog,
            access,
            guests,
            tails,
            clock,
            config,
            started_ms,
            endpoint,
        });
        broker.catalog.resume(&broker).await;
        broker.pipelines.resume(&broker).await?;
        let serve = |listener: metrics::Listener| listener.serve(Arc::clone(&broker));
        let metrics = metrics.map(serve).transpose()?;
        let tasks = vec![
            tokio::spawn(listen::accept(Arc::clone(&broker), broker.endpoint.clone())),
            tokio::spawn(keep_retention(Arc::clone(&broker))),
            tokio::spawn(reload::watch(Arc::clone(&broker), stamps)),
        ];
        tracing::info!(%addr, "serving");
        Ok(Running {
            broker,
            addr,
            metrics,
            tasks,
        })
    }
}

impl Running {
    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address at which its metrics can be read, if they can.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(metrics::Endpoint::local_addr)
    }

    /// Reads certificates, keys, revocation lists and those settings again that can change while
    /// the broker runs, and ends the connections that would not be let in now. The broker does so
    /// by itself when one of the files changes.
    ///
    /// # Errors
    /// [`ReloadError`], naming the file; then all is as it was before.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        reload::reload(&self.broker).await
    }

    /// What it is made of.
    #[must_use]
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Lets open streams finish what they have begun, commits everything and
    /// closes the store. Takes [`DRAIN_TIMEOUT`] at most, and the last commit.
    pub async fn shutdown(self) {
        let Self {
            broker,
            tasks,
            metrics,
            ..
        } = self;
        broker.gate.close();
        broker.checks.stop();
        if tokio::time::timeout(DRAIN_TIMEOUT, broker.gate.empty())
            .await
            .is_err()
        {
            tracing::warn!("some connections did not finish in {DRAIN_TIMEOUT:?}; closing them");
        }
        let reason = shutting_down();
        broker.endpoint.close(
            u32::from(reason.code.number()).into(),
            reason.message.as_bytes(),
        );
        // Peers get the closing packets; those that are gone are not waited for long.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT / 10, broker.endpoint.wait_idle()).await;
        for task in tasks {
            task.abort();
        }
        if let Some(metrics) = metrics {
            metrics.stop().await;
        }
        broker.guests.stop().await;
        let topics = broker.catalog.topics();
        if tokio::time::timeout(DRAIN_TIMEOUT, note_all(&topics))
            .await
            .is_err()
        {
            tracing::warn!("not every partition's end was written down; the next start reads more");
        }
        let store = Arc::clone(&broker.store);
        if tokio::task::spawn_blocking(move || store.close())
            .await
            .is_err()
        {
            tracing::error!("closing the store was interrupted");
        }
        tracing::info!("stopped");
    }
}

fn make_dir(dir: &Path) -> Result<(), StartError> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|source| StartError::DataDir {
        dir: dir.to_owned(),
        source,
    })
}

fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    make_dir(&config.data_dir)?;
    let redb = RedbConfig {
        cache_bytes: config.storage.cache_bytes,
        hot_bytes: config.storage.hot_bytes as u64,
        ..RedbConfig::default()
    };
    Ok(Arc::new(RedbStore::open(
        config.data_dir.join(SHARD_FILE),
        &redb,
    )?))
}

fn listen_on(config: &Config, server: ServerConfig) -> Result<Endpoint, StartError> {
    let mtu = config.transport.mtu;
    let listening = |source| StartError::Listen {
        addr: config.listen,
        source,
    };
    let socket = transport::socket(config.listen).map_err(listening)?;
    let endpoint = transport::endpoint_config(mtu, tls::reset_key(&config.tls)?);
    Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime)).map_err(listening)
}

/// Spares the next start looking for the ends of partitions.
async fn note_all(topics: &[Arc<Topic>]) {
    for topic in topics {
        if let Err(e) = note_ends(topic).await {
            // Of a store that takes nothing more there is nothing to be had for the others either.
            tracing::debug!(topic = %topic.name(), "the ends of partitions are not written: {e}");
            return;
        }
    }
}

/// Removes what topics do not keep any more, for as long as the broker runs.
async fn keep_retention(broker: Arc<Broker>) {
    let every = PRODUCER_SWEEP_INTERVAL.as_millis() as i64;
    let count_every = COUNT_INTERVAL.as_millis() as i64;
    let mut swept_ms = broker.clock.now_ms();
    let mut counted_ms = swept_ms;
    loop {
        tokio::select! {
            () = tokio::time::sleep(RETENTION_INTERVAL) => {}
            () = broker.gate.closing() => return,
        }
        let now_ms = broker.clock.now_ms();
        let sweep = now_ms.saturating_sub(swept_ms) >= every;
        let topics = broker.catalog.topics();
        if now_ms.saturating_sub(counted_ms) >= count_every {
            note_all(&topics).await;
            counted_ms = now_ms;
        }
        for topic in topics {
            if let Err(e) = keep_topic(&topic, now_ms, sweep).await {
                tracing::error!(topic = %topic.name(), "retention does not get on: {e}");
            }
        }
        if sweep {
            swept_ms = now_ms;
        }
    }
}

async fn keep_topic(topic: &Arc<Topic>, now_ms: i64, sweep: bool) -> Result<(), RetainError> {
    // Records that cannot be read do not keep producers from being forgotten.
    let retained = retain(topic, now_ms).await;
    if sweep {
        let forgotten = expire_producers(topic, now_ms).await?;
        tracing::debug!(topic = %topic.name(), forgotten, "idle producers");
    }
    retained.map(drop)
}
