//! What keeping more than the hot file costs: sealing while producers are at full speed, and
//! starting again after a kill.

use std::time::{Duration, Instant};

use millstream::{Client, Record};
use millstream_proto::TopicName;
use millstream_proto::storage::Histogram;
use millstream_proto::topic::{StartAt, TopicConfig};

use super::BenchArgs;
use super::payload::Payload;
use super::process;
use super::report::Report;
use super::scenario::{create, megabytes, produce, topic};
use super::stage::Stage;
use crate::error::{CliError, Outcome};
use crate::output::Output;

/// Ingest while records are sealed all the time, against ingest without.
pub(super) async fn sealing(
    stage: &Stage,
    args: &BenchArgs,
    report: &mut Report,
    output: &Output,
) -> Outcome {
    let shape = args.shape();
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    let (mut pairs, mut written, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        output.note(&format!("ingest with sealing, round {}", round + 1));
        let mut rates = [0.0; 2];
        for (rate, place) in rates
            .iter_mut()
            .zip([stage.hot_place(args)?, stage.place()?])
        {
            let broker = stage.broker(&place).await?;
            let client = stage.client(&broker).await?;
            let topic = create(&client, "sealing", shape.partitions).await?;
            let before = process::written(stage.dir());
            *rate = produce(&client, &topic, &payload, shape, records).await?;
            let taken = |bytes: u64| bytes as f64 / (records * shape.record_bytes()) as f64;
            // The second place is the one with sealing.
            written.push(taken(process::written(stage.dir()) - before));
            sizes.push(taken(process::space(&place.data)));
            client.close().await;
            broker.kill().await.map_err(CliError::failure)?;
            stage.clear(&place)?;
        }
        pairs.push((rates[1], rates[0]));
    }
    let every_second = |values: &[f64]| values.iter().skip(1).step_by(2).copied().collect();
    let (written, sizes): (Vec<f64>, Vec<f64>) = (every_second(&written), every_second(&sizes));
    report.against(
        "ingest with sealing",
        "MB/s",
        &megabytes(&pairs),
        "the same without",
        String::new(),
    );
    let what = "written to the device, of what was ingested";
    report.plain(what, "x", &written, String::new());
    let what = "space taken, of what was ingested";
    report.plain(what, "x", &sizes, String::new());
    Ok(())
}

/// What part of the bytes a topic keeps in the run about retention: one in so many.
const KEPT: u64 = 5;
/// How often the space is looked at while the bytes pass through.
const LOOKS: u64 = 40;

/// Bytes through a topic that keeps a part of them: how much space that takes at most, and how long
/// commits take compared with those of a store that has just been made.
pub(super) async fn retention(
    stage: &Stage,
    args: &BenchArgs,
    report: &mut Report,
    output: &Output,
) -> Outcome {
    let shape = args.shape();
    let payload = Payload::new(shape);
    let (records, kept) = (args.bytes / shape.record_bytes(), args.bytes / KEPT);
    let place = stage.place()?;
    let broker = stage.broker(&place).await?;
    let client = stage.client(&broker).await?;
    let topic = topic("retention")?;
    let config = TopicConfig {
        partitions: shape.partitions,
        retention_bytes: kept / u64::from(shape.partitions),
        ..TopicConfig::default()
    };
    client.create_topic(topic.clone(), config).await?;
    let (mut rates, mut spaces, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    for look in 0..LOOKS {
        output.note(&format!("retention, part {} of {LOOKS}", look + 1));
        rates.push(produce(&client, &topic, &payload, shape, records / LOOKS).await? / 1e6);
        let taken = process::space(&place.data) as f64 / kept as f64;
        let shards = client.storage().await?;
        commits.push(shards.into_iter().map(|shard| shard.commit_us).next());
        // Before there is anything to remove, the space says nothing about retention.
        if look > LOOKS / KEPT {
            spaces.push(taken);
        }
    }
    client.close().await;
    broker.kill().await.map_err(CliError::failure)?;
    stage.clear(&place)?;
    let peak = spaces.iter().copied().fold(0.0, f64::max);
    let p99 = |commits: Option<&Option<Histogram>>| {
        let bound = commits.and_then(Option::as_ref).and_then(|h| h.bound(990));
        bound.unwrap_or(0) as f64 / 1e3
    };
    report.plain("ingest with retention", "MB/s", &rates, String::new());
    let what = "space taken at most, of what is kept";
    report.plain(what, "x", &[peak], format!("{} MiB kept", kept >> 20));
    let empty = format!("below {} ms in the first part", p99(commits.first()));
    report.plain("commit p99, below", "ms", &[p99(commits.last())], empty);
    Ok(())
}

/// From the start of a broker that was killed to the first acknowledgement, and to the first
/// record read from the beginning.
pub(super) async fn restart(
    stage: &Stage,
    args: &BenchArgs,
    report: &mut Report,
    output: &Output,
) -> Outcome {
    let shape = args.shape();
    let payload = Payload::new(shape);
    output.note("filling the store");
    let place = stage.place()?;
    let mut broker = stage.broker(&place).await?;
    let client = stage.client(&broker).await?;
    let topic = create(&client, "restart", shape.partitions).await?;
    let records = args.bytes / shape.record_bytes();
    produce(&client, &topic, &payload, shape, records).await?;
    client.close().await;
    let (mut acks, mut reads) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        output.note(&format!("restart, round {}", round + 1));
        broker.kill().await.map_err(CliError::failure)?;
        let begun = Instant::now();
        broker = stage.broker(&place).await?;
        let client = stage.client(&broker).await?;
        let producer = client.producer(topic.clone()).linger(Duration::ZERO);
        let producer = producer.build().await?;
        producer.send(&Record::value(b"again")).await?.await?;
        acks.push(begun.elapsed().as_secs_f64() * 1e3);
        read_first(&client, &topic).await?;
        reads.push(begun.elapsed().as_secs_f64() * 1e3);
        producer.close().await?;
        client.close().await;
    }
    broker.kill().await.map_err(CliError::failure)?;
    let held = format!("{} MiB on the disk", process::space(&place.data) >> 20);
    report.plain("SIGKILL to first ack", "ms", &acks, held);
    report.plain("SIGKILL to first record read", "ms", &reads, String::new());
    stage.clear(&place)
}

async fn read_first(client: &Client, topic: &TopicName) -> Outcome {
    let consumer = client.consumer(topic.clone()).start(StartAt::Earliest);
    let mut consumer = consumer.build().await?;
    let first = consumer.next_batch().await.transpose()?;
    first.ok_or_else(|| CliError::failure("the topic is empty after the restart"))?;
    Ok(())
}
