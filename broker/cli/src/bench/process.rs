//! What the system says of a process.

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
