//! Topics: made, changed, read from anywhere, trimmed and deleted.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use millstream::{
    Client, ConsumeError, ConsumerName, ErrorCode, Record, RequestError, StartAt, TopicConfig,
};
use millstream_broker::Clock;
use millstream_broker::log::Topic;
use millstream_e2e::{TestBroker, end, partitions, produce, read, text, texts, topic};
use millstream_proto::limits::MAX_PAGE;
use millstream_proto::topic::{Durability, Spread, TopicChange};
use millstream_proto::{Offset, PartitionId, TopicName};

fn code(e: &RequestError) -> Option<ErrorCode> {
    e.wire().map(|e| e.code)
}

#[tokio::test]
async fn a_topic_is_made_changed_listed_and_deleted() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    let info = client
        .create_topic(name.clone(), partitions(3))
        .await
        .unwrap();
    assert_eq!(
        (info.topic.clone(), info.partitions.len()),
        (name.clone(), 3)
    );
    assert_eq!(client.describe_topic(name.clone()).await.unwrap(), info);
    let twice = client.create_topic(name.clone(), partitions(3)).await;
    assert_eq!(code(&twice.unwrap_err()), Some(ErrorCode::TopicExists));

    let change = TopicChange {
        retention_ms: Some(5000),
        spread: Some(Spread::RoundRobin),
        ..TopicChange::default()
    };
    let changed = client.alter_topic(name.clone(), change).await.unwrap();
    let expected = TopicConfig {
        retention_ms: 5000,
        spread: Spread::RoundRobin,
        ..partitions(3)
    };
    assert_eq!(changed.config, expected);
    let shrink = TopicChange {
        partitions: Some(2),
        ..TopicChange::default()
    };
    let e = client.alter_topic(name.clone(), shrink).await.unwrap_err();
    assert_eq!(code(&e), Some(ErrorCode::InvalidConfig));
    assert!(e.to_string().contains("cannot shrink"), "{e}");

    for n in 0..3 {
        let other = topic(&format!("acme/t{n}"));
        client.create_topic(other, partitions(1)).await.unwrap();
    }
    let list = || async { client.list_topics(None).await.unwrap() };
    let names: Vec<_> = list().await.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["acme/t", "acme/t0", "acme/t1", "acme/t2"]);

    broker.restart().await;
    assert_eq!(
        client.describe_topic(name.clone()).await.unwrap().config,
        expected
    );
    assert_eq!(list().await.len(), 4);
    client.delete_topic(name.clone()).await.unwrap();
    let gone = client.describe_topic(name.clone()).await.unwrap_err();
    assert_eq!(code(&gone), Some(ErrorCode::UnknownTopic));
    assert_eq!(list().await.len(), 3);
    broker.restart().await;
    assert_eq!(list().await.len(), 3);
    broker.stop().await;
}

#[tokio::test]
async fn a_deleted_topic_ends_its_streams_and_its_name_begins_anew() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    produce(&client, &name, ["old"]).await;
    let producer = client.producer(name.clone()).build().await.unwrap();
    let consumer = client.consumer(name.clone()).start(StartAt::Earliest);
    let mut consumer = consumer.build().await.unwrap();
    consumer.next_message().await.unwrap().unwrap();
    client.delete_topic(name.clone()).await.unwrap();

    let e = consumer.next_message().await.unwrap().unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::TopicDeleted, "{e}");
    assert!(e.to_string().contains("acme/t"), "{e}");
    let sent = producer.send(&Record::value(b"late")).await.unwrap();
    let e = sent.await.unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::TopicDeleted, "{e}");

    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    assert_eq!(end(&client, &name).await, Offset(0));
    produce(&client, &name, ["new"]).await;
    assert_eq!(texts(&client, &name).await, ["new"]);
    broker.restart().await;
    assert_eq!(texts(&client, &name).await, ["new"]);
    broker.stop().await;
}

