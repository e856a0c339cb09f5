//! Killed while it backs up: what is listed is whole, what is left costs nothing twice.

use std::path::Path;

use millstream::proto::backup::{BackupOutcome, BackupPhase};
use millstream::{Client, Record, TopicConfig};
use millstream_broker::backup::{Progress, Selection, Target, Which, restore, verify};
use millstream_crash::child::Storage;
use millstream_crash::rig::{Rig, make_topic, topic};
use millstream_e2e::eventually;

use crate::PROGRAM;

/// How often it is killed, each time later in the backup.
const KILLS: u64 = 6;
/// Enough that a part of it is sealed, so that there are segments to copy.
const RECORDS: u32 = 500;
const RECORD_BYTES: usize = 100 << 10;

/// Waits until this many in `KILLS` of the backup are done, or all of it.
async fn reaches(client: &Client, part: u64) -> Option<BackupOutcome> {
    eventually("the backup to get on", async || {
        match client.show_backup().await.unwrap().phase {
            BackupPhase::Done(outcome) => Some(Some(outcome)),
            BackupPhase::Running { done, total, .. } => {
                let there = part < KILLS && total > 0 && done * KILLS >= total * part;
                there.then_some(None)
            }
            other => panic!("{other:?}"),
        }
    })
    .await
}

async fn assert_whole(target: &Target) {
    let verified = verify(target, None, &Progress::default()).await.unwrap();
    assert_eq!(verified.findings, []);
}

/// What stands in the topic, as partition, offset and a sum of the value.
async fn content(client: &Client) -> Vec<(u32, u64, u64)> {
    let consumer = client.consumer(topic("acme/t")).until_end(true);
    let start = millstream::StartAt::Earliest;
    let mut consumer = consumer.start(start).build().await.unwrap();
    let mut content = Vec::new();
    while let Some(message) = consumer.next_message().await {
        let message = message.unwrap();
        let value = message.value.unwrap();
        let sum = value.iter().map(|byte| u64::from(*byte)).sum();
        content.push((message.partition.0, message.offset.0, sum));
    }
    content.sort_unstable();
    content
}

async fn fill(client: &Client) {
    let producer = client.producer(topic("acme/t")).build().await.unwrap();
    let mut deliveries = Vec::new();
    for n in 0..RECORDS {
        let value = vec![n as u8; RECORD_BYTES];
        let key = n.to_be_bytes();
        let sent = producer.send(&Record::value(&value).key(&key)).await;
        deliveries.push(sent.unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.close().await.unwrap();
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn a_broker_killed_while_it_backs_up_leaves_only_whole_backups() {
    let mut rig = Rig::start(PROGRAM, Storage::Usual, None).await;
    let mut client = rig.client().await;
    let config = TopicConfig {
        partitions: 2,
        ..TopicConfig::default()
    };
    make_topic(&client, &topic("acme/t"), config).await;
    fill(&client).await;
    let stored = content(&client).await;
    assert_eq!(stored.len() as u32, RECORDS);

    let place = rig.dir().join("backups");
    let target = Target::open_or_create(&place.display().to_string()).unwrap();
    let mut interrupted = 0;
    for part in 0..KILLS {
        client.start_backup().await.unwrap();
        interrupted += usize::from(reaches(&client, part).await.is_none());
        rig.kill();
        assert_whole(&target).await;
        rig.revive().await;
        client = rig.client().await;
    }
    assert!(interrupted > 0, "it was never killed in the middle");
    let before = target.ids().await.unwrap().len();
    client.start_backup().await.unwrap();
    let made = reaches(&client, KILLS).await.unwrap();
    assert_eq!(target.ids().await.unwrap().len(), before + 1);
    assert_whole(&target).await;
    assert_eq!(
        files(&place.join("locks")),
        0,
        "the last one's lock is gone"
    );

    // What was killed has not changed what is stored, and the last backup holds all of it.
    assert_eq!(content(&client).await, stored);
    rig.stop().await;
    let data = rig.dir().join("data");
    std::fs::remove_dir_all(&data).unwrap();
    let manifest = target.find(&Which::Latest).await.unwrap();
    assert_eq!(manifest.id.as_str(), made.id);
    let all = Selection::All;
    restore(&target, &manifest, &data, &all, &Progress::default())
        .await
        .unwrap();
    rig.revive().await;
    assert_eq!(content(&rig.client().await).await, stored);
}
