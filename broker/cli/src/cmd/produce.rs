//! `millstream produce`: records from lines.

mod input;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use indicatif::ProgressBar;

use millstream::{BatchDelivery, BatchPlaced, Client, Producer, Record};
use millstream_proto::limits::{MAX_BATCH_BYTES, MAX_HEADER_NAME_BYTES};
use millstream_proto::{Codec, PartitionId, TopicName};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::input::{Chunk, Line, Rules};
use crate::args::Global;
use crate::clock;
use crate::error::{CliError, Outcome};
use crate::link;
use crate::output::Output;
use crate::pointer::Pointer;
use crate::quantity::{bytes_usize, duration, pair, show_bytes, show_count};

/// Calls to the producer that wait for their acknowledgement; reading then pauses.
const MAX_WAITING: usize = 4096;
/// With `--rate`, so many times in a second records are handed to the producer.
const STEPS_PER_SECOND: u32 = 20;

/// Arguments of `produce`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a record. The keys of NDJSON are found by JSON pointer (RFC 6901): texts as they are,
other values as JSON. All records are sent by one idempotent producer: what is sent again after a
lost connection is stored once.

Examples:
  millstream produce acme/quakes --file quakes.ndjson --ndjson --key-pointer /id --timestamp-pointer /time
  tail -F app.log | millstream produce acme/log --linger 20ms --codec zstd
  echo hello | millstream produce acme/log --partition 0 --header source=shell")]
pub(crate) struct ProduceArgs {
    /// tenant/topic.
    topic: TopicName,
    /// Read this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Every line must be JSON; empty lines are passed over.
    #[arg(long)]
    ndjson: bool,
    /// Where the key is in the JSON of a line.
    #[arg(long, value_name = "POINTER")]
    key_pointer: Option<Pointer>,
    /// Where the timestamp is: milliseconds since 1970, or an RFC 3339 text. Now, unless given.
    #[arg(long, value_name = "POINTER")]
    timestamp_pointer: Option<Pointer>,
    /// Send every record to this partition.
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// A header for every record; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// Compression.
    #[arg(long, value_enum, default_value_t = CodecArg::None)]
    codec: CodecArg,
    /// Size at which a batch is full; just under 64 KiB unless given.
    #[arg(long, value_name = "SIZE", value_parser = bytes_usize)]
    batch_bytes: Option<usize>,
    /// How long a record waits for others to share its batch.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0")]
    linger: Duration,
    /// Records per second at most.
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CodecArg {
    /// None.
    None,
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Lines that were handed to the producer.
    records: u64,
    /// Their values' bytes.
    bytes: u64,
    /// Lines that are acknowledged.
    acknowledged: u64,
    /// Records stored, by partition.
    stored: BTreeMap<u32, u64>,
    seconds: f64,
    #[serde(skip)]
    ends: BTreeMap<u32, u64>,
}

impl Summary {
    /// Two calls can share a batch, which then is reported to both: a batch counts once.
    fn account(&mut self, placed: &BatchPlaced) {
        self.acknowledged += placed.records;
        for placement in &placed.placements {
            let partition = placement.partition.get();
            let (base, count) = (placement.base.get(), u64::from(placement.count));
            let end = self.ends.entry(partition).or_default();
            if base >= *end {
                *end = base + count;
                *self.stored.entry(partition).or_default() += count;
            }
        }
    }
}

/// Produces until the input ends or somebody interrupts.
pub(crate) async fn run(global: &Global, args: ProduceArgs) -> Outcome {
    check(&args)?;
    let (source, size) = open(&args)?;
    let client = link::connect(global).await?;
    let producer = build(&client, &args).await?;
    let rules = Rules {
        ndjson: args.ndjson,
        key: args.key_pointer.clone(),
        timestamp: args.timestamp_pointer.clone(),
    };
    let out = global.output();
    let mut work = Work {
        args: &args,
        producer: &producer,
        waiting: FuturesOrdered::new(),
        summary: Summary::default(),
        bar: out.progress("producing", size),
        pace: args.rate.map(Pace::new),
    };
    let started = clock::monotonic();
    let input = input::read(source, rules);
    let outcome = unless_interrupted(work.send(input)).await;
    // A second interruption gives up on the acknowledgements too.
    let settled = unless_interrupted(work.settle()).await;
    work.bar.finish_and_clear();
    let mut summary = work.summary;
    summary.seconds = started.elapsed().as_secs_f64();
    // The first error is the cause; those behind it follow from it.
    let outcome = outcome.and(settled);
    let outcome = match outcome {
        Ok(()) => unless_interrupted(async { Ok(producer.close().await?) }).await,
        failed => failed,
    };
    link::leave(&client).await;
    match outcome {
        Ok(()) => tell(out, &args.topic, &summary),
        Err(error) => Err(partly(error, &summary)),
    }
}

/// Does `work` until it is done or somebody interrupts it.
async fn unless_interrupted(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::select! {
        outcome = work => outcome,
        signal = tokio::signal::ctrl_c() => {
            signal.map_err(CliError::failure)?;
            Err(CliError::failure("interrupted"))
        }
    }
}

fn check(args: &ProduceArgs) -> Outcome {
    if let Some((name, _)) = args
        .headers
        .iter()
        .find(|(n, _)| n.len() > MAX_HEADER_NAME_BYTES)
    {
        return Err(CliError::usage(format!(
            "the header name {name:?} is longer than {MAX_HEADER_NAME_BYTES} bytes"
        )));
    }
    match args.batch_bytes {
        Some(bytes) if !(256..=MAX_BATCH_BYTES).contains(&bytes) => Err(CliError::usage(format!(
            "--batch-bytes is {bytes}; 256 to {MAX_BATCH_BYTES} are allowed"
        ))),
        _ => Ok(()),
    }
}

type Source = Box<dyn io::Read + Send>;

/// The input and, for a file, its size.
fn open(args: &ProduceArgs) -> Outcome<(Source, Option<u64>)> {
    let Some(path) = &args.file else {
        return Ok((Box::new(io::stdin()), None));
    };
    let file = File::open(path).map_err(|e| CliError::file("open", path, &e))?;
    let metadata = file
        .metadata()
        .map_err(|e| CliError::file("read", path, &e))?;
    let size = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), size))
}

