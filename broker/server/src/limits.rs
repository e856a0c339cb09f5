//! Every cap of the broker that clients need not know.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::sync::Semaphore;

use millstream_proto::limits::{MAX_MESSAGE_BYTES, MAX_PAGE, MAX_PARTITIONS};

// Data plane.

/// Bytes of recent batches kept in memory for live consumers, over all topics.
pub const TAIL_BYTES: usize = 24 << 20;
/// Batches smaller than this are copied out of the network's receive buffer, so
/// that a small record does not keep a large buffer alive.
pub const COPY_BELOW_BYTES: usize = 8 << 10;
/// Batches of one producer's stream that may be on their way: read, not yet answered.
pub const MAX_IN_FLIGHT_BATCHES: usize = 1024;
/// Batches of one producer's stream that may be at the topic's plugins at the same time.
pub const CHAIN_DEPTH: usize = 16;
/// Bytes of batches at the topic's plugins from which on one producer's stream is not read; the
/// batch that passes it is the last.
pub const CHAIN_BYTES: usize = 4 << 20;
/// Compressed batches of producers that are unpacked at the same time, to look into them.
pub const UNPACKED_BATCHES: usize = 2;
/// Bytes appended to a partition until its row is written again: what has to be looked through
/// when the broker starts.
pub const COUNT_EVERY_BYTES: u64 = 1 << 20;
/// How often partitions' rows are written again where less than that was appended.
pub const COUNT_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes read from the store in one go for a reader that lags.
pub const READ_CHUNK_BYTES: usize = 1 << 20;
/// Bytes of one write to a subscription's stream.
pub const DELIVER_BYTES: usize = 256 << 10;
/// Readers of the store at work at the same time, over all subscriptions.
pub const COLD_READERS: usize = 4;
/// Searches for a timestamp at work at the same time, each of which reads the store; further ones
/// wait.
pub const TIME_SEEKERS: usize = 2;
/// Producers whose state is kept in memory per topic while no stream is open.
pub const IDLE_PRODUCERS: usize = 1024;
/// A producer that has stored nothing for this long is forgotten: a batch that it
/// resends later than this is taken for a new one.
pub const PRODUCER_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often idle producers are looked for.
pub const PRODUCER_SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Producers looked at in one go.
pub const PRODUCER_PAGE: usize = 1000;
/// How often retention looks at partitions without being asked.
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that retention makes the store read in one commit.
pub const RETENTION_STEP_BYTES: usize = 4 << 20;
/// Batches that retention removes in one commit, as far as the store has to look at each.
pub const RETENTION_STEP_ROWS: usize = 4096;
/// Entries that retention looks at for one commit, by their sizes alone.
pub const RETENTION_LOOK_ROWS: usize = 4096;
/// Batches of which retention reads the headers for one commit.
pub const RETENTION_LOOK_HEADERS: usize = 1024;

// Connections.

