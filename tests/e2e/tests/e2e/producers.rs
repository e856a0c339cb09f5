//! Producers: each record once and in order, whatever happens in between.

use millstream::{Client, Codec, ErrorCode, Message, Record, TopicConfig};
use millstream_e2e::{
    RawConnection, RawStream, TestBroker, batch, end, partitions, read, text, topic,
};
use millstream_proto::batch::{BatchBuilder, NewRecord};
use millstream_proto::limits::{MAX_BATCH_BYTES, MAX_RECORD_BYTES, MAX_RECORD_HEADERS};
use millstream_proto::message::{Ack, Placement};
use millstream_proto::{Offset, PartitionId, ProducerId, Sequence, TopicName, WireError};

const ID: ProducerId = ProducerId(41);

async fn scene() -> (TestBroker, Client, TopicName) {
    let broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    (broker, client, name)
}

#[tokio::test]
async fn every_record_is_stored_once_and_in_order_over_restarts() {
    let (mut broker, client, name) = scene().await;
    // Batches of their own, so that many are under way when the broker goes.
    let producer = client
        .producer(name.clone())
        .batch_bytes(256)
        .build()
        .await
        .unwrap();
    let mut deliveries = Vec::new();
    for round in 0..3u32 {
        for n in 0..200u32 {
            let value = (round * 200 + n).to_string();
            deliveries.push(
                producer
                    .send(&Record::value(value.as_bytes()))
                    .await
                    .unwrap(),
            );
        }
        broker.restart().await;
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.close().await.unwrap();
    let seen: Vec<_> = read(&client, &name).await.iter().map(text).collect();
    let sent: Vec<_> = (0..600).map(|n| n.to_string()).collect();
    assert_eq!(seen, sent);
    broker.stop().await;
}

/// Sends one batch and waits for what becomes of it.
async fn send(stream: &mut RawStream, epoch: u16, sequence: u64) -> Result<Ack, WireError> {
    let value = format!("{epoch}/{sequence}");
    let batch = batch(&[value.as_bytes()], ID.0, epoch, sequence);
    stream.produce(sequence, Some(0), batch.bytes()).await;
    let (tag, answer) = stream.answer().await;
    if answer.is_ok() {
        assert_eq!(tag, sequence);
    }
    answer
}

fn at(offset: u64) -> Vec<Placement> {
    let (partition, base) = (PartitionId(0), Offset(offset));
    vec![Placement {
        partition,
        base,
        count: 1,
    }]
}

#[tokio::test]
async fn a_batch_sent_again_is_stored_once_and_answered_alike() {
    let (mut broker, client, name) = scene().await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut stream, opened) = raw.producer(&name, ID, 0).await.unwrap();
    assert_eq!(opened.next_sequence, Sequence(0));
    for sequence in 0..100 {
        let ack = send(&mut stream, 0, sequence).await.unwrap();
        assert_eq!((ack.placements, ack.duplicate), (at(sequence), false));
    }
    // On the same stream; the place of old ones is forgotten, that they are stored is not.
    for (sequence, placements) in [(99, at(99)), (50, at(50)), (3, Vec::new())] {
        let ack = send(&mut stream, 0, sequence).await.unwrap();
        assert_eq!((ack.placements, ack.duplicate), (placements, true));
    }
    // On another stream, as after a lost connection.
    drop(raw);
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut stream, opened) = raw.producer(&name, ID, 0).await.unwrap();
    assert_eq!(opened.next_sequence, Sequence(100));
    let ack = send(&mut stream, 0, 99).await.unwrap();
    assert_eq!((ack.placements, ack.duplicate), (at(99), true));
    // And after a restart.
    broker.restart().await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut stream, opened) = raw.producer(&name, ID, 0).await.unwrap();
    assert_eq!(opened.next_sequence, Sequence(100));
    for (sequence, placements) in [(99, at(99)), (98, Vec::new())] {
        let ack = send(&mut stream, 0, sequence).await.unwrap();
        assert_eq!((ack.placements, ack.duplicate), (placements, true));
    }
    let ack = send(&mut stream, 0, 100).await.unwrap();
    assert_eq!((ack.placements, ack.duplicate), (at(100), false));
    assert_eq!(end(&client, &name).await, Offset(101));
    broker.stop().await;
}

