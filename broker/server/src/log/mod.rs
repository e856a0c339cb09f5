//! Topics and their partitions: append, read, recover, retain.
//!
//! A partition has two ends. The *applied* end belongs to whoever appends: it
//! assigns offsets under a lock and submits to the store's queue before letting
//! go, so offsets and commits have the same order. The *durable* end belongs to
//! readers: the store's writer thread moves it in the callback of the commit,
//! and nothing behind it is ever shown.

mod append;
mod note;
mod partition;
mod producers;
mod read;
mod retention;
mod seek;
mod tail;
mod topic;

#[cfg(test)]
pub(crate) mod holed;
#[cfg(test)]
mod tests;

pub use append::{Append, AppendError, Ticket, append, durability, submit};
pub use note::note_ends;
pub use partition::{Follow, Partition, Stored, TailRead};
pub use producers::{Claim, KeepInMemory, ProducerRefused, ProducerStream, expire_producers};
pub use read::ReadFault;
pub use retention::{RetainError, retain};
pub(crate) use seek::approach;
pub use seek::seek;
pub use tail::TailBudget;
pub use topic::Topic;
