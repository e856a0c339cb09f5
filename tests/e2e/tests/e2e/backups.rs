//! Backups: taken while everything is at work, restored elsewhere, and gone on from there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream::{Client, ErrorCode, Message, PipelineName, Record, RequestError, TopicName};
use millstream_broker::backup::{BackupId, Progress, Selection, Target, Which, restore, verify};
use millstream_broker::config::BackupConfig;
use millstream_e2e::{
    RawConnection, RawStream, TestBroker, batch, eventually, partitions, produce, read, texts,
    topic, upload, using,
};
use millstream_guests::{FILTER_FIELD, SPLIT_ALERTS};
use millstream_proto::backup::{BackupOutcome, BackupPhase};
use millstream_proto::message::Ack;
use millstream_proto::message::PluginVersion;
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec};
use millstream_proto::{PartitionId, ProducerId, Sequence, WireError};

const ID: ProducerId = ProducerId(41);

/// A broker whose backups lie beside its data.
async fn start() -> TestBroker {
    let setup = TestBroker::set_up().tuned(|config| {
        let target = config.data_dir.with_file_name("backups");
        config.backup = Some(BackupConfig::new(target.display().to_string()));
    });
    setup.start().await
}

fn target(broker: &TestBroker) -> Target {
    let dir = broker.dir().join("backups");
    Target::open(&dir.display().to_string()).unwrap()
}

async fn finished(admin: &Client) -> BackupOutcome {
    eventually("the backup to be made", async || {
        match admin.show_backup().await.unwrap().phase {
            BackupPhase::Done(outcome) => Some(outcome),
            BackupPhase::Running { .. } => None,
            other => panic!("{other:?}"),
        }
    })
    .await
}

async fn back_up(admin: &Client) -> BackupOutcome {
    let begun = admin.start_backup().await.unwrap();
    assert!(!matches!(begun.phase, BackupPhase::Never), "{begun:?}");
    finished(admin).await
}

/// Puts what was backed up in the place of what the broker has stored since.
async fn go_back(broker: &mut TestBroker, id: &str, selection: &Selection) {
    broker.stop().await;
    let id: BackupId = id.parse().unwrap();
    let target = target(broker);
    let manifest = target.find(&Which::Id(id)).await.unwrap();
    let data: PathBuf = broker.dir().join("data");
    std::fs::rename(&data, broker.dir().join("before")).unwrap();
    let progress = Progress::default();
    let restored = restore(&target, &manifest, &data, selection, &progress).await;
    restored.unwrap();
    broker.restart().await;
    std::fs::remove_dir_all(broker.dir().join("before")).unwrap();
}

async fn send(stream: &mut RawStream, sequence: u64) -> Result<Ack, WireError> {
    let value = format!("{sequence}");
    let batch = batch(&[value.as_bytes()], ID.0, 0, sequence);
    stream.produce(sequence, Some(0), batch.bytes()).await;
    stream.answer().await.1
}

/// What each partition holds, in order: offset and value.
type Content = BTreeMap<PartitionId, Vec<(u64, Vec<u8>)>>;

async fn content(client: &Client, topic: &TopicName) -> Content {
    let mut content = Content::new();
    for message in read(client, topic).await {
        let Message {
            partition, offset, ..
        } = message;
        let value = message.value.unwrap_or_default().to_vec();
        content
            .entry(partition)
            .or_default()
            .push((offset.0, value));
    }
    content
}

/// Each partition of `earlier` is the beginning of that of `later`.
fn assert_begins(later: &Content, earlier: &Content) {
    for (partition, records) in earlier {
        let all = &later[partition];
        assert!(all.starts_with(records), "partition {partition}");
    }
}

fn copy(name: &str, input: &str, output: &str) -> PipelineSpec {
    PipelineSpec {
        name: format!("acme/{name}").parse().unwrap(),
        input: topic(&format!("acme/{input}")),
        from_latest: false,
        steps: Vec::new(),
        outputs: vec![("out".to_owned(), topic(&format!("acme/{output}")))],
    }
}

/// Waits until the pipeline has read all of its input.
async fn caught_up(client: &Client, name: &PipelineName, records: usize) {
    eventually("the pipeline to catch up", async || {
        let info = client.show_pipeline(name.clone()).await.unwrap();
        let read: u64 = info.progress.iter().map(|p| p.position.0).sum();
        (read == records as u64).then_some(())
    })
    .await;
}

/// Produces until it is told to stop; what it was told is stored is stored.
fn load(
    client: &Client,
    topic: &TopicName,
    stop: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<u32> {
    let (client, topic, stop) = (client.clone(), topic.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut sent = 0u32;
        while !stop.load(Ordering::Relaxed) {
            let values = (sent..sent + 50).map(|n| format!("load {n}"));
            produce(&client, &topic, values).await;
            sent += 50;
        }
        sent
    })
}

