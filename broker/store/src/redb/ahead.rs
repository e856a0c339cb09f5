//! Space for the hot file ahead of where it is written.
//!
//! A file system finds blocks for what is written when it is synced, a few at a time, and each sync
//! carries along where it found them. Asked for many at once, ahead of the writes, it has less to do
//! in a sync. The file's length stays as it is, and no promise rests on any of this: where the disk
//! or the file system has no room to give ahead, writes find their own as ever.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::AHEAD_BYTES;

/// What has been asked for so far.
#[derive(Debug)]
pub(super) struct Ahead {
    file: File,
    /// Everything before this byte has blocks, or was tried. `u64::MAX` once that was refused.
    until: AtomicU64,
}

impl Ahead {
    /// For a file whose first `written` bytes have blocks.
    pub(super) fn new(file: File, written: u64) -> Self {
        Self {
            file,
            until: AtomicU64::new(written),
        }
    }

    /// Before something is written up to byte `end`.
    pub(super) fn reach(&self, end: u64) {
        let until = self.until.load(Ordering::Relaxed);
        if end <= until {
            return;
        }
        let next = end.saturating_add(AHEAD_BYTES);
        let until = match give(&self.file, until, next - until) {
            Ok(()) => next,
            Err(error) => {
                tracing::debug!(%error, "no space is given ahead of writes");
                if let Err(error) = give_back(&self.file) {
                    tracing::debug!(%error, "what was given of it is kept");
                }
                u64::MAX
            }
        };
        self.until.store(until, Ordering::Relaxed);
    }
}

#[cfg(target_os = "linux")]
fn give(file: &File, from: u64, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    Ok(fallocate(file, FallocateFlags::KEEP_SIZE, from, len)?)
}

#[cfg(not(target_os = "linux"))]
fn give(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives back what lies behind the file's end. A file system that has less than it was asked for may
/// have given all of that before it refused, and others need it: the sealer, to make room in here.
/// Only the thread that writes the file comes here, and that alone changes its length.
fn give_back(file: &File) -> io::Result<()> {
    file.set_len(file.metadata()?.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn space_is_found_once_for_many_writes_and_the_length_stays() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let ahead = Ahead::new(file.try_clone().unwrap(), 0);
        ahead.reach(4096);
        let taken = || file.metadata().unwrap().blocks() * 512;
        assert!(taken() >= AHEAD_BYTES, "{} bytes", taken());
        assert_eq!(file.metadata().unwrap().len(), 0);
        let first = taken();
        ahead.reach(AHEAD_BYTES);
        assert_eq!(taken(), first, "that was asked for already");
        ahead.reach(AHEAD_BYTES + 8192);
        assert!(taken() > first);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_given_back_is_all_behind_the_end() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        give(&file, 0, AHEAD_BYTES).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= AHEAD_BYTES);
        give_back(&file).unwrap();
        let left = file.metadata().unwrap();
        assert_eq!(left.len(), 5000);
        assert!(left.blocks() * 512 < AHEAD_BYTES / 2, "{}", left.blocks());
        let mut read = [0; 5000];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, [7; 5000]);
    }

    #[test]
    fn a_refusal_is_the_last() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let ahead = Ahead::new(File::open(path.path()).unwrap(), 0);
        ahead.reach(1);
        assert_eq!(ahead.until.load(Ordering::Relaxed), u64::MAX);
        ahead.reach(2);
        assert_eq!(path.as_file().metadata().unwrap().len(), 0);
    }
}
