//! What the system says of a process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

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

/// Bytes that a process has had written to the disk so far; 0 where the system does not say.
pub(super) fn written(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("write_bytes:"));
    line.and_then(|l| l.trim().parse().ok()).unwrap_or(0)
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
