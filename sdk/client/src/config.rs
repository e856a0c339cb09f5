//! Where the broker is, who the client is, and how patient it is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millstream_proto::version::ALPN;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::retry::Backoff;
use crate::transport::{TransportSettings, crypto_provider};

/// Largest PEM file that is read, in bytes.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No address, or one that is not `host:port`.
    #[error("{given:?} is not an address of the form host:port, such as localhost:7440")]
    Address {
        /// What was given.
        given: String,
    },
    /// A name that no certificate can carry.
    #[error(
        "{given:?} is not a DNS name or IP address; set the server name to one in the broker's certificate"
    )]
    ServerName {
        /// What was given.
        given: String,
    },
    /// A PEM file that cannot be read.
    #[error("cannot read the {what} {path}: {why}", path = path.display())]
    Read {
        /// Which of the three.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A private key that others can read.
    #[error(
        "the private key {path} has mode {mode:04o}, so others can read it: run `chmod 600 {path}`",
        path = path.display()
    )]
    KeyTooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not PEM, or nothing of the right kind in it.
    #[error("the {what} {from} cannot be used: {why}")]
    Pem {
        /// Which of the three.
        what: &'static str,
        /// The file, or "given in memory".
        from: String,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key do not belong together, or use an unknown algorithm.
    #[error("the client certificate and its private key cannot be used together: {why}")]
    Identity {
        /// What is wrong.
        why: String,
    },
}

/// PEM text, in a file or in memory.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// Read when the client connects.
    File(PathBuf),
    /// The text itself.
    Bytes(Vec<u8>),
}

impl fmt::Debug for Pem {
    /// Never shows contents: one of them is a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin())
    }
}

impl From<PathBuf> for Pem {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&Path> for Pem {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<Vec<u8>> for Pem {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl Pem {
    fn origin(&self) -> String {
        match self {
            Pem::File(path) => path.display().to_string(),
            Pem::Bytes(_) => "given in memory".to_owned(),
        }
    }

    fn read(&self, what: &'static str) -> Result<Vec<u8>, ConfigError> {
        let path = match self {
            Pem::Bytes(bytes) => return Ok(bytes.clone()),
            Pem::File(path) => path,
        };
        let failed = |why: String| ConfigError::Read {
            what,
            path: path.clone(),
            why,
        };
        let size = std::fs::metadata(path)
            .map_err(|e| failed(e.to_string()))?
            .len();
        if size > MAX_PEM_BYTES {
            return Err(failed(format!(
                "it has {size} bytes; at most {MAX_PEM_BYTES} are read"
            )));
        }
        std::fs::read(path).map_err(|e| failed(e.to_string()))
    }

