//! Bad input of every kind: its own error, and nobody else's work is hurt.

mod batches;

use bytes::Bytes;
use millstream::{Client, ErrorCode, StartAt, TopicConfig};
use millstream_e2e::{
    RawConnection, RawStream, TestBroker, batch, end, partitions, produce, read, text, topic,
};
use millstream_proto::frame::{FRAME_HEADER_LEN, FrameKind, frame_header};
use millstream_proto::limits::MAX_MESSAGE_BYTES;
use millstream_proto::message::{OpenSubscription, Request, Response, StreamOpen};
use millstream_proto::version::{Hello, HelloOk};
use millstream_proto::{Offset, PartitionId, ProducerId, Sequence, TopicName, WireError};

/// A broker with one topic, an honest client that works throughout, and a raw one.
struct Scene {
    broker: TestBroker,
    honest: Client,
    topic: TopicName,
    raw: RawConnection,
    control: RawStream,
    done: usize,
}

impl Scene {
    async fn new(config: TopicConfig) -> Self {
        let broker = TestBroker::start().await;
        let honest = broker.tenant("acme").await;
        let topic = topic("acme/t");
        honest.create_topic(topic.clone(), config).await.unwrap();
        let (raw, control) = RawConnection::connect(&broker, "acme", "raw").await;
        Self {
            broker,
            honest,
            topic,
            raw,
            control,
            done: 0,
        }
    }

    /// Others' work goes on, and so does the raw client's own connection.
    async fn all_is_well(&mut self) {
        produce(&self.honest, &self.topic, ["honest"]).await;
        self.done += 1;
        let answer = self.control.request(7, &Request::ListRules).await;
        assert!(matches!(answer, Ok(Response::Rules(_))), "{answer:?}");
        let (mut stream, _) = self
            .raw
            .producer(&self.topic, ProducerId::NONE, 0)
            .await
            .unwrap();
        stream
            .produce(0, Some(0), batch(&[b"raw"], 0, 0, 0).bytes())
            .await;
        let (_, answer) = stream.answer().await;
        assert_eq!(answer.unwrap().placements[0].count, 1);
        self.done += 1;
    }

    /// What was produced in good order is all there, and nothing else.
    async fn finish(mut self) {
        let messages = read(&self.honest, &self.topic).await;
        assert_eq!(messages.len(), self.done);
        assert!(
            messages
                .iter()
                .all(|m| ["honest", "raw"].contains(&text(m).as_str()))
        );
        self.broker.stop().await;
    }
}

async fn opening(scene: &Scene, open: OpenSubscription) -> WireError {
    match scene.raw.subscription(open).await {
        Ok(_) => panic!("the subscription was opened"),
        Err(e) => e,
    }
}

