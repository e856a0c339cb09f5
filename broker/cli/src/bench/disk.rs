//! The disk floors: append and fdatasync, and nothing else; reading files from one end to the other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

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

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// Bytes per second read of the segments of a data directory, one after the other.
pub(super) async fn read(data: &Path) -> Outcome<f64> {
    on_a_thread(data, |data| {
        let mut buffer = vec![0; READ_BYTES];
        let mut total = 0;
        let begun = Instant::now();
        for path in segments(&data)? {
            let mut file = File::open(path)?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    n => total += n,
                }
            }
        }
        Ok(total as f64 / begun.elapsed().as_secs_f64())
    })
    .await
}

/// Has the system forget what it has cached of the segments of a data directory.
pub(super) async fn forget(data: &Path) -> Outcome {
    on_a_thread(data, |data| {
        for path in segments(&data)? {
            let file = File::open(path)?;
            // What is not on the disk yet cannot be forgotten.
            file.sync_data()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    })
    .await
}

/// The segments of a data directory, the oldest first.
fn segments(data: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "segments") {
            for entry in std::fs::read_dir(path)? {
                found.push(entry?.path());
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|e| e == "seg"));
    found.sort();
    Ok(found)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn segments_and_nothing_else_are_read() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("shard-0.segments");
        std::fs::create_dir(&place).unwrap();
        for (name, len) in [("2.seg", 10), ("1.seg", 20), ("3.seg.new", 40)] {
            std::fs::write(place.join(name), vec![0; len]).unwrap();
        }
        std::fs::write(home.path().join("shard-0.redb"), b"hot").unwrap();
        let found = segments(home.path()).unwrap();
        assert_eq!(found, [place.join("1.seg"), place.join("2.seg")]);
        forget(home.path()).await.unwrap();
        assert!(read(home.path()).await.unwrap() > 0.0);
    }
}
