//! The configuration file as it is written: optional keys, plain types, unknown keys refused.
//!
//! Each `check` takes its table apart whole, so that a new key breaks the build until something
//! is done with it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use millstream_plugin::EngineConfig;
use millstream_plugin::limits::{Limits, MAX_INSTANCES};
use serde::Deserialize;

use super::{
    BackupConfig, Config, ConfigError, MetricsConfig, PluginsConfig, StorageConfig, TlsFiles,
    TransportConfig, millis,
};
use crate::backup::Target;
use crate::limits::{
    ADDRESS_HANDSHAKES, BACKUP_BYTES_PER_SECOND, BACKUP_MIB_PER_S, CACHE_MIB, CONNECTIONS, HOT_MIB,
    MTU, TAIL_MIB,
};
use crate::tls::Identity;

mod identity;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    listen: Option<String>,
    data_dir: PathBuf,
    #[serde(default)]
    admins: Vec<String>,
    tls: Tls,
    #[serde(default)]
    identity: identity::Raw,
    #[serde(default)]
    transport: Transport,
    #[serde(default)]
    storage: Storage,
    #[serde(default)]
    plugins: Plugins,
    backup: Option<Backup>,
    metrics: Option<Metrics>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    #[serde(default)]
    crl: Files,
}

/// One file, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a file's name, or a list of them")]
enum Files {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

impl Default for Files {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Files {
    fn all(self) -> Vec<PathBuf> {
        match self {
            Self::One(file) => vec![file],
            Self::Several(files) => files,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transport {
    mtu: Option<u64>,
    max_connections: Option<u64>,
    handshakes_per_address: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Storage {
    cache_mib: Option<u64>,
    hot_mib: Option<u64>,
    tail_mib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugins {
    instances: Option<u64>,
    memory_mib: Option<u64>,
    call_cpu_ms: Option<u64>,
    init_cpu_ms: Option<u64>,
    cpu_share: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    target: String,
    mib_per_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metrics {
    listen: String,
}

/// The address of a broker whose configuration names none.
const DEFAULT_LISTEN: &str = "127.0.0.1:7440";

impl Raw {
    pub(super) fn check(self, base: &Path) -> Result<Config, ConfigError> {
        let Self {
            listen,
            data_dir,
            admins,
            tls,
            identity,
            transport,
            storage,
            plugins,
            backup,
            metrics,
        } = self;
        let listen = listen.unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
        let listen = listen.parse().map_err(|_| {
            value(
                "listen",
                &listen,
                "it must be an IP address and a port, as 0.0.0.0:7440",
            )
        })?;
        if data_dir.as_os_str().is_empty() {
            return Err(value("data_dir", "", "it must name a directory"));
        }
        let admins = admins.iter().map(|admin| {
            admin.parse().map_err(|e: millstream_proto::NameError| {
                value("admins", admin, &format!("each must be a principal: {e}"))
            })
        });
        Ok(Config {
            listen,
            data_dir: base.join(data_dir),
            admins: admins.collect::<Result<_, _>>()?,
            tls: tls.check(base, identity.check()?)?,
            transport: transport.check()?,
            storage: storage.check()?,
            plugins: plugins.check()?,
            backup: backup.map(|backup| backup.check(base)).transpose()?,
            metrics: metrics.map(Metrics::check).transpose()?,
            source: None,
        })
    }
}

impl Tls {
    fn check(self, base: &Path, identity: Identity) -> Result<TlsFiles, ConfigError> {
        let Self {
            cert,
            key,
            client_ca,
            crl,
        } = self;
        let path = |name, path: PathBuf| {
            if path.as_os_str().is_empty() {
                return Err(value(name, "", "it must name a PEM file"));
            }
            Ok(base.join(path))
        };
        let lists = crl.all().into_iter().map(|list| path("tls.crl", list));
        Ok(TlsFiles {
            cert: path("tls.cert", cert)?,
            key: path("tls.key", key)?,
            client_ca: path("tls.client_ca", client_ca)?,
            revocation_lists: lists.collect::<Result<_, _>>()?,
            identity,
        })
    }
}

impl Transport {
    fn check(self) -> Result<TransportConfig, ConfigError> {
        let Self {
            mtu,
            max_connections,
            handshakes_per_address,
        } = self;
        let default = TransportConfig::default();
        Ok(TransportConfig {
            mtu: number("transport.mtu", mtu, MTU, default.mtu)?,
            max_connections: number(
                "transport.max_connections",
                max_connections,
                CONNECTIONS,
                default.max_connections,
            )?,
            handshakes_per_address: number(
                "transport.handshakes_per_address",
                handshakes_per_address,
                ADDRESS_HANDSHAKES,
                default.handshakes_per_address,
            )?,
        })
    }
}

impl Storage {
    fn check(self) -> Result<StorageConfig, ConfigError> {
        let Self {
            cache_mib,
            hot_mib,
            tail_mib,
        } = self;
        let default = StorageConfig::default();
        Ok(StorageConfig {
            cache_bytes: mib(
                "storage.cache_mib",
                cache_mib,
                CACHE_MIB,
                default.cache_bytes,
            )?,
            hot_bytes: mib("storage.hot_mib", hot_mib, HOT_MIB, default.hot_bytes)?,
            tail_bytes: mib("storage.tail_mib", tail_mib, TAIL_MIB, default.tail_bytes)?,
        })
    }
}

/// The keys of `[plugins]` that set a field of [`Limits`], by the field's name.
const LIMIT_KEYS: [(&str, &str); 5] = [
    ("memory_bytes", "plugins.memory_mib"),
    ("high_water_bytes", "plugins.memory_mib"),
    ("call_cpu", "plugins.call_cpu_ms"),
    ("init_cpu", "plugins.init_cpu_ms"),
    ("cpu_share", "plugins.cpu_share"),
];

impl Plugins {
    fn check(self) -> Result<PluginsConfig, ConfigError> {
        let Self {
            instances,
            memory_mib,
            call_cpu_ms,
            init_cpu_ms,
            cpu_share,
        } = self;
        let default = EngineConfig::default().instances;
        let instances = number(
            "plugins.instances",
            instances,
            1..=u64::from(MAX_INSTANCES),
            default,
        )?;
        let mut limits = Limits::default();
        let most = (millstream_plugin::limits::MAX_MEMORY_BYTES >> 20) as u64;
        limits.memory_bytes = mib(
            "plugins.memory_mib",
            memory_mib,
            1..=most,
            limits.memory_bytes,
        )?;
        if memory_mib.is_some() {
            // The same headroom below the cap as the default has.
            limits.high_water_bytes = limits.memory_bytes / 4 * 3;
        }
        limits.call_cpu = call_cpu_ms.map_or(limits.call_cpu, millis);
        limits.init_cpu = init_cpu_ms.map_or(limits.init_cpu, millis);
        limits.cpu_share = cpu_share.unwrap_or(limits.cpu_share);
        limits.check().map_err(|bad| {
            let key = LIMIT_KEYS.iter().find(|(field, _)| *field == bad.name);
            let key = key.map_or("plugins", |(_, key)| key);
            value(key, &bad.given, &format!("it must be {}", bad.expected))
        })?;
        Ok(PluginsConfig {
            engine: EngineConfig { instances },
            limits,
        })
    }
}

impl Backup {
    fn check(self, base: &Path) -> Result<BackupConfig, ConfigError> {
        let Self { target, mib_per_s } = self;
        // A directory is relative to the file, as all are.
        let target = match target.contains("://") || target.is_empty() {
            true => target,
            false => base.join(target).display().to_string(),
        };
        Target::check(&target).map_err(|wrong| {
            let expected = format!(
                "{wrong}; it must be a directory, or a URL of file://, s3://, gs:// or az://"
            );
            value("backup.target", &target, &expected)
        })?;
        let default = BACKUP_BYTES_PER_SECOND >> 20;
        let mib = number("backup.mib_per_s", mib_per_s, BACKUP_MIB_PER_S, default)?;
        Ok(BackupConfig {
            target,
            bytes_per_second: mib << 20,
        })
    }
}

impl Metrics {
    fn check(self) -> Result<MetricsConfig, ConfigError> {
        let Self { listen } = self;
        let listen = listen.parse().map_err(|_| {
            let expected = "it must be an IP address and a port, as 127.0.0.1:9464";
            value("metrics.listen", &listen, expected)
        })?;
        Ok(MetricsConfig { listen })
    }
}

fn value(key: &'static str, given: &str, expected: &str) -> ConfigError {
    ConfigError::Value {
        key,
        given: format!("{given:?}"),
        expected: expected.to_owned(),
    }
}

fn within(key: &'static str, n: u64, range: &RangeInclusive<u64>) -> Result<u64, ConfigError> {
    if range.contains(&n) {
        return Ok(n);
    }
    Err(ConfigError::Value {
        key,
        given: n.to_string(),
        expected: format!("{} to {} are allowed", range.start(), range.end()),
    })
}

/// A whole number in its range, or the default; `range` must fit `T`.
fn number<T: TryFrom<u64>>(
    key: &'static str,
    given: Option<u64>,
    range: RangeInclusive<u64>,
    default: T,
) -> Result<T, ConfigError> {
    let Some(given) = given else {
        return Ok(default);
    };
    let n = within(key, given, &range)?;
    T::try_from(n).map_err(|_| value(key, &n.to_string(), "it is too large for this machine"))
}

/// A size given in MiB as bytes, or the default, which is in bytes.
fn mib(
    key: &'static str,
    given: Option<u64>,
    range: RangeInclusive<u64>,
    default: usize,
) -> Result<usize, ConfigError> {
    let Some(given) = given else {
        return Ok(default);
    };
    number(key, Some(given), range, 0).map(|mib: usize| mib << 20)
}