/// Produces `count` batches of about 64 KiB that do not compress.
async fn fill(client: &Client, name: &TopicName, count: u64) {
    let producer = client.producer(name.clone()).build().await.unwrap();
    let mut deliveries = Vec::new();
    for n in 0..count {
        let value: Vec<u8> = (0..60_000u64).map(|i| (i * n % 251) as u8).collect();
        deliveries.push(producer.send(&Record::value(&value)).await.unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.close().await.unwrap();
}

/// Waits until the broker, which does it by itself every now and then, has moved the beginning of
/// the first partition.
async fn retained(topic: &Topic, done: impl Fn(u64, u64) -> bool) {
    let mut changed = topic.changed();
    loop {
        changed.borrow_and_update();
        let partition = &topic.partitions()[0];
        if done(partition.start().0, partition.bytes()) {
            return;
        }
        changed.changed().await.unwrap();
    }
}

#[tokio::test]
async fn retention_by_bytes_keeps_the_newest_and_the_file_stops_growing() {
    let mut broker = TestBroker::start().await;
    let (client, admin) = (broker.tenant("acme").await, broker.admin().await);
    let name = topic("acme/t");
    let config = TopicConfig {
        retention_bytes: 1 << 20,
        ..partitions(1)
    };
    client.create_topic(name.clone(), config).await.unwrap();
    let held = broker.inner().catalog.topic(&name).unwrap();
    let mut sizes = Vec::new();
    let kept = 1 << 20..(1 << 20) + 65_536;
    for round in 1..=8u64 {
        fill(&client, &name, 80).await;
        retained(&held, |_, bytes| kept.contains(&bytes)).await;
        let info = client
            .describe_topic(name.clone())
            .await
            .unwrap()
            .partitions[0];
        assert_eq!(info.end, Offset(round * 80), "no offset is used twice");
        assert!(kept.contains(&info.bytes), "{} bytes kept", info.bytes);
        sizes.push(admin.status().await.unwrap().shards[0].file_bytes);
    }
    // 38 MiB went through. What is freed is used again: the file holds a round or two, with as
    // much again that is on its way out.
    assert!(sizes.iter().all(|size| *size < 20 << 20), "{sizes:?}");
    let start = held.partitions()[0].start();
    let kept = read(&client, &name).await;
    assert_eq!(kept.first().unwrap().offset, start);
    assert_eq!(kept.len() as u64, 640 - start.0);
    let consumer = client
        .consumer(name.clone())
        .start(StartAt::Offset(Offset(0)));
    let e = consumer.build().await.unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::OffsetOutOfRange);

    drop(held);
    broker.restart().await;
    let info = client
        .describe_topic(name.clone())
        .await
        .unwrap()
        .partitions[0];
    assert_eq!((info.start, info.end), (start, Offset(640)));
    broker.stop().await;
}

#[tokio::test]
async fn retention_by_age_goes_by_the_records_time() {
    let clock = Clock::fixed(1_000_000);
    let mut broker = TestBroker::set_up().clock(clock.clone()).start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    let config = TopicConfig {
        retention_ms: 1000,
        ..partitions(1)
    };
    client.create_topic(name.clone(), config).await.unwrap();
    let producer = client.producer(name.clone()).build().await.unwrap();
    for (value, time) in [("a", 999_500), ("b", 1_000_000), ("c", 1_000_400)] {
        let record = Record::value(value.as_bytes()).timestamp(time);
        producer.send(&record).await.unwrap().await.unwrap();
    }
    let held = broker.inner().catalog.topic(&name).unwrap();
    let start_is = async |wanted: u64| retained(&held, |start, _| start == wanted).await;
    assert_eq!(texts(&client, &name).await, ["a", "b", "c"]);
    clock.set(1_000_600);
    start_is(1).await;
    assert_eq!(texts(&client, &name).await, ["b", "c"]);
    clock.set(2_000_000);
    start_is(3).await;
    assert_eq!(read(&client, &name).await, []);
    // An emptied partition goes on where it was.
    let record = Record::value(b"d").timestamp(2_000_000);
    let placed = producer.send(&record).await.unwrap().await.unwrap();
    assert_eq!(placed.offset, Some(Offset(3)));
    drop(held);
    broker.stop().await;
}

#[tokio::test]
async fn a_topic_grows_while_it_is_written_and_read() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let producer = client.producer(name.clone()).build().await.unwrap();
    producer
        .send(&Record::value(b"before"))
        .await
        .unwrap()
        .await
        .unwrap();
    // One reader stays, another goes through the restart and meets partitions it has never seen.
    let follow = || {
        client
            .consumer(name.clone())
            .start(StartAt::Earliest)
            .build()
    };
    let (mut follower, mut returning) = (follow().await.unwrap(), follow().await.unwrap());
    for reader in [&mut follower, &mut returning] {
        let first = reader.next_message().await.unwrap().unwrap();
        assert_eq!(text(&first), "before");
    }
    let grow = TopicChange {
        partitions: Some(8),
        ..TopicChange::default()
    };
    let info = client.alter_topic(name.clone(), grow).await.unwrap();
    assert_eq!(info.partitions.len(), 8);
    // The producer that knows of one partition goes on; a new one uses them all.
    producer
        .send(&Record::value(b"during"))
        .await
        .unwrap()
        .await
        .unwrap();
    let values: Vec<String> = (0..200).map(|n| format!("after {n:03}")).collect();
    produce(&client, &name, &values).await;
    let messages = read(&client, &name).await;
    assert_eq!(messages.len(), 202);
    let used: std::collections::BTreeSet<_> = messages.iter().map(|m| m.partition).collect();
    assert_eq!(used.len(), 8);
    let mut expected: Vec<String> = messages.iter().map(text).collect();
    expected.retain(|value| value != "before");
    expected.sort();
    assert_eq!(followed(&mut follower, expected.len()).await, expected);
    broker.restart().await;
    assert_eq!(read(&client, &name).await.len(), 202);
    assert_eq!(followed(&mut returning, expected.len()).await, expected);
    broker.stop().await;
}