async fn build(client: &Client, args: &ProduceArgs) -> Outcome<Producer> {
    let codec = match args.codec {
        CodecArg::None => Codec::None,
        CodecArg::Lz4 => Codec::Lz4,
        CodecArg::Zstd => Codec::Zstd,
    };
    let mut builder = client
        .producer(args.topic.clone())
        .linger(args.linger)
        .codec(codec);
    if let Some(bytes) = args.batch_bytes {
        builder = builder.batch_bytes(bytes);
    }
    Ok(builder.build().await?)
}

struct Work<'a> {
    args: &'a ProduceArgs,
    producer: &'a Producer,
    waiting: FuturesOrdered<BatchDelivery>,
    summary: Summary,
    bar: ProgressBar,
    pace: Option<Pace>,
}

impl Work<'_> {
    /// Sends everything, or up to the first error.
    async fn send(&mut self, mut input: mpsc::Receiver<Chunk>) -> Outcome {
        loop {
            tokio::select! {
                Some(settled) = self.waiting.next() => self.summary.account(&settled?),
                chunk = input.recv(), if self.waiting.len() < MAX_WAITING => match chunk {
                    Some(chunk) => self.chunk(&chunk.map_err(CliError::usage)?).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn chunk(&mut self, lines: &[Line]) -> Outcome {
        let step = self.pace.as_ref().map_or(lines.len(), Pace::step);
        for lines in lines.chunks(step.max(1)) {
            if let Some(pace) = &mut self.pace {
                pace.wait(lines.len()).await;
            }
            let headers: Vec<(&str, &[u8])> = self
                .args
                .headers
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_bytes()))
                .collect();
            let records = lines
                .iter()
                .map(|line| record(line, &headers, self.args.partition));
            let delivery = self.producer.send_many(records).await?;
            self.waiting.push_back(delivery);
            self.summary.records += lines.len() as u64;
            let bytes: usize = lines.iter().map(|line| line.value.len()).sum();
            self.summary.bytes += bytes as u64;
            // With the line breaks, which the size of the file counts too.
            self.bar.inc((bytes + lines.len()) as u64);
        }
        Ok(())
    }

    /// Waits for what was sent; the first error counts, what is stored is counted in any case.
    async fn settle(&mut self) -> Outcome {
        let mut outcome = Ok(());
        while let Some(settled) = self.waiting.next().await {
            match settled {
                Ok(placed) => self.summary.account(&placed),
                Err(error) => outcome = outcome.and(Err(error.into())),
            }
        }
        outcome
    }
}

fn record<'a>(line: &'a Line, headers: &'a [(&'a str, &'a [u8])], to: Option<u32>) -> Record<'a> {
    let mut record = Record::value(&line.value).headers(headers);
    if let Some(key) = &line.key {
        record = record.key(key);
    }
    if let Some(ms) = line.timestamp {
        record = record.timestamp(ms);
    }
    match to {
        Some(partition) => record.partition(PartitionId(partition)),
        None => record,
    }
}

/// Spreads records over time.
struct Pace {
    rate: u32,
    next: Option<Instant>,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { rate, next: None }
    }

    /// Records to be sent at once.
    fn step(&self) -> usize {
        (self.rate / STEPS_PER_SECOND).max(1) as usize
    }

    /// Waits until `records` more may be sent. Time that the input or the broker took is not
    /// caught up with: a rate is a ceiling.
    async fn wait(&mut self, records: usize) {
        let due = self
            .next
            .map_or_else(Instant::now, |next| next.max(Instant::now()));
        tokio::time::sleep_until(due).await;
        self.next = Some(due + Duration::from_secs_f64(records as f64 / f64::from(self.rate)));
    }
}

