//! The client against a broker in memory that misbehaves on demand.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

mod broker;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use broker::pki::Pki;
use broker::{Broker, Fault};
use futures_util::StreamExt;
use futures_util::future::join_all;
use millstream::proto::message::Notice;
use millstream::{
    Backoff, Client, ClientConfig, Codec, ConnectError, ConsumeError, ErrorClass, ErrorCode, Gap,
    GapCause, Identity, Offset, OnSetback, PartitionId, ProduceError, ProducerBuilder, Record,
    RequestError, StartAt, TopicName, UploadError, WireError,
};

const TOPIC: &str = "acme/quakes";

fn topic() -> TopicName {
    TOPIC.parse().unwrap()
}

fn config(broker: &Broker, identity: Identity) -> ClientConfig {
    ClientConfig::new(broker.addr.to_string(), identity)
        .server_name("localhost")
        .connect_deadline(Duration::from_secs(5))
        .backoff(Backoff {
            first: Duration::from_millis(2),
            max: Duration::from_millis(50),
        })
}

async fn connected(partitions: usize) -> (Broker, Client) {
    let pki = Pki::new();
    let broker = Broker::start(pki.millstream_server(), partitions);
    let client = Client::connect(config(&broker, pki.identity()))
        .await
        .unwrap();
    (broker, client)
}

/// One record per batch, so that faults hit where they are aimed.
fn single(builder: ProducerBuilder) -> ProducerBuilder {
    builder.batch_bytes(256)
}

/// Sends numbers as records too large to share a batch; returns their offsets,
/// or errors, by number.
async fn produce(client: &Client, count: u32) -> Vec<Result<Offset, ProduceError>> {
    let producer = single(client.producer(topic())).build().await.unwrap();
    let mut deliveries = Vec::new();
    for i in 0..count {
        let mut value = [7; 200];
        value[..4].copy_from_slice(&i.to_le_bytes());
        let record = Record::value(&value).partition(PartitionId(0));
        deliveries.push(producer.send(&record).await.unwrap());
    }
    let results = join_all(deliveries).await;
    producer.close().await.unwrap();
    results
        .into_iter()
        .map(|r| r.map(|placed| placed.offset.unwrap()))
        .collect()
}

/// Everything the topic holds, by partition.
async fn consume(client: &Client) -> BTreeMap<u32, Vec<(u64, u32)>> {
    let mut consumer = client
        .consumer(topic())
        .start(StartAt::Earliest)
        .until_end(true)
        .build()
        .await
        .unwrap();
    let mut seen: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
    let mut messages = consumer.messages();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let number = u32::from_le_bytes(*message.value.unwrap().first_chunk().unwrap());
        let of = seen.entry(message.partition.0).or_default();
        of.push((message.offset.0, number));
    }
    seen
}

#[tokio::test]
async fn records_arrive_once_and_in_order_across_lost_connections() {
    let (broker, client) = connected(1).await;
    let faults = [
        (3, Fault::CloseBefore),
        (20, Fault::CloseAfter),
        (21, Fault::CloseAfter),
        (40, Fault::Refuse(ErrorCode::Overloaded)),
        (41, Fault::Refuse(ErrorCode::PluginRetry)),
        (60, Fault::CloseBefore),
    ];
    broker.state().faults.extend(faults);
    let results = produce(&client, 100).await;
    let offsets: Vec<u64> = results.into_iter().map(|r| r.unwrap().0).collect();
    assert_eq!(offsets, (0..100).collect::<Vec<u64>>());
    assert!(broker.state().faults.is_empty(), "every fault was met");
    assert_eq!(broker.state().connections, 5);

    broker.state().close_after_deliveries.extend([30, 5, 0]);
    let seen = consume(&client).await;
    let expected: Vec<(u64, u32)> = (0..100).map(|i| (u64::from(i), i)).collect();
    assert_eq!(seen, BTreeMap::from([(0, expected)]));
    assert!(broker.state().close_after_deliveries.is_empty());
}

#[tokio::test]
async fn a_consumer_of_many_partitions_goes_on_where_it_was() {
    let (broker, client) = connected(5).await;
    let producer = client
        .producer(topic())
        .batch_bytes(2000)
        .build()
        .await
        .unwrap();
    let values: Vec<[u8; 100]> = (0..2000u32)
        .map(|i| {
            let mut value = [0; 100];
            value[..4].copy_from_slice(&i.to_le_bytes());
            value
        })
        .collect();
    let records = values.iter().map(|v| Record::value(v).key(&v[..1]));
    let delivery = producer.send_many(records).await.unwrap();
    producer.flush().await.unwrap();
    let placed = delivery.await.unwrap();
    assert_eq!(placed.records, 2000);
    assert_eq!(placed.placements.iter().map(|p| p.count).sum::<u32>(), 2000);

    broker
        .state()
        .close_after_deliveries
        .extend([40, 3, 3, 3, 1]);
    let seen = consume(&client).await;
    assert_eq!(seen.len(), 5);
    let mut numbers = HashSet::new();
    for records in seen.values() {
        let gapless = (0u64..).zip(records).all(|(i, (offset, _))| i == *offset);
        assert!(gapless, "no gap and no duplicate");
        assert!(records.is_sorted_by_key(|(_, number)| *number));
        numbers.extend(records.iter().map(|(_, number)| *number));
    }
    assert_eq!(numbers.len(), 2000);
}

