//! What the tests of this crate share: one engine, the example plugins compiled once, batches.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use millstream_guests::Guest;

use crate::columns::{Columns, NONE};
use crate::engine::{EngineConfig, PluginEngine};
use crate::error::Label;
use crate::limits::Limits;
use crate::logbook::{LogBook, LogLimits};
use crate::registry::{Plugin, Registry};
use crate::run::{Outlet, Runner, RunnerSpec};

struct Shared {
    registry: Registry,
    plugins: Mutex<HashMap<&'static str, Arc<Plugin>>>,
    _directory: tempfile::TempDir,
}

/// Compiling an example takes longer than testing it, so the tests of one process share them.
static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let engine = PluginEngine::new(EngineConfig::default()).unwrap();
    let registry = Registry::open(engine, directory.path().join("artifacts")).unwrap();
    // A static is never dropped; without the directory the registry keeps nothing on disk.
    std::fs::remove_dir_all(directory.path()).unwrap();
    Shared {
        registry,
        plugins: Mutex::default(),
        _directory: directory,
    }
});

pub(crate) fn engine() -> &'static PluginEngine {
    SHARED.registry.engine()
}

pub(crate) fn plugin(guest: Guest) -> Arc<Plugin> {
    let mut plugins = SHARED.plugins.lock().unwrap();
    let load = || SHARED.registry.load(guest.wasm).unwrap();
    Arc::clone(plugins.entry(guest.name).or_insert_with(load))
}

/// Generous in CPU time, since tests run unoptimised and side by side, and without penalties.
pub(crate) fn limits() -> Limits {
    Limits {
        call_cpu: Duration::from_secs(20),
        init_cpu: Duration::from_secs(20),
        cpu_burst: Duration::from_secs(1000),
        penalty_factor: 0,
        ..Limits::default()
    }
}

pub(crate) fn spec(config: &[(&str, &str)], limits: Limits) -> RunnerSpec {
    let outlet = |name: &str, partitions| Outlet {
        name: name.into(),
        partitions,
    };
    RunnerSpec {
        label: Label::for_test(),
        tenant: "acme".parse().unwrap(),
        inputs: vec!["acme/quakes".into()],
        outputs: vec![outlet("alerts", 4), outlet("log", 2)],
        config: config
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
        limits,
        log: Arc::new(LogBook::new(LogLimits::default(), Arc::new(|| 1_000))),
        counters: Arc::default(),
    }
}

pub(crate) fn runner(guest: Guest, config: &[(&str, &str)]) -> Runner {
    Runner::new(engine(), plugin(guest), spec(config, limits())).unwrap()
}

/// A record of a test batch.
#[derive(Clone, Default)]
pub(crate) struct Rec {
    pub(crate) key: Option<&'static str>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

pub(crate) fn value(value: impl AsRef<[u8]>) -> Rec {
    Rec {
        value: Some(value.as_ref().to_vec()),
        ..Rec::default()
    }
}

/// An owned batch.
#[derive(Default)]
pub(crate) struct TestBatch {
    data: Vec<u8>,
    spans: Vec<u32>,
    headers: Vec<u32>,
    timestamps: Vec<i64>,
    offsets: Vec<i64>,
}

impl TestBatch {
    pub(crate) fn new(records: impl IntoIterator<Item = Rec>) -> Self {
        let mut batch = Self::default();
        for (index, record) in records.into_iter().enumerate() {
            let [key, key_len] = batch.piece(record.key.map(str::as_bytes));
            let [value, value_len] = batch.piece(record.value.as_deref());
            let first = u32::try_from(batch.headers.len() / 4).unwrap();
            let count = u32::try_from(record.headers.len()).unwrap();
            for (name, value) in record.headers {
                for text in [name, value] {
                    let span = batch.piece(Some(text.as_bytes()));
                    batch.headers.extend(span);
                }
            }
            batch
                .spans
                .extend([key, key_len, value, value_len, first, count]);
            batch.timestamps.push(i64::try_from(index).unwrap());
            batch.offsets.push(i64::try_from(index).unwrap());
        }
        batch
    }

    fn piece(&mut self, bytes: Option<&[u8]>) -> [u32; 2] {
        let at = u32::try_from(self.data.len()).unwrap();
        match bytes {
            None => [0, NONE],
            Some(bytes) => {
                self.data.extend_from_slice(bytes);
                [at, u32::try_from(bytes.len()).unwrap()]
            }
        }
    }

    pub(crate) fn columns(&self) -> Columns<'_> {
        Columns {
            data: &self.data,
            spans: &self.spans,
            headers: &self.headers,
            timestamps: &self.timestamps,
            offsets: &self.offsets,
            ..Columns::default()
        }
    }
}

/// Three records: a weak earthquake, a strong one with a header, and one that is no JSON.
pub(crate) fn quakes() -> TestBatch {
    TestBatch::new([
        Rec {
            key: Some("a"),
            ..value(r#"{"id":"a","mag":1.5,"lon":-150.0,"lat":61.0}"#)
        },
        Rec {
            key: Some("b"),
            headers: vec![("source", "us")],
            ..value(r#"{"id":"b","mag":6.5,"lon":-118.0,"lat":34.0,"place":"LA"}"#)
        },
        value(r#"{"id":"c","mag":4.5,"lon":-155.0,"lat":19.5}"#),
    ])
}

pub(crate) fn load(wasm: &[u8]) -> Arc<Plugin> {
    SHARED.registry.load(wasm).unwrap()
}
