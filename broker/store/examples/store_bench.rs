//! Compares the store with the floor under it, in one run: appending the same bytes to a file and
//! syncing it. The figures in the comments of this crate and in the documentation come from here.
//!
//! ```text
//! cargo run --release -p millstream-store --example store_bench -- [directory] [MiB] [part]
//! ```
//!
//! Give it a directory on the disk that matters: a temporary directory may be in memory. A part is
//! one of rate, single, small, latency, open, scan; without it, all of them are measured.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{
    Direction, Durability, Recovery, RedbConfig, RedbStore, ScanLimit, Space, Store, WriteBatch,
};
use redb::{Database, TableDefinition};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Values of three sizes: what a producer's full batch of each size may come to.
const VALUE_64K: usize = 65_280;
const VALUE_256K: usize = 4 * VALUE_64K;
const VALUE_1M: usize = 16 * VALUE_64K;
const GROUP: usize = 16;
const COMMITS: usize = 2000;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let mib = arguments
        .next()
        .map_or(Ok(512), |text| text.parse::<usize>())?;
    let directory = directory.join(format!("store-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = run(&directory, mib << 20, arguments.next().as_deref());
    std::fs::remove_dir_all(&directory)?;
    result
}

const ALL_RECOVERY: [Recovery; 3] = [Recovery::OnePhase, Recovery::TwoPhase, Recovery::Quick];

fn run(directory: &Path, total: usize, part: Option<&str>) -> Outcome<()> {
    println!(
        "directory {}, {} MiB for each row",
        directory.display(),
        total >> 20
    );
    let wanted = |name: &str| part.is_none_or(|part| part == name);
    if wanted("rate") {
        println!("\n| {GROUP} values a commit, synced | MB/s | bytes written per byte |");
        println!("|---|---|---|");
        floor_append(directory, VALUE_64K, GROUP, total)?;
        for recovery in ALL_RECOVERY {
            grouped(directory, recovery, VALUE_64K, total)?;
        }
    }
    if wanted("single") {
        println!("\n| one value a commit, synced | MB/s | bytes written per byte |");
        println!("|---|---|---|");
        let sizes = [VALUE_64K, VALUE_256K, VALUE_1M];
        for len in sizes {
            floor_append(directory, len, 1, total)?;
            single(directory, len, total)?;
            single(directory, len + 1, total)?;
        }
    }
    if wanted("small") {
        println!("\n| 1,000 B to each partition, synced | MB/s | bytes written per byte |");
        println!("|---|---|---|");
        for partitions in [64, 256] {
            rows_of_redb(directory, partitions, total / 4)?;
            small(directory, partitions, 1, total / 4)?;
            small(directory, partitions, 4096 / partitions, total)?;
        }
    }
    if wanted("latency") {
        println!("\n| latency of a commit, us | p50 | p99 | max |");
        println!("|---|---|---|---|");
        floor_latency(directory)?;
        for recovery in ALL_RECOVERY {
            for len in [100, VALUE_64K] {
                latency(directory, recovery, len, Durability::Sync)?;
            }
        }
        settled_latency(directory, 100)?;
        settled_latency(directory, VALUE_64K)?;
        latency(directory, Recovery::OnePhase, 100, Durability::Interval)?;
    }
    println!("\n| opening and reading | |");
    println!("|---|---|");
    if wanted("open") {
        for recovery in ALL_RECOVERY {
            reopening(directory, recovery, total)?;
        }
    }
    if wanted("scan") {
        scanning(directory, total)?;
    }
    Ok(())
}

fn payload(len: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect::<Vec<u8>>().into()
}

fn key(number: usize) -> RecordKey {
    RecordKey {
        topic: 1,
        partition: (number % GROUP) as u32,
        base_offset: number as u64,
    }
}

fn config(recovery: Recovery) -> RedbConfig {
    RedbConfig {
        recovery,
        ..RedbConfig::default()
    }
}

/// A new store in `directory`, replacing the one before.
fn fresh(directory: &Path, recovery: Recovery) -> Outcome<(PathBuf, RedbStore)> {
    let path = directory.join("shard.redb");
    if path.exists() {
        std::fs::remove_file(&path)?;
        std::fs::remove_dir_all(path.with_extension("segments"))?;
    }
    let store = RedbStore::open(&path, &config(recovery))?;
    Ok((path, store))
}

/// Bytes this process has caused to be written to a disk, where the system tells.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn report_rate(name: &str, bytes: usize, took: Duration, wrote: u64) {
    let rate = bytes as f64 / took.as_secs_f64() / 1e6;
    println!(
        "| {name} | {rate:.0} | {:.2} |",
        wrote as f64 / bytes as f64
    );
}

