//! What hostile plugins do, by name: the names a test chooses from, and the deeds that are the same
//! in every kind of plugin.

use std::hint::black_box;

/// Deeds of every kind of plugin, done when a batch comes.
pub const ACTS: [&str; 10] = [
    "spin",
    "eat-memory",
    "leak",
    "recurse",
    "trap",
    "panic",
    "flood-logs",
    "flood-counters",
    "trap-on-poison",
    "huge-error",
];
/// Deeds of every kind of plugin, done in `init`.
pub const IN_INIT: [&str; 5] = [
    "init-fails",
    "spin-in-init",
    "trap-in-init",
    "eat-memory-in-init",
    "flood-logs-in-init",
];
/// Errors that every kind of plugin reports, which are not hostile but need an answer.
pub const ERRORS: [&str; 5] = [
    "retry",
    "fatal",
    "bad-record",
    "bad-record-on-poison",
    "bad-record-out-of-range",
];
/// Nonsense of filters.
pub const FILTER: [&str; 4] = ["too-few", "too-many", "unknown-verdict", "flood-output"];
/// Nonsense of partitioners.
pub const PARTITIONER: [&str; 4] = [
    "too-few",
    "too-many",
    "partition-out-of-range",
    "flood-output",
];
/// Nonsense of transforms.
pub const TRANSFORM: [&str; 19] = [
    "half-a-row",
    "half-a-header",
    "too-few-timestamps",
    "too-many-timestamps",
    "unknown-output",
    "unknown-input-record",
    "partition-out-of-range",
    "key-out-of-bounds",
    "value-out-of-bounds",
    "value-overflows",
    "headers-out-of-bounds",
    "header-count-overflows",
    "header-name-out-of-bounds",
    "header-name-not-utf8",
    "header-name-empty",
    "header-value-absent",
    "flood-records",
    "flood-bytes",
    "oversized-record",
];
/// What does no harm: a control, in every kind.
pub const BEHAVE: &str = "behave";
/// A record is poison if its value begins with this.
pub const POISON: &[u8] = b"poison";

/// Bytes of one step of eating memory.
const MOUTHFUL: usize = 1 << 20;
/// Bytes lost with each batch by `leak`.
const LEAK: usize = 4 << 20;
/// Lines and counters of a flood: far more than anybody reads, and soon over.
const FLOOD: usize = 20_000;

/// What a deed uses of its host.
pub trait Host {
    /// Logs a line.
    fn log(&self, line: &str);
    /// Adds one to a counter.
    fn count(&self, name: &str);
}

/// Does what `mode` says if it is one of [`ACTS`] that need no record, and returns if that deed
/// ever ends.
#[allow(
    clippy::disallowed_methods,
    reason = "in a component an abort is a trap"
)]
pub fn act(mode: &str, host: &dyn Host) {
    match mode.strip_suffix("-in-init").unwrap_or(mode) {
        "spin" => spin(),
        "eat-memory" => eat_memory(),
        "leak" => _ = black_box(vec![1u8; LEAK]).leak(),
        "recurse" => _ = black_box(recurse(u64::MAX, [1; 32])),
        "trap" => std::process::abort(),
        "panic" => panic!("this plugin panics because it was told to"),
        "flood-logs" => {
            let line = "all work and no play makes a dull log ".repeat(10);
            (0..FLOOD).for_each(|_| host.log(&line));
        }
        "flood-counters" => (0..FLOOD).for_each(|n| host.count(&format!("counter-{n}"))),
        _ => {}
    }
}

/// Whether `mode` is one of these, or the control.
#[must_use]
pub fn knows(mode: &str, nonsense: &[&str]) -> bool {
    let lists: [&[&str]; 4] = [&ACTS, &IN_INIT, &ERRORS, nonsense];
    mode == BEHAVE || lists.iter().any(|list| list.contains(&mode))
}

fn spin() {
    let mut turns = 0u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn eat_memory() {
    let mut eaten = Vec::new();
    loop {
        eaten.push(black_box(vec![1u8; MOUTHFUL]));
    }
}

#[inline(never)]
fn recurse(depth: u64, plate: [u64; 32]) -> u64 {
    let plate = black_box(plate);
    if depth == 0 {
        return plate[0];
    }
    recurse(depth - 1, plate).wrapping_add(plate[(depth % 32) as usize])
}
