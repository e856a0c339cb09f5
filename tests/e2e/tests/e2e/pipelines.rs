//! Pipelines: topic to topics, exactly once, whatever is stopped in between.

use std::collections::BTreeSet;

use millstream::{Client, ErrorCode, Message, PipelineName, PluginUse, Record, TopicName};
use millstream_e2e::{
    TestBroker, allow, eventually, header, partitions, produce, read, text, texts, topic, upload,
    using,
};
use millstream_guests::{FILTER_FIELD, FILTER_JSON, Guest, ROUTE_BY_REGION, SPLIT_ALERTS};
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::pipeline::{ErrorPolicy, PipelineInfo, PipelineSpec, PipelineState};
use millstream_proto::topic::TopicChange;
use millstream_proto::{Offset, PartitionId};
use split_alerts::AlertShape;

use crate::quakes::QUAKES;

const PARTITIONS: u32 = 4;

async fn scene(guests: &[Guest], outputs: &[&str]) -> (TestBroker, Client, TopicName) {
    let broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let input = topic("acme/in");
    for name in [&["in"], outputs].concat() {
        let name = topic(&format!("acme/{name}"));
        client
            .create_topic(name, partitions(PARTITIONS))
            .await
            .unwrap();
    }
    for guest in guests {
        upload(&client, "acme", *guest).await;
    }
    (broker, client, input)
}

fn name() -> PipelineName {
    "acme/p".parse().unwrap()
}

fn spec(steps: Vec<PluginUse>, outputs: &[&str]) -> PipelineSpec {
    let output = |name: &&str| ((*name).to_owned(), topic(&format!("acme/{name}")));
    PipelineSpec {
        name: name(),
        input: topic("acme/in"),
        from_latest: false,
        steps,
        outputs: outputs.iter().map(output).collect(),
    }
}

fn split(threshold: &str) -> Vec<PluginUse> {
    let config = [("threshold", threshold)];
    vec![using("acme", SPLIT_ALERTS, &config, ErrorPolicy::Stop)]
}

fn at_least(bound: &str) -> PluginUse {
    let config = [("type", "u8"), ("op", ">="), ("value", bound)];
    using("acme", FILTER_FIELD, &config, ErrorPolicy::Stop)
}

async fn show(client: &Client) -> PipelineInfo {
    client.show_pipeline(name()).await.unwrap()
}

/// Waits until the pipeline has read so many records of its input, and they are all there are.
async fn caught_up(client: &Client, records: u64) -> PipelineInfo {
    eventually("the pipeline to catch up", async || {
        let info = show(client).await;
        assert!(
            !matches!(info.state, PipelineState::Failed(_)),
            "{:?}",
            info.state
        );
        let read: u64 = info.progress.iter().map(|p| p.position.0).sum();
        (read == records).then_some(info)
    })
    .await
}

async fn failed(client: &Client) -> String {
    eventually("the pipeline to fail", async || {
        match show(client).await.state {
            PipelineState::Failed(why) => Some(why),
            _ => None,
        }
    })
    .await
}

async fn produce_quakes(client: &Client, range: std::ops::Range<usize>) {
    let producer = client
        .producer(topic("acme/in"))
        .batch_bytes(8192)
        .build()
        .await
        .unwrap();
    let records = QUAKES[range]
        .iter()
        .map(|q| Record::value(q.line.as_bytes()).key(q.id.as_bytes()));
    producer.send_many(records).await.unwrap().await.unwrap();
    producer.close().await.unwrap();
}

/// The alerts that plain Rust makes of the file, in its order.
fn native_alerts(threshold: f64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let shape = AlertShape::new(threshold);
    let alert = |line: &str| shape.alert(line.as_bytes()).unwrap();
    let alerts = QUAKES.iter().filter_map(|q| alert(q.line));
    alerts
        .map(|alert| (alert.key.unwrap(), alert.value))
        .collect()
}

fn by_partition(messages: &[Message]) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = vec![Vec::new(); PARTITIONS as usize];
    for message in messages {
        let bytes = |part: &Option<bytes::Bytes>| part.as_deref().unwrap().to_vec();
        let own = &mut all[message.partition.0 as usize];
        own.push((bytes(&message.key), bytes(&message.value)));
    }
    all
}

