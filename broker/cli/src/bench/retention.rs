//! Bytes through a topic that keeps a part of them: the space that takes, and what commits cost.

use std::path::Path;
use std::time::Duration;

use millstream_proto::storage::Histogram;
use millstream_proto::topic::TopicConfig;

use super::live::Live;
use super::payload::Payload;
use super::scenario::{create, produce, topic};
use super::stage::Stage;
use super::{Bench, BenchArgs, process};
use crate::error::Outcome;

/// What part of the bytes the topic keeps: one in so many.
const KEPT: u64 = 5;
/// How many parts the bytes come in.
const PARTS: u64 = 40;
/// After how many of them a store that was just made is measured, too.
const FRESH_EVERY: u64 = 10;
/// How often the space is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Space at most of what is kept, and the commits of the last parts against those of new stores.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let shape = args.shape();
    let payload = Payload::new(shape);
    let (records, kept) = (args.bytes / shape.record_bytes(), args.bytes / KEPT);
    let live = Live::start(stage, stage.place()?).await?;
    let topic = topic("retention")?;
    let config = TopicConfig {
        partitions: shape.partitions,
        retention_bytes: kept / u64::from(shape.partitions),
        ..TopicConfig::default()
    };
    live.client.create_topic(topic.clone(), config).await?;
    let (mut rates, mut peak, mut peaks, mut commits) = (Vec::new(), 0, Vec::new(), Vec::new());
    for part in 0..PARTS {
        output.note(&format!("retention, part {} of {PARTS}", part + 1));
        let before = live.storage().await?.commit_us;
        let work = produce(&live.client, &topic, &payload, shape, records / PARTS);
        let (rate, space) = watched(&live.place.data, work).await?;
        rates.push(rate / 1e6);
        // Before there is anything to remove, the space says nothing about retention.
        if part > PARTS / KEPT {
            peak = peak.max(space);
            peaks.push(space as f64 / kept as f64);
        }
        if (part + 1) % FRESH_EVERY == 0 {
            let p99 = between(&before, &live.storage().await?.commit_us, 0.99);
            let fresh = fresh(stage, args, records / PARTS).await?;
            commits.push((p99 / 1e3, fresh / 1e3));
        }
    }
    live.end(stage).await?;
    let said = format!("{} MiB through, {} MiB kept", args.bytes >> 20, kept >> 20);
    report.plain("ingest with retention", "MB/s", &rates, said);
    let said = format!("{} MiB", peak >> 20);
    let most = [peak as f64 / kept as f64];
    report.plain("space at most, of what is kept", "x", &most, said);
    let said = "the peaks of each part".to_owned();
    report.plain("space, of what is kept", "x", &peaks, said);
    let said = "between the bounds of powers of two".to_owned();
    report.against(
        "commit p99",
        "ms",
        &commits,
        "a new store, not sealing",
        said,
    );
    Ok(())
}

/// The same records into a store that was just made and has nothing to seal: the 99th percentile of
/// its commits, in microseconds.
async fn fresh(stage: &Stage, args: &BenchArgs, records: u64) -> Outcome<f64> {
    let shape = args.shape();
    let live = Live::start(stage, stage.hot_place(args)?).await?;
    let topic = create(&live.client, "fresh", shape.partitions).await?;
    let before = live.storage().await?.commit_us;
    produce(&live.client, &topic, &Payload::new(shape), shape, records).await?;
    let after = live.storage().await?.commit_us;
    live.end(stage).await?;
    Ok(between(&before, &after, 0.99))
}

/// Does `work` and says how much space `dir` took at most meanwhile.
async fn watched(dir: &Path, work: impl Future<Output = Outcome<f64>>) -> Outcome<(f64, u64)> {
    let mut work = std::pin::pin!(work);
    let mut peak = 0;
    loop {
        tokio::select! {
            done = &mut work => return Ok((done?, peak.max(process::space(dir)))),
            () = tokio::time::sleep(LOOK_EVERY) => peak = peak.max(process::space(dir)),
        }
    }
}

/// The value that `share` of those counted between two readings do not exceed, taken as spread
/// evenly within their bucket; 0 without any.
pub(super) fn between(before: &Histogram, after: &Histogram, share: f64) -> f64 {
    let had = before.counts.iter().chain(std::iter::repeat(&0));
    let counts = after.counts.iter().zip(had);
    let counts: Vec<u64> = counts.map(|(now, had)| now.saturating_sub(*had)).collect();
    let wanted = counts.iter().sum::<u64>() as f64 * share;
    let (mut seen, mut low, mut high) = (0.0, 0.0, after.first as f64);
    for count in counts {
        let count = count as f64;
        if count > 0.0 && seen + count >= wanted {
            return low + (high - low) * (wanted - seen) / count;
        }
        seen += count;
        (low, high) = (high, high * 2.0);
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_came_between() {
        let of = |counts: &[u64]| Histogram {
            first: 64,
            counts: counts.to_vec(),
        };
        let check = |before: &[u64], after: &[u64], share: f64, expected: f64| {
            let got = between(&of(before), &of(after), share);
            assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
        };
        check(&[], &[], 0.99, 0.0);
        check(&[5, 5], &[5, 5], 0.99, 0.0);
        check(&[], &[100], 0.5, 32.0);
        check(&[100, 0], &[100, 10], 0.5, 96.0);
        check(&[7, 1], &[57, 51, 0], 1.0, 128.0);
        check(&[0, 0, 0], &[98, 0, 2], 0.99, 192.0);
    }
}
