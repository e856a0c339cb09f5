//! Many small appends: a thousand topics with little in each, and many partitions at full speed.

use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt, TryStreamExt};
use millstream::{Client, MAX_IN_FLIGHT, Producer};
use millstream_proto::topic::{Spread, TopicConfig};

use super::latency::{Ticks, acks_of, micros};
use super::live::Live;
use super::payload::{Payload, Shape};
use super::report::percentile;
use super::scenario::{create, produce, topic};
use super::stage::Stage;
use super::{Bench, BenchArgs, process};
use crate::error::Outcome;

/// Topics that get one record a second each.
const TOPICS: u32 = 1000;
/// Producers of one connection: each has a stream, and a broker allows 128.
const PER_CONNECTION: usize = 100;
/// Topics that are made, or producers opened, at the same time.
const AT_ONCE: usize = 16;
/// Seconds before what they cost is measured.
const WARM_SECONDS: u32 = 2;
/// Seconds of the measurement.
const SECONDS: u32 = 10;
/// Numbers of partitions that get a batch of about a thousand bytes each in turn.
const PARTITIONS: [u32; 2] = [64, 256];
/// The number they are compared with.
const FEW_PARTITIONS: u32 = 8;
/// Room in a batch for one record of a thousand bytes, and not for two.
const SMALL_BATCH_BYTES: usize = 1100;

/// What some records a second cost.
struct Cost {
    acks: Vec<f64>,
    /// Of the broker: seconds of CPU for each second.
    cores: f64,
    /// Written to the device for each byte of a key or a value.
    written: f64,
}

/// Both.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    topics(bench).await?;
    partitions(bench).await
}

async fn topics(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let (mut p50, mut p99, mut cores, mut written) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        output.note(&format!("{TOPICS} topics, round {}", round + 1));
        let one = cost(stage, args, 1).await?;
        let many = cost(stage, args, TOPICS).await?;
        let at = |share| (percentile(&many.acks, share), percentile(&one.acks, share));
        p50.push(at(0.5));
        p99.push(at(0.99));
        cores.push((many.cores, one.cores));
        written.push((many.written, one.written));
    }
    let one = "one topic, the same rate";
    let rows = [
        ("ack p50", "us", p50),
        ("ack p99", "us", p99),
        ("CPU of the broker", "cores", cores),
        ("written to the device, of what came", "x", written),
    ];
    for (what, unit, pairs) in rows {
        let what = format!("{TOPICS} topics x 1 record/s: {what}");
        let note = format!("{} B, linger 0", args.value_bytes);
        report.against(&what, unit, &pairs, one, note);
    }
    Ok(())
}

/// A thousand records a second, evenly, into so many topics in turn.
async fn cost(stage: &Stage, args: &BenchArgs, topics: u32) -> Outcome<Cost> {
    let payload = Payload::new(args.shape());
    let live = Live::start(stage, stage.place()?).await?;
    let mut clients = Vec::new();
    for _ in 0..(topics as usize).div_ceil(PER_CONNECTION) {
        clients.push(stage.client(&live.broker).await?);
    }
    let open = |number: u32| {
        let client = &clients[number as usize / PER_CONNECTION];
        open(client, number)
    };
    let producers = futures_util::stream::iter((0..topics).map(open));
    let producers: Vec<Producer> = producers.buffered(AT_ONCE).try_collect().await?;
    let warm = Ticks::start(TOPICS, TOPICS * WARM_SECONDS);
    acks_of(&producers, &payload, warm).await?;
    let count = TOPICS * SECONDS;
    let (cpu, written) = (process::cpu(live.pid()), process::written(stage.dir()));
    let begun = Instant::now();
    let acks = acks_of(&producers, &payload, Ticks::start(TOPICS, count)).await?;
    let elapsed = begun.elapsed().as_secs_f64();
    let cpu = process::cpu(live.pid()).saturating_sub(cpu);
    let written = process::written(stage.dir()) - written;
    for producer in producers {
        producer.close().await?;
    }
    for client in clients {
        client.close().await;
    }
    live.end(stage).await?;
    Ok(Cost {
        acks: micros(&acks),
        cores: cpu.as_secs_f64() / elapsed,
        written: written as f64 / (u64::from(count) * args.shape().record_bytes()) as f64,
    })
}

async fn open(client: &Client, number: u32) -> Outcome<Producer> {
    let topic = create(client, &format!("small-{number}"), 1).await?;
    let producer = client.producer(topic).linger(Duration::ZERO);
    Ok(producer.build().await?)
}

async fn partitions(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    for partitions in PARTITIONS {
        let (mut rates, mut written) = (Vec::new(), Vec::new());
        for round in 0..args.rounds {
            output.note(&format!("{partitions} partitions, round {}", round + 1));
            let many = spread(stage, args, partitions).await?;
            let few = spread(stage, args, FEW_PARTITIONS).await?;
            rates.push((many.0 / 1e6, few.0 / 1e6));
            written.push((many.1, few.1));
        }
        let what = format!("{partitions} partitions, batches of one record of 1,000 B");
        let note = format!("1 producer, {MAX_IN_FLIGHT} batches in flight");
        let few = "8 partitions";
        report.against(&what, "MB/s", &rates, few, note);
        let what = "the same: written to the device, of what came";
        report.against(what, "x", &written, few, String::new());
    }
    Ok(())
}

/// Batches of one record, to one partition after the other: bytes per second, and how much was
/// written for each of them.
async fn spread(stage: &Stage, args: &BenchArgs, partitions: u32) -> Outcome<(f64, f64)> {
    let shape = Shape {
        key_bytes: 16,
        value_bytes: 1000 - 16,
        batch_bytes: SMALL_BATCH_BYTES,
        in_flight: MAX_IN_FLIGHT,
        partitions,
    };
    let payload = Payload::new(shape);
    let live = Live::start(stage, stage.hot_place(args)?).await?;
    let topic = topic("spread")?;
    let config = TopicConfig {
        partitions,
        spread: Spread::RoundRobin,
        ..TopicConfig::default()
    };
    live.client.create_topic(topic.clone(), config).await?;
    let records = args.bytes / shape.record_bytes();
    let before = process::written(stage.dir());
    let rate = produce(&live.client, &topic, &payload, shape, records).await?;
    let written = process::written(stage.dir()) - before;
    live.end(stage).await?;
    Ok((
        rate,
        written as f64 / (records * shape.record_bytes()) as f64,
    ))
}
