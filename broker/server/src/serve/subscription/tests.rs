//! What a reader is told beside the batches, and who may read.

use std::ops::Range;

use millstream_proto::acl::{AclRule, Effect};
use millstream_proto::frame::{Assembler, DeliverPrefix, Frame};
use millstream_proto::pipeline::ErrorPolicy;
use millstream_proto::topic::{StartAt, TopicConfig};
use millstream_proto::{Offset, PartitionId};
use millstream_store::key::lost::{LostKey, LostRow};
use millstream_store::key::offset::{OffsetKey, OffsetRow};
use millstream_store::key::record;
use millstream_store::{Space, Store, WriteBatch};

use super::begin::stop;
use super::*;
use crate::guests::fixture::{Rec, batch_of};
use crate::limits::SHUT_RETRY;
use crate::log::holed::{HOLED_FILE, Holed};
use crate::log::{Append, TailBudget, append, retain};
use crate::metrics::Counters;
use crate::serve::control::tests::{ADMIN, STRANGER, peer, start};
use crate::tls::tests::good;

const TOPIC: u32 = 7;

/// A topic of two partitions on `store`, with two batches of two records in each.
async fn topic(store: &Arc<dyn Store>) -> Arc<Topic> {
    let config = TopicConfig {
        partitions: 2,
        retention_ms: 1_000,
        ..TopicConfig::default()
    };
    let (name, store) = ("acme/t".parse().unwrap(), Arc::clone(store));
    let topic = Topic::open(TOPIC, name, config, store, TailBudget::new(0)).unwrap();
    for (partition, timestamp) in [(0, 10), (1, 10), (0, 5_000), (1, 5_000)] {
        let rec = Rec {
            timestamp,
            ..Rec::new("k", "v")
        };
        let batch = batch_of(&[rec.clone(), rec]);
        let appends = vec![Append::to(&topic, PartitionId(partition), batch).unwrap()];
        append(topic.store(), appends, WriteBatch::new())
            .await
            .unwrap();
    }
    topic
}

/// One that reads all of it, up to its end as it is now.
fn reader(topic: &Arc<Topic>) -> Subscription {
    let cursor = |partition: &Arc<_>| {
        let partition: Arc<crate::log::Partition> = Arc::clone(partition);
        let stop = partition.end();
        Cursor::new(partition, Offset(0), Some(stop))
    };
    Subscription {
        cursors: topic.partitions().iter().map(cursor).collect(),
        topic: Arc::clone(topic),
        grows: false,
        chain: None,
        traffic: Arc::<Counters>::default().tenant(&topic.name().tenant()),
    }
}

/// What a frame tells: up to where it delivers, or a notice.
#[derive(Debug, PartialEq)]
enum Told {
    Up(u32, u64),
    Notice(Notice),
}

fn told(pieces: Vec<Bytes>) -> Vec<Told> {
    let mut bytes = Bytes::from(pieces.concat());
    let (mut assembler, mut all) = (Assembler::default(), Vec::new());
    while !bytes.is_empty() {
        let frame: Frame = assembler.feed(&mut bytes).unwrap().unwrap();
        all.push(match frame.kind {
            FrameKind::Notice => Told::Notice(frame.message().unwrap()),
            _ => {
                let (prefix, _) = DeliverPrefix::split(frame.payload).unwrap();
                Told::Up(prefix.partition.0, prefix.next.0)
            }
        });
    }
    all
}

async fn turn(reader: &mut Subscription, at: usize) -> Vec<Told> {
    match reader.turn(at).await {
        Ok(pieces) => told(pieces),
        Err(End::Error(error)) => panic!("{error}"),
        Err(_) => panic!("it ends"),
    }
}

fn gap(from: u64, to: u64, cause: GapCause) -> Told {
    Told::Notice(Notice::Gap(Gap {
        partition: PartitionId(0),
        from: Offset(from),
        to: Offset(to),
        cause,
    }))
}

