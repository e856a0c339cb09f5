//! What the system says of a process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// A line of `/proc/<pid>/status` in bytes; 0 where there is none.
fn status(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Resident memory now, in bytes.
pub(super) fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS")
}

/// Most resident memory so far, in bytes.
pub(super) fn peak_resident(pid: u32) -> u64 {
    status(pid, "VmHWM")
}

/// A number of the statistics of the device that `dir` is on, counted in sectors, in bytes; 0 where
/// the system does not say.
fn device(dir: &Path, column: usize) -> u64 {
    let device = std::fs::metadata(dir).map_or(0, |found| found.dev());
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"));
    let stat = stat.unwrap_or_default();
    let sectors = stat.split_whitespace().nth(column);
    // Always of 512 bytes.
    sectors.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 512
}

/// Bytes that everybody has written so far to the device that `dir` is on. What the system says of
/// a single process counts pages that were made dirty, several times where a small write touches a
/// large cached piece of a file.
pub(super) fn written(dir: &Path) -> u64 {
    device(dir, 6)
}

/// Bytes that everybody has read so far from the device that `dir` is on.
pub(super) fn read(dir: &Path) -> u64 {
    device(dir, 2)
}

/// Ticks in a second of the times in `/proc`: a constant of the system's interface.
const TICKS: u64 = 100;

/// Time that all threads of a process have computed so far; none where the system does not say.
pub(super) fn cpu(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name of the program, in brackets, may itself hold brackets and spaces.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    // Behind the name, the twelfth is time of its own, and the next one time in the kernel.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|n| n.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Space that the files below `dir` take on the disk, in bytes.
pub(super) fn space(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => space(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