/// Streams that one connection may have open at the same time.
pub const MAX_STREAMS: u32 = 128;
/// Connections at the same time.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Handshakes at the same time; a further one takes the place of one that is half open. From half
/// of them on, clients must prove their address first.
pub const MAX_HANDSHAKES: usize = 256;
/// Handshakes that begin in a second, over all addresses, and at most at once. Each costs signatures,
/// half a millisecond or so; and one that failed takes some 30 KiB for another second, until no late
/// packet of it can come any more.
pub const HANDSHAKES_PER_SECOND: u32 = 500;
/// Handshakes that begin in a second without a proof of the address; further clients must prove
/// theirs, which costs them a round trip and the broker nothing that stays.
pub const UNPROVED_HANDSHAKES_PER_SECOND: u32 = 100;
/// Handshakes that begin in a second from one address, unless configured.
pub const ADDRESS_HANDSHAKES_PER_SECOND: u32 = 100;
/// Addresses whose handshakes are counted at the same time.
pub const MAX_DOOR_ADDRESSES: usize = 4096;
/// Bytes of a handshake that may come out of order on one connection.
pub const HANDSHAKE_BUFFER_BYTES: usize = 16 << 10;
/// First packets of clients that wait to be looked at; they are looked at as soon as they come.
pub const MAX_INCOMING: usize = 256;
/// Bytes that one such client may send meanwhile.
pub const INCOMING_BYTES: u64 = 16 << 10;
/// Bytes that all such clients may send meanwhile.
pub const ALL_INCOMING_BYTES: u64 = 1 << 20;
/// Round trip that is assumed until one was measured: it says how long a connection that failed is
/// remembered, and when what was lost of a handshake is sent again.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);
/// How often files of certificates are looked at, and certificates that run out.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How long files that keep changing are waited for before they are read all the same.
pub const WATCH_PATIENCE: Duration = Duration::from_secs(5);
/// When files are read again that could not be used, though they have not changed: what they were
/// refused for may have passed.
pub const WATCH_RETRY: Duration = Duration::from_secs(5);
/// Time for a handshake, and for the first frame of a stream.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that is silent for this long is closed. Clients send keep-alives.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Flow control window of one stream in bytes.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// Flow control window of one connection in bytes.
pub const CONNECTION_WINDOW: u32 = 32 << 20;
/// Bytes sent and not yet acknowledged on one connection.
pub const SEND_WINDOW: u64 = 16 << 20;
/// Socket buffers in bytes; the system's default loses packets at a gigabyte per second.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Time that open streams get to finish when the broker shuts down.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames up to this many bytes are received without asking for room.
pub const FREE_FRAME_BYTES: usize = 128 << 10;
/// Bytes of larger frames that are being received, over all streams of the process; further
/// ones are not read until there is room.
pub const INBOUND_BYTES: usize = 256 << 20;
/// Time in which a frame that asked for room must be there.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of one write of answers on a control or producer stream.
pub const ANSWER_BYTES: usize = 64 << 10;

// Configuration: what an operator may choose.

/// Path discovery's largest UDP payload unless configured, in bytes.
pub const DEFAULT_MTU: u16 = 1452;
/// UDP payloads that may be configured, in bytes. Above about 6550 ten segments
/// of one send pass 64 KiB, and the system refuses them.
pub const MTU: RangeInclusive<u64> = 1200..=6500;
/// Numbers of connections that may be configured.
pub const CONNECTIONS: RangeInclusive<u64> = 1..=MAX_CONNECTIONS as u64;
/// Handshakes of one address in a second that may be configured.
pub const ADDRESS_HANDSHAKES: RangeInclusive<u64> = 1..=HANDSHAKES_PER_SECOND as u64;
/// Sizes of the store's page cache that may be configured, in MiB.
pub const CACHE_MIB: RangeInclusive<u64> = 1..=(64 << 10);
/// What `storage.hot_mib` may be.
pub const HOT_MIB: RangeInclusive<u64> =
    (millstream_store::limits::MIN_HOT_BYTES >> 20)..=(1 << 20);
/// Sizes of the tail cache that may be configured, in MiB.
pub const TAIL_MIB: RangeInclusive<u64> = 1..=(64 << 10);

// Control plane.

/// Requests of one control stream at work at the same time; further ones wait in the stream.
pub const CONTROL_IN_FLIGHT: usize = 16;
/// Topics of one broker.
pub const MAX_TOPICS: usize = 10_000;
/// Partitions of one broker, over all topics: each costs some memory even when idle.
pub const MAX_TOTAL_PARTITIONS: u64 = 100_000;
/// Versions kept of one plugin. All of them fit one page of a listing.
pub const MAX_PLUGIN_VERSIONS: usize = 500;
/// Versions kept of all plugins.
pub const MAX_TOTAL_PLUGIN_VERSIONS: usize = 10_000;
/// Bytes of a topic's chain as it is stored, configuration included: a description of the topic
/// must fit one message.
pub const MAX_CHAIN_BYTES: usize = 768 << 10;
/// Bytes that all access rules together take when encoded: they are listed in one message.
pub const MAX_RULES_BYTES: usize = MAX_MESSAGE_BYTES - (1 << 10);
/// Bytes of an answer that lists something; the rest is asked for by page.
pub const PAGE_BYTES: usize = MAX_MESSAGE_BYTES - (8 << 10);
/// Uploads at the same time, over all connections; each is held in memory whole.
pub const MAX_UPLOADS: usize = 4;
/// Time for an upload to arrive. Compiling it does not count.
pub const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes that the store is made to read in one commit to remove a deleted topic.
pub const DELETE_STEP_BYTES: usize = 4 << 20;
/// Rows of a deleted topic that are removed in one commit, as far as the store has to read them.
pub const DELETE_STEP_ROWS: usize = 10_000;
/// How often the rows of a deleted topic are looked at again while somebody still has it open.
pub const DELETE_RECHECK: Duration = Duration::from_secs(1);
/// How long the rows of deleted topics are left alone after some of them could not be read.
pub const DELETE_RETRY: Duration = Duration::from_secs(60);

