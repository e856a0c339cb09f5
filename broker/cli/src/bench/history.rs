//! A consumer that reads a backlog which no cache holds: how fast, and what that costs producers.

use super::latency::{self, Ticks, acks};
use super::live::Live;
use super::payload::{Payload, Shape};
use super::report::percentile;
use super::scenario::{consume, create, produce};
use super::stage::Stage;
use super::{Bench, disk, process};
use crate::error::{CliError, Outcome};
use millstream_proto::TopicName;

/// What was read, and from where.
struct Reading {
    /// Bytes per second, as they are stored.
    rate: f64,
    /// What part of them came from the device.
    cold: f64,
}

/// Reads the backlog, alone and beside a producer of single records, and its files without a broker.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let shape = args.shape();
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    output.note("history, filling the backlog");
    let live = Live::start(stage, stage.place()?).await?;
    let backlog = create(&live.client, "backlog", shape.partitions).await?;
    let current = create(&live.client, "current", shape.partitions).await?;
    produce(&live.client, &backlog, &payload, shape, records).await?;
    let shard = live.rest().await?;
    let stored = shard.live_bytes + shard.unsealed_bytes;
    let reader = Reader {
        stage,
        live: &live,
        topic: &backlog,
        shape,
        records,
        stored,
    };
    let (mut rates, mut middle, mut tail) = (Vec::new(), Vec::new(), Vec::new());
    let (mut colds, mut beside_rates) = (Vec::new(), Vec::new());
    let count = args.rate.saturating_mul(latency::SECONDS);
    for round in 0..args.rounds {
        output.note(&format!("history, round {}", round + 1));
        let ticks = Ticks::start(args.rate, count);
        let alone = acks(&live.client, &current, &payload, ticks).await?;
        disk::forget(&live.place.data).await?;
        let raw = disk::read(&live.place.data).await?;
        let read = reader.read().await?;
        let (ticks, end) = Ticks::endless(args.rate);
        let reading = async {
            let read = reader.read().await;
            drop(end);
            read
        };
        let acking = acks(&live.client, &current, &payload, ticks);
        let (beside, read_beside) = futures_util::future::join(acking, reading).await;
        let (beside, read_beside) = (latency::micros(&beside?), read_beside?);
        let alone = latency::micros(&alone);
        let at = |share| (percentile(&beside, share), percentile(&alone, share));
        middle.push(at(0.5));
        tail.push(at(0.99));
        rates.push((read.rate / 1e6, raw / 1e6));
        beside_rates.push((read_beside.rate / 1e6, read.rate / 1e6));
        colds.push(read.cold.min(read_beside.cold));
    }
    live.end(stage).await?;
    let said = format!("{} MiB stored, 1 consumer", stored >> 20);
    let raw_is = "reading its segments, cold";
    report.against("reading a cold backlog", "MB/s", &rates, raw_is, said);
    let what = "the same beside a producer";
    report.against(what, "MB/s", &beside_rates, "alone", String::new());
    let said = "of what readers were sent".to_owned();
    report.plain("read from the device, least", "x", &colds, said);
    let said = format!("{} records/s of {} B", args.rate, shape.value_bytes);
    let (floor_is, note) = ("without the reader", said.clone());
    report.against("ack p50 beside the reader", "us", &middle, floor_is, note);
    report.against("ack p99 beside the reader", "us", &tail, floor_is, said);
    Ok(())
}

/// A consumer on a thread of its own, so that what it unpacks does not delay the producer's clock.
struct Reader<'a> {
    stage: &'a Stage,
    live: &'a Live,
    topic: &'a TopicName,
    shape: Shape,
    records: u64,
    stored: u64,
}

impl Reader<'_> {
    /// Reads everything, after the system has forgotten what it had cached of it.
    async fn read(&self) -> Outcome<Reading> {
        disk::forget(&self.live.place.data).await?;
        let before = process::read(self.stage.dir());
        let config = self.stage.client_config(&self.live.broker);
        let (topic, shape, records) = (self.topic.clone(), self.shape, self.records);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.map_err(CliError::failure)?.block_on(async {
                let client = crate::link::connect_with(config).await?;
                let rate = consume(&client, &topic, shape, records).await?;
                client.close().await;
                Ok::<_, CliError>(rate)
            })
        };
        let rate = tokio::task::spawn_blocking(work).await;
        let rate = rate.map_err(CliError::failure)??;
        let given = (self.records * self.shape.record_bytes()) as f64;
        let from_device = process::read(self.stage.dir()) - before;
        Ok(Reading {
            rate: rate * self.stored as f64 / given,
            cold: from_device as f64 / self.stored as f64,
        })
    }
}
