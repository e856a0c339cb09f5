//! Batches that lie.

use millstream::{ErrorCode, Record, StartAt, TopicConfig};
use millstream_e2e::{batch, partitions};
use millstream_proto::batch::{BatchBuilder, CRC_FROM, HEADER_LEN, NewRecord, Stamp};
use millstream_proto::frame::{FrameKind, frame_header};
use millstream_proto::limits::{MAX_BATCH_BYTES, MAX_RECORD_BYTES};
use millstream_proto::{Batch, Codec, Offset, ProducerId, Sequence};

use super::Scene;

/// Gives bytes that were tampered with the checksum that belongs to them.
fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes[CRC_FROM..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A good batch of two records with keys and headers, at this sequence, with something done to it.
fn tampered(sequence: u64, tamper: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 16);
    for (key, value) in [(b"k1", b"value 1"), (b"k2", b"value 2")] {
        let record = NewRecord {
            key: Some(key),
            value: Some(value),
            headers: &[("name", b"header")],
            timestamp: 1,
        };
        builder.push(&record).unwrap();
    }
    let stamp = Stamp {
        sequence: Sequence(sequence),
        ..Stamp::default()
    };
    let mut bytes = builder.build(Codec::None, stamp).unwrap().bytes().to_vec();
    tamper(&mut bytes);
    bytes
}

/// Where the columns of [`tampered`]'s batch begin: two records of key, value, name and header.
const COLUMNS: usize = HEADER_LEN + 2 * (2 + 7 + 4 + 6);
/// Where its header counts begin: behind value and key lengths.
const HEADER_COUNTS: usize = COLUMNS + 2 * 4 + 2 * 4;

fn put_u32(at: usize, value: u32) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes())
}

