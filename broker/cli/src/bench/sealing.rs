//! What keeping more than the hot file costs while producers are at full speed.

use super::live::Live;
use super::payload::Payload;
use super::scenario::{create, megabytes, produce};
use super::{Bench, process};
use crate::child::Place;
use crate::error::Outcome;

/// One run of it.
struct Run {
    rate: f64,
    /// Written to the device for each byte ingested.
    written: f64,
    /// Taken on the disk at the end, for each byte ingested.
    space: f64,
}

/// Ingest while records are sealed all the time, against ingest without.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let (mut rates, mut written, mut spaces) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..bench.args.rounds {
        let note = format!("ingest with sealing, round {}", round + 1);
        bench.output.note(&note);
        let without = once(bench, bench.stage.hot_place(bench.args)?).await?;
        let with = once(bench, bench.stage.place()?).await?;
        rates.push((with.rate, without.rate));
        written.push((with.written, without.written));
        spaces.push((with.space, without.space));
    }
    let (without, none) = ("the same without", String::new);
    let rows = [
        ("ingest with sealing", "MB/s", megabytes(&rates)),
        ("written to the device, of what was ingested", "x", written),
        ("space taken, of what was ingested", "x", spaces),
    ];
    for (what, unit, pairs) in rows {
        bench.report.against(what, unit, &pairs, without, none());
    }
    Ok(())
}

async fn once(bench: &Bench<'_>, place: Place) -> Outcome<Run> {
    let (stage, shape) = (bench.stage, bench.args.shape());
    let records = bench.args.bytes / shape.record_bytes();
    let live = Live::start(stage, place).await?;
    let topic = create(&live.client, "sealing", shape.partitions).await?;
    let before = process::written(stage.dir());
    let payload = Payload::new(shape);
    let rate = produce(&live.client, &topic, &payload, shape, records).await?;
    let of = |bytes: u64| bytes as f64 / (records * shape.record_bytes()) as f64;
    let run = Run {
        rate,
        written: of(process::written(stage.dir()) - before),
        space: of(process::space(&live.place.data)),
    };
    live.end(stage).await?;
    Ok(run)
}
