//! What looking after the data costs those who use it: a check and a backup of a running broker.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join;
use millstream::Client;
use millstream_broker::limits::{BACKUP_BYTES_PER_SECOND, CHECK_BYTES_PER_SECOND};
use millstream_proto::backup::BackupPhase;
use millstream_proto::storage::{CheckAction, CheckState};

use super::Bench;
use super::latency::{self, Ticks, acks};
use super::live::Live;
use super::payload::Payload;
use super::report::percentile;
use super::scenario::{create, megabytes, produce};
use crate::error::{CliError, Outcome};

/// How often the broker is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What part of `--bytes` is ingested beside the work, and without: one in so many.
const INGEST: u64 = 4;

/// What is done beside.
enum Work {
    Check,
    /// To this directory, which is empty before each.
    Backup(PathBuf),
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Backup(_) => "backup",
        }
    }

    /// What the broker allows it, in bytes a second: the bench leaves the limit as it is.
    fn most(&self) -> u64 {
        match self {
            Self::Check => CHECK_BYTES_PER_SECOND,
            Self::Backup(_) => BACKUP_BYTES_PER_SECOND,
        }
    }

    /// Does it once, and says how many bytes a second that was.
    async fn once(&self, client: &Client) -> Outcome<f64> {
        let begun = Instant::now();
        let bytes = match self {
            Self::Check => check(client).await?,
            Self::Backup(target) => {
                // Only the first would copy everything.
                empty(target)?;
                backup(client).await?
            }
        };
        Ok(bytes as f64 / begun.elapsed().as_secs_f64())
    }
}

fn empty(dir: &Path) -> Outcome {
    let removed = match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    removed.map_err(|e| CliError::file("remove", dir, &e))
}

async fn check(client: &Client) -> Outcome<u64> {
    let mut report = client.check(CheckAction::Start).await?;
    while report.state == CheckState::Running {
        tokio::time::sleep(LOOK_EVERY).await;
        report = client.check(CheckAction::Look).await?;
    }
    match (report.state, report.findings.len()) {
        (CheckState::Done, 0) => Ok(report.bytes),
        (state, findings) => Err(CliError::failure(format!(
            "the check ended as {state:?} with {findings} findings"
        ))),
    }
}

async fn backup(client: &Client) -> Outcome<u64> {
    let mut state = client.start_backup().await?;
    loop {
        match state.phase {
            BackupPhase::Done(made) => return Ok(made.copied_bytes),
            BackupPhase::Failed { error, .. } => return Err(CliError::failure(error)),
            BackupPhase::Never | BackupPhase::Running { .. } => {
                tokio::time::sleep(LOOK_EVERY).await;
                state = client.show_backup().await?;
            }
        }
    }
}

/// Latency and ingest, beside each kind of work and without.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let Bench { stage, args, .. } = bench;
    let shape = args.shape();
    let target = stage.dir().join("backups");
    let place = stage.place_with(&format!("[backup]\ntarget = {target:?}\n"))?;
    let live = Live::start(stage, place).await?;
    let topic = create(&live.client, "stored", shape.partitions).await?;
    let payload = Payload::new(shape);
    bench.output.note("upkeep, filling the store");
    let records = args.bytes / shape.record_bytes();
    produce(&live.client, &topic, &payload, shape, records).await?;
    for work in [Work::Check, Work::Backup(target.clone())] {
        beside(bench, &live, &work).await?;
    }
    live.end(bench.stage).await?;
    empty(&target)
}

async fn beside(bench: &mut Bench<'_>, live: &Live, work: &Work) -> Outcome {
    let Bench {
        args,
        report,
        output,
        ..
    } = bench;
    let (shape, name) = (args.shape(), work.name());
    let payload = Payload::new(shape);
    let topic = create(&live.client, &format!("beside-{name}"), shape.partitions).await?;
    let records = args.bytes / INGEST / shape.record_bytes();
    let (mut tails, mut rates, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        output.note(&format!("upkeep, {name}, round {}", round + 1));
        live.rest().await?;
        let ticks = Ticks::start(args.rate, args.rate.saturating_mul(latency::SECONDS));
        let alone = acks(&live.client, &topic, &payload, ticks).await?;
        let (ticks, end) = Ticks::endless(args.rate);
        let working = async {
            let speed = work.once(&live.client).await;
            drop(end);
            speed
        };
        let (acked, speed) = join(acks(&live.client, &topic, &payload, ticks), working).await;
        let (alone, acked) = (latency::micros(&alone), latency::micros(&acked?));
        speeds.push(speed? / 1e6);
        tails.push((percentile(&acked, 0.99), percentile(&alone, 0.99)));

        live.rest().await?;
        let alone = produce(&live.client, &topic, &payload, shape, records).await?;
        live.rest().await?;
        let again = async {
            loop {
                work.once(&live.client).await?;
            }
        };
        let worked = tokio::select! {
            rate = produce(&live.client, &topic, &payload, shape, records) => rate?,
            ended = again => return ended,
        };
        rates.push((worked, alone));
        // Whatever is still under way would be part of the next round.
        finish(live, work).await?;
    }
    let what = format!("{name} of a running broker");
    let most = format!("at most {} MiB/s", work.most() >> 20);
    report.plain(&what, "MB/s", &speeds, most);
    let said = format!("{} records/s of {} B", args.rate, shape.value_bytes);
    let what = format!("ack p99 beside a {name}");
    report.against(&what, "us", &tails, "without", said);
    let what = format!("ingest beside a {name}");
    report.against(&what, "MB/s", &megabytes(&rates), "without", String::new());
    Ok(())
}

/// Waits for the end of the work that was left under way.
async fn finish(live: &Live, work: &Work) -> Outcome {
    match work {
        Work::Check => {
            let mut action = CheckAction::Stop;
            while live.client.check(action).await?.state == CheckState::Running {
                action = CheckAction::Look;
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(())
        }
        // Asking for one while one is under way follows that one.
        Work::Backup(_) => backup(&live.client).await.map(drop),
    }
}