#[tokio::test]
async fn a_higher_epoch_or_a_newer_stream_takes_over() {
    let (mut broker, client, name) = scene().await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut first, _) = raw.producer(&name, ID, 1).await.unwrap();
    send(&mut first, 1, 0).await.unwrap();
    let (mut second, opened) = raw.producer(&name, ID, 1).await.unwrap();
    assert_eq!(opened.next_sequence, Sequence(1));
    let e = send(&mut first, 1, 1).await.unwrap_err();
    assert_eq!(e.code, ErrorCode::ProducerFenced, "{e}");
    assert!(e.message.contains("acme/t"), "{e}");
    assert!(first.next().await.is_none(), "a fenced stream has ended");
    send(&mut second, 1, 1).await.unwrap();

    let (mut third, opened) = raw.producer(&name, ID, 2).await.unwrap();
    assert_eq!(opened.next_sequence, Sequence(0), "an epoch counts from 0");
    send(&mut third, 2, 0).await.unwrap();
    let e = send(&mut second, 1, 2).await.unwrap_err();
    assert_eq!(e.code, ErrorCode::ProducerFenced, "{e}");
    broker.restart().await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let e = raw.producer(&name, ID, 1).await.err().unwrap();
    assert_eq!(e.code, ErrorCode::ProducerFenced, "{e}");
    // Another producer has nothing to do with it.
    let (_, opened) = raw.producer(&name, ProducerId(42), 0).await.unwrap();
    assert_eq!(opened.next_sequence, Sequence(0));
    let seen: Vec<_> = read(&client, &name).await.iter().map(text).collect();
    assert_eq!(seen, ["1/0", "1/1", "2/0"]);
    broker.stop().await;
}

#[tokio::test]
async fn a_gap_ends_the_stream_and_nothing_behind_it_is_stored() {
    let (mut broker, client, name) = scene().await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut stream, _) = raw.producer(&name, ID, 0).await.unwrap();
    send(&mut stream, 0, 0).await.unwrap();
    let e = send(&mut stream, 0, 2).await.unwrap_err();
    assert_eq!(e.code, ErrorCode::SequenceGap);
    assert!(e.message.contains("batch 2 came where 1"), "{e}");
    assert!(stream.next().await.is_none());
    assert_eq!(end(&client, &name).await, Offset(1));
    broker.stop().await;
}

#[tokio::test]
async fn without_an_id_nothing_is_a_duplicate() {
    let (mut broker, client, name) = scene().await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    for _ in 0..2 {
        let (mut stream, opened) = raw.producer(&name, ProducerId::NONE, 0).await.unwrap();
        assert_eq!(opened.next_sequence, Sequence(0));
        stream
            .produce(0, Some(0), batch(&[b"v"], 0, 0, 0).bytes())
            .await;
        assert!(!stream.answer().await.1.unwrap().duplicate);
    }
    assert_eq!(end(&client, &name).await, Offset(2));
    broker.stop().await;
}

