//! Every cap of the store, in one place. Caps that the whole protocol shares live with the
//! protocol; these bind only this crate.

use std::time::Duration;

use millstream_proto::batch::HEADER_LEN;
use millstream_proto::limits as proto;

use crate::space::Space;

/// Bytes of batches that may wait for, or be in, a commit of one shard. Whoever wants to submit
/// more waits in [`crate::Store::reserve`].
pub const QUEUE_BYTES: usize = 32 << 20;

/// Bytes one group commit gathers at most, unless a single batch is larger. Above this a commit
/// takes long enough to be felt as latency and gains no more throughput.
pub const GROUP_BYTES: usize = 8 << 20;

/// Batches one group commit gathers at most, so that many tiny batches cannot make one endless.
pub const GROUP_BATCHES: usize = 4096;

/// Longest key, in bytes.
pub const MAX_KEY_LEN: usize = 1024;

/// Longest value, in bytes. Above the largest record batch and the largest uploaded plugin.
pub const MAX_VALUE_LEN: usize = 64 << 20;

/// How much larger than its permit a batch may be: room for the small rows that are only known
/// once the offsets are assigned.
pub const PERMIT_SLACK: usize = 64 << 10;

/// Longest time a batch of [`crate::Durability::Interval`] stays in memory only.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Memory the embedded engine uses for its page cache. More is slower for appends: the appended
/// pages are read again only by laggards, and the operating system caches them anyway.
pub const DEFAULT_CACHE_BYTES: usize = 32 << 20;

/// Files up to this size have every page's checksum verified when they are opened; it costs about
/// one second for this many bytes from a cold disk. See [`crate::RedbConfig::verify_up_to`].
pub const DEFAULT_VERIFY_UP_TO: u64 = 1 << 30;

/// Bytes of trailer that bind a stored value to its key.
pub const TRAILER_LEN: usize = 4;

/// Bytes a page spends on its header and on where its one key and value end.
const PAGE_OVERHEAD: usize = 12;

/// Smallest page of the embedded engine.
const PAGE: usize = 4096;

const fn max_efficient(page: usize, key_len: usize) -> usize {
    assert!(page.is_power_of_two() && page >= PAGE);
    page - PAGE_OVERHEAD - key_len - TRAILER_LEN
}

/// The longest value that fits a page of `2^page_log2` bytes beside a key of `key_len` bytes.
///
/// A large value gets a page of its own, rounded up to a power of two: one byte more than this
/// and the page, and so the bytes written per value, doubles. Measured by `store_bench`, bytes
/// written per byte of value, one value in a commit, with the 16-byte keys of records:
///
/// | page | longest that fits | one byte more |
/// |---|---|---|
/// | 64 KiB | 65,504 B: 1.44 | 2.44 |
/// | 256 KiB | 262,112 B: 1.11 | 2.11 |
/// | 1 MiB | 1,048,544 B: 1.03 | 2.03 |
///
/// With 16 values of 64 KiB in a commit it is 1.08.
///
/// # Panics
/// If the page is smaller than 4 KiB, or the key does not fit: in a `const`, at compile time.
#[must_use]
pub const fn max_efficient_value(page_log2: u32, key_len: usize) -> usize {
    max_efficient(1 << page_log2, key_len)
}

/// The longest record batch that fits a 64 KiB page: what a producer's default batch size should
/// stay within.
pub const MAX_EFFICIENT_RECORDS_64K: usize = max_efficient_value(16, crate::key::record::KEY_LEN);
/// As [`MAX_EFFICIENT_RECORDS_64K`], for a 256 KiB page.
pub const MAX_EFFICIENT_RECORDS_256K: usize = max_efficient_value(18, crate::key::record::KEY_LEN);
/// As [`MAX_EFFICIENT_RECORDS_64K`], for a 1 MiB page.
pub const MAX_EFFICIENT_RECORDS_1M: usize = max_efficient_value(20, crate::key::record::KEY_LEN);

/// Bytes every operation of a batch is charged for besides its key and value.
pub(crate) const OP_COST: usize = 64;

/// How many bytes of a record batch the trailer covers; the rest is covered by the batch's own
/// checksum.
pub(crate) const RECORD_PREFIX: usize = 64;

const _: () = assert!(GROUP_BYTES <= QUEUE_BYTES);
const _: () = assert!(
    QUEUE_BYTES <= u32::MAX as usize,
    "permits are counted in u32"
);
const _: () = assert!(MAX_VALUE_LEN < u32::MAX as usize);
const _: () =
    assert!(proto::MAX_BATCH_BYTES <= MAX_VALUE_LEN && proto::MAX_PLUGIN_BYTES <= MAX_VALUE_LEN);
const _: () = assert!(
    proto::MAX_BATCH_BYTES <= QUEUE_BYTES,
    "the largest batch fits the queue"
);
const _: () = assert!(proto::DEFAULT_BATCH_BYTES <= MAX_EFFICIENT_RECORDS_64K);
const _: () = assert!(
    8 + proto::MAX_NAME_BYTES <= MAX_KEY_LEN,
    "an offset key holds a name"
);
const _: () = assert!(
    RECORD_PREFIX >= HEADER_LEN,
    "a batch's checksum leaves out its own place"
);
const _: () = assert!(Space::COUNT <= u8::MAX as usize);
