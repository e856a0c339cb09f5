//! The stored data: checked while the broker serves, and served on when a part of them is lost.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use millstream::{Client, Record, RequestError};
use millstream_broker::check::offline;
use millstream_e2e::{TestBroker, eventually, partitions, read, texts, topic};
use millstream_proto::pipeline::PipelineSpec;
use millstream_proto::storage::{CheckAction, CheckReport, CheckState};
use millstream_proto::topic::{StartAt, TopicChange};
use millstream_proto::{ErrorCode, Offset, PartitionId, TopicName};
use millstream_store::{RedbConfig, RedbStore};

/// Records that are sealed, each in a batch of its own.
const SEALED: u64 = 60;
/// Bytes of each: several blocks make a segment.
const BYTES: usize = 8_000;

fn shard(broker: &TestBroker) -> PathBuf {
    broker.dir().join("data/shard-0.redb")
}

/// A record's value: its number, and much besides.
fn value(number: u64) -> String {
    format!("{{\"n\":{number},\"x\":\"{}\"}}", "x".repeat(BYTES))
}

fn number(text: &str) -> u64 {
    let text = text.strip_prefix("{\"n\":").unwrap();
    text.split(',').next().unwrap().parse().unwrap()
}

async fn numbers(client: &Client, name: &TopicName) -> Vec<u64> {
    let mut numbers: Vec<u64> = texts(client, name)
        .await
        .iter()
        .map(|t| number(t))
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Each value waits for the one before, so that each is a batch.
async fn produce_one_by_one(client: &Client, name: &TopicName, numbers: std::ops::Range<u64>) {
    let producer = client.producer(name.clone()).build().await.unwrap();
    for number in numbers {
        let text = value(number);
        let sent = producer
            .send(&Record::value(text.as_bytes()))
            .await
            .unwrap();
        sent.await.unwrap();
    }
    producer.close().await.unwrap();
}

/// A topic of one partition in a segment; the broker is stopped.
async fn sealed() -> (TestBroker, TopicName) {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    produce_one_by_one(&client, &name, 0..SEALED).await;
    seal(&mut broker).await;
    (broker, name)
}

/// Stops the broker and moves what it holds into a segment.
async fn seal(broker: &mut TestBroker) {
    broker.stop().await;
    let file = shard(broker);
    let sealing = move || {
        let store = RedbStore::open(file, &RedbConfig::default()).unwrap();
        store.seal_now();
    };
    tokio::task::spawn_blocking(sealing).await.unwrap();
}

fn segments(broker: &TestBroker) -> Vec<PathBuf> {
    let listed = fs::read_dir(broker.dir().join("data/shard-0.segments")).unwrap();
    let mut files: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.is_file());
    files.sort();
    files
}