/// The next `count` values of a reader, sorted.
async fn followed(reader: &mut millstream::Consumer, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        let message = reader.next_message().await.unwrap().unwrap();
        values.push(text(&message));
    }
    values.sort();
    values
}

#[tokio::test]
async fn a_reader_begins_where_it_says() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let producer = client.producer(name.clone()).build().await.unwrap();
    for n in 0..10u8 {
        let value = [b'0' + n];
        let record = Record::value(&value).timestamp(i64::from(n) * 100);
        producer.send(&record).await.unwrap().await.unwrap();
    }
    let mut latest = client.consumer(name.clone()).build().await.unwrap();
    for (start, first) in [
        (StartAt::Earliest, "0"),
        (StartAt::Offset(Offset(4)), "4"),
        (StartAt::Timestamp(700), "7"),
        (StartAt::Timestamp(601), "7"),
        (StartAt::Timestamp(-5), "0"),
    ] {
        let consumer = client.consumer(name.clone()).start(start);
        let mut consumer = consumer.until_end(true).build().await.unwrap();
        let message = consumer.next_message().await.unwrap().unwrap();
        assert_eq!(text(&message), first, "{start:?}");
        let mut rest = 1;
        while let Some(message) = consumer.next_message().await {
            message.unwrap();
            rest += 1;
        }
        let first: usize = first.parse().unwrap();
        assert_eq!(rest, 10 - first, "{start:?}");
    }
    let found = async |at| client.find_offsets(name.clone(), at).await.unwrap();
    assert_eq!(found(StartAt::Latest).await, [(PartitionId(0), Offset(10))]);
    assert_eq!(
        found(StartAt::Timestamp(250)).await,
        [(PartitionId(0), Offset(3))]
    );
    assert_eq!(
        found(StartAt::Timestamp(901)).await,
        [(PartitionId(0), Offset(10))]
    );

    let until_end = client.consumer(name.clone()).until_end(true);
    let mut nothing = until_end.build().await.unwrap();
    assert!(
        nothing.next_message().await.is_none(),
        "there is nothing behind the end"
    );
    producer
        .send(&Record::value(b"new"))
        .await
        .unwrap()
        .await
        .unwrap();
    let message = latest.next_message().await.unwrap().unwrap();
    assert_eq!(
        (text(&message).as_str(), message.offset),
        ("new", Offset(10))
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_named_consumer_goes_on_where_it_committed() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    produce(&client, &name, (0..10).map(|n| n.to_string())).await;
    let me: ConsumerName = "me".parse().unwrap();
    let consumer = || {
        let consumer = client.consumer(name.clone()).named(me.clone());
        consumer.start(StartAt::Earliest)
    };
    let mut first = consumer().build().await.unwrap();
    for n in 0..4 {
        let message = first.next_message().await.unwrap().unwrap();
        assert_eq!(text(&message), n.to_string());
    }
    first.commit().await.unwrap();
    // Read and not committed: it comes again.
    first.next_message().await.unwrap().unwrap();
    drop(first);
    broker.restart().await;
    let committed = client
        .fetch_offsets(name.clone(), me.clone())
        .await
        .unwrap();
    assert_eq!(committed, [(PartitionId(0), Offset(4))]);
    let mut second = consumer().build().await.unwrap();
    let message = second.next_message().await.unwrap().unwrap();
    assert_eq!(text(&message), "4");

    // Another name has read nothing, and a name may go back.
    let other = client
        .fetch_offsets(name.clone(), "other".parse().unwrap())
        .await;
    assert_eq!(other.unwrap(), []);
    let back = vec![(PartitionId(0), Offset(1))];
    client
        .commit_offsets(name.clone(), me.clone(), back)
        .await
        .unwrap();
    let mut third = consumer().build().await.unwrap();
    assert_eq!(text(&third.next_message().await.unwrap().unwrap()), "1");

    let nameless = client
        .consumer(name.clone())
        .build()
        .await
        .unwrap()
        .commit()
        .await;
    assert!(matches!(nameless, Err(ConsumeError::Unnamed { .. })));
    broker.stop().await;
}

