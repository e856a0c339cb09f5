#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use bytes::BytesMut;
use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
use millstream_proto::frame::Assembler;
use millstream_proto::{Offset, PartitionId, ProducerEpoch};

use super::*;
use crate::serve::control::tests::{ADMIN, peer, start};
use crate::tls::tests::good;

const ID: ProducerId = ProducerId(7);

fn frame(sequence: u64, at: Option<Offset>) -> Frame {
    let mut builder = BatchBuilder::new(1 << 16);
    let record = NewRecord::default();
    match at {
        None => builder.push(&record).unwrap(),
        Some(offset) => {
            builder.push_at(offset, &record).unwrap();
            builder.push_at(offset.plus(9), &record).unwrap();
        }
    }
    let stamp = Stamp {
        producer: ID,
        epoch: ProducerEpoch(0),
        sequence: Sequence(sequence),
    };
    let batch = builder.build(Codec::None, stamp).unwrap();
    let mut payload = BytesMut::from(&ProducePrefix { partition: None }.encode()[..]);
    payload.extend_from_slice(batch.bytes());
    Frame {
        kind: FrameKind::Produce,
        tag: sequence,
        payload: payload.freeze(),
    }
}

async fn opened(peer: &Peer) -> Producer {
    let open = OpenProducer {
        topic: "acme/t".parse().unwrap(),
        producer: ID,
        epoch: ProducerEpoch(0),
    };
    begin(peer, &open).await.unwrap().0
}

async fn send(producer: &Producer, sequence: u64, at: Option<Offset>) {
    let slot = producer.answers.slot(sequence).await;
    let prepared = producer.prepare(frame(sequence, at), slot).await;
    producer.submit(prepared).await.unwrap();
}

/// As a chain answers whose plugin wants a batch later.
async fn put_off(producer: &Producer, sequence: u64) {
    let later = Prepared {
        slot: producer.answers.slot(sequence).await,
        sequence: Sequence(sequence),
        bytes: 0,
        outcome: Err(WireError::new(ErrorCode::PluginRetry, "later")),
    };
    producer.submit(later).await.unwrap();
}

/// All answers: of which batch, and the error or whether it is a duplicate.
async fn answers(producer: &Producer) -> Vec<(u64, Result<bool, ErrorCode>)> {
    producer.answers.close();
    let (mut assembler, mut all) = (Assembler::default(), Vec::new());
    while let Some(out) = producer.answers.next().await {
        let mut out = out.freeze();
        while let Some(frame) = assembler.feed(&mut out).unwrap() {
            let answer = match frame.kind {
                FrameKind::Ack => Ok(frame.message::<Ack>().unwrap().duplicate),
                _ => Err(frame.message::<WireError>().unwrap().code),
            };
            all.push((frame.tag, answer));
            if out.is_empty() {
                break;
            }
        }
    }
    all
}

#[tokio::test]
async fn a_batch_put_off_is_stored_before_those_behind_it_and_a_refused_one_stays_refused() {
    let dir = good();
    let running = start(&dir).await;
    let peer = peer(&running, ADMIN);
    let catalog = &running.broker().catalog;
    let topic = "acme/t".parse().unwrap();
    let created = catalog.create_topic(&topic, TopicConfig::default());
    let topic = created.await.unwrap();

    let first = opened(&peer).await;
    // The very first of a new stream, where any sequence may be the first.
    put_off(&first, 0).await;
    send(&first, 1, None).await;
    send(&first, 0, None).await;
    send(&first, 1, Some(Offset(1 << 40))).await;
    send(&first, 2, None).await;
    let own_offsets = Err(ErrorCode::MalformedBatch);
    assert_eq!(
        answers(&first).await,
        [
            (0, Err(ErrorCode::PluginRetry)),
            (0, Ok(false)),
            (1, own_offsets),
            (2, Ok(false))
        ]
    );

    // Had the answers been lost: everything comes again.
    let second = opened(&peer).await;
    send(&second, 0, None).await;
    send(&second, 1, None).await;
    send(&second, 2, None).await;
    assert_eq!(
        answers(&second).await,
        [(0, Ok(true)), (1, own_offsets), (2, Ok(true))]
    );
    assert_eq!(topic.partition(PartitionId(0)).unwrap().end(), Offset(2));
    running.shutdown().await;
}

#[test]
fn where_records_do_not_lie_one_by_one_no_lone_placement_says_so() {
    let part = |partition, base, count| Placement {
        partition: PartitionId(partition),
        base: Offset(base),
        count,
    };
    let one = [part(2, 100, 3)];
    assert_eq!(told(&one, true), one);
    // As many as came, but one was left out and another doubled.
    assert_eq!(told(&one, false), [part(2, 100, 3), part(2, 103, 0)]);
    let two = [part(0, 1, 1), part(1, 5, 2)];
    assert_eq!(told(&two, false), two);
    assert_eq!(told(&[], false), []);
}