fn flip(file: &PathBuf, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

async fn finished(client: &Client) -> CheckReport {
    client.check(CheckAction::Start).await.unwrap();
    eventually("the check to end", async || {
        let report = client.check(CheckAction::Look).await.unwrap();
        (report.state != CheckState::Running).then_some(report)
    })
    .await
}

async fn offline(broker: &TestBroker, quarantine: bool) -> offline::OfflineReport {
    let data = broker.dir().join("data");
    let work = move || offline::check(&data, quarantine, |_| {});
    tokio::task::spawn_blocking(work).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_check_is_for_admins_and_finds_what_is_damaged_while_others_go_on() {
    let (mut broker, name) = sealed().await;
    broker.restart().await;
    let (admin, app) = (broker.admin().await, broker.client("acme", "app").await);
    for action in [CheckAction::Start, CheckAction::Look, CheckAction::Stop] {
        match app.check(action).await {
            Err(RequestError::Refused(e)) => assert_eq!(e.code, ErrorCode::NotAuthorized),
            other => panic!("{other:?}"),
        }
    }
    let idle = admin.check(CheckAction::Look).await.unwrap();
    assert_eq!(idle.state, CheckState::Idle);

    produce_one_by_one(&app, &name, SEALED..SEALED + 3).await;
    let report = finished(&admin).await;
    assert_eq!(report.state, CheckState::Done);
    assert_eq!(report.findings, []);
    assert_eq!((report.batches, report.segments), (SEALED + 3, 1));
    let storage = admin.storage().await.unwrap();
    assert_eq!((storage[0].segments, storage[0].garbage_bytes), (1, 0));
    assert!(storage[0].sealed_bytes > SEALED * BYTES as u64);
    assert!(storage[0].appended_bytes > 3 * BYTES as u64);
    assert!(storage[0].hot_written_bytes > storage[0].appended_bytes);
    assert!(storage[0].commit_us.bound(500).is_some() && storage[0].opened_in_us > 0);

    flip(&segments(&broker)[0], 100);
    let report = finished(&admin).await;
    assert_eq!(
        (&report.state, report.findings.len()),
        (&CheckState::Done, 1)
    );
    let finding = &report.findings[0];
    let range = &finding.records[0];
    assert_eq!(
        (range.topic.as_ref(), range.partition),
        (Some(&name), PartitionId(0))
    );
    assert_eq!(range.start, Offset(0));
    assert!(range.end.unwrap() > Offset(1) && range.end.unwrap() < Offset(SEALED));
    assert!(finding.place.starts_with("segment ") && finding.segment.is_some());
    // Nobody else has noticed.
    produce_one_by_one(&app, &name, SEALED + 3..SEALED + 4).await;
    broker.stop().await;
}

#[tokio::test]
async fn what_is_lost_is_told_and_passed_over_by_readers_pipelines_and_retention() {
    let (mut broker, name) = sealed().await;
    broker.restart().await;
    let app = broker.client("acme", "app").await;
    produce_one_by_one(&app, &name, SEALED..SEALED + 3).await;
    broker.stop().await;
    // In the middle of the segment: there are records before it and behind it.
    let file = segments(&broker).remove(0);
    flip(&file, fs::metadata(&file).unwrap().len() as usize / 2);
    let report = offline(&broker, true).await;
    assert_eq!(report.check.findings.len(), 1);
    let done = report.quarantined.unwrap();
    assert_eq!(done.lost, report.check.findings[0].records);
    assert_eq!((done.files.len(), done.lost.len()), (1, 1));
    assert!(done.files[0].exists() && !file.exists());
    let (start, end) = (done.lost[0].start.0, done.lost[0].end.unwrap().0);
    assert!(0 < start && start < end && end < SEALED, "{start} to {end}");
    assert_eq!(done.saved_batches, SEALED - (end - start));

    let again = offline(&broker, false).await;
    assert_eq!(again.check.findings, []);
    assert_eq!(again.check.lost, done.lost);

    broker.restart().await;
    let (admin, app) = (broker.admin().await, broker.client("acme", "app").await);
    let kept: Vec<u64> = (0..start).chain(end..SEALED + 3).collect();
    assert_eq!(numbers(&app, &name).await, kept);
    // Whoever asks for what is lost gets what follows.
    let consumer = app
        .consumer(name.clone())
        .start(StartAt::Offset(Offset(start)));
    let mut consumer = consumer.until_end(true).build().await.unwrap();
    let first = consumer.next_message().await.unwrap().unwrap();
    assert_eq!(first.offset, Offset(end));

    let copy = topic("acme/copy");
    app.create_topic(copy.clone(), partitions(1)).await.unwrap();
    let spec = PipelineSpec {
        name: "acme/p".parse().unwrap(),
        input: name.clone(),
        from_latest: false,
        steps: Vec::new(),
        outputs: vec![("copy".to_owned(), copy.clone())],
    };
    app.apply_pipeline(spec).await.unwrap();
    eventually("the pipeline to have copied all", async || {
        let copied = read(&app, &copy).await.len();
        (copied == kept.len()).then_some(())
    })
    .await;

    let report = finished(&admin).await;
    assert_eq!(
        (&report.state, report.findings.as_slice()),
        (&CheckState::Done, &[][..])
    );
    assert_eq!(report.lost, done.lost);

    // All but the newest: past what was lost.
    let change = TopicChange {
        retention_bytes: Some(2 * BYTES as u64),
        ..TopicChange::default()
    };
    app.alter_topic(name.clone(), change).await.unwrap();
    eventually("retention to pass what was lost", async || {
        let info = app.describe_topic(name.clone()).await.unwrap();
        (info.partitions[0].start > Offset(end)).then_some(())
    })
    .await;
    let report = finished(&admin).await;
    assert_eq!((report.findings, report.lost), (Vec::new(), Vec::new()));
    broker.stop().await;
}

#[tokio::test]
async fn offsets_at_the_end_of_a_partition_are_not_used_again_when_they_are_lost() {
    let (mut broker, name) = sealed().await;
    fs::remove_file(&segments(&broker)[0]).unwrap();
    let report = offline(&broker, true).await;
    let done = report.quarantined.unwrap();
    assert_eq!(
        (done.saved_batches, done.files.len(), done.lost.len()),
        (0, 0, 1)
    );
    assert_eq!(done.lost[0].start, Offset(0));
    // The producer was idempotent, so where its last batch ended is known.
    assert_eq!(done.lost[0].end, Some(Offset(SEALED)));
    broker.restart().await;
    let app = broker.client("acme", "app").await;
    let left = numbers(&app, &name).await;
    assert!(left.is_empty(), "to the end, without an error");
    produce_one_by_one(&app, &name, SEALED..SEALED + 2).await;
    let messages = read(&app, &name).await;
    let offsets: Vec<Offset> = messages.iter().map(|message| message.offset).collect();
    assert_eq!(offsets, [Offset(SEALED), Offset(SEALED + 1)]);
    broker.stop().await;
    assert_eq!(offline(&broker, false).await.check.findings, []);
}

#[tokio::test]
async fn a_check_ends_with_the_broker() {
    let (mut broker, _) = sealed().await;
    broker.restart().await;
    let admin = broker.admin().await;
    admin.check(CheckAction::Start).await.unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(60), broker.stop());
    stopped.await.unwrap();
}
