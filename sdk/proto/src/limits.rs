//! Every cap that both sides of a connection must agree on, in one place.
//!
//! Caps that concern one component only (a queue inside the broker, say) are
//! named constants of that component. Where one cap depends on another, the
//! relation is asserted below, at compile time.

/// Largest encoded record batch, header included, in bytes.
pub const MAX_BATCH_BYTES: usize = 16 << 20;
/// Largest body of a batch after decompression, in bytes.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// Most records in one batch.
pub const MAX_BATCH_RECORDS: u32 = 1 << 18;
/// Most record headers in one batch, over all its records.
pub const MAX_BATCH_HEADERS: u32 = 1 << 18;
/// Largest record in bytes: key, value and headers together.
pub const MAX_RECORD_BYTES: usize = 8 << 20;
/// Most headers on one record.
pub const MAX_RECORD_HEADERS: usize = 256;
/// Longest record header name, in bytes of UTF-8.
pub const MAX_HEADER_NAME_BYTES: usize = 256;

/// Batch size that producers fill by default, in bytes of encoded batch.
///
/// redb stores a large value in a page whose size is the next power of two, so
/// a batch of exactly 64 KiB would occupy 128 KiB. This leaves room for the
/// key, the trailer and the page's own bookkeeping.
pub const DEFAULT_BATCH_BYTES: usize = (64 << 10) - 256;

/// Largest payload of a frame that carries a message (not a batch), in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Fixed bytes in front of the batch in produce and deliver frames.
pub const MAX_BATCH_PREFIX_BYTES: usize = 64;
/// Largest payload of any frame, in bytes.
pub const MAX_FRAME_BYTES: usize = MAX_BATCH_BYTES + MAX_BATCH_PREFIX_BYTES;

/// Largest plugin component that can be uploaded, in bytes.
pub const MAX_PLUGIN_BYTES: usize = 16 << 20;
/// Largest chunk of an upload, in bytes.
pub const MAX_UPLOAD_CHUNK_BYTES: usize = 256 << 10;

/// Longest tenant name, in bytes.
pub const MAX_TENANT_BYTES: usize = 63;
/// Longest topic, plugin, pipeline or consumer name without its tenant, in bytes.
pub const MAX_NAME_BYTES: usize = 127;
/// Longest principal, in bytes.
pub const MAX_PRINCIPAL_BYTES: usize = 512;

/// Most partitions of one topic.
pub const MAX_PARTITIONS: u32 = 1024;
/// Most plugins in one chain.
pub const MAX_CHAIN_STEPS: usize = 16;
/// Most configuration entries of one plugin use.
pub const MAX_CONFIG_ENTRIES: usize = 128;
/// Longest configuration key or value, in bytes.
pub const MAX_CONFIG_BYTES: usize = 64 << 10;
/// Most named outputs of one pipeline.
pub const MAX_OUTPUTS: usize = 64;
/// Most names, rules or log lines in one answer; further ones are asked for by page.
pub const MAX_PAGE: usize = 1000;
/// Longest text in an error message, in bytes.
pub const MAX_ERROR_BYTES: usize = 4096;

const _: () = {
    assert!(MAX_RECORD_BYTES < MAX_BATCH_BYTES);
    assert!(MAX_BATCH_BYTES <= MAX_BODY_BYTES);
    assert!(MAX_FRAME_BYTES < u32::MAX as usize);
    assert!(MAX_BODY_BYTES < u32::MAX as usize / 2);
    assert!(MAX_UPLOAD_CHUNK_BYTES <= MAX_MESSAGE_BYTES);
    assert!(MAX_HEADER_NAME_BYTES <= u16::MAX as usize);
    assert!(MAX_RECORD_HEADERS <= u16::MAX as usize);
    assert!(DEFAULT_BATCH_BYTES < MAX_BATCH_BYTES);
    // Columns are at most 22 bytes per record and 6 per header.
    assert!(MAX_BATCH_RECORDS as usize * 22 + MAX_BATCH_HEADERS as usize * 6 < MAX_BATCH_BYTES);
};
