//! The ordered key-value seam of a shard, and the engines behind it.
//!
//! A *shard* is one store: one writer thread, one unit of atomic commit. Callers read through a
//! [`Snapshot`] and write by submitting a [`WriteBatch`], which is applied whole or not at all.
//! A batch's callback runs after the batch is as durable as it asked to be, and callbacks run in
//! the order of submission, so "visible means durable" needs nothing more than making a record
//! visible inside its callback.
//!
//! What is absent: no type of the embedded database leaves this crate, nothing here knows what a
//! topic or a record is (the [`key`] module only lays out the bytes of rows), and nothing here
//! caches records for live consumers: that is the broker's tail cache.
//!
//! Everything that reads is blocking; call it from a thread that may block. [`Store::submit`]
//! never blocks.

pub mod backup;
mod batch;
mod check;
mod error;
pub mod fault;
mod figures;
pub mod key;
pub mod limits;
mod memory;
mod pace;
mod queue;
mod redb;
pub mod segment;
mod shard;
mod space;
mod store;
mod trailer;
mod writer;

#[cfg(test)]
mod conformance;

pub use batch::{BatchRefused, Durability, Key, WriteBatch};
pub use check::{CheckTotals, Finding, Inspector, Place};
pub use error::{CommitError, OpenError, ReadError, StopCause};
pub use figures::{BUCKETS, Histogram, StorageFigures};
pub use memory::MemoryStore;
pub use pace::Pace;
pub use queue::Permit;
pub use redb::{
    LostRun, Mended, OfflineStore, QuarantineError, Quarantined, Recovery, RedbConfig, RedbStore,
};
pub use space::Space;
pub use store::{
    Committed, Direction, Done, Head, HeadPage, Health, Pending, Row, ScanLimit, ScanPage,
    Snapshot, Store, StoreStats,
};
