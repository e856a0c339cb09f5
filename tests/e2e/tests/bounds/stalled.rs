//! Readers that do not read, and writers that do not listen.

use millstream::{Record, StartAt};
use millstream_e2e::{RawConnection, TestBroker, batch, end, partitions, topic};
use millstream_proto::frame::{DeliverPrefix, FrameKind};
use millstream_proto::message::OpenSubscription;
use millstream_proto::{Batch, Offset, PartitionId, ProducerId};

use crate::{Memory, Neighbour, alone};

/// Bytes of one record here.
const RECORD: usize = 1 << 20;
/// Records that go through.
const RECORDS: u64 = 192;
/// What may be kept of them: the tail (24 MiB), the store's queue and cache (8 and 16 MiB), a
/// send window (16 MiB) for each of two readers, the producer's own batches, the part of a segment
/// that is being put in order (4 MiB), and slack: the allocator keeps for each thread what it has
/// freed, up to 30 MiB for the store's writer and 18 for its sealer, whose pages the other one lets
/// go of.
const MEMORY: u64 = 176 << 20;

#[tokio::test]
async fn a_reader_that_stalls_costs_no_memory_and_loses_nothing() {
    let _alone = alone().await;
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let mut neighbour = Neighbour::new(&broker).await;
    let mut memory = Memory::watch(&broker).await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let open = OpenSubscription {
        topic: name.clone(),
        partitions: Vec::new(),
        positions: Vec::new(),
        start: StartAt::Earliest,
        consumer: None,
        until_end: false,
        chain: Vec::new(),
    };
    let mut first = raw.subscription(open.clone()).await.unwrap();
    let mut second = raw.subscription(open).await.unwrap();
    let producer = client
        .producer(name.clone())
        .batch_bytes(RECORD)
        .in_flight(4);
    let producer = producer.build().await.unwrap();
    let mut value = vec![7; RECORD];
    for n in 0..RECORDS {
        value[..8].copy_from_slice(&n.to_be_bytes());
        drop(producer.send(&Record::value(&value)).await.unwrap());
        if n % 16 == 0 {
            neighbour.round().await;
            memory.look().await;
        }
    }
    producer.close().await.unwrap();
    memory.look().await;
    memory.stayed_below(MEMORY);
    // Then they read after all.
    for stream in [&mut first, &mut second] {
        let mut next = 0;
        while next < RECORDS {
            let frame = stream.expect().await.unwrap();
            assert_eq!(frame.kind, FrameKind::Deliver);
            let (prefix, bytes) = DeliverPrefix::split(frame.payload).unwrap();
            let body = Batch::check(bytes).unwrap().body().unwrap();
            for record in body.view().unwrap().records() {
                let number = record.value.unwrap()[..8].try_into().unwrap();
                assert_eq!(
                    (record.offset, u64::from_be_bytes(number)),
                    (Offset(next), next)
                );
                next += 1;
            }
            assert_eq!(prefix.next, Offset(next));
        }
        memory.look().await;
    }
    memory.stayed_below(MEMORY);
    broker.stop().await;
}

/// A producer that sends and sends and never reads an answer is held back by the broker, not
/// buffered by it; what it sent before it hung up is stored or not, but the neighbour is served.
#[tokio::test]
async fn a_writer_that_does_not_listen_is_held_back() {
    let _alone = alone().await;
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let mut neighbour = Neighbour::new(&broker).await;
    let mut memory = Memory::watch(&broker).await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "deaf").await;
    let (mut stream, _) = raw.producer(&name, ProducerId::NONE, 0).await.unwrap();
    let value = vec![7; 64 << 10];
    for sequence in 0..1500 {
        stream
            .produce(sequence, Some(0), batch(&[&value], 0, 0, sequence).bytes())
            .await;
        if sequence % 100 == 0 {
            neighbour.round().await;
            memory.look().await;
        }
    }
    drop(stream);
    neighbour.round().await;
    memory.look().await;
    memory.stayed_below(MEMORY);
    let stored = end(&client, &name).await;
    assert!((1..=1500).contains(&stored.0), "{stored}");
    let info = client.describe_topic(name).await.unwrap().partitions[0];
    assert_eq!(info.partition, PartitionId(0));
    broker.stop().await;
}
