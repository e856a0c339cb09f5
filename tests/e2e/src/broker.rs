//! A broker in the test's own process.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use millstream::{Client, ClientConfig, ConnectError, Identity};
use millstream_broker::config::TlsFiles;
use millstream_broker::credentials::{ReloadError, Reloaded};
use millstream_broker::{Broker, Clock, Config, Running};
use millstream_proto::TopicName;
use millstream_proto::acl::{AclRule, Effect, Operation, ResourceKind};
use millstream_store::fault::FaultDisk;
use millstream_store::{RedbConfig, RedbStore, Store};
use tempfile::TempDir;

use crate::pki::{Pki, Subject};
use crate::records::eventually;

/// A broker that can be restarted on its data, and the means to connect to it.
pub struct TestBroker {
    running: Option<Running>,
    addr: SocketAddr,
    pki: Pki,
    dir: TempDir,
    setup: Setup,
}

/// What is not as usual about a broker.
pub struct Setup {
    tune: fn(&mut Config),
    clock: Clock,
    disk: Option<FaultDisk>,
    redb: RedbConfig,
}

impl Setup {
    /// Changes the configuration.
    #[must_use]
    pub fn tuned(mut self, tune: fn(&mut Config)) -> Self {
        self.tune = tune;
        self
    }

    /// Gives it another clock than the system's.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Puts its store on this disk.
    #[must_use]
    pub fn disk(mut self, disk: FaultDisk) -> Self {
        self.disk = Some(disk);
        self
    }

    /// Opens the disk without verifying it first, as is done with large files, so that damage shows
    /// when it is read.
    #[must_use]
    pub fn unverified(mut self) -> Self {
        self.redb.verify_up_to = 0;
        self
    }

    /// Starts it on an empty directory.
    pub async fn start(self) -> TestBroker {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let pki = Pki::new(dir.path());
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let setup = self;
        let mut broker = TestBroker {
            running: None,
            addr,
            pki,
            dir,
            setup,
        };
        broker.run().await;
        broker
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

/// A rule about everybody in `tenant`.
///
/// # Panics
/// When one of the texts is not a pattern.
#[must_use]
pub fn allow(tenant: &str, resource: ResourceKind, name: &str, to: &[Operation]) -> AclRule {
    AclRule {
        principal: format!("spiffe://test.local/{tenant}/*")
            .parse()
            .expect("a pattern"),
        resource,
        name: name.parse().expect("a pattern"),
        operations: to.to_vec(),
        effect: Effect::Allow,
    }
}

impl TestBroker {
    /// A broker that will not be as usual.
    #[must_use]
    pub fn set_up() -> Setup {
        let (tune, clock) = (|_: &mut Config| {}, Clock::system());
        Setup {
            tune,
            clock,
            disk: None,
            redb: RedbConfig::default(),
        }
    }

    /// Starts a broker on an empty directory.
    pub async fn start() -> Self {
        Self::set_up().start().await
    }

    /// How the broker is set up.
    #[must_use]
    pub fn config(&self) -> Config {
        let tls = TlsFiles::new(self.pki.server_cert(), self.pki.server_key(), self.pki.ca());
        let mut config = Config::new(self.addr, self.dir.path().join("data"), tls);
        config.admins = vec![
            "spiffe://test.local/ops/admin"
                .parse()
                .expect("a principal"),
        ];
        (self.setup.tune)(&mut config);
        config
    }

    async fn run(&mut self) {
        let (config, clock) = (self.config(), self.setup.clock.clone());
        let running = match &self.setup.disk {
            None => Broker::start(config, clock).await,
            Some(disk) => {
                let redb = &self.setup.redb;
                let store = RedbStore::open_with_backend(disk.backend(), "disk.redb", redb);
                let store: Arc<dyn Store> = Arc::new(store.expect("the disk holds a store"));
                Broker::start_with_store(config, clock, store).await
            }
        };
        let running = running.expect("the broker starts");
        self.addr = running.local_addr();
        self.running = Some(running);
    }

    /// Stops the broker; its data stays.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown().await;
            // Its socket goes with the last of its tasks, a moment later.
            eventually("the port to be free", async || {
                UdpSocket::bind(self.addr).ok().map(drop)
            })
            .await;
        }
    }

    /// Stops the broker and starts another on the same data and address.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// Starts a stopped broker, or one more time a running one, on another disk.
    pub async fn restart_on(&mut self, disk: FaultDisk) {
        self.stop().await;
        self.setup.disk = Some(disk);
        self.run().await;
    }

    /// Has it read its files again, as a signal would.
    ///
    /// # Errors
    /// What the broker says when they cannot be used.
    ///
    /// # Panics
    /// While it is stopped.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let running = self.running.as_ref().expect("the broker runs");
        running.reload().await
    }

    /// The broker itself.
    ///
    /// # Panics
    /// While it is stopped.
    #[must_use]
    pub fn inner(&self) -> &Arc<Broker> {
        self.running.as_ref().expect("the broker runs").broker()
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its metrics can be read, if they can.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.running.as_ref().and_then(Running::metrics_addr)
    }

    /// Its authority.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The directory of its data and certificates.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// How a client with this identity connects.
    #[must_use]
    pub fn client_config(&self, identity: Identity) -> ClientConfig {
        ClientConfig::new(self.addr.to_string(), identity)
            .server_name("localhost")
            .connect_deadline(Duration::from_secs(20))
    }

    /// A client with this identity, or why there is none.
    ///
    /// # Errors
    /// Whatever connecting says.
    pub async fn connect(&self, identity: Identity) -> Result<Client, ConnectError> {
        Client::connect(self.client_config(identity)).await
    }

    /// A client called `spiffe://test.local/<tenant>/<name>`.
    pub async fn client(&self, tenant: &str, name: &str) -> Client {
        let identity = self.pki.client(&Subject::of(tenant, name));
        self.connect(identity).await.expect("the client connects")
    }

    /// The client that may do everything.
    pub async fn admin(&self) -> Client {
        self.client("ops", "admin").await
    }

    /// A client of `tenant` that may do everything within its tenant.
    pub async fn tenant(&self, tenant: &str) -> Client {
        let admin = self.admin().await;
        use Operation::{Attach, Consume, Describe, Grant, Manage, Produce, Upload};
        for (resource, operations) in [
            (
                ResourceKind::Topic,
                &[Describe, Produce, Consume, Manage, Grant][..],
            ),
            (
                ResourceKind::Plugin,
                &[Describe, Upload, Attach, Manage, Grant],
            ),
            (ResourceKind::Pipeline, &[Describe, Manage, Grant]),
        ] {
            let rule = allow(tenant, resource, &format!("{tenant}/*"), operations);
            admin.grant(rule).await.expect("the admin may grant");
        }
        self.client(tenant, "app").await
    }
}
