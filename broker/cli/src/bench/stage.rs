//! Where a bench takes place: certificates, a broker, a sink, and clients of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use millstream::{Client, ClientConfig, Identity, TransportSettings};
use quinn::crypto::rustls::QuicClientConfig;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::BenchArgs;
use super::quic::Floor;
use crate::child::{Broker, Place};
use crate::error::{CliError, Outcome};
use crate::link;
use crate::pki::{self, InitRequest, KeyKind, Layout};

/// Days that the certificates are good for.
const DAYS: u32 = 1;

/// A directory with certificates, from which brokers and sinks are started.
pub(super) struct Stage {
    dir: TempDir,
    mtu: u16,
    brokers: AtomicU32,
}

/// The sink's process. Dropping it kills it.
pub(super) struct SinkProcess {
    _child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl Stage {
    pub(super) fn new(args: &BenchArgs) -> Outcome<Self> {
        let dir = match &args.dir {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir(),
        };
        let dir =
            dir.map_err(|e| CliError::failure(format!("cannot make a temporary directory: {e}")))?;
        let request = InitRequest {
            domain: "bench.local".to_owned(),
            tenant: pki::ADMIN_TENANT.to_owned(),
            admin: pki::ADMIN_NAME.to_owned(),
            hosts: Vec::new(),
            days: DAYS,
            keys: KeyKind::P256,
        };
        pki::init(&dir.path().join("pki"), &request).map_err(CliError::failure)?;
        Ok(Self {
            dir,
            mtu: args.mtu,
            brokers: AtomicU32::new(0),
        })
    }

    /// Where everything lies.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn pki(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    fn transport(&self) -> TransportSettings {
        TransportSettings {
            mtu: self.mtu,
            ..TransportSettings::default()
        }
    }

    fn identity(&self) -> Identity {
        let layout = Layout::new(&self.pki());
        let pair = layout.client(pki::ADMIN_TENANT, pki::ADMIN_NAME);
        Identity::new(layout.authority().certificate, pair.certificate, pair.key)
    }

    /// A place for a broker that nobody has used yet, with the settings brokers have by themselves.
    pub(super) fn place(&self) -> Outcome<Place> {
        self.place_with("")
    }

    /// The same with a hot file that holds what one round of `args` appends.
    pub(super) fn hot_place(&self, args: &BenchArgs) -> Outcome<Place> {
        let mib = args.hot_bytes >> 20;
        self.place_with(&format!("[storage]\nhot_mib = {mib}\n"))
    }

    /// The same with more in its configuration.
    pub(super) fn place_with(&self, more: &str) -> Outcome<Place> {
        let number = self.brokers.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.path();
        let config = dir.join(format!("broker-{number}.toml"));
        let place = Place {
            pki: self.pki(),
            data: dir.join(format!("data-{number}")),
            log: dir.join("broker.log"),
            config: Some(config.clone()),
        };
        let layout = Layout::new(&self.pki());
        let (server, authority) = (layout.server(), layout.authority());
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\nadmins = [\"spiffe://bench.local/{}/{}\"]\n\
             [tls]\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n[transport]\nmtu = {}\n{more}",
            place.data,
            pki::ADMIN_TENANT,
            pki::ADMIN_NAME,
            server.certificate,
            server.key,
            authority.certificate,
            self.mtu
        );
        std::fs::write(&config, text).map_err(|e| CliError::file("write", &config, &e))?;
        Ok(place)
    }

    /// Starts a broker.
    pub(super) async fn broker(&self, place: &Place) -> Outcome<Broker> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Broker::start(place, any).await.map_err(CliError::failure)
    }

    /// Removes what a broker stored.
    pub(super) fn clear(&self, place: &Place) -> Outcome {
        let removed = std::fs::remove_dir_all(&place.data);
        removed.map_err(|e| CliError::file("remove", &place.data, &e))
    }

    /// A client that may do everything.
    pub(super) async fn client(&self, broker: &Broker) -> Outcome<Client> {
        link::connect_with(self.client_config(broker)).await
    }

    /// What such a client is made of.
    pub(super) fn client_config(&self, broker: &Broker) -> ClientConfig {
        let config = ClientConfig::new(broker.addr().to_string(), self.identity());
        config.transport(self.transport())
    }

    /// Starts a sink and connects to it with the client's own settings.
    pub(super) async fn floor(&self) -> Outcome<Floor> {
        let program = std::env::current_exe().map_err(CliError::failure)?;
        let mut child = Command::new(program)
            .args(["bench-sink", "--mtu", &self.mtu.to_string(), "--pki"])
            .arg(self.pki())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| CliError::failure(format!("cannot start the sink: {e}")))?;
        let silent = || CliError::failure("the sink did not say where it listens");
        let mut stdout = BufReader::new(child.stdout.take().ok_or_else(silent)?);
        let mut line = String::new();
        stdout
            .read_line(&mut line)
            .await
            .map_err(CliError::failure)?;
        let addr: SocketAddr = line.trim().parse().map_err(|_| silent())?;
        let tls = self.identity().tls_config().map_err(CliError::failure)?;
        let crypto = QuicClientConfig::try_from(tls).map_err(CliError::failure)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport().transport_config());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = self
            .transport()
            .client_endpoint(any)
            .map_err(CliError::failure)?;
        let connecting = endpoint
            .connect_with(config, addr, "localhost")
            .map_err(CliError::failure)?;
        let connection = connecting.await.map_err(CliError::failure)?;
        Ok(Floor::new(
            connection,
            SinkProcess {
                _child: child,
                _stdout: stdout,
            },
        ))
    }
}