fn partly(error: CliError, summary: &Summary) -> CliError {
    let (sent, stored) = (summary.records, summary.acknowledged);
    if sent == 0 {
        return error;
    }
    let (sent, stored) = (show_count(sent), show_count(stored));
    let message = format!(
        "{}; of {sent} records sent, {stored} are acknowledged and stored",
        error.message
    );
    CliError { message, ..error }
}

fn tell(out: Output, topic: &TopicName, summary: &Summary) -> Outcome {
    if out.json {
        return out.document(summary);
    }
    let Summary {
        records,
        bytes,
        seconds,
        stored,
        ..
    } = summary;
    let spread: Vec<String> = stored
        .iter()
        .map(|(partition, n)| format!("{partition}: {}", show_count(*n)))
        .collect();
    let sentence = format!(
        "produced {} record{}, {} in {seconds:.2} s, to {topic} (partition: records  {})",
        show_count(*records),
        if *records == 1 { "" } else { "s" },
        show_bytes(*bytes),
        spread.join("  ")
    );
    out.done(&sentence, summary)?;
    let placed: u64 = stored.values().sum();
    if placed < *records {
        out.note(&format!(
            "{} records have no place of their own: the topic's plugins dropped, skipped, \
             dead-lettered or joined them",
            show_count(records - placed)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use millstream_proto::Offset;
    use millstream_proto::message::Placement;

    use super::*;
    use crate::error::Exit;

    fn placed(records: u64, placements: &[(u32, u64, u32)]) -> BatchPlaced {
        let place = |&(partition, base, count)| Placement {
            partition: PartitionId(partition),
            base: Offset(base),
            count,
        };
        let placements = placements.iter().map(place).collect();
        BatchPlaced {
            records,
            placements,
            dropped: 0,
        }
    }

    #[test]
    fn a_batch_that_two_calls_share_counts_once() {
        let mut summary = Summary::default();
        summary.account(&placed(3, &[(0, 0, 2), (1, 10, 4)]));
        summary.account(&placed(3, &[(1, 10, 4), (0, 2, 1)]));
        assert_eq!(summary.acknowledged, 6);
        assert_eq!(summary.stored, BTreeMap::from([(0, 3), (1, 4)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_a_ceiling() {
        let mut pace = Pace::new(100);
        let started = Instant::now();
        for _ in 0..10 {
            pace.wait(pace.step()).await;
        }
        // Ten steps of five records are nine intervals of 50 ms.
        assert_eq!(started.elapsed(), Duration::from_millis(450));
    }

    #[test]
    fn what_is_stored_is_said_when_it_fails() {
        let mut summary = Summary {
            records: 10,
            ..Summary::default()
        };
        summary.account(&placed(4, &[]));
        let error = partly(CliError::usage("line 11 is not JSON"), &summary);
        assert_eq!(error.exit, Exit::Usage);
        assert!(
            error
                .message
                .contains("of 10 records sent, 4 are acknowledged"),
            "{error}"
        );
    }
}