const _: () = assert!(MAX_PLUGIN_VERSIONS <= MAX_PAGE);
// A description holds the chain and at most 40 bytes for each partition.
const _: () = assert!(MAX_CHAIN_BYTES + MAX_PARTITIONS as usize * 40 < MAX_MESSAGE_BYTES);

const _: () = assert!(READ_CHUNK_BYTES <= TAIL_BYTES);
const _: () = assert!(TIME_SEEKERS < COLD_READERS);
const _: () = assert!(STREAM_WINDOW <= CONNECTION_WINDOW);
const _: () = assert!(UNPROVED_HANDSHAKES_PER_SECOND < HANDSHAKES_PER_SECOND);

// Backups.

/// Bytes that a backup reads, and sends, in a second, unless configured: a part of what a disk and
/// a network can do, so that producers are not hurt.
pub const BACKUP_BYTES_PER_SECOND: u64 = 64 << 20;
/// What `backup.mib_per_s` may be.
pub const BACKUP_MIB_PER_S: RangeInclusive<u64> = 1..=(64 << 10);
/// Bytes that a backup reads and writes at once. Places such as S3 take an object in pieces of at
/// least 5 MiB, and at most 10,000 of them.
pub const BACKUP_PIECE_BYTES: usize = 8 << 20;
/// Backups that are looked through, the newest first, for the last one of the same store.
pub const BACKUP_LOOK_BACK: usize = 16;
/// Longest manifest of a backup, in bytes: a million segments.
pub const MAX_MANIFEST_BYTES: u64 = 256 << 20;
/// Longest part of a backup's rows, in bytes: one is closed at 16 MiB, and the last row of it may
/// be as long as a value can be.
pub const MAX_BACKUP_PART_BYTES: u64 = 96 << 20;
/// Damaged segments of a backup up to this size, in bytes, are looked into for the place of the
/// damage; that takes the whole of one in memory.
pub const MAX_DAMAGED_SEGMENT_BYTES: u64 = 256 << 20;
/// A lock at the place of backups that is older than this was left by a crash.
pub const BACKUP_LOCK_LIFE: Duration = Duration::from_secs(600);
/// Time to remove the lock of a backup that shutdown interrupts.
pub const BACKUP_LOCK_GOODBYE: Duration = Duration::from_secs(2);
/// How often a lock is renewed.
pub const BACKUP_LOCK_RENEWAL: Duration = Duration::from_secs(60);

const _: () = assert!(BACKUP_LOCK_RENEWAL.as_secs() * 5 < BACKUP_LOCK_LIFE.as_secs());
const _: () =
    assert!(MAX_BACKUP_PART_BYTES > (16 << 20) + millstream_store::limits::MAX_VALUE_LEN as u64);

// Checks of the stored data.

/// Bytes that a check reads in a second while the broker serves: a part of what a disk can do, so
/// that producers are not hurt.
pub const CHECK_BYTES_PER_SECOND: u64 = 64 << 20;
/// Findings of a check that are kept; further ones are counted.
pub const MAX_FINDINGS: usize = 1000;
/// Longest text of a finding, in bytes.
pub const MAX_FINDING_BYTES: usize = 512;
/// Ranges of offsets that are told with one finding.
pub const MAX_FINDING_RANGES: usize = 16;

// Metrics.

