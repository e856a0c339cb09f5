//! What is in force of certificates, authorities, revocation lists and the settings that go with
//! them, and how the next takes its place while the broker runs.
//!
//! Something broken never takes its place: then what was in force stays, and says so in the log, in
//! the status and in a counter. Absent: everything else in the configuration; it is read at the
//! start only, and a change of it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_proto::Principal;
use quinn::{Endpoint, ServerConfig};
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::config::{Config, ConfigError, TlsFiles};
use crate::door::DoorLimits;
use crate::tls::{self, TlsError, Verifier};

/// Why nothing new is in force. What was, still is.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate, a key or a list cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The broker shuts down.
    #[error("reading the files was interrupted")]
    Interrupted,
}

/// What came of reading everything again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Tables and keys of the configuration that are not as they were at the start: they take
    /// effect with the next one.
    pub restart: Vec<&'static str>,
    /// Connections that were ended, because what they showed is not accepted any more.
    pub ended: u64,
}

/// What was read in one go.
pub(crate) struct Material {
    files: TlsFiles,
    door: DoorLimits,
    pub(crate) restart: Vec<&'static str>,
    tls: tls::Loaded,
}

impl Material {
    /// As the configuration says that the broker was started with. Blocking.
    pub(crate) fn first(config: &Config) -> Result<Self, TlsError> {
        Ok(Self {
            files: config.tls.clone(),
            door: DoorLimits::of(&config.transport),
            restart: Vec::new(),
            tls: tls::load(&config.tls)?,
        })
    }

    /// As the configuration's file says now; as the broker was started with, if it was not from a
    /// file. Blocking.
    pub(crate) fn again(started: &Config) -> Result<Self, ReloadError> {
        let Some(file) = &started.source else {
            return Ok(Self::first(started)?);
        };
        let config = Config::load(file)?;
        let restart = started.fixed_differences(&config);
        Ok(Self {
            restart,
            ..Self::first(&config)?
        })
    }
}

/// What is in force.
pub(crate) struct InForce {
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) files: TlsFiles,
    pub(crate) door: DoorLimits,
    pub(crate) restart: Vec<&'static str>,
    /// Counts how often something took the place of something else.
    generation: u64,
    /// The last millisecond of the broker's own certificate, since the Unix epoch.
    pub(crate) until_ms: Option<i64>,
}

/// Certificates and what goes with them.
pub struct Credentials {
    /// Everything but TLS, which is replaced.
    template: ServerConfig,
    in_force: Mutex<Arc<InForce>>,
    trouble: Mutex<Option<String>>,
    reloads: AtomicU64,
    failures: AtomicU64,
    ended: AtomicU64,
    /// One reload at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Credentials {
    /// The first ones; with them the settings of the endpoint, to which `tune` adds what else
    /// there is to set.
    pub(crate) fn new(material: Material, tune: impl FnOnce(&mut ServerConfig)) -> Self {
        let Material {
            files,
            door,
            restart,
            tls,
        } = material;
        let mut template = ServerConfig::with_crypto(Arc::new(tls.quic));
        tune(&mut template);
        let in_force = InForce {
            verifier: tls.verifier,
            files,
            door,
            restart,
            generation: 0,
            until_ms: tls.until_ms,
        };
        Self {
            template,
            in_force: Mutex::new(Arc::new(in_force)),
            trouble: Mutex::default(),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The settings for the endpoint.
    pub(crate) fn server_config(&self) -> ServerConfig {
        self.template.clone()
    }

    /// What is in force.
    pub(crate) fn now(&self) -> Arc<InForce> {
        Arc::clone(&lock(&self.in_force))
    }

    /// Which handshakes are to be looked at again: those that began with another number.
    pub(crate) fn generation(&self) -> u64 {
        lock(&self.in_force).generation
    }

    /// Puts something new in force, for every handshake that begins from now on.
    pub(crate) fn replace(&self, material: Material, endpoint: &Endpoint) {
        let Material {
            files,
            door,
            restart,
            tls,
        } = material;
        let mut server = self.template.clone();
        server.crypto = Arc::new(tls.quic);
        // Before the number: a handshake that saw the new one has the new settings.
        endpoint.set_server_config(Some(server));
        let mut in_force = lock(&self.in_force);
        *in_force = Arc::new(InForce {
            verifier: tls.verifier,
            files,
            door,
            restart,
            generation: in_force.generation + 1,
            until_ms: tls.until_ms,
        });
        drop(in_force);
        *lock(&self.trouble) = None;
        self.reloads.fetch_add(1, Ordering::Relaxed);
    }

    /// Something broken was not put in force.
    pub(crate) fn keep(&self, why: &ReloadError) {
        *lock(&self.trouble) = Some(why.to_string());
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections were ended.
    pub(crate) fn count_ended(&self, n: u64) {
        self.ended.fetch_add(n, Ordering::Relaxed);
    }

    /// Why what the files hold now is not in force; `None` when it is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// How often the files were read again and put in force.
    #[must_use]
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Relaxed)
    }

    /// How often what was read again could not be used.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Connections that were ended because what they had shown was not accepted any more.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Who holds these certificates, if they are good now.
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Principal, rustls::Error> {
        self.now().verifier.verify(chain, UnixTime::now())
    }
}