#[tokio::test]
async fn hundreds_of_partitions_are_written_and_read() {
    const PARTITIONS: u32 = 256;
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(PARTITIONS))
        .await
        .unwrap();
    let producer = client.producer(name.clone()).build().await.unwrap();
    let mut deliveries = Vec::new();
    for n in 0..PARTITIONS * 4 {
        let (value, partition) = (n.to_le_bytes(), PartitionId(n % PARTITIONS));
        let record = Record::value(&value).partition(partition);
        deliveries.push((partition, producer.send(&record).await.unwrap()));
    }
    for (partition, delivery) in deliveries {
        assert_eq!(delivery.await.unwrap().partition, Some(partition));
    }
    broker.restart().await;
    let mut ends = vec![0; PARTITIONS as usize];
    for message in read(&client, &name).await {
        let n = u32::from_le_bytes(message.value.as_deref().unwrap().try_into().unwrap());
        assert_eq!(n % PARTITIONS, message.partition.0);
        let next = &mut ends[message.partition.0 as usize];
        assert_eq!((*next, n / PARTITIONS), (message.offset.0, *next as u32));
        *next += 1;
    }
    assert!(ends.iter().all(|end| *end == 4));
    // One partition of the many, by itself.
    let one = client.consumer(name).partitions([PartitionId(200)]);
    let one = one.start(StartAt::Earliest).until_end(true);
    let mut one = one.build().await.unwrap();
    let mut count = 0;
    while let Some(message) = one.next_message().await {
        assert_eq!(message.unwrap().partition, PartitionId(200));
        count += 1;
    }
    assert_eq!(count, 4);
    broker.stop().await;
}

#[tokio::test]
async fn a_topic_that_syncs_at_intervals_keeps_everything_over_an_orderly_stop() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    let config = TopicConfig {
        durability: Durability::Interval,
        ..partitions(2)
    };
    client.create_topic(name.clone(), config).await.unwrap();
    let values: Vec<String> = (0..500).map(|n| format!("{n:03}")).collect();
    produce(&client, &name, &values).await;
    assert_eq!(texts(&client, &name).await, values);
    broker.restart().await;
    assert_eq!(texts(&client, &name).await, values);
    broker.stop().await;
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was_over_restarts() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(2))
        .await
        .unwrap();
    let me: ConsumerName = "me".parse().unwrap();
    let consumer = client.consumer(name.clone()).start(StartAt::Earliest);
    let consumer = consumer.named(me.clone()).auto_commit(Duration::ZERO);
    let mut consumer = consumer.build().await.unwrap();
    let mut next = [0, 0];
    for round in 0..3u64 {
        produce(&client, &name, (0..100).map(|n| format!("{round}/{n}"))).await;
        // Stopped in the middle of what it has already received.
        for _ in 0..if round == 2 { 200 } else { 50 } {
            let message = consumer.next_message().await.unwrap().unwrap();
            let next = &mut next[message.partition.0 as usize];
            assert_eq!(message.offset.0, *next, "each once and in order");
            *next += 1;
        }
        broker.restart().await;
    }
    assert_eq!(next.iter().sum::<u64>(), 300);
    // It commits what it was asked to go on from; the rest is for itself to say.
    let sum = async || {
        let offsets = client
            .fetch_offsets(name.clone(), me.clone())
            .await
            .unwrap();
        offsets.iter().map(|(_, offset)| offset.0).sum::<u64>()
    };
    assert!((1..300).contains(&sum().await));
    consumer.commit().await.unwrap();
    assert_eq!(sum().await, 300);
    broker.stop().await;
}

#[tokio::test]
async fn lists_are_whole_however_long() {
    const TOPICS: usize = MAX_PAGE + 7;
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let create = |n: usize| {
        let client = client.clone();
        async move {
            let name = topic(&format!("acme/t{n:04}"));
            client.create_topic(name, partitions(1)).await.map(drop)
        }
    };
    let created = stream::iter(0..TOPICS).map(create).buffer_unordered(16);
    created.try_collect::<Vec<()>>().await.unwrap();
    let names = client.list_topics(None).await.unwrap();
    let expected = (0..TOPICS).map(|n| topic(&format!("acme/t{n:04}")));
    assert!(names.into_iter().eq(expected));
    let nobodys = client.list_topics(Some(&"other".parse().unwrap())).await;
    assert_eq!(nobodys.unwrap(), []);
    broker.stop().await;
}
