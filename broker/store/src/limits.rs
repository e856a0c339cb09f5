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

/// Page that a full chunk of appended records fills. A large value gets a page of its own, rounded
/// up to a power of two, and a chunk is read as a whole: larger ones are written a little faster
/// and make a lagging reader of one partition read more of the others.
pub(crate) const PACKED_PAGE: usize = 256 << 10;

/// Bytes of the key of a chunk: the pack's number and the chunk's first byte.
const CHUNK_KEY_LEN: usize = 8 + 4;

/// Longest chunk of appended records, in bytes: one byte more would take a page of twice the size.
pub(crate) const MAX_CHUNK_LEN: usize = PACKED_PAGE - PAGE_OVERHEAD - CHUNK_KEY_LEN;

/// Bytes after which a pack is closed, though its group commit has more to append. With one value
/// of [`MAX_VALUE_LEN`] on top, places within it are counted in 32 bits.
pub(crate) const PACK_BYTES: usize = 64 << 20;

/// Length that a new hot file is given at once: what a small broker's newest records take.
pub(crate) const ALLOTTED_BYTES: u64 = 16 << 20;

/// Bytes of disk space that the hot file is given at once, ahead of where it is written.
pub(crate) const AHEAD_BYTES: u64 = 32 << 20;
/// Bytes of that which are written at once: whole pages of the engine.
pub(crate) const ALLOT_STEP: usize = 64 << 10;

/// What the hot file is allowed to take on the disk, in bytes, if nothing else is configured.
pub const DEFAULT_HOT_BYTES: u64 = 512 << 20;

/// Least that it can be set to: room for a few full group commits and a segment.
pub const MIN_HOT_BYTES: u64 = 128 << 20;

/// Records are sealed once the packs take this part of the hot file's limit (one in so many).
/// Early, because after a crash what is in the hot file is read twice before the store opens.
pub(crate) const SEAL_SHARE: u64 = 4;

/// Appends wait once the packs take all but this part of the limit (one in so many): pages that
/// were freed lie between others, and what is queued already still comes.
pub(crate) const SPARE_SHARE: u64 = 4;

/// Entries in packs from which on records are sealed, however small they are: their index is in
/// memory, at about 100 bytes each.
pub(crate) const HOT_ENTRIES: usize = 128 << 10;

/// About how many bytes of packs become one segment.
pub(crate) const SEGMENT_BYTES: u64 = 16 << 20;

/// A segment's worth of records is put in order in so many parts, one of which is in memory at a
/// time: 4 MiB of a segment of usual size, or one larger record. The packs are read that often, or
/// nearly, where each holds something of every part.
pub(crate) const SEAL_PARTS: u64 = 4;

/// Entries from which on a segment is closed, however small it is: what is known of them is in
/// memory, at less than 100 bytes each.
pub(crate) const SEAL_ENTRIES: usize = 32 << 10;

/// Distinct runs of keys, each of which becomes an extent, from which on a segment is closed,
/// however small it is: they become rows in one commit, for which others wait.
pub(crate) const SEAL_RUNS: usize = 4096;

/// Segments that may be sealed in a row before others are rewritten, if some are to be. Only one
/// once most of what segments hold is unwanted, or there are far too many extents.
pub(crate) const SEALS_IN_A_ROW: u32 = 4;

/// Extents that are moved in one commit when segments are rewritten, for which others wait.
pub(crate) const REWRITE_EXTENTS: usize = 2 * SEAL_RUNS;

/// Extents that are looked at in one go to find those that are to be moved. Meanwhile the hot file
/// cannot use again what commits free.
pub(crate) const REWRITE_LOOKS: usize = 64 << 10;

/// About how many bytes the row of an extent takes in the hot file, in leaves that are half full.
pub(crate) const EXTENT_SPACE: u64 = 128;

/// Extents take no more than this part of the hot file's limit (one in so many), unless there are
/// so many runs of keys.
pub(crate) const EXTENT_SHARE: u64 = 8;

/// Extents are looked through for neighbours to merge once there are this part of as many as there
/// may be (one in so many), and again whenever there are twice as many as the last time left.
pub(crate) const MERGE_SHARE: u64 = 16;

/// Extents of a run are merged if together they are at least so many times as large as the largest
/// of them. So a byte is rewritten at most as often as the size of its extent can grow so many
/// times until it is no small one any more.
pub(crate) const MERGE_GAIN: u64 = 4;

/// The same once there are more extents than there may be.
pub(crate) const MERGE_GAIN_FULL: u64 = 2;

/// Only extents of less than so many bytes are merged, as long as that is enough to keep their
/// number within bounds.
pub(crate) const MERGE_BELOW: u64 = 64 << 10;

/// A segment that is being written is synced whenever so many bytes have been added.
pub(crate) const SEAL_SYNC_BYTES: u64 = 4 << 20;

/// Segments are rewritten when more than this part of what they hold is unwanted (one in so
/// many), and more than one segment's worth.
pub(crate) const GARBAGE_SHARE: u64 = 5;

/// Bytes of sealed packs that a commit removes from the hot file, besides twice what it appends.
pub(crate) const SWEEP_BYTES: u64 = 256 << 10;

/// The same for a commit that does nothing else.
pub(crate) const IDLE_SWEEP_BYTES: u64 = 8 << 20;

/// What removing an extent counts, in bytes of reading: a few rows of the engine's tables.
pub(crate) const EXTENT_REMOVAL_BYTES: usize = 16 << 10;

/// Bytes after which a part of a backup's rows is closed. A part is in memory while it is made,
/// with one row of up to [`MAX_VALUE_LEN`] on top.
pub(crate) const PART_BYTES: usize = 16 << 20;

/// Before a backup the records are sealed until less than a segment's worth is not, so that they
/// are copied once and not with every backup; this many segments at most.
pub(crate) const SEALS_BEFORE_BACKUP: usize = 32;

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
const _: () = assert!(PACKED_PAGE.is_power_of_two() && PACKED_PAGE > PAGE);
const _: () = assert!(PACK_BYTES + MAX_VALUE_LEN + TRAILER_LEN < u32::MAX as usize);
const _: () = assert!(MAX_KEY_LEN <= u16::MAX as usize);
const _: () = assert!(
    8 + proto::MAX_NAME_BYTES <= MAX_KEY_LEN,
    "an offset key holds a name"
);
const _: () = assert!(
    RECORD_PREFIX >= HEADER_LEN,
    "a batch's checksum leaves out its own place"
);
const _: () = assert!(Space::COUNT <= u8::MAX as usize);
const _: () = assert!(MERGE_GAIN_FULL > 1 && MERGE_GAIN >= MERGE_GAIN_FULL);
const _: () = assert!(
    REWRITE_EXTENTS < REWRITE_LOOKS,
    "one look finds enough for a commit"
);