#[tokio::test]
async fn a_refused_batch_fails_alone() {
    let (broker, client) = connected(1).await;
    let refuse = Fault::Refuse(ErrorCode::PluginFailed);
    broker
        .state()
        .faults
        .extend([(1, refuse), (4, Fault::CloseBefore)]);
    let results = produce(&client, 6).await;
    for (i, result) in results.iter().enumerate() {
        match result {
            Ok(offset) => assert_eq!(offset.0, i as u64 - u64::from(i > 1)),
            Err(e) => {
                assert_eq!(i, 1);
                assert_eq!(e.class(), ErrorClass::Fix);
                assert_eq!(e.wire().unwrap().code, ErrorCode::PluginFailed);
                assert!(e.to_string().contains(TOPIC));
            }
        }
    }
}

#[tokio::test]
async fn a_fenced_producer_ends() {
    let (broker, client) = connected(1).await;
    broker
        .state()
        .faults
        .insert(0, Fault::Refuse(ErrorCode::ProducerFenced));
    let producer = client.producer(topic()).build().await.unwrap();
    let delivery = producer.send(&Record::value(b"v")).await.unwrap();
    let e = delivery.await.unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::ProducerFenced);
    let next = producer.send(&Record::value(b"v")).await;
    assert_eq!(next.unwrap_err(), e);
    assert_eq!(producer.close().await, Err(e));
}

#[tokio::test]
async fn without_an_identity_a_lost_acknowledgement_stays_open() {
    let (broker, client) = connected(1).await;
    broker.state().faults.insert(0, Fault::CloseAfter);
    let producer = single(client.producer(topic()))
        .idempotent(false)
        .build()
        .await
        .unwrap();
    let lost = producer.send(&Record::value(b"first")).await.unwrap();
    let e = lost.await.unwrap_err();
    assert_eq!(e, ProduceError::OutcomeUnknown { topic: topic() });
    let next = producer.send(&Record::value(b"second")).await.unwrap();
    assert_eq!(next.await.unwrap().offset, Some(Offset(1)));
}

#[tokio::test]
async fn a_window_of_one_still_gathers_and_compresses() {
    let (_broker, client) = connected(1).await;
    let producer = client
        .producer(topic())
        .in_flight(1)
        .batch_bytes(4096)
        .codec(Codec::Zstd)
        .build()
        .await
        .unwrap();
    let mut deliveries = Vec::new();
    for i in 0..1000u32 {
        let value = [i.to_le_bytes(); 30].concat();
        deliveries.push(producer.send(&Record::value(&value)).await.unwrap());
    }
    producer.flush().await.unwrap();
    for (i, delivery) in (0u64..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap().offset, Some(Offset(i)));
    }
    let seen = consume(&client).await;
    assert_eq!(seen[&0].len(), 1000);
}