    fn certificates(
        &self,
        what: &'static str,
    ) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        let bytes = self.read(what)?;
        let failed = |why: String| ConfigError::Pem {
            what,
            from: self.origin(),
            why,
        };
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let found = found.map_err(|e| failed(e.to_string()))?;
        if found.is_empty() {
            return Err(failed("there is no PEM certificate in it".to_owned()));
        }
        Ok(found)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, ConfigError> {
        const WHAT: &str = "private key";
        if let Pem::File(path) = self {
            check_key_mode(path)?;
        }
        let bytes = self.read(WHAT)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| ConfigError::Pem {
            what: WHAT,
            from: self.origin(),
            why: e.to_string(),
        })
    }
}

#[cfg(unix)]
fn check_key_mode(path: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::PermissionsExt;

    // A file that cannot be examined is reported by the reading of it.
    let Ok(metadata) = std::fs::metadata(path) else {
        return Ok(());
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::KeyTooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_key_mode(_path: &Path) -> Result<(), ConfigError> {
    Ok(())
}

/// Who the client is, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Certificates of the authorities that may vouch for the broker.
    pub ca: Pem,
    /// The client's certificate, and behind it those that lead to its authority.
    pub cert: Pem,
    /// The client's private key; a file must be readable by its owner only.
    pub key: Pem,
}

impl Identity {
    /// An identity from PEM files, or from PEM text in memory.
    pub fn new(ca: impl Into<Pem>, cert: impl Into<Pem>, key: impl Into<Pem>) -> Self {
        Self {
            ca: ca.into(),
            cert: cert.into(),
            key: key.into(),
        }
    }

    /// TLS 1.3 with mutual authentication, without resumption: a resumed session
    /// would not show its certificate again, and a revoked one would live on.
    ///
    /// # Errors
    /// When a PEM cannot be read or used; names the file.
    pub fn tls_config(&self) -> Result<rustls::ClientConfig, ConfigError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.ca.certificates("CA certificate")? {
            roots.add(certificate).map_err(|e| ConfigError::Pem {
                what: "CA certificate",
                from: self.ca.origin(),
                why: e.to_string(),
            })?;
        }
        let chain = self.cert.certificates("client certificate")?;
        let key = self.key.private_key()?;
        let identity = |e: rustls::Error| ConfigError::Identity { why: e.to_string() };
        let mut tls = rustls::ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(identity)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(identity)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.resumption = Resumption::disabled();
        Ok(tls)
    }
}

/// Everything a [`Client`](crate::Client) needs to know.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
/// use std::time::Duration;
/// use millstream::{Client, ClientConfig, Identity};
///
/// let identity = Identity::new(
///     Path::new("pki/ca.pem"),
///     Path::new("pki/ingest.pem"),
///     Path::new("pki/ingest.key"),
/// );
/// let config = ClientConfig::new("localhost:7440", identity)
///     .reconnect_deadline(Duration::from_secs(120));
/// let client = Client::connect(config).await?;
/// println!("connected as {}", client.principal());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub(crate) addrs: Vec<String>,
    pub(crate) server_name: Option<String>,
    pub(crate) identity: Identity,
    pub(crate) transport: TransportSettings,
    pub(crate) attempt_timeout: Duration,
    pub(crate) connect_deadline: Duration,
    pub(crate) reconnect_deadline: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) software: String,
}