#[tokio::test]
async fn producers_side_by_side_do_not_mix_their_orders() {
    let (mut broker, client, name) = scene().await;
    let writers = (0..4u32).map(|writer| {
        let (client, name) = (client.clone(), name.clone());
        tokio::spawn(async move {
            let producer = client
                .producer(name)
                .batch_bytes(512)
                .build()
                .await
                .unwrap();
            let key = writer.to_string();
            for n in 0..500u32 {
                let value = n.to_le_bytes();
                let record = Record::value(&value).key(key.as_bytes());
                drop(producer.send(&record).await.unwrap());
            }
            producer.close().await.unwrap();
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let messages = read(&client, &name).await;
    assert_eq!(messages.len(), 2000);
    let offsets = messages.iter().map(|m| m.offset.0);
    assert!(offsets.eq(0..2000), "offsets are gapless");
    for writer in 0..4 {
        let own = messages
            .iter()
            .filter(|m| m.key.as_deref() == Some(writer.to_string().as_bytes()));
        let values: Vec<u32> = own
            .map(|m| u32::from_le_bytes(m.value.as_deref().unwrap().try_into().unwrap()))
            .collect();
        assert!(values.into_iter().eq(0..500), "writer {writer}");
    }
    broker.stop().await;
}

/// Noise that does not compress and differs from record to record.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[tokio::test]
async fn every_codec_keeps_every_part_of_a_record() {
    let (mut broker, client, name) = scene().await;
    let many: Vec<(String, Vec<u8>)> = (0..MAX_RECORD_HEADERS)
        .map(|n| (format!("h{n}"), noise(n, 3)))
        .collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(n, v)| (n.as_str(), &v[..])).collect();
    let headers: [&[(&str, &[u8])]; 4] = [
        &[],
        &[("", b""), ("name", b"")],
        &[("same", b"1"), ("same", b"2"), ("\u{fc}", b"\xff\x00")],
        &many,
    ];
    let noise = noise(3000, 9);
    let mut records = Vec::new();
    for (n, headers) in headers.into_iter().enumerate() {
        let time = i64::try_from(n).unwrap() * 1_000_000 - 5;
        let keyed = Record::value(&noise)
            .key(b"key")
            .headers(headers)
            .timestamp(time);
        records.push(keyed);
        records.push(Record::tombstone(b"gone").headers(headers).timestamp(time));
        records.push(Record::value(b"").key(b"").timestamp(time));
        records.push(Record::value(b"no key").headers(headers).timestamp(-time));
    }
    let codecs = [Codec::None, Codec::Lz4, Codec::Zstd];
    for codec in codecs {
        let producer = client
            .producer(name.clone())
            .codec(codec)
            .build()
            .await
            .unwrap();
        producer
            .send_many(records.iter().copied())
            .await
            .unwrap()
            .await
            .unwrap();
        producer.close().await.unwrap();
    }
    broker.restart().await;
    let messages = read(&client, &name).await;
    let [none, lz4, zstd] = [0, 1, 2].map(|at| &messages[at * records.len()..][..records.len()]);
    let parts = |m: &Message| {
        (
            m.key.clone(),
            m.value.clone(),
            m.headers.clone(),
            m.timestamp,
        )
    };
    for other in [lz4, zstd] {
        assert!(none.iter().map(parts).eq(other.iter().map(parts)));
    }
    let tombstone = &none[1];
    assert_eq!(
        (tombstone.key.as_deref(), tombstone.value.as_deref()),
        (Some(&b"gone"[..]), None)
    );
    let empty = &none[2];
    assert_eq!(
        (empty.key.as_deref(), empty.value.as_deref()),
        (Some(&b""[..]), Some(&b""[..]))
    );
    assert_eq!(
        (none[3].key.as_deref(), none[7].timestamp),
        (None, -999_995)
    );
    assert_eq!(none[0].value.as_deref(), Some(&noise[..]));
    assert_eq!(
        none[5].headers,
        [(String::new(), "".into()), ("name".into(), "".into())]
    );
    assert_eq!(
        none[8].headers[2],
        ("\u{fc}".into(), b"\xff\x00"[..].into())
    );
    assert_eq!(none[12].headers.len(), MAX_RECORD_HEADERS);
    broker.stop().await;
}

#[tokio::test]
async fn large_batches_and_the_largest_record_pass() {
    let (mut broker, client, name) = scene().await;
    let producer = client.producer(name.clone()).batch_bytes(MAX_BATCH_BYTES);
    let producer = producer.build().await.unwrap();
    let mut sent = Vec::new();
    for (size, count) in [(1 << 20, 1000), (8 << 20, 8), (1 << 20, 1)] {
        let mut builder = BatchBuilder::new(MAX_BATCH_BYTES);
        for n in 0..count {
            let value = noise(size / count, n as u64);
            let record = NewRecord {
                value: Some(&value),
                timestamp: 1,
                ..NewRecord::default()
            };
            builder.push(&record).unwrap();
            sent.push(value);
        }
        let placed = producer
            .send_batch(Some(PartitionId(0)), &mut builder)
            .await
            .unwrap();
        placed.await.unwrap();
    }
    let largest = noise(MAX_RECORD_BYTES, 77);
    producer
        .send(&Record::value(&largest))
        .await
        .unwrap()
        .await
        .unwrap();
    sent.push(largest);
    broker.restart().await;
    let messages = read(&client, &name).await;
    assert_eq!(messages.len(), sent.len());
    assert!(
        messages
            .iter()
            .zip(&sent)
            .all(|(m, v)| m.value.as_deref() == Some(&v[..]))
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_refused_record_spoils_nothing_around_it() {
    let (mut broker, client, name) = scene().await;
    let small = topic("acme/small");
    let config = TopicConfig {
        max_record_bytes: 10,
        ..partitions(1)
    };
    client.create_topic(small.clone(), config).await.unwrap();
    for topic in [small, name] {
        let producer = client.producer(topic.clone()).build().await.unwrap();
        let before = producer.send(&Record::value(b"before")).await.unwrap();
        let elsewhere = Record::value(b"x").partition(PartitionId(7));
        let e = producer.send(&elsewhere).await.unwrap_err();
        assert!(e.to_string().contains("no partition 7"), "{e}");
        let large = noise(MAX_RECORD_BYTES + 1, 1);
        let e = producer.send(&Record::value(&large)).await.unwrap_err();
        assert_eq!(e.class(), millstream::ErrorClass::Fix, "{e}");
        let after = producer.send(&Record::value(b"after")).await.unwrap();
        before.await.unwrap();
        after.await.unwrap();
        producer.close().await.unwrap();
        let seen: Vec<_> = read(&client, &topic).await.iter().map(text).collect();
        assert_eq!(seen, ["before", "after"]);
    }
    broker.stop().await;
}
