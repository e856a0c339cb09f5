//! The runs whose figure is a rate.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join;
use millstream::{Client, Record};
use millstream_guests::{ENRICH_HEADER, FILTER_FIELD, Guest};
use millstream_proto::pipeline::PluginUse;
use millstream_proto::topic::{StartAt, TopicConfig};
use millstream_proto::{PluginName, TopicName};

use super::live::Live;
use super::payload::{Payload, Shape};
use super::report::median;
use super::{Bench, disk, native, process};
use crate::error::{CliError, Outcome};

/// Records handed to the producer in one call.
const CALL_RECORDS: u64 = 4096;
/// The floor's name in reports.
pub(super) const QUIC: &str = "quic, no broker";

pub(super) fn topic(name: &str) -> Outcome<TopicName> {
    format!("bench/{name}").parse().map_err(CliError::failure)
}

fn plugin(guest: Guest) -> Outcome<PluginName> {
    format!("bench/{}", guest.name)
        .parse()
        .map_err(CliError::failure)
}

pub(super) async fn create(client: &Client, name: &str, partitions: u32) -> Outcome<TopicName> {
    let topic = topic(name)?;
    let config = TopicConfig {
        partitions,
        ..TopicConfig::default()
    };
    client.create_topic(topic.clone(), config).await?;
    Ok(topic)
}

/// Sends `records` records and waits for every acknowledgement; bytes of keys and values per second.
pub(super) async fn produce(
    client: &Client,
    topic: &TopicName,
    payload: &Payload,
    shape: Shape,
    records: u64,
) -> Outcome<f64> {
    let producer = client
        .producer(topic.clone())
        .batch_bytes(shape.batch_bytes)
        .in_flight(shape.in_flight)
        .linger(Duration::from_millis(5))
        .build()
        .await?;
    let begun = Instant::now();
    let mut sent = 0;
    let mut deliveries = Vec::new();
    while sent < records {
        let until = records.min(sent + CALL_RECORDS);
        deliveries.push(
            producer
                .send_many((sent..until).map(|n| payload.record(n)))
                .await?,
        );
        sent = until;
    }
    producer.flush().await?;
    let elapsed = begun.elapsed().as_secs_f64();
    for delivery in deliveries {
        delivery.await?;
    }
    producer.close().await?;
    Ok((records * shape.record_bytes()) as f64 / elapsed)
}

/// Reads `records` records from the beginning; bytes of keys and values per second.
pub(super) async fn consume(
    client: &Client,
    topic: &TopicName,
    shape: Shape,
    records: u64,
) -> Outcome<f64> {
    // With the request, as the floor is timed.
    let begun = Instant::now();
    let mut consumer = client
        .consumer(topic.clone())
        .start(StartAt::Earliest)
        .build()
        .await?;
    let mut seen = 0;
    while seen < records {
        let Some(batch) = consumer.next_batch().await.transpose()? else {
            return Err(CliError::failure(format!(
                "the records ended after {seen} of {records}"
            )));
        };
        seen += u64::from(batch.count());
    }
    Ok((records * shape.record_bytes()) as f64 / begun.elapsed().as_secs_f64())
}

fn records_per_second(shape: Shape, rate: f64) -> String {
    let records = rate / shape.record_bytes() as f64;
    match records {
        r if r >= 1e6 => format!("{:.2} M records/s", r / 1e6),
        r => format!("{:.0} k records/s", r / 1e3),
    }
}

pub(super) fn megabytes(pairs: &[(f64, f64)]) -> Vec<(f64, f64)> {
    pairs.iter().map(|(a, b)| (a / 1e6, b / 1e6)).collect()
}

fn note(shape: Shape, pairs: &[(f64, f64)]) -> String {
    let rates: Vec<f64> = pairs.iter().map(|p| p.0).collect();
    records_per_second(shape, median(&rates))
}

/// One producer.
pub(super) async fn ingest(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let (shape, floor) = (args.shape(), stage.floor().await?);
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    let (mut pairs, mut disks, mut peak) = (Vec::new(), Vec::new(), 0);
    for round in 0..args.rounds {
        output.note(&format!("ingest, round {}", round + 1));
        let live = Live::start(stage, stage.hot_place(args)?).await?;
        let topic = create(&live.client, "ingest", shape.partitions).await?;
        let rate = produce(&live.client, &topic, &payload, shape, records).await?;
        peak = peak.max(process::peak_resident(live.pid()));
        live.end(stage).await?;
        pairs.push((rate, floor.send(args.bytes).await?));
        disks.push((rate, disk::append(stage.dir(), args.bytes).await?));
    }
    report.against(
        "ingest",
        "MB/s",
        &megabytes(&pairs),
        QUIC,
        note(shape, &pairs),
    );
    let memory = format!("peak memory of the broker {} MiB", peak >> 20);
    report.against(
        "ingest, against the disk",
        "MB/s",
        &megabytes(&disks),
        "append + fdatasync",
        memory,
    );
    Ok(())
}

/// One producer and a consumer that reads along.
pub(super) async fn mixed(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let (shape, floor) = (args.shape(), stage.floor().await?);
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    let mut pairs = Vec::new();
    for round in 0..args.rounds {
        output.note(&format!("ingest with a consumer, round {}", round + 1));
        let live = Live::start(stage, stage.hot_place(args)?).await?;
        let reader = stage.client(&live.broker).await?;
        let topic = create(&live.client, "mixed", shape.partitions).await?;
        let begun = Instant::now();
        let writing = produce(&live.client, &topic, &payload, shape, records);
        try_join(writing, consume(&reader, &topic, shape, records)).await?;
        // Both are done: every record went in and came out.
        let rate = (records * shape.record_bytes()) as f64 / begun.elapsed().as_secs_f64();
        live.end(stage).await?;
        pairs.push((rate, floor.send(args.bytes).await?));
    }
    report.against(
        "ingest and consume, each",
        "MB/s",
        &megabytes(&pairs),
        QUIC,
        note(shape, &pairs),
    );
    Ok(())
}