fn report_latency(name: &str, latencies: &Histogram<u64>) {
    let at = |quantile| latencies.value_at_quantile(quantile);
    println!(
        "| {name} | {} | {} | {} |",
        at(0.5),
        at(0.99),
        latencies.max()
    );
}

fn floor_append(directory: &Path, len: usize, group: usize, total: usize) -> Outcome<()> {
    let path = directory.join("floor");
    let mut file = File::create(&path)?;
    let value = payload(len);
    let (before, start, mut done) = (written(), Instant::now(), 0);
    while done < total {
        for _ in 0..group {
            file.write_all(&value)?;
            done += len;
        }
        file.sync_data()?;
    }
    let name = format!("floor: append {group} x {len} B, fdatasync");
    report_rate(&name, done, start.elapsed(), written() - before);
    Ok(std::fs::remove_file(path)?)
}

/// Submits `batches` batches of one value each and waits for all of them.
fn commit_together(store: &RedbStore, first: usize, value: &Bytes, batches: usize) -> Outcome<()> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    for number in first..first + batches {
        let mut batch = WriteBatch::new();
        batch.put(Space::Records, key(number).encode(), value.clone());
        let permit = store
            .try_reserve(batch.byte_len())?
            .ok_or("the queue is full")?;
        let sender = sender.clone();
        // The receiver waits for every answer, so a send can only fail when it has failed itself.
        store.submit(
            permit,
            batch,
            Box::new(move |result| drop(sender.send(result))),
        );
    }
    drop(sender);
    for result in receiver {
        result?;
    }
    Ok(())
}

fn grouped(directory: &Path, recovery: Recovery, len: usize, total: usize) -> Outcome<()> {
    let (_, store) = fresh(directory, recovery)?;
    let value = payload(len);
    let (before, start, mut number) = (written(), Instant::now(), 0);
    // One batch whole, as a producer's is: all values in one commit whatever the timing.
    while number * len < total {
        let mut batch = WriteBatch::new();
        for number in number..number + GROUP {
            batch.put(Space::Records, key(number).encode(), value.clone());
        }
        commit(&store, batch)?;
        number += GROUP;
    }
    let name = format!("{recovery:?}: {GROUP} x {len} B");
    report_rate(&name, number * len, start.elapsed(), written() - before);

    let (before, start, mut more) = (written(), Instant::now(), 0);
    while more * len < total {
        commit_together(&store, number + more, &value, 4 * GROUP)?;
        more += 4 * GROUP;
    }
    let name = format!("{recovery:?}: {} batches of {len} B in flight", 4 * GROUP);
    report_rate(&name, more * len, start.elapsed(), written() - before);
    Ok(())
}

fn single(directory: &Path, len: usize, total: usize) -> Outcome<()> {
    let (_, store) = fresh(directory, Recovery::OnePhase)?;
    let value = payload(len);
    let (before, start, mut number) = (written(), Instant::now(), 0);
    while number * len < total {
        commit_together(&store, number, &value, 1)?;
        number += 1;
    }
    report_rate(
        &format!("store: {len} B"),
        number * len,
        start.elapsed(),
        written() - before,
    );
    Ok(())
}

/// Length of a small batch.
const SMALL: usize = 1000;

