//! How the broker is set up: a TOML file, read at the start and checked whole. Some of it is read
//! again while the broker runs (see [`crate::credentials`]).
//!
//! [`raw`] is the file as it is written; [`Config`] is what the rest of the broker sees, with
//! every value in its range and every path resolved. What is absent: anything that can be changed
//! while the broker runs (topics, plugins, access rules) lives in the store, and nothing is read
//! from the environment.
//!
//! ```
//! use std::path::Path;
//! let text = r#"
//!     listen = "127.0.0.1:7440"
//!     data_dir = "data"
//!     admins = ["spiffe://millstream.local/ops/admin"]
//!     [tls]
//!     cert = "server.pem"
//!     key = "server.key"
//!     client_ca = "ca.pem"
//! "#;
//! let config = millstream_broker::Config::from_toml(text, Path::new("/etc/millstream"))?;
//! assert_eq!(config.data_dir, Path::new("/etc/millstream/data"));
//! # Ok::<(), millstream_broker::config::ConfigError>(())
//! ```

mod raw;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream_plugin::EngineConfig;
use millstream_plugin::limits::Limits;
use millstream_proto::Principal;

use crate::limits::{
    ADDRESS_HANDSHAKES_PER_SECOND, BACKUP_BYTES_PER_SECOND, DEFAULT_MTU, MAX_CONNECTIONS,
    TAIL_BYTES,
};
use crate::tls::Identity;

/// How the broker is set up. Made by [`Config::load`], [`Config::from_toml`] or [`Config::new`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen; port 0 lets the system choose one.
    pub listen: SocketAddr,
    /// The directory of the store, its cache of compiled plugins and nothing else.
    pub data_dir: PathBuf,
    /// Who may do everything. Everybody else may do what access rules allow.
    pub admins: Vec<Principal>,
    /// Certificates.
    pub tls: TlsFiles,
    /// QUIC.
    pub transport: TransportConfig,
    /// The store and what is kept of it in memory.
    pub storage: StorageConfig,
    /// Plugins.
    pub plugins: PluginsConfig,
    /// Where backups go that are asked for while the broker runs; none are made without it.
    pub backup: Option<BackupConfig>,
    /// Figures for Prometheus; nobody listens for who asks for them without it.
    pub metrics: Option<MetricsConfig>,
    /// The file that all this comes from, which is read again with the certificates.
    pub source: Option<PathBuf>,
}

/// Figures for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// Where to listen, over TCP; port 0 lets the system choose one. On a loopback address whoever
    /// is on the machine may read, on any other administrators, with their certificates.
    pub listen: SocketAddr,
}

impl MetricsConfig {
    /// Figures at this address.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen }
    }
}

/// Backups that are made while the broker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupConfig {
    /// Where they go: see [`crate::backup::Target::open`].
    pub target: String,
    /// Most bytes that one reads, and sends, in a second.
    pub bytes_per_second: u64,
}

impl BackupConfig {
    /// Backups at `target`, no faster than usual.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            bytes_per_second: BACKUP_BYTES_PER_SECOND,
        }
    }
}

/// What proves who is who: files, all PEM, and the field of certificates that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The broker's certificate, followed by intermediates if there are some.
    pub cert: PathBuf,
    /// Its private key; refused when others than its owner may read it.
    pub key: PathBuf,
    /// The authorities that vouch for clients.
    pub client_ca: PathBuf,
    /// Certificate revocation lists of those authorities.
    pub revocation_lists: Vec<PathBuf>,
    /// Where in a client's certificate it says who the client is.
    pub identity: Identity,
}

impl TlsFiles {
    /// The three files that there must be.
    pub fn new(
        cert: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        client_ca: impl Into<PathBuf>,
    ) -> Self {
        Self {
            cert: cert.into(),
            key: key.into(),
            client_ca: client_ca.into(),
            revocation_lists: Vec::new(),
            identity: Identity::default(),
        }
    }
}

