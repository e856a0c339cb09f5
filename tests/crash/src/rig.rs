//! A place for a broker that dies and comes back, and clients for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use millstream::{
    Backoff, Client, ClientConfig, ConsumeError, Identity, PartitionId, PluginName, StartAt,
    TopicConfig, TopicName, TransportSettings,
};
use millstream_e2e::{Pki, Subject};
use millstream_guests::Guest;
use tempfile::TempDir;

use crate::child::{Broker, Place, Storage, log_tail};
use crate::history::{Entry, Item, Log};

/// Who may do everything; every client here is this one.
pub const ADMIN: &str = "spiffe://test.local/ops/admin";
/// Delays between a client's attempts: a test has no time to lose.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(5),
    max: Duration::from_millis(100),
};
/// How often a client that has nothing to say asks whether the broker is there.
const KEEP_ALIVE: Duration = Duration::from_millis(100);
/// How long one attempt to connect may take, on a busy machine.
const ATTEMPT: Duration = Duration::from_secs(1);

/// A broker, dead or alive, with its data and certificates in a directory that goes away.
pub struct Rig {
    broker: Option<Broker>,
    addr: SocketAddr,
    place: Place,
    pki: Pki,
    crashes: usize,
    ends: usize,
    dir: TempDir,
}

impl Rig {
    /// Starts `program`, which is `crash-broker`, on an empty directory.
    ///
    /// # Panics
    /// When it does not serve. So do all others here.
    pub async fn start(program: &str, storage: Storage, file_limit: Option<u64>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let pki = Pki::new(dir.path());
        let place = Place {
            program: program.into(),
            pki: dir.path().to_owned(),
            data: dir.path().join("data"),
            log: dir.path().join("log"),
            storage,
            file_limit,
        };
        let (broker, addr) = Broker::start(&place, SocketAddr::from(([127, 0, 0, 1], 0))).await;
        Self {
            broker: Some(broker),
            addr,
            place,
            pki,
            crashes: 0,
            ends: 0,
            dir,
        }
    }

    /// Kills the broker with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.kill();
            self.crashes += 1;
            self.ends += 1;
        }
    }

    /// Kills the broker as soon as `is_time`, which is asked all the time by a thread that does
    /// nothing else. `is_time` must come to an end.
    pub async fn kill_when(&mut self, mut is_time: impl FnMut() -> bool + Send + 'static) {
        let Some(broker) = self.broker.take() else {
            return;
        };
        let watch = move || {
            while !is_time() {
                std::thread::yield_now();
            }
            broker.kill();
        };
        let killed = tokio::task::spawn_blocking(watch).await;
        killed.expect("watching does not panic");
        self.crashes += 1;
        self.ends += 1;
    }

    /// Asks the broker to stop, as an operator would, and waits until it has.
    pub async fn stop(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.stop().await;
            self.ends += 1;
        }
    }

    /// Starts a broker on the data of the dead one and kills it before it has said anything.
    pub fn kill_at_birth(&mut self) {
        self.be_born();
        self.kill();
    }

    /// Starts a broker on the data of the dead one and waits for nothing.
    pub fn be_born(&mut self) {
        let (broker, _) = Broker::spawn(&self.place, self.addr);
        self.broker = Some(broker);
    }

    /// Starts a broker on the data and at the address of the dead one.
    pub async fn revive(&mut self) {
        let (broker, addr) = Broker::start(&self.place, self.addr).await;
        assert_eq!(addr, self.addr, "a broker comes back where it was");
        self.broker = Some(broker);
    }

    /// From the next start on, its data are elsewhere.
    pub fn move_to(&mut self, data: PathBuf) {
        self.place.data = data;
    }

    /// From the next start on, files may grow as they want.
    pub fn lift_file_limit(&mut self) {
        self.place.file_limit = None;
    }

    /// The directory of its data, certificates and backups.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of its data.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.place.data
    }

    /// How often it was killed.
    #[must_use]
    pub fn crashes(&self) -> usize {
        self.crashes
    }

    /// How often it ended, killed or asked to.
    #[must_use]
    pub fn ends(&self) -> usize {
        self.ends
    }

    /// Whether the broker's process is there.
    pub fn runs(&mut self) -> bool {
        self.broker.as_mut().is_some_and(Broker::runs)
    }

    /// The end of the broker's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.place.log)
    }

    /// Where the broker listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Who the clients are.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.pki.client(&Subject::of("ops", "admin"))
    }

    /// How a client connects.
    #[must_use]
    pub fn client_config(&self) -> ClientConfig {
        let transport = TransportSettings {
            keep_alive: KEEP_ALIVE,
            ..TransportSettings::default()
        };
        ClientConfig::new(self.addr.to_string(), self.identity())
            .transport(transport)
            .server_name("localhost")
            .backoff(BACKOFF)
            .attempt_timeout(ATTEMPT)
    }

    /// A client that may do everything.
    pub async fn client(&self) -> Client {
        Client::connect(self.client_config())
            .await
            .expect("the client connects")
    }
}

/// A topic's name.
///
/// # Panics
/// When the text is not one.
#[must_use]
pub fn topic(name: &str) -> TopicName {
    name.parse().expect("a valid topic name")
}

/// Makes a topic.
///
/// # Panics
/// When the broker refuses. So do all others here.
pub async fn make_topic(client: &Client, name: &TopicName, config: TopicConfig) {
    client
        .create_topic(name.clone(), config)
        .await
        .expect("the topic can be made");
}

/// Uploads an example plugin under its own name.
pub async fn upload(client: &Client, guest: Guest) -> PluginName {
    let name: PluginName = format!("acme/{}", guest.name)
        .parse()
        .expect("a plugin's name");
    let uploaded = client
        .upload_plugin(name.clone(), Bytes::from_static(guest.wasm), |_| {})
        .await;
    uploaded.expect("the plugin is taken");
    name
}

/// Reads a topic from its first to its last record.
pub async fn read_all(client: &Client, name: &TopicName) -> Log {
    let read = try_read_all(client, name).await;
    read.expect("the topic can be read to its end")
}

/// As [`read_all`], of a topic whose beginning may be removed meanwhile.
///
/// # Errors
/// When it cannot be read to its end.
pub async fn try_read_all(client: &Client, name: &TopicName) -> Result<Log, ConsumeError> {
    let info = client
        .describe_topic(name.clone())
        .await
        .expect("the topic can be described");
    let mut log = Log {
        partitions: vec![Vec::new(); info.partitions.len()],
    };
    let consumer = client
        .consumer(name.clone())
        .start(StartAt::Earliest)
        .until_end(true);
    let mut consumer = consumer.build().await?;
    while let Some(message) = consumer.next_message().await {
        let (PartitionId(partition), entry) = entry(message?);
        log.partitions[partition as usize].push(entry);
    }
    Ok(log)
}

/// A consumed record as histories know it. Its bytes are copied: a slice would keep its batch.
#[must_use]
pub fn entry(message: millstream::Message) -> (PartitionId, Entry) {
    let own = |bytes: Option<Bytes>| bytes.map(|b| Bytes::copy_from_slice(&b));
    let item = Item {
        key: own(message.key),
        value: own(message.value),
    };
    (
        message.partition,
        Entry {
            offset: message.offset.0,
            item,
        },
    )
}