/// One batch that lies, and what the broker says.
type Lie = (&'static str, ErrorCode, Tamper);

/// What is done to a good batch.
type Tamper = Box<dyn FnOnce(&mut Vec<u8>)>;

fn lies() -> Vec<Lie> {
    use ErrorCode::{BadChecksum, BatchTooLarge, MalformedBatch, StaleBatchVersion, UnknownCodec};
    let lie = |what, code, tamper: Tamper| (what, code, tamper);
    vec![
        lie(
            "a flipped bit",
            BadChecksum,
            Box::new(|b| b[HEADER_LEN] ^= 1),
        ),
        lie("an unknown codec", UnknownCodec, Box::new(|b| b[17] = 9)),
        lie(
            "a version of old",
            StaleBatchVersion,
            Box::new(|b| b[16] = 0),
        ),
        lie(
            "a version to come",
            StaleBatchVersion,
            Box::new(|b| b[16] = 2),
        ),
        lie("other bytes", MalformedBatch, Box::new(|b| b[0] = b'X')),
        lie("nothing", MalformedBatch, Box::new(Vec::clear)),
        lie(
            "half a header",
            MalformedBatch,
            Box::new(|b| b.truncate(30)),
        ),
        lie(
            "half a body",
            MalformedBatch,
            Box::new(|b| b.truncate(COLUMNS)),
        ),
        lie("a tail", MalformedBatch, Box::new(|b| b.push(0))),
        lie("no records", MalformedBatch, Box::new(put_u32(20, 0))),
        lie(
            "too many records",
            MalformedBatch,
            Box::new(put_u32(20, u32::MAX)),
        ),
        lie(
            "too many headers",
            MalformedBatch,
            Box::new(put_u32(52, u32::MAX)),
        ),
        lie(
            "a body of gigabytes",
            BatchTooLarge,
            Box::new(put_u32(60, u32::MAX)),
        ),
        lie(
            "a blob of gigabytes",
            BatchTooLarge,
            Box::new(put_u32(56, u32::MAX)),
        ),
        lie(
            "an unknown flag",
            MalformedBatch,
            Box::new(|b| b[18] |= 0x80),
        ),
        lie(
            "a value too long",
            MalformedBatch,
            Box::new(put_u32(COLUMNS, 8)),
        ),
        lie(
            "a value of gigabytes",
            MalformedBatch,
            Box::new(put_u32(COLUMNS, u32::MAX - 1)),
        ),
        lie(
            "a key too short",
            MalformedBatch,
            Box::new(put_u32(COLUMNS + 8, 1)),
        ),
        lie(
            "one header too many",
            MalformedBatch,
            Box::new(|b| b[HEADER_COUNTS] = 2),
        ),
        lie(
            "a header without a value",
            MalformedBatch,
            Box::new(|b| {
                let at = b.len() - 4;
                put_u32(at, u32::MAX)(b);
            }),
        ),
        lie(
            "a name that is no text",
            MalformedBatch,
            Box::new(|b| b[HEADER_LEN + 9] = 0xff),
        ),
        lie(
            "a codec that was not used",
            MalformedBatch,
            Box::new(|b| b[17] = 2),
        ),
    ]
}

#[tokio::test]
async fn every_lying_batch_is_found_out_and_the_stream_goes_on() {
    let mut scene = Scene::new(partitions(2)).await;
    let (mut stream, _) = scene
        .raw
        .producer(&scene.topic, ProducerId::NONE, 0)
        .await
        .unwrap();
    for (sequence, (what, code, tamper)) in (0..).zip(lies()) {
        let mut bytes = tampered(sequence, tamper);
        if code != ErrorCode::BadChecksum && bytes.len() > CRC_FROM {
            bytes = signed(bytes);
        }
        // With a choice of partitions the broker looks for keys, whatever the codec.
        stream.produce(sequence, None, &bytes).await;
        let (tag, answer) = stream.answer().await;
        let e = answer.expect_err(what);
        assert_eq!((tag, e.code), (sequence, code), "{what}: {e}");
        assert!(e.message.contains("acme/t"), "{what}: {e}");
    }
    let last = lies().len() as u64;
    stream
        .produce(last, Some(0), batch(&[b"raw"], 0, 0, last).bytes())
        .await;
    let (tag, answer) = stream.answer().await;
    assert_eq!((tag, answer.unwrap().placements[0].base), (last, Offset(0)));
    scene.done += 1;
    scene.all_is_well().await;
    scene.finish().await;
}

/// A good batch, as brokers make them of filtered views: its records bring offsets with gaps.
fn with_offsets(producer: u64, sequence: u64) -> Batch {
    let mut builder = BatchBuilder::new(1 << 16);
    for offset in [0, 1_000_000] {
        let record = NewRecord {
            value: Some(b"v"),
            ..NewRecord::default()
        };
        builder.push_at(Offset(offset), &record).unwrap();
    }
    let stamp = Stamp {
        producer: ProducerId(producer),
        sequence: Sequence(sequence),
        ..Stamp::default()
    };
    builder.build(Codec::None, stamp).unwrap()
}

#[tokio::test]
async fn batches_that_do_not_belong_here_are_refused_and_the_stream_goes_on() {
    let config = TopicConfig {
        max_record_bytes: 1000,
        max_batch_bytes: 5000,
        ..partitions(2)
    };
    let mut scene = Scene::new(config).await;
    let id = ProducerId(77);
    let (mut stream, _) = scene.raw.producer(&scene.topic, id, 0).await.unwrap();
    let large = [7; 1001];
    let many: Vec<&[u8]> = vec![&large[..900]; 6];
    let cases = [
        (
            "record",
            Some(0),
            batch(&[&large], 77, 0, 0),
            ErrorCode::RecordTooLarge,
        ),
        (
            "batch",
            None,
            batch(&many, 77, 0, 1),
            ErrorCode::BatchTooLarge,
        ),
        (
            "partition",
            Some(2),
            batch(&[b"v"], 77, 0, 2),
            ErrorCode::UnknownPartition,
        ),
        (
            "producer",
            Some(0),
            batch(&[b"v"], 78, 0, 3),
            ErrorCode::MalformedBatch,
        ),
        (
            "sequence",
            Some(0),
            batch(&[b"v"], 77, 0, 9),
            ErrorCode::MalformedBatch,
        ),
        (
            "offsets",
            Some(0),
            with_offsets(77, 5),
            ErrorCode::MalformedBatch,
        ),
    ];
    for (sequence, (what, partition, batch, code)) in (0..).zip(cases) {
        stream.produce(sequence, partition, batch.bytes()).await;
        let (tag, answer) = stream.answer().await;
        let e = answer.expect_err(what);
        assert_eq!((tag, e.code), (sequence, code), "{what}: {e}");
        assert!(e.message.contains("acme/t"), "{e}");
    }
    stream
        .produce(6, Some(1), batch(&[b"raw"], 77, 0, 6).bytes())
        .await;
    assert_eq!(stream.answer().await.1.unwrap().placements[0].count, 1);
    scene.done += 1;
    scene.all_is_well().await;
    scene.finish().await;
}

#[tokio::test]
async fn what_the_protocol_does_not_allow_is_too_large_whatever_the_topic_says() {
    let mut scene = Scene::new(partitions(1)).await;
    let (mut stream, _) = scene
        .raw
        .producer(&scene.topic, ProducerId::NONE, 0)
        .await
        .unwrap();
    // One record a byte over the limit: no builder makes that, so its lengths are forged.
    let mut bytes = batch(&[&vec![7; MAX_RECORD_BYTES]], 0, 0, 0)
        .bytes()
        .to_vec();
    let column = bytes.len() - 4;
    put_u32(column, MAX_RECORD_BYTES as u32 + 1)(&mut bytes);
    bytes.insert(HEADER_LEN, 7);
    let (blob, body) = (MAX_RECORD_BYTES + 1, MAX_RECORD_BYTES + 5);
    put_u32(56, blob as u32)(&mut bytes);
    put_u32(60, body as u32)(&mut bytes);
    stream.produce(0, Some(0), &signed(bytes)).await;
    let (_, answer) = stream.answer().await;
    assert_eq!(answer.unwrap_err().code, ErrorCode::RecordTooLarge);
    // A frame that could not even hold a batch ends the stream, and only that.
    stream
        .write(&frame_header(FrameKind::Produce, 1, MAX_BATCH_BYTES + 65))
        .await;
    let (tag, answer) = stream.answer().await;
    let e = answer.unwrap_err();
    assert_eq!((tag, e.code), (u64::MAX, ErrorCode::FrameTooLarge), "{e}");
    assert!(stream.next().await.is_none());
    scene.all_is_well().await;

    // The client's own library does not let it come so far.
    let producer = scene
        .honest
        .producer(scene.topic.clone())
        .build()
        .await
        .unwrap();
    let large = vec![7; MAX_RECORD_BYTES + 1];
    let e = producer.send(&Record::value(&large)).await.unwrap_err();
    assert!(e.to_string().contains("acme/t"), "{e}");
    scene.finish().await;
}

/// A compressed batch for one partition is not looked into at the door. Whoever reads it finds the
/// lie, is told where, and can go on behind it.
#[tokio::test]
async fn a_compressed_lie_is_found_at_the_door() {
    let mut scene = Scene::new(partitions(1)).await;
    let (mut stream, _) = scene
        .raw
        .producer(&scene.topic, ProducerId::NONE, 0)
        .await
        .unwrap();
    let mut builder = BatchBuilder::new(1 << 16);
    let record = NewRecord {
        value: Some(&[5; 500]),
        ..NewRecord::default()
    };
    builder.push(&record).unwrap();
    let good = builder.build(Codec::Zstd, Stamp::default()).unwrap();
    builder.push(&record).unwrap();
    let second = Stamp {
        sequence: Sequence(1),
        ..Stamp::default()
    };
    let good_again = builder.build(Codec::Zstd, second).unwrap();
    let mut bytes = good.bytes().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 0xff;
    let bytes = signed(bytes);
    stream.produce(0, Some(0), &bytes).await;
    let e = stream.answer().await.1.unwrap_err();
    assert_eq!(e.code, ErrorCode::MalformedBatch, "{e}");
    stream.produce(1, Some(0), good_again.bytes()).await;
    assert_eq!(
        stream.answer().await.1.unwrap().placements[0].base,
        Offset(0)
    );
    let consumer = scene.honest.consumer(scene.topic.clone());
    let mut consumer = consumer.start(StartAt::Earliest).build().await.unwrap();
    let message = consumer.next_message().await.unwrap().unwrap();
    assert_eq!(message.value.as_deref(), Some(&[5; 500][..]));
    scene.broker.stop().await;
}
