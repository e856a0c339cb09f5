//! The disk floor: append and fdatasync, and nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::payload::random;
use crate::error::{CliError, Outcome};

/// Bytes between two syncs: what a producer with 16 batches of 64 KiB in flight gathers.
const GROUP_BYTES: usize = 1 << 20;

/// Bytes per second appended and synced a group at a time. Blocking.
pub(super) fn append(dir: &Path, bytes: u64) -> Outcome<f64> {
    let run = || -> io::Result<f64> {
        let path = dir.join("floor");
        let mut file = File::create(&path)?;
        let group = random(GROUP_BYTES);
        let begun = Instant::now();
        let mut left = bytes;
        while left > 0 {
            let n = left.min(GROUP_BYTES as u64);
            file.write_all(&group[..n as usize])?;
            file.sync_data()?;
            left -= n;
        }
        let rate = bytes as f64 / begun.elapsed().as_secs_f64();
        std::fs::remove_file(path)?;
        Ok(rate)
    };
    run().map_err(|e| CliError::file("append to a file in", dir, &e))
}

/// Times of `count` appends of 4 KiB, each synced. Blocking.
pub(super) fn sync_times(dir: &Path, count: usize) -> Outcome<Vec<Duration>> {
    let run = || -> io::Result<Vec<Duration>> {
        let path = dir.join("floor");
        let mut file = File::create(&path)?;
        let page = random(4096);
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            file.write_all(&page)?;
            file.sync_data()?;
            times.push(begun.elapsed());
        }
        std::fs::remove_file(path)?;
        Ok(times)
    };
    run().map_err(|e| CliError::file("append to a file in", dir, &e))
}
