//! The disk floor: append and fdatasync, and nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::payload::random;
use crate::error::{CliError, Outcome};

/// Bytes between two syncs: what a producer with 16 batches of 64 KiB in flight gathers.
const GROUP_BYTES: usize = 1 << 20;

/// Bytes per second appended and synced a group at a time.
pub(super) async fn append(dir: &Path, bytes: u64) -> Outcome<f64> {
    on_a_thread(dir, move |dir| {
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
    })
    .await
}

/// Times of `count` appends of 4 KiB, each synced.
pub(super) async fn sync_times(dir: &Path, count: usize) -> Outcome<Vec<Duration>> {
    on_a_thread(dir, move |dir| {
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
    })
    .await
}

/// Runs what blocks beside the runtime, whose connections must show that they live.
async fn on_a_thread<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce(PathBuf) -> io::Result<T> + Send + 'static,
) -> Outcome<T> {
    let place = dir.to_owned();
    let done = tokio::task::spawn_blocking(move || work(place))
        .await
        .map_err(CliError::failure)?;
    done.map_err(|e| CliError::file("append to a file in", dir, &e))
}
