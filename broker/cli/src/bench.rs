//! `millstream bench`: how fast this broker is on this machine, beside the floors.
//!
//! Every figure is taken in one run with its floor, in turn: the same bytes through the same QUIC
//! settings between the same two processes with no broker behind (`sink`), the same bytes
//! appended to a file and synced (`disk`), the same filter in native code (`native`). What is
//! reported is the median over the rounds. The broker is a process of its own with a data
//! directory that is thrown away.

mod disk;
mod hostile;
mod latency;
mod native;
mod payload;
mod process;
mod quic;
mod report;
mod scenario;
pub(crate) mod sink;
mod stage;
mod storage;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::payload::Shape;
use self::report::Report;
use self::stage::Stage;
use crate::args::Global;
use crate::error::Outcome;
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
    /// `--bytes` through a topic that keeps a fifth of them: space taken, latency of commits.
    Retention,
    /// From SIGKILL to the first acknowledgement and the first record read, with `--bytes` stored.
    Restart,
    /// Ingest while hostile plugins are fed elsewhere in the same broker, against alone.
    Hostile,
    /// All of these but `sealing`, `retention`, `restart` and `hostile`.
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

Examples:
  millstream bench
  millstream bench ingest --value-bytes 1KiB --bytes 1GiB
  millstream bench latency --rate 2000 --json")]
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
    /// Records per second of `latency`.
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

/// Measures and reports.
pub(crate) async fn run(global: &Global, args: BenchArgs) -> Outcome {
    let output = global.output();
    let stage = Stage::new(&args)?;
    let mut report = Report::new(&args);
    let wanted = |what| args.what == What::All || args.what == what;
    if wanted(What::Ingest) {
        scenario::ingest(&stage, &args, &mut report, &output).await?;
    }
    if wanted(What::Mixed) {
        scenario::mixed(&stage, &args, &mut report, &output).await?;
    }
    if wanted(What::Fetch) {
        scenario::fetch(&stage, &args, &mut report, &output).await?;
    }
    if wanted(What::Filter) {
        scenario::filter(&stage, &args, &mut report, &output).await?;
    }
    if wanted(What::Latency) {
        latency::run(&stage, &args, &mut report, &output).await?;
    }
    if wanted(What::Start) {
        scenario::start(&stage, &args, &mut report, &output).await?;
    }
    if args.what == What::Sealing {
        storage::sealing(&stage, &args, &mut report, &output).await?;
    }
    if args.what == What::Retention {
        storage::retention(&stage, &args, &mut report, &output).await?;
    }
    if args.what == What::Restart {
        storage::restart(&stage, &args, &mut report, &output).await?;
    }
    if args.what == What::Hostile {
        hostile::run(&stage, &args, &mut report, &output).await?;
    }
    output.table(&report.table(), &report)
}