#[tokio::test]
async fn records_that_cannot_be_sent_are_refused_at_once() {
    let (_broker, client) = connected(2).await;
    let producer = client.producer(topic()).build().await.unwrap();
    let large = vec![0; 100_001];
    let e = producer.send(&Record::value(&large)).await.unwrap_err();
    assert!(
        matches!(e, ProduceError::RecordTooLarge { max: 100_000, .. }),
        "{e}"
    );
    let nowhere = Record::value(b"v").partition(PartitionId(2));
    let e = producer.send(&nowhere).await.unwrap_err();
    assert!(
        matches!(e, ProduceError::UnknownPartition { partitions: 2, .. }),
        "{e}"
    );
    assert!(
        producer
            .send(&Record::value(b"v"))
            .await
            .unwrap()
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_dropped_producer_sends_what_it_took() {
    let (broker, client) = connected(1).await;
    let producer = client
        .producer(topic())
        .linger(Duration::from_secs(60))
        .build()
        .await
        .unwrap();
    let delivery = producer.send(&Record::value(b"v")).await.unwrap();
    assert_eq!(broker.state().batches_seen, 0);
    drop(producer);
    assert_eq!(delivery.await.unwrap().offset, Some(Offset(0)));
}

#[tokio::test]
async fn a_closed_client_fails_what_is_open() {
    let (_broker, client) = connected(1).await;
    let producer = client
        .producer(topic())
        .linger(Duration::from_secs(60))
        .build()
        .await
        .unwrap();
    let delivery = producer.send(&Record::value(b"v")).await.unwrap();
    client.close().await;
    let closed = ProduceError::Closed { topic: topic() };
    assert_eq!(delivery.await.unwrap_err(), closed);
    assert_eq!(producer.flush().await, Err(closed.clone()));
    assert_eq!(producer.close().await, Err(closed));
    assert_eq!(
        client.status().await.unwrap_err(),
        RequestError::Connect(ConnectError::Closed)
    );
}

#[tokio::test]
async fn offsets_are_committed_by_hand_and_by_the_clock() {
    let (broker, client) = connected(1).await;
    produce(&client, 3).await;
    let builder = client
        .consumer(topic())
        .start(StartAt::Earliest)
        .until_end(true);
    let named = builder.named("reader".parse().unwrap());
    let mut consumer = named.auto_commit(Duration::ZERO).build().await.unwrap();
    for _ in 0..2 {
        consumer.next_message().await.unwrap().unwrap();
    }
    consumer.commit().await.unwrap();
    assert_eq!(broker.state().committed[&PartitionId(0)], Offset(2));
    while consumer.next_message().await.is_some() {}
    consumer.commit().await.unwrap();
    assert_eq!(broker.state().committed[&PartitionId(0)], Offset(3));
    assert_eq!(consumer.positions(), [(PartitionId(0), Offset(3))]);
}

#[tokio::test]
async fn the_clock_commits_also_while_there_is_always_more() {
    let (broker, client) = connected(1).await;
    for _ in 0..20 {
        produce(&client, 1).await;
    }
    let builder = client.consumer(topic()).start(StartAt::Earliest);
    let named = builder.until_end(true).named("reader".parse().unwrap());
    let mut consumer = named.auto_commit(Duration::ZERO).build().await.unwrap();
    for done in 0..20 {
        consumer.next_message().await.unwrap().unwrap();
        let committed = broker.state().committed.get(&PartitionId(0)).copied();
        assert_eq!(committed, Some(Offset(done)));
    }
}

fn told(from: u64, to: u64, cause: GapCause) -> Gap {
    Gap {
        partition: PartitionId(0),
        from: Offset(from),
        to: Offset(to),
        cause,
    }
}

#[tokio::test]
async fn a_consumer_goes_back_to_where_a_crash_left_the_partition() {
    for commits_first in [false, true] {
        let (broker, client) = connected(1).await;
        produce(&client, 6).await;
        broker.state().close_after_deliveries.push_back(5);
        let builder = client.consumer(topic()).start(StartAt::Earliest);
        let named = builder.until_end(true).named("reader".parse().unwrap());
        let mut consumer = named.build().await.unwrap();
        for _ in 0..5 {
            consumer.next_message().await.unwrap().unwrap();
        }
        let gap = told(3, 5, GapCause::Truncated);
        {
            let mut state = broker.state();
            state.truncate(0, 3);
            state.notices.push(Notice::Gap(gap));
        }
        if commits_first {
            // What was read is more than there is: no reason to refuse all of it.
            consumer.commit().await.unwrap();
            assert_eq!(broker.state().committed[&PartitionId(0)], Offset(3));
        }
        assert!(consumer.next_message().await.is_none(), "it ends at 3 now");
        assert_eq!(consumer.positions(), [(PartitionId(0), Offset(3))]);
        assert_eq!(consumer.take_gaps(), [gap]);
        assert_eq!(consumer.take_gaps(), []);
        consumer.commit().await.unwrap();
        assert_eq!(broker.state().committed[&PartitionId(0)], Offset(3));
    }
}

#[tokio::test]
async fn a_partition_that_is_shut_is_told_of_and_the_others_are_read() {
    let (broker, client) = connected(2).await;
    produce(&client, 3).await;
    let shut = |at| Notice::Shut {
        partition: PartitionId(1),
        at: Offset(at),
        error: WireError::new(ErrorCode::Corrupt, "partition 1 cannot be read"),
    };
    let lost = told(0, 1, GapCause::Lost);
    for on_setback in [OnSetback::GoOn, OnSetback::Stop] {
        // Twice: it is news once.
        broker.state().notices = vec![shut(0), shut(0), Notice::Gap(lost)];
        let consumer = client.consumer(topic()).start(StartAt::Earliest);
        let consumer = consumer.until_end(true).on_setback(on_setback);
        let mut consumer = consumer.build().await.unwrap();
        let setback = consumer.next_message().await.unwrap().unwrap_err();
        assert!(setback.is_setback());
        assert_eq!(setback.wire().unwrap().code, ErrorCode::Corrupt);
        let ConsumeError::Shut { partition, at, .. } = setback else {
            panic!("{setback}")
        };
        assert_eq!((partition, at), (PartitionId(1), Offset(0)));
        let mut offsets = Vec::new();
        while let Some(message) = consumer.next_message().await {
            offsets.push(message.unwrap().offset.0);
        }
        match on_setback {
            OnSetback::GoOn => {
                assert_eq!(offsets, [1, 2], "what is lost is passed over");
                assert_eq!(consumer.take_gaps(), [lost]);
            }
            OnSetback::Stop => assert_eq!(offsets, []),
        }
    }
    let removed = told(0, 2, GapCause::Removed);
    broker.state().notices = vec![Notice::Gap(removed)];
    let consumer = client.consumer(topic()).on_setback(OnSetback::Stop);
    // As the broker opens it: behind the gap.
    let consumer = consumer.start(StartAt::Offset(Offset(2)));
    let consumer = consumer.named("reader".parse().unwrap());
    let mut consumer = consumer.until_end(true).build().await.unwrap();
    let setback = consumer.next_batch().await.unwrap().unwrap_err();
    assert!(matches!(setback, ConsumeError::Gap { gap, .. } if gap == removed));
    assert!(consumer.next_batch().await.is_none());
    // It has not passed the gap, and who comes next is to hear of it too.
    consumer.commit().await.unwrap();
    assert_eq!(broker.state().committed[&PartitionId(0)], Offset(0));
}

#[tokio::test]
async fn lists_are_followed_and_answers_checked() {
    let (broker, client) = connected(1).await;
    let names: Vec<String> = client
        .list_topics(None)
        .await
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["acme/a", "acme/b", "acme/c"]);
    let refused = client.status().await.unwrap_err();
    assert_eq!(refused.wire().unwrap().code, ErrorCode::NotAuthorized);
    let odd = client.list_rules().await.unwrap_err();
    assert_eq!(odd.class(), ErrorClass::Fatal);
    // A lost answer: reading is repeated, deleting is not.
    let next = broker.state().requests + 1;
    broker.state().lose_requests.insert(next);
    assert_eq!(client.list_topics(None).await.unwrap().len(), 3);
    let next = broker.state().requests + 1;
    broker.state().lose_requests.insert(next);
    let e = client.delete_topic(topic()).await.unwrap_err();
    assert!(matches!(e, RequestError::OutcomeUnknown { .. }), "{e}");
}

#[tokio::test]
async fn an_early_refusal_of_an_upload_comes_through() {
    let (_broker, client) = connected(1).await;
    let component = vec![0; 8 << 20].into();
    let e = client
        .upload_plugin("acme/filter".parse().unwrap(), component, |_| {})
        .await
        .unwrap_err();
    let UploadError::Refused(wire) = e else {
        panic!("{e}")
    };
    assert_eq!(wire.code, ErrorCode::UploadRejected);
}

async fn refused(broker: &Broker, identity: Identity) -> ConnectError {
    let client = Client::connect(config(broker, identity)).await;
    let e = client.unwrap_err();
    assert_eq!(e.class(), ErrorClass::Fix, "{e}");
    e
}

#[tokio::test]
async fn every_certificate_that_does_not_fit_has_its_own_error() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let broker = Broker::start(ours.millstream_server(), 1);

    let foreign = theirs.client();
    let e = refused(&broker, Identity::new(ours.ca(), foreign.cert, foreign.key)).await;
    assert!(matches!(e, ConnectError::UnknownAuthority { .. }), "{e}");

    let expired = ours.expired_client();
    let e = refused(&broker, Identity::new(ours.ca(), expired.cert, expired.key)).await;
    assert!(matches!(e, ConnectError::CertificateExpired { .. }), "{e}");

    let good = ours.client();
    let e = refused(&broker, Identity::new(theirs.ca(), good.cert, good.key)).await;
    assert!(matches!(e, ConnectError::BrokerUntrusted { .. }), "{e}");

    let named = config(&broker, ours.identity()).server_name("elsewhere.example");
    let e = Client::connect(named).await.unwrap_err();
    assert!(matches!(e, ConnectError::BrokerNameMismatch { .. }), "{e}");

    let other = Broker::start(ours.server(b"h3"), 1);
    let e = refused(&other, ours.identity()).await;
    assert!(matches!(e, ConnectError::NoCommonProtocol { .. }), "{e}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_unreachable() {
    // Bound and silent: nobody else can take the port while the test runs.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let config = ClientConfig::new(addr.clone(), Pki::new().identity())
        .attempt_timeout(Duration::from_millis(30))
        .connect_deadline(Duration::from_millis(80));
    let e = Client::connect(config).await.unwrap_err();
    assert_eq!(e.class(), ErrorClass::Retry);
    assert!(e.to_string().contains(&addr), "{e}");
}
