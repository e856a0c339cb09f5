//! Writing a segment at a pace that others can live with.

use crate::limits::SEAL_SYNC_BYTES;
use crate::segment::{SegmentError, SegmentWriter, Summary};

/// Writes a segment with a sync every few megabytes, so that the syncs of hot commits, which the
/// file system may make wait for it, never wait for long.
pub(super) struct Paced {
    writer: SegmentWriter,
    unsynced: u64,
}

impl Paced {
    pub(super) fn new(writer: SegmentWriter) -> Self {
        Self {
            writer,
            unsynced: 0,
        }
    }

    pub(super) fn push(&mut self, key: &[u8], stored: &[u8]) -> Result<(), SegmentError> {
        self.writer.push(key, stored)?;
        self.unsynced += (key.len() + stored.len()) as u64;
        if self.unsynced >= SEAL_SYNC_BYTES {
            self.writer.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Summary, SegmentError> {
        self.writer.finish()
    }
}
