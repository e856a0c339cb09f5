//! Compares sealed segments with the floor under them, in one run: the same number of bytes
//! written to a file and synced, and read from it again.
//!
//! ```text
//! cargo run --release -p millstream-store --example segment_bench -- [directory] [MiB]
//! ```
//!
//! Give it a directory on the disk that matters: a temporary directory may be in memory. Files
//! are as large as the sealer makes them, a raw one and a segment take turns, and every figure is
//! the median of the files'. What is read from the disk is first dropped from the operating
//! system's cache by GNU `dd`; where that does not work, those rows are left out.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_store::key::record::RecordKey;
use millstream_store::segment::limits::READ_AHEAD;
use millstream_store::segment::{DirFiles, Files, Segment, SegmentWriter, Summary};
use millstream_store::{Direction, Key};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SEGMENT_BYTES: usize = 32 << 20;
const PARTITIONS: usize = 16;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let mib = arguments
        .next()
        .map_or(Ok(1024), |text| text.parse::<usize>())?;
    let directory = directory.join(format!("segment-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = run(&directory, mib << 20);
    std::fs::remove_dir_all(&directory)?;
    result
}

fn run(directory: &Path, total: usize) -> Outcome<()> {
    let rounds = (total / SEGMENT_BYTES).max(1);
    println!(
        "directory {}, {rounds} segments of {} MiB\n",
        directory.display(),
        SEGMENT_BYTES >> 20
    );
    println!("| | raw MB/s | segment MB/s | ratio |");
    println!("|---|---|---|---|");
    for value_len in [64 << 10, 200] {
        let files: Arc<dyn Files> = Arc::new(DirFiles::open(&directory.join("segments"))?);
        let bench = Bench {
            directory,
            files,
            value: payload(value_len),
            keys: keys(SEGMENT_BYTES / value_len),
            raw_bytes: payload(READ_AHEAD),
        };
        let summaries = bench.writing(rounds)?;
        bench.reading("read, from the disk", &summaries, true)?;
        bench.reading("read, OS-cached", &summaries, false)?;
        for summary in &summaries {
            bench.files.remove(summary.number)?;
            std::fs::remove_file(bench.raw(summary.number))?;
        }
    }
    Ok(())
}

/// As records have them, sorted.
fn keys(count: usize) -> Vec<Key> {
    let key = |number| {
        RecordKey {
            topic: 1,
            partition: (number * PARTITIONS / count) as u32,
            base_offset: number as u64,
        }
        .encode()
    };
    (0..count).map(key).collect()
}

fn payload(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

struct Bench<'a> {
    directory: &'a Path,
    files: Arc<dyn Files>,
    value: Vec<u8>,
    keys: Vec<Key>,
    raw_bytes: Vec<u8>,
}

impl Bench<'_> {
    fn raw(&self, number: u64) -> PathBuf {
        self.directory.join(format!("raw-{number}"))
    }

    fn report(&self, what: &str, raw: &mut Times, segment: &mut Times) {
        let (raw, segment) = (raw.median_rate(), segment.median_rate());
        println!(
            "| {} B values: {what} | {raw:.0} | {segment:.0} | {:.2} |",
            self.value.len(),
            segment / raw
        );
    }

    fn writing(&self, rounds: usize) -> Outcome<Vec<Summary>> {
        let (mut raw, mut segment) = (Times::default(), Times::default());
        let mut summaries = Vec::new();
        for number in 0..rounds as u64 {
            let start = Instant::now();
            let summary = self.write_segment(number)?;
            segment.add(summary.file_bytes, start);
            let start = Instant::now();
            self.write_raw(number, summary.file_bytes as usize)?;
            raw.add(summary.file_bytes, start);
            summaries.push(summary);
        }
        self.report("write and sync", &mut raw, &mut segment);
        Ok(summaries)
    }

    fn write_segment(&self, number: u64) -> Outcome<Summary> {
        let mut writer = SegmentWriter::new(Arc::clone(&self.files), number)?;
        for key in &self.keys {
            writer.push(key, &self.value)?;
        }
        Ok(writer.finish()?)
    }

    fn write_raw(&self, number: u64, len: usize) -> Outcome<()> {
        let bytes = &self.raw_bytes;
        let mut file = File::create(self.raw(number))?;
        for start in (0..len).step_by(bytes.len()) {
            file.write_all(&bytes[..bytes.len().min(len - start)])?;
        }
        file.sync_data()?;
        Ok(File::open(self.directory)?.sync_all()?)
    }

    fn reading(&self, what: &str, summaries: &[Summary], cold: bool) -> Outcome<()> {
        let (mut raw, mut segment) = (Times::default(), Times::default());
        for summary in summaries {
            let paths = [self.files.path(summary.number), self.raw(summary.number)];
            if cold && !paths.iter().all(|path| drop_from_cache(path)) {
                return Ok(());
            }
            let start = Instant::now();
            let open = Segment::open(&*self.files, summary.number, summary.file_bytes)?;
            let mut bytes = 0;
            for row in open.iter(Direction::Forward) {
                bytes += row?.value.len();
            }
            segment.add(summary.file_bytes, start);
            if bytes as u64 / summary.entries != self.value.len() as u64 {
                return Err("the segment does not hold what was written".into());
            }
            let start = Instant::now();
            read_raw(&paths[1], summary.file_bytes as usize)?;
            raw.add(summary.file_bytes, start);
        }
        self.report(what, &mut raw, &mut segment);
        Ok(())
    }
}

fn read_raw(path: &Path, len: usize) -> Outcome<()> {
    let file = File::open(path)?;
    let mut buffer = vec![0; READ_AHEAD];
    for start in (0..len).step_by(buffer.len()) {
        let part = buffer.len().min(len - start);
        file.read_exact_at(&mut buffer[..part], start as u64)?;
        std::hint::black_box(&buffer);
    }
    Ok(())
}

/// Whether the operating system will have to read the file from its disk.
fn drop_from_cache(path: &Path) -> bool {
    let mut input = std::ffi::OsString::from("if=");
    input.push(path);
    let mut command = Command::new("dd");
    command
        .arg(input)
        .args(["iflag=nocache", "count=0", "status=none"]);
    command.status().is_ok_and(|status| status.success())
}

#[derive(Default)]
struct Times(Vec<(u64, Duration)>);

impl Times {
    fn add(&mut self, bytes: u64, start: Instant) {
        self.0.push((bytes, start.elapsed()));
    }

    /// Megabytes a second.
    fn median_rate(&mut self) -> f64 {
        let rate = |(bytes, took): &(u64, Duration)| *bytes as f64 / took.as_secs_f64() / 1e6;
        self.0.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        self.0.get(self.0.len() / 2).map_or(0.0, rate)
    }
}