fn keys(partition: u32, offsets: Range<u64>) -> Range<millstream_store::Key> {
    record::range(TOPIC, partition, offsets)
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_cannot_be_read_stands_still_and_the_others_go_on() {
    let holed = Holed::new();
    let topic = topic(&(Arc::clone(&holed) as Arc<dyn Store>)).await;
    let mut reader = reader(&topic);
    holed.hole(keys(0, 2..3));
    let first = turn(&mut reader, 0).await;
    let [
        Told::Notice(Notice::Shut {
            partition,
            at,
            error,
        }),
    ] = &first[..]
    else {
        panic!("{first:?}")
    };
    assert_eq!((*partition, *at), (PartitionId(0), Offset(0)));
    for part in [
        "partition 0 of topic acme/t",
        "from offset 0 on",
        "ends at 4",
        HOLED_FILE,
        "other partitions are served",
        "`millstream check --quarantine`",
    ] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    assert_eq!(
        turn(&mut reader, 1).await,
        [Told::Up(1, 2), Told::Up(1, 4)],
        "the other is served"
    );
    // It is told once, and nobody waits for it.
    assert!(reader.cursors.iter().all(Cursor::has_said_all));
    assert_eq!(turn(&mut reader, 0).await, []);
    tokio::time::advance(SHUT_RETRY).await;
    assert_eq!(turn(&mut reader, 0).await, []);
    holed.mend();
    assert_eq!(turn(&mut reader, 0).await, [], "not all the time");
    tokio::time::advance(SHUT_RETRY).await;
    assert_eq!(turn(&mut reader, 0).await, [Told::Up(0, 2), Told::Up(0, 4)]);
    assert!(reader.cursors[0].is_done());
}

#[tokio::test]
async fn who_reads_up_to_the_end_is_not_done_with_a_partition_whose_end_nobody_knows() {
    let holed = Holed::new();
    let before = topic(&(Arc::clone(&holed) as Arc<dyn Store>)).await;
    holed.hole(keys(0, 2..3));
    let (name, config) = (before.name().clone(), TopicConfig::clone(&before.config()));
    let store = Arc::clone(before.store());
    let topic = Topic::open(TOPIC, name, config, store, TailBudget::new(0)).unwrap();
    let [shut, open] = [0, 1].map(|p| topic.partition(PartitionId(p)).unwrap());
    assert!(shut.unreadable().is_some() && shut.end() < Offset(4));
    // Who had read all of it, and who had read what was found.
    for next in [Offset(4), shut.end()] {
        let mut reader = reader(&topic);
        reader.cursors = vec![
            Cursor::new(Arc::clone(&shut), next, Some(stop(&shut))),
            Cursor::new(Arc::clone(&open), Offset(4), Some(stop(&open))),
        ];
        assert!(reader.cursors[1].is_done() && !reader.cursors[0].has_said_all());
        let told = turn(&mut reader, 0).await;
        assert!(
            matches!(told[..], [Told::Notice(Notice::Shut { at, .. })] if at == next),
            "{told:?}"
        );
        assert!(reader.cursors[0].has_said_all());
    }
}

#[tokio::test]
async fn a_subscription_ends_when_nothing_of_it_can_be_read() {
    let holed = Holed::new();
    let topic = topic(&(Arc::clone(&holed) as Arc<dyn Store>)).await;
    let mut reader = reader(&topic);
    holed.hole(keys(0, 0..4));
    holed.hole(keys(1, 0..4));
    assert_eq!(turn(&mut reader, 0).await.len(), 1);
    let Err(End::Error(error)) = reader.turn(1).await else {
        panic!("it goes on")
    };
    assert!(
        error.message.contains("partition 1 of topic acme/t"),
        "{error}"
    );
    assert!(!error.message.contains("are served"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_any_more_is_passed_over_and_told() {
    let store: Arc<dyn Store> = Holed::new();
    let topic = topic(&store).await;
    let mut retained = reader(&topic);
    let mut lost = reader(&topic);
    let mut rows = WriteBatch::new();
    rows.delete_range(Space::Records, keys(0, 0..2));
    let key = LostKey {
        topic: TOPIC,
        partition: 0,
        start: 0,
    };
    let row = LostRow { end: 2, segment: 1 };
    rows.put(Space::Partitions, key.encode(), row.encode());
    store.commit(rows).await.unwrap();
    assert_eq!(turn(&mut lost, 0).await, [gap(0, 2, GapCause::Lost)]);
    assert_eq!(turn(&mut lost, 0).await, [Told::Up(0, 4)]);

    assert!(retain(&topic, 5_500).await.unwrap());
    assert_eq!(turn(&mut retained, 0).await, [gap(0, 2, GapCause::Removed)]);
    assert_eq!(turn(&mut retained, 0).await, [Told::Up(0, 4)]);
}

#[tokio::test]
async fn who_stands_behind_the_end_goes_on_at_the_end_and_is_told() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    let name: TopicName = "acme/t".parse().unwrap();
    let created = admin
        .broker
        .catalog
        .create_topic(&name, TopicConfig::default());
    let topic = created.await.unwrap();
    let batch = batch_of(&[Rec::new("k", "a"), Rec::new("k", "b")]);
    let appends = vec![Append::to(&topic, PartitionId(0), batch).unwrap()];
    append(topic.store(), appends, WriteBatch::new())
        .await
        .unwrap();
    let open = OpenSubscription {
        topic: name,
        partitions: Vec::new(),
        positions: vec![(PartitionId(0), Offset(9))],
        start: StartAt::Earliest,
        consumer: None,
        until_end: false,
        chain: Vec::new(),
    };
    let expect = async |open: OpenSubscription, at: u64, notices: &[Told]| {
        let begun = begin(&admin, open).await.unwrap();
        assert_eq!(begun.opened.positions, [(PartitionId(0), Offset(at))]);
        assert_eq!(told(begun.notices), notices);
    };
    let truncated = gap(2, 9, GapCause::Truncated);
    expect(open.clone(), 2, &[truncated]).await;
    let there = OpenSubscription {
        positions: vec![(PartitionId(0), Offset(1))],
        ..open.clone()
    };
    expect(there, 1, &[]).await;

    // What was committed behind the end counts as read, whatever else the reader asks for.
    let key = OffsetKey {
        topic: topic.id(),
        partition: 0,
        consumer: b"c",
    };
    let row = OffsetRow {
        offset: 5,
        metadata: String::new(),
    };
    let mut rows = WriteBatch::new();
    rows.put(Space::Offsets, key.encode(), row.encode());
    topic.store().commit(rows).await.unwrap();
    let named = OpenSubscription {
        positions: Vec::new(),
        consumer: Some("c".parse().unwrap()),
        ..open.clone()
    };
    expect(named, 2, &[gap(2, 5, GapCause::Truncated)]).await;

    // An offset that is asked for by number is not there, and nothing else is meant.
    let beyond = OpenSubscription {
        positions: Vec::new(),
        start: StartAt::Offset(Offset(9)),
        ..open
    };
    let refused = begin(&admin, beyond).await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::OffsetOutOfRange);
    drop((admin, topic));
    running.shutdown().await;
}

#[tokio::test]
async fn a_subscription_needs_its_topic_its_plugins_and_their_dead_letter_topics() {
    let dir = good();
    let running = start(&dir).await;
    let (admin, reader) = (peer(&running, ADMIN), peer(&running, STRANGER));
    let rights = Rights {
        topic: "acme/t".parse().unwrap(),
        chain: vec![PluginUse {
            on_error: ErrorPolicy::DeadLetter("acme/dead".parse().unwrap()),
            ..PluginUse::new("acme/p".parse().unwrap())
        }],
    };
    let needed = [
        (Operation::Consume, ResourceKind::Topic, "acme/t"),
        (Operation::Attach, ResourceKind::Plugin, "acme/p"),
        (Operation::Produce, ResourceKind::Topic, "acme/dead"),
    ];
    for (operation, resource, name) in needed {
        let error = rights.check(&reader).unwrap_err();
        assert!(error.message.contains(name), "{error}");
        let rule = AclRule {
            principal: STRANGER.parse().unwrap(),
            resource,
            name: name.parse().unwrap(),
            operations: vec![operation],
            effect: Effect::Allow,
        };
        let granted = running.broker().access.grant(&admin.principal, rule);
        granted.await.unwrap();
    }
    rights.check(&reader).unwrap();
    running.shutdown().await;
}