#[tokio::test]
async fn requests_about_what_is_not_there_say_so() {
    let mut scene = Scene::new(partitions(2)).await;
    let nowhere = topic("acme/nowhere");
    let e = scene
        .raw
        .producer(&nowhere, ProducerId(1), 0)
        .await
        .err()
        .unwrap();
    assert_eq!(e.code, ErrorCode::UnknownTopic);
    assert!(e.message.contains("acme/nowhere"), "{e}");
    let open = |topic: &TopicName| OpenSubscription {
        topic: topic.clone(),
        partitions: Vec::new(),
        positions: Vec::new(),
        start: StartAt::Earliest,
        consumer: None,
        until_end: false,
        chain: Vec::new(),
    };
    assert_eq!(
        opening(&scene, open(&nowhere)).await.code,
        ErrorCode::UnknownTopic
    );
    let there = open(&scene.topic);
    let bad_partition = OpenSubscription {
        partitions: vec![PartitionId(2)],
        ..there.clone()
    };
    let e = opening(&scene, bad_partition).await;
    assert_eq!(e.code, ErrorCode::UnknownPartition);
    assert!(e.message.contains("acme/t has no partition 2"), "{e}");
    let bad_offset = OpenSubscription {
        start: StartAt::Offset(Offset(5)),
        ..there
    };
    let e = opening(&scene, bad_offset).await;
    assert_eq!(e.code, ErrorCode::OffsetOutOfRange);
    assert!(
        e.message.contains("acme/t") && e.message.contains('5'),
        "{e}"
    );

    let topic = scene.topic.clone();
    let consumer: millstream::ConsumerName = "c".parse().unwrap();
    let commit = |partition, offset| Request::CommitOffsets {
        topic: topic.clone(),
        consumer: consumer.clone(),
        offsets: vec![(PartitionId(partition), Offset(offset))],
    };
    let find = |at| Request::FindOffsets {
        topic: topic.clone(),
        at,
    };
    let zero = TopicConfig {
        partitions: 0,
        ..TopicConfig::default()
    };
    let create = Request::CreateTopic {
        topic: nowhere.clone(),
        config: zero,
    };
    let delete = Request::DeletePlugin {
        plugin: "acme/none".parse().unwrap(),
        version: Some(3),
    };
    let show = Request::ShowPipeline {
        pipeline: "acme/none".parse().unwrap(),
    };
    for (tag, (request, code)) in (0..).zip([
        (commit(0, 9), ErrorCode::OffsetOutOfRange),
        (commit(9, 0), ErrorCode::UnknownPartition),
        (
            find(StartAt::Offset(Offset(9))),
            ErrorCode::OffsetOutOfRange,
        ),
        (create, ErrorCode::InvalidConfig),
        (delete, ErrorCode::UnknownPlugin),
        (show, ErrorCode::UnknownPipeline),
        (
            Request::DeleteTopic { topic: nowhere },
            ErrorCode::UnknownTopic,
        ),
    ]) {
        let e = scene.control.request(tag, &request).await.unwrap_err();
        assert_eq!(e.code, code, "{request:?}: {e}");
    }
    scene.all_is_well().await;
    scene.finish().await;
}

#[tokio::test]
async fn a_stale_client_is_told_which_versions_there_are() {
    let mut broker = TestBroker::start().await;
    let raw = RawConnection::mute(&broker, "acme", "old").await;
    for (min_version, max_version) in [(0, 0), (2, 9), (9, 2)] {
        let hello = Hello {
            min_version,
            max_version,
            client: "old".into(),
        };
        let e = raw.open(&StreamOpen::Control(hello)).await.err().unwrap();
        assert_eq!(e.code, ErrorCode::UnsupportedVersion);
        let said = format!("{min_version} to {max_version}, this broker 1 to 1");
        assert!(e.message.contains(&said), "{e}");
    }
    // It may find a version that fits, on the same connection.
    let hello = Hello {
        min_version: 0,
        max_version: 9,
        client: "old".into(),
    };
    let (_, frame) = raw.open(&StreamOpen::Control(hello)).await.unwrap();
    assert_eq!(frame.message::<HelloOk>().unwrap().version, 1);
    broker.stop().await;
}

/// Sends bytes on a stream of their own and tells how the broker ends it.
async fn reaction(raw: &RawConnection, bytes: &[u8]) -> ErrorCode {
    let mut stream = raw.stream().await;
    stream.write(bytes).await;
    stream.finish();
    let e = stream.expect().await.expect_err("nothing to accept");
    assert!(stream.next().await.is_none(), "the stream has ended");
    e.code
}

#[tokio::test]
async fn malformed_frames_end_their_stream_and_nothing_else() {
    let mut scene = Scene::new(partitions(1)).await;
    let mut bad_kind = frame_header(FrameKind::Open, 0, 0);
    bad_kind[4] = 77;
    let mut reserved = frame_header(FrameKind::Open, 0, 0);
    reserved[6] = 1;
    let large = frame_header(FrameKind::Open, 0, MAX_MESSAGE_BYTES + 1);
    let no_message = [&frame_header(FrameKind::Open, 0, 3)[..], b"\xff\xff\xff"].concat();
    let bad_name = [
        &frame_header(FrameKind::Open, 0, 5)[..],
        b"\x01\x01X\x00\x00",
    ]
    .concat();
    let not_open = frame_header(FrameKind::End, 0, 0);
    let cut_header = &not_open[..FRAME_HEADER_LEN - 1];
    let cut_payload = [&frame_header(FrameKind::Open, 0, 100)[..], b"short"].concat();
    let garbage: Vec<u8> = (0..5000u32).map(|i| (i * 131 % 251) as u8).collect();
    for (what, bytes, codes) in [
        ("kind", &bad_kind[..], &[ErrorCode::Malformed][..]),
        ("reserved bytes", &reserved, &[ErrorCode::Malformed]),
        (
            "a length over the limit",
            &large,
            &[ErrorCode::FrameTooLarge],
        ),
        ("no message", &no_message, &[ErrorCode::Malformed]),
        ("a name that is none", &bad_name, &[ErrorCode::Malformed]),
        ("not an opening", &not_open, &[ErrorCode::UnexpectedFrame]),
        ("a cut header", cut_header, &[ErrorCode::Malformed]),
        ("a cut payload", &cut_payload, &[ErrorCode::Malformed]),
        (
            "garbage",
            &garbage,
            &[ErrorCode::Malformed, ErrorCode::FrameTooLarge],
        ),
    ] {
        let code = reaction(&scene.raw, bytes).await;
        assert!(codes.contains(&code), "{what}: {code}");
    }
    scene.all_is_well().await;
    scene.finish().await;
}

