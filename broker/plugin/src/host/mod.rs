//! What a guest can reach of the host: one file per import, and the state they share.
//!
//! A guest reaches its own configuration, its log, its counters, and the WASI interfaces that
//! every std program links, over nothing: no files, no network, no environment, no arguments, no
//! real time, no real randomness.

mod config;
mod limiter;
mod logging;
mod metrics;
mod stdio;
mod wasi;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use millstream_proto::message::Digest;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::WasiCtx;

pub(crate) use self::limiter::Limiter;
use self::stdio::LineWriter;
pub(crate) use self::wasi::{LINKED, VERSION};
use crate::bindings::{AnyModule, millstream};
use crate::counters::Counters;
use crate::error::Label;
use crate::limits::{Limits, MAX_RESOURCES};
use crate::logbook::{LogBook, LogLevel};

/// What the host functions of one runner work on.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// The owner's configuration of this use of the plugin.
    pub(crate) config: Arc<Vec<(String, String)>>,
    /// Where log lines and standard output go.
    pub(crate) log: Arc<LogBook>,
    /// Who logs.
    pub(crate) label: Arc<Label>,
    /// Where counts go.
    pub(crate) counters: Arc<Counters>,
    /// The guest's wall clock in milliseconds since the Unix epoch; moved by the runner only.
    pub(crate) now_ms: Arc<AtomicI64>,
    /// What the guest's randomness comes from: the same again for the same plugin and partition.
    pub(crate) seed: [u8; 32],
}

/// The state of one instance on the host's side.
pub(crate) struct HostState {
    wasi: WasiCtx,
    table: ResourceTable,
    stderr: LineWriter,
    stdout: LineWriter,
    around: Surroundings,
    crossing_bytes: usize,
    /// Grants or refuses memory and tables.
    pub(crate) limiter: Limiter,
}

impl HostState {
    pub(crate) fn new(around: &Surroundings, limits: &Limits, crossing_bytes: usize) -> Self {
        let line =
            |level| LineWriter::new(Arc::clone(&around.log), Arc::clone(&around.label), level);
        let (stdout, stderr) = (line(LogLevel::Info), line(LogLevel::Error));
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        Self {
            wasi: wasi::context(around, stdout.clone(), stderr.clone()),
            table,
            stderr,
            stdout,
            around: around.clone(),
            crossing_bytes,
            limiter: Limiter::new(limits),
        }
    }

    /// Logs what the guest has written without ending the line, at the end of a call.
    pub(crate) fn flush(&self) {
        self.stdout.flush();
        self.stderr.flush();
    }

    /// Bytes that may cross to the host in one call.
    pub(crate) fn crossing_bytes(&self) -> usize {
        self.crossing_bytes
    }

    /// Before a call: what was written in an earlier one explains nothing in this one.
    pub(crate) fn forget_stderr(&self) {
        self.stderr.forget();
    }

    /// The last text on standard error, for the error of a trap.
    pub(crate) fn last_stderr(&self) -> Option<String> {
        self.stderr.tail()
    }
}

/// The seed of a guest's randomness.
pub(crate) fn seed(plugin: &Digest, partition: Option<u32>) -> [u8; 32] {
    let mut seed = plugin.0;
    for (byte, add) in seed
        .iter_mut()
        .zip(partition.map_or(0, |p| p + 1).to_le_bytes())
    {
        *byte ^= add;
    }
    seed
}

impl millstream::plugin::types::Host for HostState {}
impl millstream::plugin::outputs::Host for HostState {}

/// Defines everything that a plugin may import, and nothing else.
pub(crate) fn link(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    AnyModule::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    wasi::link(linker)
}
