//! `millstream bench`: how fast this broker is on this machine, beside the floors.
//!
//! Every figure is taken in one run with its floor, in turn: the same bytes through the same QUIC
//! settings between the same two processes with no broker behind (`sink`), the same bytes
//! appended to a file and synced (`disk`), the same filter in native code (`native`). What is
//! reported is the median over the rounds. The broker is a process of its own with a data
//! directory that is thrown away.

mod disk;
mod history;
mod hostile;
mod latency;
mod live;
mod native;
mod payload;
mod process;
mod quic;
mod report;
mod restart;
mod retention;
mod scenario;
mod sealing;
pub(crate) mod sink;
mod small;
mod stage;
mod upkeep;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::payload::Shape;
use self::report::Report;
use self::stage::Stage;
use crate::args::Global;
use crate::error::Outcome;
use crate::output::Output;
use crate::quantity;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// One producer, acknowledgements after fsync.
    Ingest,
    /// The same with a consumer reading along.
    Mixed,
    /// A backlog read by one consumer.
    Fetch,
    /// Acknowledgement latency of single records at a rate.
    Latency,
    /// Ingest with a field filter attached, against without.
    Filter,
    /// From the start of the process to the first acknowledgement, memory, plugin upload.
    Start,
    /// Ingest while records are sealed all the time, against ingest without; bytes written.
    Sealing,
    /// `--bytes` through a topic that keeps a fifth of them: most space taken, latency of commits
    /// against a store that was just made.
    Retention,
    /// From SIGKILL, at rest and under load, to the first acknowledgement, the first of the oldest
    /// records and the newest one, with `--bytes` stored.
    Restart,
    /// A consumer reads a backlog of `--bytes` that is not cached: how fast, and what it costs
    /// producers of single records.
    History,
    /// 1,000 topics with one record a second each; 64 and 256 partitions with 1,000 bytes in turn.
    Small,
    /// Producers beside a check and beside a backup of a running broker that holds `--bytes`.
    Upkeep,
    /// Ingest while hostile plugins are fed elsewhere in the same broker, against alone.
    Hostile,
    /// Ingest, mixed, fetch, filter, latency and start.
    All,
}

/// Arguments of `bench`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Figures are medians over the rounds; `ratio` is the figure divided by its floor, taken in turn with
it. The floor of throughput is the same bytes through the same QUIC settings without a broker; of
latency, the sync of a 4 KiB append plus a QUIC echo; of a filter, the same filter in native code.
Ingest is measured without sealing, in a hot file that holds all of it; `sealing` says what that
costs with the hot file that a broker has unless told otherwise.

What is written to or read from a device is counted for the whole machine: measure while nothing
else runs. Before `restart` and `history` read, the system is told to forget what it has cached of
the segments. On the disk, `restart`, `history` and `sealing` take a bit more than --bytes,
`retention` two fifths of it, `upkeep` two to three times as much in three rounds.

Examples:
  millstream bench
  millstream bench ingest --value-bytes 1KiB --bytes 1GiB
  millstream bench latency --rate 2000 --json
  millstream bench restart --bytes 1GiB --rounds 5
  millstream bench history --bytes 4GiB
  millstream bench retention --bytes 20GiB")]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// Bytes of each value; values do not compress.
    #[arg(long, value_parser = quantity::bytes_usize, default_value = "100", value_name = "BYTES")]
    value_bytes: usize,
    /// Bytes of each key.
    #[arg(long, value_parser = quantity::bytes_usize, default_value = "16", value_name = "BYTES")]
    key_bytes: usize,
    /// Bytes of keys and values in one round.
    #[arg(long, value_parser = quantity::bytes, default_value = "512MiB", value_name = "BYTES")]
    bytes: u64,
    /// Bytes of a full batch.
    #[arg(long, value_parser = quantity::bytes_usize, default_value_t = millstream_proto::limits::DEFAULT_BATCH_BYTES, value_name = "BYTES")]
    batch_bytes: usize,
    /// Batches that may be unacknowledged.
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// Records per second of `latency`, and of the producer beside `history` and `upkeep`.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Largest datagram that path discovery tries, on both sides and in the floor.
    #[arg(long, default_value_t = 1452)]
    mtu: u16,
    /// Size of the hot file in the runs that measure ingest without sealing, which begins when a
    /// quarter of it is used.
    #[arg(long, value_parser = quantity::bytes, default_value = "8GiB", value_name = "BYTES")]
    hot_bytes: u64,
    /// Rounds; each measures the figure and its floor once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where the data directories are made; the system's temporary directory unless given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl BenchArgs {
    fn shape(&self) -> Shape {
        Shape {
            key_bytes: self.key_bytes,
            value_bytes: self.value_bytes,
            batch_bytes: self.batch_bytes,
            in_flight: self.in_flight,
            partitions: self.partitions,
        }
    }
}

/// What every run is given.
struct Bench<'a> {
    stage: &'a Stage,
    args: &'a BenchArgs,
    report: &'a mut Report,
    output: &'a Output,
}

/// Measures and reports.
pub(crate) async fn run(global: &Global, args: BenchArgs) -> Outcome {
    let output = global.output();
    let stage = Stage::new(&args)?;
    let mut report = Report::new(&args);
    let mut bench = Bench {
        stage: &stage,
        args: &args,
        report: &mut report,
        output: &output,
    };
    match args.what {
        What::All => {
            for what in [
                What::Ingest,
                What::Mixed,
                What::Fetch,
                What::Filter,
                What::Latency,
                What::Start,
            ] {
                Box::pin(one(&mut bench, what)).await?;
            }
        }
        what => Box::pin(one(&mut bench, what)).await?,
    }
    output.table(&report.table(), &report)
}

async fn one(bench: &mut Bench<'_>, what: What) -> Outcome {
    // Each future is boxed: the largest would set the size of all.
    match what {
        What::Ingest => Box::pin(scenario::ingest(bench)).await,
        What::Mixed => Box::pin(scenario::mixed(bench)).await,
        What::Fetch => Box::pin(scenario::fetch(bench)).await,
        What::Filter => Box::pin(scenario::filter(bench)).await,
        What::Latency => Box::pin(latency::run(bench)).await,
        What::Start => Box::pin(scenario::start(bench)).await,
        What::Sealing => Box::pin(sealing::run(bench)).await,
        What::Retention => Box::pin(retention::run(bench)).await,
        What::Restart => Box::pin(restart::run(bench)).await,
        What::History => Box::pin(history::run(bench)).await,
        What::Small => Box::pin(small::run(bench)).await,
        What::Upkeep => Box::pin(upkeep::run(bench)).await,
        What::Hostile => Box::pin(hostile::run(bench)).await,
        // Taken apart by the caller.
        What::All => Ok(()),
    }
}