#[tokio::test]
async fn a_backup_under_load_is_one_moment_from_which_all_goes_on() {
    let mut broker = start().await;
    let (admin, client) = (broker.admin().await, broker.tenant("acme").await);
    let (input, output, raw_topic) = (topic("acme/in"), topic("acme/out"), topic("acme/raw"));
    for (name, count) in [(&input, 4), (&output, 4), (&raw_topic, 1)] {
        client
            .create_topic(name.clone(), partitions(count))
            .await
            .unwrap();
    }
    let pipeline: PipelineName = "acme/p".parse().unwrap();
    client.apply_pipeline(copy("p", "in", "out")).await.unwrap();
    // Enough that a part of it is sealed.
    large(&client, &input, 640).await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut stream, _) = raw.producer(&raw_topic, ID, 0).await.unwrap();
    for sequence in 0..20 {
        send(&mut stream, sequence).await.unwrap();
    }
    let before = content(&client, &input).await;

    let stop = Arc::new(AtomicBool::new(false));
    let loading = load(&client, &input, &stop);
    admin.start_backup().await.unwrap();
    let mut sequence = 20;
    let made = loop {
        send(&mut stream, sequence).await.unwrap();
        sequence += 1;
        match admin.show_backup().await.unwrap().phase {
            BackupPhase::Done(outcome) => break outcome,
            BackupPhase::Running { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    stop.store(true, Ordering::Relaxed);
    loading.await.unwrap();
    assert!(made.segments > 0 && made.copied_segments == made.segments);
    // A second one copies what is new.
    let again = back_up(&admin).await;
    assert!(again.id != made.id && again.copied_bytes < made.copied_bytes / 2);
    let after = content(&client, &input).await;
    let verified = verify(&target(&broker), None, &Progress::default()).await;
    assert_eq!(verified.unwrap().findings, []);
    drop((raw, stream));

    go_back(&mut broker, &made.id, &Selection::All).await;
    let restored = content(&client, &input).await;
    assert_begins(&restored, &before);
    assert_begins(&after, &restored);
    let records: usize = restored.values().map(Vec::len).sum();

    // The producer goes on where it was in that moment.
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut stream, opened) = raw.producer(&raw_topic, ID, 0).await.unwrap();
    let Sequence(next) = opened.next_sequence;
    assert!((20..=sequence).contains(&next), "{next}");
    assert!(send(&mut stream, next - 1).await.unwrap().duplicate);
    for sequence in next..next + 3 {
        let ack = send(&mut stream, sequence).await.unwrap();
        assert!(!ack.duplicate && ack.placements[0].base.0 == sequence);
    }
    // So does the pipeline: what it had copied is not copied again, and nothing is left out.
    caught_up(&client, &pipeline, records).await;
    assert_eq!(texts(&client, &output).await, texts(&client, &input).await);
    produce(&client, &input, ["one more"]).await;
    caught_up(&client, &pipeline, records + 1).await;
    assert_eq!(texts(&client, &output).await, texts(&client, &input).await);
    // And so do backups, of what is another store now.
    let admin = broker.admin().await;
    let third = back_up(&admin).await;
    assert_eq!(third.copied_segments, third.segments - made.segments);
    broker.stop().await;
}

/// Many large records.
async fn large(client: &Client, topic: &TopicName, count: u32) {
    let producer = client.producer(topic.clone()).build().await.unwrap();
    let mut deliveries = Vec::new();
    for n in 0..count {
        let mut value = vec![n as u8; 100 << 10];
        value[..4].copy_from_slice(&n.to_be_bytes());
        let key = n.to_be_bytes();
        let record = Record::value(&value).key(&key);
        deliveries.push(producer.send(&record).await.unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.close().await.unwrap();
}

#[tokio::test]
async fn one_tenant_is_restored_without_the_others() {
    let mut broker = start().await;
    let admin = broker.admin().await;
    for tenant in ["acme", "other"] {
        let client = broker.tenant(tenant).await;
        for name in ["a", "b"] {
            let name = topic(&format!("{tenant}/{name}"));
            client
                .create_topic(name.clone(), partitions(2))
                .await
                .unwrap();
            produce(&client, &name, (0..50).map(|n| format!("{name} {n}"))).await;
        }
    }
    let acme = broker.client("acme", "app").await;
    let other = broker.client("other", "app").await;
    upload(&acme, "acme", SPLIT_ALERTS).await;
    upload(&acme, "acme", FILTER_FIELD).await;
    upload(&other, "other", FILTER_FIELD).await;
    let longer = [("type", "u8"), ("op", ">="), ("value", "1")];
    let plugin = using("acme", FILTER_FIELD, &longer, ErrorPolicy::Stop);
    acme.attach(topic("acme/a"), plugin).await.unwrap();
    acme.apply_pipeline(copy("p", "a", "b")).await.unwrap();
    caught_up(&acme, &"acme/p".parse().unwrap(), 50).await;
    let expected = (
        content(&acme, &topic("acme/a")).await,
        content(&acme, &topic("acme/b")).await,
    );
    let made = back_up(&admin).await;

    let tenant = Selection::Tenant("acme".parse().unwrap());
    go_back(&mut broker, &made.id, &tenant).await;
    let admin = broker.admin().await;
    let names = admin.list_topics(None).await.unwrap();
    assert_eq!(names, [topic("acme/a"), topic("acme/b")]);
    let rules = admin.list_rules().await.unwrap();
    assert!(!rules.is_empty());
    assert!(
        rules
            .iter()
            .all(|rule| rule.name.as_str().starts_with("acme/"))
    );
    let plugins = |versions: Vec<PluginVersion>| -> Vec<String> {
        let names = versions.iter();
        names.map(|version| version.plugin.to_string()).collect()
    };
    let names = plugins(admin.list_plugins(None).await.unwrap());
    assert_eq!(names, ["acme/filter-field", "acme/split-alerts"]);
    // Its own rights came with it, and so did its pipeline.
    let acme = broker.client("acme", "app").await;
    assert_eq!(content(&acme, &topic("acme/a")).await, expected.0);
    assert_eq!(content(&acme, &topic("acme/b")).await, expected.1);
    produce(&acme, &topic("acme/a"), ["one more"]).await;
    caught_up(&acme, &"acme/p".parse().unwrap(), 51).await;
    assert_eq!(texts(&acme, &topic("acme/b")).await.len(), 101);

    // A topic alone, with the plugin on it.
    let made = back_up(&admin).await;
    let one = Selection::Topic(topic("acme/a"));
    go_back(&mut broker, &made.id, &one).await;
    let admin = broker.admin().await;
    let names = plugins(admin.list_plugins(None).await.unwrap());
    assert_eq!(names, ["acme/filter-field"]);
    produce(&admin, &topic("acme/a"), ["two more", "\0 is filtered"]).await;
    assert_eq!(read(&admin, &topic("acme/a")).await.len(), 52);
    let id = made.id;
    // And one without; its number is not given to another.
    let one = Selection::Topic(topic("acme/b"));
    go_back(&mut broker, &id, &one).await;
    let admin = broker.admin().await;
    let names = admin.list_topics(None).await.unwrap();
    assert_eq!(names, [topic("acme/b")]);
    let name = topic("acme/new");
    admin
        .create_topic(name.clone(), partitions(2))
        .await
        .unwrap();
    assert_eq!(read(&admin, &name).await.len(), 0);
    assert_eq!(read(&admin, &topic("acme/b")).await.len(), 101);
    broker.stop().await;
}

fn code(refused: Result<millstream_proto::backup::BackupState, RequestError>) -> ErrorCode {
    match refused.unwrap_err() {
        RequestError::Refused(wire) => wire.code,
        other => panic!("{other}"),
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

#[tokio::test]
async fn backups_are_for_admins_and_go_where_the_operator_says() {
    let mut broker = start().await;
    let tenant = broker.tenant("acme").await;
    assert_eq!(code(tenant.start_backup().await), ErrorCode::NotAuthorized);
    assert_eq!(code(tenant.show_backup().await), ErrorCode::NotAuthorized);
    let admin = broker.admin().await;
    let state = admin.show_backup().await.unwrap();
    assert_eq!(state.phase, BackupPhase::Never);
    assert!(state.target.ends_with("backups"), "{}", state.target);
    assert!(is_empty(&broker.dir().join("backups")));
    // A place that cannot be used: the backup fails and says why, and the broker goes on.
    std::fs::write(broker.dir().join("backups"), b"a file").unwrap();
    admin.start_backup().await.unwrap();
    let error = eventually("the backup to fail", async || {
        match admin.show_backup().await.unwrap().phase {
            BackupPhase::Failed { error, .. } => Some(error),
            BackupPhase::Running { .. } => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert!(error.contains("backups"), "{error}");
    std::fs::remove_file(broker.dir().join("backups")).unwrap();
    back_up(&admin).await;
    broker.stop().await;

    let mut broker = TestBroker::start().await;
    let admin = broker.admin().await;
    let refused = admin.start_backup().await;
    assert!(
        refused
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("[backup]")
    );
    assert_eq!(code(refused), ErrorCode::InvalidConfig);
    broker.stop().await;
}