/// One commit after the other, each with `rounds` batches for every partition.
fn small(directory: &Path, partitions: usize, rounds: usize, total: usize) -> Outcome<()> {
    let (_, store) = fresh(directory, Recovery::OnePhase)?;
    let value = payload(SMALL);
    let (before, start, mut offset) = (written(), Instant::now(), 0u64);
    let mut done = 0;
    while done < total {
        let mut batch = WriteBatch::new();
        for _ in 0..rounds {
            for partition in 0..partitions as u32 {
                let key = RecordKey {
                    topic: 1,
                    partition,
                    base_offset: offset,
                };
                batch.put(Space::Records, key.encode(), value.clone());
            }
            offset += 1;
        }
        done += rounds * partitions * SMALL;
        commit(&store, batch)?;
    }
    let name = format!("store: {partitions} partitions, {rounds} each in a commit");
    report_rate(&name, done, start.elapsed(), written() - before);
    Ok(())
}

const ROWS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("rows");

/// What the engine below does with a row for each batch.
fn rows_of_redb(directory: &Path, partitions: usize, total: usize) -> Outcome<()> {
    let path = directory.join("rows.redb");
    let database = Database::create(&path)?;
    let value = payload(SMALL);
    let (before, start, mut offset, mut done) = (written(), Instant::now(), 0u64, 0);
    while done < total {
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(ROWS)?;
            for partition in 0..partitions as u32 {
                let key = RecordKey {
                    topic: 1,
                    partition,
                    base_offset: offset,
                };
                table.insert(&key.encode()[..], &value[..])?;
            }
        }
        transaction.commit()?;
        offset += 1;
        done += partitions * SMALL;
    }
    let name = format!("redb: {partitions} partitions, a row for each, one in a commit");
    report_rate(&name, done, start.elapsed(), written() - before);
    drop(database);
    Ok(std::fs::remove_file(path)?)
}

fn commit(store: &RedbStore, batch: WriteBatch) -> Outcome<()> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    let permit = store
        .try_reserve(batch.byte_len())?
        .ok_or("the queue is full")?;
    store.submit(
        permit,
        batch,
        Box::new(move |result| drop(sender.send(result))),
    );
    receiver.recv()??;
    Ok(())
}

fn floor_latency(directory: &Path) -> Outcome<()> {
    let path = directory.join("floor");
    let mut file = File::create(&path)?;
    let page = payload(4096);
    let mut latencies = Histogram::new(3)?;
    for _ in 0..COMMITS {
        let start = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        latencies.record(start.elapsed().as_micros() as u64)?;
    }
    report_latency("floor: append 4 KiB, fdatasync", &latencies);
    Ok(std::fs::remove_file(path)?)
}

fn latency(
    directory: &Path,
    recovery: Recovery,
    len: usize,
    durability: Durability,
) -> Outcome<()> {
    let (_, store) = fresh(directory, recovery)?;
    let name = format!("{recovery:?}, {durability:?}: {len} B");
    measure_latency(&store, &name, len, durability)
}

/// As [`latency`], in a file whose blocks have all been written before: what a shard comes to
/// when retention keeps up. The file system has nothing to note down at a sync.
fn settled_latency(directory: &Path, len: usize) -> Outcome<()> {
    let (_, store) = fresh(directory, Recovery::OnePhase)?;
    fill(&store, 2 * COMMITS * len.max(32 << 10))?;
    let mut batch = WriteBatch::new();
    batch.delete_range(Space::Records, record::range_topic(1));
    commit(&store, batch)?;
    let name = format!("OnePhase, Sync, pages used again: {len} B");
    measure_latency(&store, &name, len, Durability::Sync)
}

fn measure_latency(
    store: &RedbStore,
    name: &str,
    len: usize,
    durability: Durability,
) -> Outcome<()> {
    let value = payload(len);
    let mut latencies = Histogram::new(3)?;
    for number in 0..COMMITS {
        let mut batch = WriteBatch::with_durability(durability);
        batch.put(Space::Records, key(number).encode(), value.clone());
        let start = Instant::now();
        commit(store, batch)?;
        latencies.record(start.elapsed().as_micros() as u64)?;
    }
    report_latency(name, &latencies);
    Ok(())
}