/// Tenants that are counted apart, each of which adds some series to what is exported; all further
/// ones are counted together.
pub const MAX_COUNTED_TENANTS: usize = millstream_plugin::limits::MAX_COUNTED_TENANTS;
/// Who reads the metrics at the same time; further ones wait until their connection is accepted.
pub const METRICS_CONNECTIONS: usize = 8;
/// Of these, those that one address can have over TLS: it cannot keep all others from reading.
pub const METRICS_CONNECTIONS_PER_ADDRESS: usize = METRICS_CONNECTIONS / 2;
/// Time for the handshake of a connection that asks for metrics over TLS: until then anybody can
/// hold one.
pub const METRICS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a request for metrics, before its body, which is not read.
pub const METRICS_HEADER_BYTES: usize = 8 << 10;
/// Header lines of a request for metrics.
pub const METRICS_HEADERS: usize = 64;
/// Time for the header of a request for metrics to arrive.
pub const METRICS_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a connection that asks for metrics, from its first byte to its last.
pub const METRICS_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the next connection is accepted after that has failed: most likely there are no
/// file descriptors left.
pub const METRICS_ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(METRICS_HEADER_TIMEOUT.as_secs() < METRICS_TIMEOUT.as_secs());
const _: () = assert!(
    METRICS_HANDSHAKE_TIMEOUT.as_secs() + METRICS_HEADER_TIMEOUT.as_secs()
        < METRICS_TIMEOUT.as_secs()
);

// Guests and pipelines.

/// Records that one call of a plugin is given at most, so that an honest plugin meets its CPU
/// deadline whatever the producer's batches are.
pub const CALL_RECORDS: usize = 4096;
/// Bytes that one call of a plugin is given at most, unless a single record is larger: what a
/// guest must copy into its memory.
pub const CALL_BYTES: usize = 1 << 20;
/// Records that a plugin may call bad in one batch before its policy applies to the whole rest.
pub const MAX_BAD_RECORDS: usize = 16;
/// Bytes that one transform may make of one batch, over all its calls.
pub const MAX_MADE_BYTES: usize = 64 << 20;
/// Records that one transform may make of one batch, over all its calls.
pub const MAX_MADE_RECORDS: usize = 1 << 20;
/// Longest error text in the headers of a dead letter, in bytes.
pub const DEAD_LETTER_ERROR_BYTES: usize = 256;
/// Batches that wait for one chain; whoever has another waits with it.
pub const CHAIN_QUEUE: usize = 32;
/// Threads on which the guests' side compiles plugins and reads the store.
pub const GUEST_BLOCKING_THREADS: usize = 4;
/// How many steps of niceness the guest thread gives way by: it gets a ninth of what a thread of
/// the network gets when both want one core, and all of a core that nobody else wants. Measured on
/// two cores beside a plugin that computes as much as it may: a producer at full speed keeps 0.84
/// to 0.88 of its rate, with 5 steps 0.77 to 0.91, and a filter of its own costs it as little.
pub const GUEST_NICENESS: i32 = 10;
/// Stack of the guest thread in bytes; guests have stacks of their own.
pub const GUEST_THREAD_STACK_BYTES: usize = 2 << 20;
/// Lines of a plugin's log in one answer, unless fewer are asked for.
pub const LOG_PAGE: usize = MAX_PAGE;
/// Bytes of input that a pipeline gathers for one commit, counted uncompressed.
pub const PIPELINE_READ_BYTES: usize = 1 << 20;
/// Bytes of small batches that a pipeline puts together for one call, counted uncompressed.
pub const PIPELINE_MERGE_BYTES: usize = 256 << 10;
/// Bytes of output after which a pipeline commits before it has run all that it gathered.
pub const PIPELINE_COMMIT_BYTES: usize = 8 << 20;
/// A chain without work gives its instances back after this time.
pub const GUEST_IDLE: Duration = Duration::from_secs(30);
/// First wait of a pipeline whose plugin asked to try again; doubled up to the last.
pub const PIPELINE_RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest wait of a pipeline whose plugin asks to try again.
pub const PIPELINE_RETRY_LAST: Duration = Duration::from_secs(5);
/// Most pipelines of one broker.
pub const MAX_PIPELINES: usize = 1024;
/// When a subscription tries again to read a partition that it could not read.
pub const SHUT_RETRY: Duration = Duration::from_secs(10);
/// Most names under which consumers have committed offsets in one topic.
pub const MAX_CONSUMERS: usize = 1024;
/// When a producer whose batch a plugin wants later should send it again, in milliseconds.
pub const PLUGIN_RETRY_AFTER_MS: u32 = 100;

const _: () = assert!(PIPELINE_MERGE_BYTES <= PIPELINE_READ_BYTES);
const _: () = assert!(MAX_MADE_BYTES < u32::MAX as usize / 2);
const _: () = assert!(INBOUND_BYTES >= 8 * millstream_proto::limits::MAX_FRAME_BYTES);
const _: () = assert!(INBOUND_BYTES <= Semaphore::MAX_PERMITS);