#[tokio::test]
async fn frames_out_of_place_end_their_stream_and_nothing_else() {
    let mut scene = Scene::new(partitions(1)).await;
    let (mut producing, _) = scene
        .raw
        .producer(&scene.topic, ProducerId::NONE, 0)
        .await
        .unwrap();
    producing
        .message(FrameKind::Request, 0, &Request::Status)
        .await;
    let e = producing.expect().await.unwrap_err();
    assert_eq!(e.code, ErrorCode::UnexpectedFrame, "{e}");
    let (mut short, _) = scene
        .raw
        .producer(&scene.topic, ProducerId::NONE, 0)
        .await
        .unwrap();
    short.frame(FrameKind::Produce, 0, b"1234567").await;
    let (tag, answer) = short.answer().await;
    assert_eq!((tag, answer.unwrap_err().code), (0, ErrorCode::Malformed));

    // A request that cannot be decoded is that request's fault alone.
    scene
        .control
        .frame(FrameKind::Request, 3, b"\xff\xff")
        .await;
    let e = scene.control.expect().await.unwrap_err();
    assert_eq!(e.code, ErrorCode::Malformed, "{e}");
    scene.all_is_well().await;

    // Streams wait for a hello, and a batch is none.
    let mute = RawConnection::mute(&scene.broker, "acme", "raw").await;
    let mut stream = mute.stream().await;
    stream
        .produce(0, None, batch(&[b"v"], 0, 0, 0).bytes())
        .await;
    let e = stream.expect().await.unwrap_err();
    assert_eq!(e.code, ErrorCode::UnexpectedFrame, "{e}");

    scene.control.produce(0, None, b"").await;
    let e = scene.control.expect().await.unwrap_err();
    assert_eq!(e.code, ErrorCode::UnexpectedFrame, "{e}");
    // The connection outlives its control stream.
    let (_, again) = scene
        .raw
        .open(&StreamOpen::Control(Hello::new("again")))
        .await
        .unwrap();
    again.message::<HelloOk>().unwrap();
    scene.finish().await;
}

/// An opened stream whose client vanishes leaves nothing behind that blocks others.
#[tokio::test]
async fn half_said_things_store_nothing() {
    let mut scene = Scene::new(partitions(1)).await;
    let (mut stream, _) = scene
        .raw
        .producer(&scene.topic, ProducerId(5), 0)
        .await
        .unwrap();
    let whole = batch(&[b"never"], 5, 0, 0);
    let half: Bytes = whole.bytes().slice(..whole.bytes().len() / 2);
    let len = 8 + whole.bytes().len();
    stream
        .write(&frame_header(FrameKind::Produce, 0, len))
        .await;
    stream.write(&half).await;
    stream.finish();
    let (_, answer) = stream.answer().await;
    assert_eq!(answer.unwrap_err().code, ErrorCode::Malformed);
    let (again, opened) = scene
        .raw
        .producer(&scene.topic, ProducerId(5), 0)
        .await
        .unwrap();
    assert_eq!(opened.next_sequence, Sequence(0));
    drop(again);
    assert_eq!(end(&scene.honest, &scene.topic).await, Offset(0));
    scene.all_is_well().await;
    scene.finish().await;
}
