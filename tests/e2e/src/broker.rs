//! A broker in the test's own process.

use std::net::SocketAddr;
use std::time::Duration;

use millstream::{Client, ClientConfig, Identity};
use millstream_broker::config::TlsFiles;
use millstream_broker::{Broker, Clock, Config, Running};
use millstream_proto::TopicName;
use millstream_proto::acl::{AclRule, Effect, Operation, ResourceKind};
use tempfile::TempDir;

use crate::pki::{Pki, Subject};

/// A broker that can be restarted on its data, and the means to connect to it.
pub struct TestBroker {
    running: Option<Running>,
    addr: SocketAddr,
    pki: Pki,
    dir: TempDir,
}

/// A topic's name.
///
/// # Panics
/// When the text is not one.
#[must_use]
pub fn topic(name: &str) -> TopicName {
    name.parse().expect("a valid topic name")
}

impl TestBroker {
    /// Starts a broker on an empty directory.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let pki = Pki::new(dir.path());
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut broker = Self { running: None, addr, pki, dir };
        broker.run().await;
        broker
    }

    /// How the broker is set up.
    #[must_use]
    pub fn config(&self) -> Config {
        let tls = TlsFiles::new(self.pki.server_cert(), self.pki.server_key(), self.pki.ca());
        let mut config = Config::new(self.addr, self.dir.path().join("data"), tls);
        config.admins = vec!["spiffe://test.local/ops/admin".parse().expect("a principal")];
        config
    }

    async fn run(&mut self) {
        let running = Broker::start(self.config(), Clock::system()).await;
        let running = running.expect("the broker starts");
        self.addr = running.local_addr();
        self.running = Some(running);
    }

    /// Stops the broker; its data stays.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown().await;
        }
    }

    /// Stops the broker and starts another on the same data and address.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// The broker itself.
    ///
    /// # Panics
    /// While it is stopped.
    #[must_use]
    pub fn inner(&self) -> &std::sync::Arc<Broker> {
        self.running.as_ref().expect("the broker runs").broker()
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
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
            .connect_deadline(Duration::from_secs(5))
    }

    /// A client called `spiffe://test.local/<tenant>/<name>`.
    pub async fn client(&self, tenant: &str, name: &str) -> Client {
        let identity = self.pki.client(&Subject::of(tenant, name));
        Client::connect(self.client_config(identity)).await.expect("the client connects")
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
            (ResourceKind::Topic, vec![Describe, Produce, Consume, Manage, Grant]),
            (ResourceKind::Plugin, vec![Describe, Upload, Attach, Manage, Grant]),
            (ResourceKind::Pipeline, vec![Describe, Manage, Grant]),
        ] {
            let rule = AclRule {
                principal: format!("spiffe://test.local/{tenant}/*").parse().expect("a pattern"),
                resource,
                name: format!("{tenant}/*").parse().expect("a pattern"),
                operations,
                effect: Effect::Allow,
            };
            admin.grant(rule).await.expect("the admin may grant");
        }
        self.client(tenant, "app").await
    }
}