/// A backlog, read after a restart of the broker.
pub(super) async fn fetch(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let (shape, floor) = (args.shape(), stage.floor().await?);
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    output.note("fetch, filling the backlog");
    let live = Live::start(stage, stage.place()?).await?;
    let topic = create(&live.client, "fetch", shape.partitions).await?;
    produce(&live.client, &topic, &payload, shape, records).await?;
    let mut place = live.kill().await?;
    let mut pairs = Vec::new();
    for round in 0..args.rounds {
        output.note(&format!("fetch, round {}", round + 1));
        let live = Live::start(stage, place).await?;
        let rate = consume(&live.client, &topic, shape, records).await?;
        place = live.kill().await?;
        pairs.push((rate, floor.fetch(args.bytes).await?));
    }
    stage.clear(&place)?;
    report.against(
        "fetch of a backlog",
        "MB/s",
        &megabytes(&pairs),
        QUIC,
        note(shape, &pairs),
    );
    Ok(())
}

async fn upload(client: &Client, guest: Guest) -> Outcome<PluginName> {
    let name = plugin(guest)?;
    client
        .upload_plugin(name.clone(), Bytes::from_static(guest.wasm), |_| {})
        .await?;
    Ok(name)
}

/// Keeps every record, and looks at each to find out.
fn field_filter(name: PluginName) -> PluginUse {
    let mut filter = PluginUse::new(name);
    let offset = native::OFFSET.to_string();
    for (key, value) in [
        ("offset", offset.as_str()),
        ("type", "u8"),
        ("op", ">="),
        ("value", "0"),
    ] {
        filter.config.insert(key.to_owned(), value.to_owned());
    }
    filter
}

/// With a field filter attached, against without.
pub(super) async fn filter(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let shape = args.shape();
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    let mut pairs = Vec::new();
    for round in 0..args.rounds {
        output.note(&format!("ingest through a filter, round {}", round + 1));
        let live = Live::start(stage, stage.hot_place(args)?).await?;
        let client = &live.client;
        let name = upload(client, FILTER_FIELD).await?;
        let bare = create(client, "bare", shape.partitions).await?;
        let filtered = create(client, "filtered", shape.partitions).await?;
        client.attach(filtered.clone(), field_filter(name)).await?;
        let without = produce(client, &bare, &payload, shape, records).await?;
        let with = produce(client, &filtered, &payload, shape, records).await?;
        live.end(stage).await?;
        pairs.push((with, without));
    }
    let said = note(shape, &pairs);
    report.against(
        "ingest through a field filter",
        "MB/s",
        &megabytes(&pairs),
        "the same without",
        said,
    );
    let native = native::filter(&payload)?;
    report.plain(
        "the same filter, native",
        "ns/record",
        &[native],
        String::new(),
    );
    Ok(())
}

/// Cold start, memory, upload to first record.
pub(super) async fn start(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let shape = Shape {
        value_bytes: 100,
        key_bytes: 16,
        ..args.shape()
    };
    let payload = Payload::new(shape);
    let (mut cold, mut idle, mut loaded, mut uploads) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        output.note(&format!("start, round {}", round + 1));
        let live = Live::start(stage, stage.place()?).await?;
        let topic = create(&live.client, "start", shape.partitions).await?;
        let place = live.kill().await?;

        let begun = Instant::now();
        let live = Live::start(stage, place).await?;
        let (client, pid) = (&live.client, live.pid());
        first_ack(client, &topic).await?;
        cold.push(begun.elapsed().as_secs_f64() * 1e3);
        idle.push(process::resident(pid) as f64 / f64::from(1 << 20));

        let begun = Instant::now();
        let name = upload(client, ENRICH_HEADER).await?;
        client.attach(topic.clone(), enrich(name)).await?;
        first_ack(client, &topic).await?;
        uploads.push(begun.elapsed().as_secs_f64() * 1e3);

        let bare = create(client, "million", shape.partitions).await?;
        produce(client, &bare, &payload, shape, 1_000_000).await?;
        loaded.push(process::resident(pid) as f64 / f64::from(1 << 20));
        live.end(stage).await?;
    }
    let said = format!("a component of {} KiB", ENRICH_HEADER.wasm.len() >> 10);
    report.plain("cold start to first ack", "ms", &cold, String::new());
    report.plain("upload to first record through it", "ms", &uploads, said);
    report.plain("memory of the broker, idle", "MiB", &idle, String::new());
    report.plain(
        "memory after 1 M records of 100 B",
        "MiB",
        &loaded,
        String::new(),
    );
    Ok(())
}

/// Copies a field of JSON values to a header.
fn enrich(name: PluginName) -> PluginUse {
    let mut plugin = PluginUse::new(name);
    plugin
        .config
        .insert("header.kind".to_owned(), "kind".to_owned());
    plugin
}

async fn first_ack(client: &Client, topic: &TopicName) -> Outcome {
    let producer = client
        .producer(topic.clone())
        .linger(Duration::ZERO)
        .build()
        .await?;
    let record = Record::value(br#"{"kind":"earthquake","mag":5.1}"#);
    producer.send(&record).await?.await?;
    producer.close().await?;
    Ok(())
}
