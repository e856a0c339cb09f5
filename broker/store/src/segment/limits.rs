//! Every cap of segments, in one place.

use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN, TRAILER_LEN};

/// A block holds no more than this, unless it holds one entry only. Large enough that the index
/// is small and a disk reads it in one go, small enough that finding one small entry is cheap.
pub const BLOCK_BYTES: usize = 64 << 10;

/// Longest value of an entry: the longest that a batch may put, and the trailer behind it.
pub const MAX_ENTRY_VALUE: usize = MAX_VALUE_LEN + TRAILER_LEN;

/// Longest index of one segment, in the file. At about 30 bytes for each block that is more than
/// 16 GiB of data.
pub const MAX_INDEX_BYTES: usize = 8 << 20;

/// A writer gathers this much for each write, and writes at multiples of it. Writes that are
/// smaller, or begin and end within pages, leave the page cache in small pieces, which cost half
/// as much again to bring to the disk.
pub const WRITE_BYTES: usize = 1 << 20;

/// How much a forward scan reads in one call when it wants more than one block.
pub const READ_AHEAD: usize = 1 << 20;

/// Blocks of one entry from this length on, in bytes, are not read whole for the sake of the first
/// bytes of the value and its trailer: two pages are.
pub(crate) const ENDS_FROM: u32 = 16 << 10;

/// A value shares the buffer it was read into if it is at least this part of it (one in so many);
/// a smaller one is copied out. So a value that somebody keeps holds at most this many times its
/// own size. Blocks of one 64 KiB batch each, read ahead, are just within.
pub const PIN_SHARE: usize = 16;

/// Small values are copied out together with their neighbours, as long as all fit this: one
/// allocation for many, and a value that somebody keeps holds no more than this.
pub const COPY_GROUP: usize = 4 << 10;

/// What opening a segment reads from its end, in the hope that the whole index lies in it.
pub const TAIL_READ: usize = 32 << 10;

/// Segments of one shard that are kept open. Each is one file descriptor.
pub const MAX_OPEN: usize = 256;

/// Memory that the indexes of open segments may take.
pub const MAX_OPEN_INDEX_BYTES: usize = 16 << 20;

const _: () = assert!(
    MAX_ENTRY_VALUE + MAX_KEY_LEN < u32::MAX as usize / 2,
    "lengths within a block are counted in u32"
);
const _: () = assert!(MAX_KEY_LEN <= u16::MAX as usize);
const _: () = assert!(MAX_INDEX_BYTES < u32::MAX as usize);
const _: () = assert!(
    ENDS_FROM as usize > 24 + MAX_KEY_LEN + crate::limits::RECORD_PREFIX + TRAILER_LEN,
    "the ends of a value lie apart"
);
const _: () = assert!(WRITE_BYTES.is_power_of_two());
const _: () = assert!(BLOCK_BYTES <= READ_AHEAD && COPY_GROUP <= BLOCK_BYTES);
