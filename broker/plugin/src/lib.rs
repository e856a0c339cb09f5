//! Runs Millstream plugins: sandboxed, metered, replaceable.
//!
//! The only crate that names wasmtime. A [`Registry`] turns an upload into a [`Plugin`] or says
//! why it is refused; a [`Runner`] feeds one plugin at one place batch after batch and answers
//! with checked results or a [`RunError`] that says whose fault it was. Neither knows topics,
//! records at rest or the network: batches come as [`Columns`].
//!
//! What a guest can do to the broker is bounded at every turn: CPU time per call and in the long
//! run, memory, tables, stack, bytes and records returned, log lines, counters, host objects.
//! What it can reach is its configuration, its log and its counters.
//!
//! Absent: which plugin is attached where and what happens after an error (the broker's
//! decision), durable logs, processors with state and timers (later).

mod artifact;
mod bindings;
mod budget;
mod columns;
mod counters;
mod engine;
mod error;
mod host;
mod inspect;
pub mod limits;
mod logbook;
mod meter;
mod output;
mod pool;
mod registry;
mod run;
#[cfg(test)]
mod testing;
mod trusted;

pub use columns::{Columns, HEADER, NONE, Needs, SPAN};
pub use counters::Counters;
pub use engine::{EngineConfig, PluginEngine};
pub use error::{EngineFault, Fault, FaultKind, GuestFault, Label, LimitHit, RunError, Trapped};
pub use inspect::{Inspection, Refusal, inspect};
pub use limits::{BadLimit, Limits};
pub use logbook::{Clock, LogBook, LogLevel, LogLimits, LogLine};
pub use meter::Usage;
pub use output::{HeaderPiece, NewHeaders, NewRecord, Output, OutputFault, Piece, Verdict};
pub use registry::{OpenError, Plugin, Registry};
pub use run::{Outlet, Runner, RunnerSpec};
