//! From SIGKILL to a broker that serves again, with some amount stored.

use std::time::{Duration, Instant};

use futures_util::future::try_join3;
use millstream::{Client, Record};
use millstream_proto::TopicName;
use millstream_proto::offset::{Offset, PartitionId};
use millstream_proto::topic::StartAt;

use super::live::Live;
use super::payload::{Payload, Shape};
use super::scenario::{create, produce};
use super::{Bench, disk, process};
use crate::error::{CliError, Outcome};

/// How long a producer has been at full speed when the broker is killed under load.
const LOAD: Duration = Duration::from_secs(1);
/// Records that the producer sends at a time meanwhile.
const LOAD_RECORDS: u64 = 100_000;

/// Milliseconds since SIGKILL, one of each for each kill.
#[derive(Default)]
struct Times {
    listening: Vec<f64>,
    ack: Vec<f64>,
    oldest: Vec<f64>,
    newest: Vec<f64>,
}

/// Kills the same broker again and again: at rest, and with a producer at full speed.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let shape = args.shape();
    let payload = Payload::new(shape);
    output.note("filling the store");
    let mut live = Live::start(stage, stage.place()?).await?;
    let topic = create(&live.client, "restart", shape.partitions).await?;
    let records = args.bytes / shape.record_bytes();
    produce(&live.client, &topic, &payload, shape, records).await?;
    let (mut resting, mut loaded) = (Times::default(), Times::default());
    let mut held = 0;
    for round in 0..args.rounds {
        for load in [false, true] {
            live.rest().await?;
            disk::forget(&live.place.data).await?;
            held = held.max(process::space(&live.place.data));
            output.note(&format!("restart, round {}, load: {load}", round + 1));
            let newest = if load {
                under_load(&live.client, &topic, &payload, shape).await?
            } else {
                newest(&live.client, &topic).await?
            };
            let times = if load { &mut loaded } else { &mut resting };
            let Live {
                place,
                broker,
                client,
            } = live;
            let begun = Instant::now();
            broker.kill().await.map_err(CliError::failure)?;
            live = Live::start(stage, place).await?;
            times.listening.push(ms(begun));
            first(&live.client, &topic, newest, begun, times).await?;
            // Dropped only now: its end is not part of the broker's.
            client.close().await;
        }
    }
    live.end(stage).await?;
    for (times, how) in [(resting, "at rest"), (loaded, "under load")] {
        let rows = [
            ("listening", times.listening),
            ("first ack", times.ack),
            ("first of the oldest records", times.oldest),
            ("newest record", times.newest),
        ];
        for (what, values) in rows {
            let worst = values.iter().copied().fold(0.0, f64::max);
            let note = format!("worst {worst:.0}, {} MiB on the disk", held >> 20);
            let what = format!("SIGKILL {how} to {what}");
            report.plain(&what, "ms", &values, note);
        }
    }
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The newest record of the first partition.
async fn newest(client: &Client, topic: &TopicName) -> Outcome<Offset> {
    let found = client.describe_topic(topic.clone()).await?;
    let end = found.partitions.first().map_or(0, |first| first.end.0);
    let last = end.checked_sub(1).map(Offset);
    last.ok_or_else(|| CliError::failure("the first partition is empty: store more"))
}

/// Has a producer at full speed for a while, which then goes on in the background.
async fn under_load(
    client: &Client,
    topic: &TopicName,
    payload: &Payload,
    shape: Shape,
) -> Outcome<Offset> {
    let load = async {
        loop {
            produce(client, topic, payload, shape, LOAD_RECORDS).await?;
        }
    };
    let wait = async {
        tokio::time::sleep(LOAD).await;
        newest(client, topic).await
    };
    tokio::select! {
        ended = load => ended,
        newest = wait => newest,
    }
}

/// Appends and reads, all at the same time, and notes when each has come.
async fn first(
    client: &Client,
    topic: &TopicName,
    newest: Offset,
    begun: Instant,
    times: &mut Times,
) -> Outcome {
    let ack = async {
        let producer = client.producer(topic.clone()).linger(Duration::ZERO);
        let producer = producer.build().await?;
        producer.send(&Record::value(b"again")).await?.await?;
        let taken = ms(begun);
        producer.close().await?;
        Ok::<_, CliError>(taken)
    };
    let oldest = async {
        let consumer = client.consumer(topic.clone()).start(StartAt::Earliest);
        let mut consumer = consumer.build().await?;
        some(consumer.next_batch().await.transpose()?)?;
        Ok(ms(begun))
    };
    let last = async {
        let consumer = client.consumer(topic.clone());
        let consumer = consumer
            .partitions([PartitionId(0)])
            .start(StartAt::Offset(newest));
        let mut consumer = consumer.build().await?;
        some(consumer.next_batch().await.transpose()?)?;
        Ok(ms(begun))
    };
    let (ack, oldest, last) = try_join3(ack, oldest, last).await?;
    times.ack.push(ack);
    times.oldest.push(oldest);
    times.newest.push(last);
    Ok(())
}

fn some<T>(first: Option<T>) -> Outcome {
    let empty = || CliError::failure("what was stored is not there after the restart");
    first.map(drop).ok_or_else(empty)
}