/// How long it takes to open a file that was not closed, and one that was.
fn reopening(directory: &Path, recovery: Recovery, total: usize) -> Outcome<()> {
    let (path, store) = fresh(directory, recovery)?;
    fill(&store, total)?;
    let killed = directory.join("killed.redb");
    std::fs::copy(&path, &killed)?;
    let start = Instant::now();
    drop(RedbStore::open(&killed, &config(recovery))?);
    println!(
        "| {recovery:?}: open and close after a kill | {:?} |",
        start.elapsed()
    );
    std::fs::remove_file(&killed)?;
    store.close();
    for (name, verify_up_to) in [("verifying", u64::MAX), ("not verifying", 0)] {
        let start = Instant::now();
        drop(RedbStore::open(
            &path,
            &RedbConfig {
                verify_up_to,
                ..config(recovery)
            },
        )?);
        println!(
            "| {recovery:?}: open and close after a close, {name} | {:?} |",
            start.elapsed()
        );
    }
    Ok(())
}

fn fill(store: &RedbStore, total: usize) -> Outcome<()> {
    let value = payload(VALUE_64K);
    let mut number = 0;
    while number * value.len() < total {
        commit_together(store, number, &value, 4 * GROUP)?;
        number += 4 * GROUP;
    }
    Ok(())
}

fn scanning(directory: &Path, total: usize) -> Outcome<()> {
    let (path, store) = fresh(directory, Recovery::OnePhase)?;
    fill(&store, total)?;
    let (start, mut bytes) = (Instant::now(), 0);
    for partition in 0..GROUP as u32 {
        let mut next = 0;
        loop {
            let snapshot = store.snapshot()?;
            let limit = ScanLimit::bytes(1 << 20);
            let page = record::scan_from(&*snapshot, 1, partition, next, limit)?;
            bytes += page.rows.iter().map(|row| row.value.len()).sum::<usize>();
            let Some(last) = page.rows.last().filter(|_| page.more) else {
                break;
            };
            next = RecordKey::decode(&last.key)?.base_offset + 1;
            // `scan_from` begins with the batch that holds the offset: the last one again.
            bytes -= last.value.len();
        }
    }
    let rate = bytes as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!(
        "| scan of {} MiB in chunks of 1 MiB, OS-cached | {rate:.0} MB/s |",
        bytes >> 20
    );

    // What copying values out costs: the same bytes, from one buffer to a new one each.
    let source = payload(VALUE_64K);
    let (start, count) = (Instant::now(), bytes / source.len());
    for _ in 0..count {
        std::hint::black_box(Bytes::copy_from_slice(std::hint::black_box(&source)));
    }
    let rate = bytes as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("| copying as much in memory | {rate:.0} MB/s |");

    let mut seeks = Histogram::<u64>::new(3)?;
    for number in 0..COMMITS {
        let at = key(number * 7 % (total / VALUE_64K));
        let start = Instant::now();
        let snapshot = store.snapshot()?;
        let all = record::range_all(at.topic, at.partition);
        let limit = ScanLimit::ONE;
        let key = at.encode();
        snapshot.scan(Space::Records, &key..&all.end, Direction::Forward, limit)?;
        seeks.record(start.elapsed().as_micros() as u64)?;
    }
    let at = |quantile| seeks.value_at_quantile(quantile);
    println!(
        "| snapshot and one batch, OS-cached | p50 {} us, p99 {} us |",
        at(0.5),
        at(0.99)
    );
    deleting(&path, &store, total)
}

/// What retention costs: the oldest batches deleted in steps, each a commit of its own.
fn deleting(path: &Path, store: &RedbStore, total: usize) -> Outcome<()> {
    let before = OpenOptions::new().read(true).open(path)?.metadata()?.len();
    let (start, mut steps) = (Instant::now(), 0);
    let count = total / VALUE_64K / 2;
    for first in (0..count).step_by(4 * GROUP) {
        let mut batch = WriteBatch::new();
        for partition in 0..GROUP as u32 {
            let end = (first + 4 * GROUP) as u64;
            batch.delete_range(Space::Records, record::range(1, partition, 0..end));
        }
        commit(store, batch)?;
        steps += 1;
    }
    let each = start.elapsed() / steps;
    println!("| deleting 64 batches of 64 KiB, one commit | {each:?} |");
    fill(store, total / 2)?;
    let after = OpenOptions::new().read(true).open(path)?.metadata()?.len();
    println!(
        "| file before deleting half, and after writing as much | {} MiB, {} MiB |",
        before >> 20,
        after >> 20
    );
    Ok(())
}