impl ClientConfig {
    /// A broker at `addr` (`host:port`), with default patience.
    pub fn new(addr: impl Into<String>, identity: Identity) -> Self {
        Self {
            addrs: vec![addr.into()],
            server_name: None,
            identity,
            transport: TransportSettings::default(),
            attempt_timeout: Duration::from_secs(3),
            connect_deadline: Duration::from_secs(10),
            reconnect_deadline: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            backoff: Backoff::default(),
            software: concat!("millstream/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// A further address of the same broker, tried when those before it fail.
    #[must_use]
    pub fn also_at(mut self, addr: impl Into<String>) -> Self {
        self.addrs.push(addr.into());
        self
    }

    /// The name that the broker's certificate must carry. Default: the host in
    /// the address.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// QUIC settings.
    #[must_use]
    pub fn transport(mut self, transport: TransportSettings) -> Self {
        self.transport = transport;
        self
    }

    /// How long one attempt at one address may take. Default: 3 s.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }

    /// How long [`Client::connect`](crate::Client::connect) tries. Default: 10 s.
    #[must_use]
    pub fn connect_deadline(mut self, deadline: Duration) -> Self {
        self.connect_deadline = deadline;
        self
    }

    /// How long producers, consumers and requests try to get through without any
    /// progress before they fail. Default: 60 s.
    #[must_use]
    pub fn reconnect_deadline(mut self, deadline: Duration) -> Self {
        self.reconnect_deadline = deadline;
        self
    }

    /// How long a request waits for its answer. Default: 30 s.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Delays between attempts.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Name and version of the application, for the broker's log.
    #[must_use]
    pub fn software(mut self, name: impl Into<String>) -> Self {
        self.software = name.into();
        self
    }

    /// Where the client dials, first choice first.
    #[must_use]
    pub fn addrs(&self) -> &[String] {
        &self.addrs
    }

    /// The TLS settings and, for each address, the name its certificate must carry.
    pub(crate) fn check(&self) -> Result<Checked, ConfigError> {
        let mut targets = Vec::new();
        for addr in &self.addrs {
            let host = host_of(addr)?;
            let name = self.server_name.as_deref().unwrap_or(host);
            if rustls::pki_types::ServerName::try_from(name).is_err() {
                return Err(ConfigError::ServerName {
                    given: name.to_owned(),
                });
            }
            targets.push(Target {
                addr: addr.clone(),
                server_name: name.to_owned(),
            });
        }
        let tls = self.identity.tls_config()?;
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|e| {
            ConfigError::Identity {
                why: format!("the TLS library cannot serve QUIC: {e}"),
            }
        })?;
        let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
        quic.transport_config(self.transport.transport_config());
        Ok(Checked { targets, quic })
    }
}

/// A configuration whose files were read.
pub(crate) struct Checked {
    pub(crate) targets: Vec<Target>,
    pub(crate) quic: quinn::ClientConfig,
}

/// One address to dial.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) addr: String,
    pub(crate) server_name: String,
}

/// The host in `host:port` or `[v6]:port`.
fn host_of(addr: &str) -> Result<&str, ConfigError> {
    let bad = || ConfigError::Address {
        given: addr.to_owned(),
    };
    let (host, port) = addr.rsplit_once(':').ok_or_else(bad)?;
    if port.parse::<u16>().is_err() {
        return Err(bad());
    }
    let inner = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match inner {
        Some(v6) if !v6.is_empty() => Ok(v6),
        None if !host.is_empty() && !host.contains(':') => Ok(host),
        Some(_) | None => Err(bad()),
    }
}

/// Reads a whole small text file, for the context file.
pub(crate) fn read_small(path: &Path, max: u64) -> io::Result<String> {
    let size = std::fs::metadata(path)?.len();
    if size > max {
        return Err(io::Error::other(format!(
            "it has {size} bytes; at most {max} are read"
        )));
    }
    std::fs::read_to_string(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    fn certified() -> (Vec<u8>, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        (
            made.cert.pem().into_bytes(),
            made.signing_key.serialize_pem().into_bytes(),
        )
    }

    #[test]
    fn hosts_are_taken_from_addresses() {
        assert_eq!(host_of("localhost:7440"), Ok("localhost"));
        assert_eq!(host_of("127.0.0.1:1"), Ok("127.0.0.1"));
        assert_eq!(host_of("[::1]:7440"), Ok("::1"));
        for bad in [
            "",
            "localhost",
            ":1",
            "h:",
            "h:x",
            "h:99999",
            "::1:1",
            "[]:1",
        ] {
            assert!(host_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pem_in_memory_makes_an_identity_that_speaks_our_protocol() {
        let (cert, key) = certified();
        let tls = Identity::new(cert.clone(), cert, key).tls_config().unwrap();
        assert_eq!(tls.alpn_protocols, [ALPN.to_vec()]);
    }

    #[test]
    fn unusable_pem_is_named() {
        let (cert, key) = certified();
        let no_cert = Identity::new(key.clone(), cert.clone(), key.clone());
        let e = no_cert.tls_config().unwrap_err().to_string();
        assert!(
            e.contains("CA certificate") && e.contains("no PEM certificate"),
            "{e}"
        );
        let (_, other) = certified();
        let mixed = Identity::new(cert.clone(), cert.clone(), other);
        assert!(matches!(
            mixed.tls_config(),
            Err(ConfigError::Identity { .. })
        ));
        let missing = Identity::new(Path::new("/nonexistent/ca.pem"), cert, key);
        let e = missing.tls_config().unwrap_err().to_string();
        assert!(e.contains("/nonexistent/ca.pem"), "{e}");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = certified();
        let path = dir.path().join("me.key");
        std::fs::write(&path, key).unwrap();
        let identity = Identity::new(cert.clone(), cert, path.as_path());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let e = identity.tls_config().unwrap_err().to_string();
        assert!(e.contains("chmod 600") && e.contains("0640"), "{e}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(identity.tls_config().is_ok());
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let (cert, key) = certified();
        let shown = format!("{:?}", Identity::new(cert.clone(), cert, key));
        assert!(
            !shown.contains("PRIVATE") && shown.contains("in memory"),
            "{shown}"
        );
    }
}
