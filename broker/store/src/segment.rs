//! Sealed segments: immutable files of sorted rows, where records go that have left the hot file.
//!
//! A segment is written once, from sorted entries, by a [`SegmentWriter`]; made durable; given its
//! name; and from then on only read, or removed. So it needs no locks and no recovery, its blocks
//! can be read while others write, and retention is an unlink.
//!
//! ```text
//! 0                                              index offset              file length
//! +---------+---------+-----  -----+---------+----------------+----------+
//! | block 0 | block 1 |    ...     | block n |     index      |  footer  |
//! +---------+---------+-----  -----+---------+----------------+----------+
//!
//! block                        bytes   all numbers are little-endian
//!   checksum                       4   CRC-32C of: segment number u64, offset of this block u64,
//!                                      and the rest of the block
//!   entries                        4   n, at least 1
//!   length of all keys             4   k
//!   length of all values           4   v
//!   directory                     8n   of each entry, where its key and where its value ends,
//!                                      counted from the start of the keys and of the values
//!   keys                           k   strictly ascending, one after the other
//!   values                         v   one after the other, in the order of their keys
//!
//! index                                blocks follow each other without gaps from offset 0, so
//!   for each block                     their offsets are the sums of their lengths
//!     length of its first key      2
//!     length of the block          4
//!     entries                      4
//!     its first key
//!   length of the last key         2   the greatest key of the segment; the smallest is the
//!   the last key                       first key of the first block
//!
//! footer                          60
//!   magic                          8   "MILLSEG\n"
//!   format version                 4   1
//!   blocks                         4
//!   segment number                 8
//!   index offset                   8   which is also where the last block ends
//!   index length                   4
//!   index checksum                 4   CRC-32C of: segment number u64, index offset u64, index
//!   entries                        8
//!   data bytes                     8   of all keys and values
//!   footer checksum                4   CRC-32C of the 56 bytes before
//! ```
//!
//! A block holds at most [`limits::BLOCK_BYTES`], or a single entry. Checksums cover where the
//! bytes belong: a block that turns up in another file, or at another place, is damage like any
//! other. Every block that is read is checked; what fails is an error, never a value.
//!
//! A segment gets its name in this order: all bytes are written under a temporary name and synced,
//! the file is renamed, the directory is synced. Whoever finds a file under its own name finds all
//! of it. That some segment exists is for its owner to note down, after [`SegmentWriter::finish`].
//!
//! What is absent: nothing here knows what lies in the hot file, which segments are in use, or
//! which of their entries are still wanted. There is no compression (batches come compressed from
//! their producers) and no cache of blocks beside the operating system's. All of it blocks.

mod cache;
mod error;
pub mod fault;
mod files;
mod format;
mod heads;
pub mod limits;
mod pin;
mod reader;
mod scan;
mod writer;

#[cfg(test)]
mod tests;

pub use cache::{OpenLimits, Segments};
pub use error::{Refused, SegmentError};
pub use files::{DirFiles, Files, NewFile, ReadAt, StoredFile};
pub(crate) use heads::{How, Told};
pub use pin::Pinned;
pub use reader::{Damage, Segment, Visit};
pub use scan::Scan;
pub use writer::{SegmentWriter, Summary};
