//! What a Millstream plugin is written with.
//!
//! A plugin implements one trait and names it to one macro. Compiled for `wasm32-wasip2` the crate
//! is then a component that a broker can run; compiled natively it is ordinary Rust, so that its
//! own tests need no broker and no WebAssembly.
//!
//! ```
//! use millstream_guest::{Filter, Init, Needs, Record, Verdict};
//!
//! /// Keeps records whose value is at least so many bytes long.
//! struct LongEnough {
//!     bytes: usize,
//! }
//!
//! impl Filter for LongEnough {
//!     const NEEDS: Needs = Needs::VALUES;
//!
//!     fn init(init: &Init) -> Result<Self, String> {
//!         init.config_only(&["bytes"])?;
//!         Ok(Self { bytes: init.require("bytes")? })
//!     }
//!
//!     fn filter(&mut self, record: &Record<'_>) -> Verdict {
//!         Verdict::keep_if(record.value().is_some_and(|value| value.len() >= self.bytes))
//!     }
//! }
//!
//! millstream_guest::filter!(LongEnough);
//! # fn main() {
//! let mut plugin = LongEnough::init(&Init::new("long").config("bytes", "3")).unwrap();
//! let batch = millstream_guest::BatchBuilder::new().record(None, Some(b"four")).build();
//! let verdicts: Vec<_> = batch.records().map(|record| plugin.filter(&record)).collect();
//! assert_eq!(verdicts, [Verdict::Keep]);
//! # }
//! ```
//!
//! - [`Filter`] keeps or drops records, [`Transform`] makes none, one or many of each,
//!   [`Partitioner`] chooses partitions. [`BatchFilter`], [`BatchTransform`] and
//!   [`BatchPartitioner`] see the whole batch at once and may report an [`Error`].
//! - Ask for as few columns as you can: [`Needs`].
//! - [`debug!`], [`info!`], [`warn!`] and [`error!`] write to the owner of the plugin;
//!   [`count`] adds to a counter.
//!
//! A panic traps: the instance is thrown away, and the batch counts as failed.
//!
//! Absent: state and timers (the broker does not run processors yet), and any access to files,
//! network, environment or the real clock, which a broker does not give.

#[cfg(target_arch = "wasm32")]
extern crate self as millstream_guest;

mod batch;
#[cfg(target_arch = "wasm32")]
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all)]
#[doc(hidden)]
pub mod bindings;
mod emit;
mod export;
mod hash;
mod init;
mod kind;
mod owner;

pub use batch::{Batch, BatchBuilder, Header, Record};
pub use emit::{Draft, Emitted, Emitter};
pub use hash::stable_hash;
pub use init::{Init, Output};
pub use kind::{
    BatchFilter, BatchPartitioner, BatchTransform, Error, Filter, Needs, Partitioner, Transform,
    Verdict,
};
pub use owner::{Level, count, log};
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub use wit_bindgen;

#[cfg(target_arch = "wasm32")]
include!(concat!(env!("OUT_DIR"), "/generate.rs"));

/// A length that means there is no piece, and an offset that means the input record's.
const NONE: u32 = u32::MAX;