/// Settings of the QUIC listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportConfig {
    /// Largest UDP payload that path discovery tries, in bytes, 1200 to 6500. Above 1452 only
    /// where every link carries it: loopback, or jumbo frames.
    pub mtu: u16,
    /// Most open connections; further ones are refused as overloaded. Read again with the
    /// certificates.
    pub max_connections: u32,
    /// Most handshakes that begin in a second from one address (or one network of IPv6), after
    /// twice as many at once. Read again with the certificates.
    pub handshakes_per_address: u32,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            mtu: DEFAULT_MTU,
            max_connections: MAX_CONNECTIONS as u32,
            handshakes_per_address: ADDRESS_HANDSHAKES_PER_SECOND,
        }
    }
}

/// Settings of the store and the caches above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageConfig {
    /// Page cache of the store, in bytes.
    pub cache_bytes: usize,
    /// What the hot file may take on the disk, in bytes, before records move to segments and
    /// appends wait for that; see [`millstream_store::RedbConfig::hot_bytes`].
    pub hot_bytes: usize,
    /// Newest records kept in memory over all partitions, in bytes, so that live consumers are
    /// served without touching the store.
    pub tail_bytes: usize,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            cache_bytes: millstream_store::limits::DEFAULT_CACHE_BYTES,
            hot_bytes: millstream_store::limits::DEFAULT_HOT_BYTES as usize,
            tail_bytes: TAIL_BYTES,
        }
    }
}

/// What plugins may use.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct PluginsConfig {
    /// The engine that all share.
    pub engine: EngineConfig,
    /// The caps of each instance.
    pub limits: Limits,
}

/// Why the broker's configuration cannot be used. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; the text shows the line.
    #[error("the configuration cannot be understood: {0}")]
    Syntax(String),
    /// A value outside its range.
    #[error("the configuration says {key} = {given}, but {expected}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// What the file says.
        given: String,
        /// What would be right, as the end of a sentence.
        expected: String,
    },
    /// As [`ConfigError::Syntax`] or [`ConfigError::Value`], with the file's name.
    #[error("{}: {source}", file.display())]
    InFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: Box<ConfigError>,
    },
}

impl Config {
    /// Everything at its default but what has none. Nobody is an admin.
    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>, tls: TlsFiles) -> Self {
        Self {
            listen,
            data_dir: data_dir.into(),
            admins: Vec::new(),
            tls,
            transport: TransportConfig::default(),
            storage: StorageConfig::default(),
            plugins: PluginsConfig::default(),
            backup: None,
            metrics: None,
            source: None,
        }
    }

    /// Reads a file. Relative paths in it are relative to its directory. Blocking.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, and the key or line where it is one.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        let base = file.parent().unwrap_or(Path::new(""));
        let config = Self::from_toml(&text, base).map_err(|e| ConfigError::InFile {
            file: file.to_owned(),
            source: Box::new(e),
        })?;
        Ok(Self {
            source: Some(file.to_owned()),
            ..config
        })
    }

    /// What of another configuration would take effect with the next start only.
    pub(crate) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            listen,
            data_dir,
            admins,
            tls: _,
            transport,
            storage,
            plugins,
            backup,
            metrics,
            source: _,
        } = other;
        let TransportConfig {
            mtu,
            max_connections: _,
            handshakes_per_address: _,
        } = transport;
        let fixed = [
            ("listen", *listen != self.listen),
            ("data_dir", *data_dir != self.data_dir),
            ("admins", *admins != self.admins),
            ("transport.mtu", *mtu != self.transport.mtu),
            ("storage", *storage != self.storage),
            ("plugins", *plugins != self.plugins),
            ("backup", *backup != self.backup),
            ("metrics", *metrics != self.metrics),
        ];
        let changed = fixed.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(name, _)| name).collect()
    }

    /// Checks the text of a configuration; relative paths in it are relative to `base`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::Value`]: the first thing that is wrong.
    pub fn from_toml(text: &str, base: &Path) -> Result<Self, ConfigError> {
        let raw: raw::Raw = toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        raw.check(base)
    }
}

/// A time in whole milliseconds.
fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests;