#[tokio::test]
async fn two_outputs_equal_a_fold_over_the_input_over_restarts() {
    let (mut broker, client, input) = scene(&[SPLIT_ALERTS], &["alerts", "log"]).await;
    client
        .apply_pipeline(spec(split("4.5"), &["alerts", "log"]))
        .await
        .unwrap();
    let step = QUAKES.len().div_ceil(8);
    for begin in (0..QUAKES.len()).step_by(step) {
        produce_quakes(&client, begin..(begin + step).min(QUAKES.len())).await;
        // Whatever it is doing just now.
        broker.restart().await;
    }
    caught_up(&client, QUAKES.len() as u64).await;
    let log = read(&client, &topic("acme/log")).await;
    // The same key goes to the same partition, so even the order is that of the input.
    let stored = read(&client, &input).await;
    assert_eq!(by_partition(&log), by_partition(&stored));
    assert_eq!(stored.len(), QUAKES.len());
    let mut alerts = by_partition(&read(&client, &topic("acme/alerts")).await).concat();
    let mut expected = native_alerts(4.5);
    alerts.sort_unstable();
    expected.sort_unstable();
    assert!(
        expected.len() > 50 && alerts == expected,
        "{} alerts",
        alerts.len()
    );
    broker.stop().await;
}

#[tokio::test]
async fn it_pauses_resumes_is_replaced_and_deleted() {
    let (mut broker, client, input) = scene(&[SPLIT_ALERTS], &["alerts", "log"]).await;
    let total = QUAKES.len();
    let (first, second) = (total / 3, total / 3 * 2);
    produce_quakes(&client, 0..first).await;
    let applied = client
        .apply_pipeline(spec(split("4.5"), &["alerts", "log"]))
        .await
        .unwrap();
    assert_eq!(
        (applied.owner, applied.spec.steps[0].version),
        (client.principal(), Some(1))
    );
    caught_up(&client, first as u64).await;
    eventually("the counter, which follows", async || {
        let info = show(&client).await;
        (info.records_in == first as u64).then_some(())
    })
    .await;

    let paused = client.pause_pipeline(name()).await.unwrap();
    assert_eq!(paused.state, PipelineState::Paused);
    produce_quakes(&client, first..second).await;
    broker.restart().await;
    let still = show(&client).await;
    assert_eq!(still.state, PipelineState::Paused);
    let read_so_far: u64 = still.progress.iter().map(|p| p.position.0).sum();
    assert_eq!(read_so_far, first as u64);
    let end: u64 = still.progress.iter().map(|p| p.end.0).sum();
    assert_eq!(end, second as u64);

    client.resume_pipeline(name()).await.unwrap();
    caught_up(&client, second as u64).await;
    // Another threshold from here on; nothing is read again.
    let replaced = spec(split("9.9"), &["alerts", "log"]);
    client.apply_pipeline(replaced).await.unwrap();
    produce_quakes(&client, second..total).await;
    caught_up(&client, total as u64).await;
    assert_eq!(read(&client, &topic("acme/log")).await.len(), total);
    let early = QUAKES[..second]
        .iter()
        .filter(|q| q.is_at_least(4.5))
        .count();
    assert_eq!(read(&client, &topic("acme/alerts")).await.len(), early);

    client.delete_pipeline(name()).await.unwrap();
    let gone = client.show_pipeline(name()).await.unwrap_err();
    assert_eq!(gone.wire().unwrap().code, ErrorCode::UnknownPipeline);
    assert_eq!(client.list_pipelines(None).await.unwrap(), []);
    // What it wrote stays; a new one of the name begins where it is told to.
    let latest = PipelineSpec {
        from_latest: true,
        ..spec(split("4.5"), &["alerts", "log"])
    };
    client.apply_pipeline(latest).await.unwrap();
    produce(&client, &input, [r#"{"id":"x","mag":9}"#]).await;
    caught_up(&client, total as u64 + 1).await;
    assert_eq!(read(&client, &topic("acme/log")).await.len(), total + 1);
    assert_eq!(read(&client, &topic("acme/alerts")).await.len(), early + 1);
    broker.stop().await;
}

#[tokio::test]
async fn an_output_or_a_dead_letter_for_each_record_and_never_both() {
    let (mut broker, client, _) = scene(&[FILTER_JSON], &["out", "dead"]).await;
    let config = [("field", "n"), ("op", ">="), ("value", "0")];
    let to_dead = ErrorPolicy::DeadLetter(topic("acme/dead"));
    let step = using("acme", FILTER_JSON, &config, to_dead);
    client
        .apply_pipeline(spec(vec![step], &["out"]))
        .await
        .unwrap();
    let producer = client
        .producer(topic("acme/in"))
        .batch_bytes(1024)
        .build()
        .await
        .unwrap();
    let mut sent = Vec::new();
    for round in 0..5u32 {
        for n in 0..200u32 {
            let n = round * 200 + n;
            // Every third is no JSON.
            let value = if n % 3 == 0 {
                format!("{{no json {n}")
            } else {
                format!("{{\"n\":{n}}}")
            };
            let record = Record::value(value.as_bytes()).key(value.as_bytes());
            drop(producer.send(&record).await.unwrap());
            sent.push(value);
        }
        producer.flush().await.unwrap();
        broker.restart().await;
    }
    caught_up(&client, 1000).await;
    let out = texts(&client, &topic("acme/out")).await;
    let dead = read(&client, &topic("acme/dead")).await;
    assert!(out.iter().all(|text| text.starts_with("{\"")));
    let sources: BTreeSet<_> = dead
        .iter()
        .map(|m| header(m, "millstream-source").unwrap())
        .collect();
    assert_eq!(sources.len(), dead.len(), "each record is named once");
    let mut all: Vec<_> = out.into_iter().chain(dead.iter().map(text)).collect();
    all.sort_unstable();
    sent.sort_unstable();
    assert!(all == sent, "{} of {}", all.len(), sent.len());
    broker.stop().await;
}

#[tokio::test]
async fn what_does_not_hold_together_is_refused() {
    let guests = [SPLIT_ALERTS, FILTER_FIELD, ROUTE_BY_REGION];
    let (mut broker, client, _) = scene(&guests, &["out", "alerts", "log"]).await;
    let dead_to_input = PluginUse {
        on_error: ErrorPolicy::DeadLetter(topic("acme/in")),
        ..at_least("1")
    };
    let route = using("acme", ROUTE_BY_REGION, &[], ErrorPolicy::Stop);
    let no_input = PipelineSpec {
        input: topic("acme/nowhere"),
        ..spec(vec![], &["out"])
    };
    for (spec, code, part) in [
        (
            spec(vec![], &["in"]),
            ErrorCode::InvalidPipeline,
            "never end",
        ),
        (
            spec(vec![dead_to_input], &["out"]),
            ErrorCode::InvalidPipeline,
            "never end",
        ),
        (spec(vec![], &[]), ErrorCode::InvalidPipeline, "0 outputs"),
        (
            spec(vec![], &["out", "log"]),
            ErrorCode::InvalidPipeline,
            "transform",
        ),
        (
            spec(vec![route], &["out"]),
            ErrorCode::InvalidPipeline,
            "partitioner",
        ),
        (
            spec(split("4"), &["log"]),
            ErrorCode::InvalidPipeline,
            "alerts",
        ),
        (
            spec(split("strong"), &["alerts", "log"]),
            ErrorCode::InvalidPipeline,
            "threshold",
        ),
        (
            spec(vec![], &["nowhere"]),
            ErrorCode::UnknownTopic,
            "acme/nowhere",
        ),
        (no_input, ErrorCode::UnknownTopic, "acme/nowhere"),
    ] {
        let e = client.apply_pipeline(spec).await.unwrap_err();
        assert_eq!(e.wire().map(|e| e.code), Some(code), "{e}");
        assert!(e.to_string().contains(part), "{part} in {e}");
    }
    assert_eq!(client.list_pipelines(None).await.unwrap(), []);
    // Two that would feed each other are as endless as one that feeds itself.
    let back = PipelineSpec {
        name: "acme/back".parse().unwrap(),
        input: topic("acme/log"),
        ..spec(vec![], &["in"])
    };
    client.apply_pipeline(back.clone()).await.unwrap();
    let e = client
        .apply_pipeline(spec(vec![], &["log"]))
        .await
        .unwrap_err();
    assert_eq!(
        e.wire().map(|e| e.code),
        Some(ErrorCode::InvalidPipeline),
        "{e}"
    );
    assert!(e.to_string().contains("acme/log -> acme/in"), "{e}");
    client.delete_pipeline(back.name).await.unwrap();
    // One that runs is not hurt by a replacement that cannot.
    client
        .apply_pipeline(spec(vec![at_least("0")], &["out"]))
        .await
        .unwrap();
    let before = show(&client).await;
    client
        .apply_pipeline(spec(split("strong"), &["alerts", "log"]))
        .await
        .unwrap_err();
    assert_eq!(show(&client).await, before);
    produce(&client, &topic("acme/in"), ["still"]).await;
    caught_up(&client, 1).await;
    assert_eq!(texts(&client, &topic("acme/out")).await, ["still"]);
    broker.stop().await;
}

#[tokio::test]
async fn a_lost_right_stops_it_and_a_regained_one_lets_it_go_on() {
    let (mut broker, client, input) = scene(&[FILTER_FIELD], &["out"]).await;
    // A worker that may do just what the pipeline needs.
    let topics = |name: &str, to| allow("worker", ResourceKind::Topic, name, &[to]);
    let consume = topics("acme/in", Operation::Consume);
    let attach = allow(
        "worker",
        ResourceKind::Plugin,
        "acme/filter-field",
        &[Operation::Attach],
    );
    let manage = [Operation::Manage, Operation::Describe];
    client
        .grant(allow("worker", ResourceKind::Pipeline, "acme/p", &manage))
        .await
        .unwrap();
    client.grant(consume.clone()).await.unwrap();
    let worker = broker.client("worker", "w").await;
    let steps = vec![at_least("0")];
    for (rule, lacks) in [
        (topics("acme/out", Operation::Produce), "acme/out"),
        (attach, "acme/filter-field"),
    ] {
        let e = worker
            .apply_pipeline(spec(steps.clone(), &["out"]))
            .await
            .unwrap_err();
        assert_eq!(e.wire().unwrap().code, ErrorCode::NotAuthorized);
        assert!(e.to_string().contains(lacks), "{e}");
        client.grant(rule).await.unwrap();
    }
    worker.apply_pipeline(spec(steps, &["out"])).await.unwrap();
    produce(&client, &input, ["a", "b"]).await;
    caught_up(&client, 2).await;

    client.revoke(consume.clone()).await.unwrap();
    produce(&client, &input, ["c"]).await;
    let why = failed(&client).await;
    assert!(why.contains("may not consume topic acme/in"), "{why}");
    assert_eq!(texts(&client, &topic("acme/out")).await, ["a", "b"]);
    let e = worker.resume_pipeline(name()).await.unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::NotAuthorized);
    // It is remembered, and nothing runs by itself after a restart.
    broker.restart().await;
    assert_eq!(failed(&client).await, why);
    client.grant(consume).await.unwrap();
    worker.resume_pipeline(name()).await.unwrap();
    caught_up(&client, 3).await;
    assert_eq!(texts(&client, &topic("acme/out")).await, ["a", "b", "c"]);
    broker.stop().await;
}

#[tokio::test]
async fn it_reads_new_partitions_and_misses_a_deleted_topic() {
    let (mut broker, client, input) = scene(&[], &["out"]).await;
    client.apply_pipeline(spec(vec![], &["out"])).await.unwrap();
    produce(&client, &input, ["a"]).await;
    caught_up(&client, 1).await;
    let grow = TopicChange {
        partitions: Some(PARTITIONS + 2),
        ..TopicChange::default()
    };
    client.alter_topic(input.clone(), grow).await.unwrap();
    let producer = client.producer(input.clone()).build().await.unwrap();
    let grown = Record::value(b"b").partition(PartitionId(PARTITIONS + 1));
    producer.send(&grown).await.unwrap().await.unwrap();
    let info = caught_up(&client, 2).await;
    assert_eq!(info.progress.len() as u32, PARTITIONS + 2);
    assert_eq!(texts(&client, &topic("acme/out")).await, ["a", "b"]);

    client.delete_topic(topic("acme/out")).await.unwrap();
    producer.send(&grown).await.unwrap().await.unwrap();
    let why = failed(&client).await;
    assert!(why.contains("acme/out"), "{why}");
    client
        .create_topic(topic("acme/out"), partitions(1))
        .await
        .unwrap();
    client.resume_pipeline(name()).await.unwrap();
    let info = caught_up(&client, 3).await;
    assert_eq!(info.progress.last().unwrap().position, Offset(2));
    assert_eq!(texts(&client, &topic("acme/out")).await, ["b"]);
    broker.stop().await;
}

#[tokio::test]
async fn pipelines_in_a_row_pass_on_what_they_make() {
    let (mut broker, client, _) =
        scene(&[SPLIT_ALERTS, FILTER_JSON], &["alerts", "log", "great"]).await;
    client
        .apply_pipeline(spec(split("4.5"), &["alerts", "log"]))
        .await
        .unwrap();
    let config = [("field", "severity"), ("op", "!="), ("value", "light")];
    let second = PipelineSpec {
        name: "acme/second".parse().unwrap(),
        input: topic("acme/alerts"),
        ..spec(
            vec![using("acme", FILTER_JSON, &config, ErrorPolicy::Stop)],
            &["great"],
        )
    };
    client.apply_pipeline(second).await.unwrap();
    let expected = QUAKES.iter().filter(|q| q.is_at_least(5.0)).count();
    produce_quakes(&client, 0..QUAKES.len()).await;
    eventually("both pipelines", async || {
        let all = read(&client, &topic("acme/great")).await;
        (all.len() == expected).then_some(())
    })
    .await;
    assert_eq!(client.list_pipelines(None).await.unwrap().len(), 2);
    broker.stop().await;
}
