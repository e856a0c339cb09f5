//! How things end: in good order, and because the disk does.

use std::io::ErrorKind;
use std::sync::Arc;

use millstream::{Client, ErrorCode, Record, StartAt, TopicName};
use millstream_e2e::{
    RawConnection, RawStream, TestBroker, batch, end, eventually, partitions, produce, read, text,
    texts, topic, upload, using,
};
use millstream_guests::FILTER_FIELD;
use millstream_proto::frame::FrameKind;
use millstream_proto::message::{Ack, OpenSubscription};
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec};
use millstream_proto::{Offset, ProducerId, WireError};
use millstream_store::fault::{Effect, Fault, FaultDisk, Operation};
use millstream_store::{RedbConfig, RedbStore};

async fn scene(disk: Option<FaultDisk>) -> (TestBroker, Client, TopicName) {
    let setup = TestBroker::set_up();
    let broker = match disk {
        Some(disk) => setup.disk(disk).unverified().start().await,
        None => setup.start().await,
    };
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    (broker, client, name)
}

async fn send(stream: &mut RawStream, sequence: u64) {
    let value = format!("{sequence:04}");
    let batch = batch(&[value.as_bytes()], 5, 0, sequence);
    stream.produce(sequence, Some(0), batch.bytes()).await;
}

#[tokio::test]
async fn whatever_is_stored_at_shutdown_was_acknowledged() {
    let (mut broker, client, name) = scene(None).await;
    let (raw, control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut stream, _) = raw.producer(&name, ProducerId(5), 0).await.unwrap();
    for sequence in 0..500 {
        send(&mut stream, sequence).await;
    }
    // Some are on their way, some at the disk, some done.
    let (_, first) = stream.answer().await;
    assert_eq!(first.unwrap().placements[0].base, Offset(0));
    let listening = tokio::spawn(async move {
        let mut acknowledged = 1;
        loop {
            match stream.answer().await {
                (tag, Ok(ack)) => {
                    assert_eq!(
                        (tag, ack.placements[0].base),
                        (acknowledged, Offset(acknowledged))
                    );
                    acknowledged += 1;
                }
                (_, Err(e)) => break (acknowledged, e),
            }
        }
    });
    broker.stop().await;
    let (acknowledged, e) = listening.await.unwrap();
    assert_eq!(e.code, ErrorCode::ShuttingDown, "{e}");
    assert!(e.retry_after_ms.is_some(), "{e:?}");
    drop((raw, control));
    broker.restart().await;
    assert_eq!(end(&client, &name).await, Offset(acknowledged));
    let values: Vec<_> = read(&client, &name).await.iter().map(text).collect();
    assert!(
        values
            .into_iter()
            .eq((0..acknowledged).map(|n| format!("{n:04}")))
    );
    // The producer takes up where the acknowledgements ended.
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (_, opened) = raw.producer(&name, ProducerId(5), 0).await.unwrap();
    assert_eq!(opened.next_sequence.0, acknowledged);
    broker.stop().await;
}

#[tokio::test]
async fn every_stream_is_told_and_clients_come_back_by_themselves() {
    let (mut broker, client, name) = scene(None).await;
    produce(&client, &name, ["before"]).await;
    let consumer = client.consumer(name.clone()).start(StartAt::Earliest);
    let mut consumer = consumer.build().await.unwrap();
    assert_eq!(
        text(&consumer.next_message().await.unwrap().unwrap()),
        "before"
    );
    let producer = client.producer(name.clone()).build().await.unwrap();

    let (raw, mut control) = RawConnection::connect(&broker, "acme", "raw").await;
    let (mut idle, _) = raw.producer(&name, ProducerId(5), 0).await.unwrap();
    let open = OpenSubscription {
        topic: name.clone(),
        partitions: Vec::new(),
        positions: Vec::new(),
        start: StartAt::Latest,
        consumer: None,
        until_end: false,
        chain: Vec::new(),
    };
    let mut reading = raw.subscription(open).await.unwrap();
    let told = tokio::spawn(async move {
        for stream in [&mut idle, &mut reading, &mut control] {
            let e = stream.expect().await.unwrap_err();
            assert_eq!(e.code, ErrorCode::ShuttingDown, "{e}");
            assert!(stream.next().await.is_none());
        }
        raw.closed().await
    });
    broker.restart().await;
    let quinn::ConnectionError::ApplicationClosed(close) = told.await.unwrap() else {
        panic!("the broker says goodbye")
    };
    assert_eq!(
        close.error_code.into_inner(),
        u64::from(ErrorCode::ShuttingDown.number())
    );
    let sent = producer.send(&Record::value(b"after")).await.unwrap();
    assert_eq!(sent.await.unwrap().offset, Some(Offset(1)));
    assert_eq!(
        text(&consumer.next_message().await.unwrap().unwrap()),
        "after"
    );
    broker.stop().await;
}

/// A raw producer's stream on a broker whose disk will fail, and the answer to each batch.
struct Writer {
    stream: RawStream,
    _raw: (RawConnection, RawStream),
    sequence: u64,
}

impl Writer {
    async fn new(broker: &TestBroker, name: &TopicName) -> Self {
        let raw = RawConnection::connect(broker, "acme", "raw").await;
        let (stream, opened) = raw.0.producer(name, ProducerId(5), 0).await.unwrap();
        Self {
            stream,
            _raw: raw,
            sequence: opened.next_sequence.0,
        }
    }

    async fn send(&mut self, len: usize) -> Result<Ack, WireError> {
        let mut value = vec![b'x'; len];
        value[..8].copy_from_slice(&self.sequence.to_be_bytes());
        let batch = batch(&[&value], 5, 0, self.sequence);
        self.stream
            .produce(self.sequence, Some(0), batch.bytes())
            .await;
        let (_, answer) = self.stream.answer().await;
        self.sequence += 1;
        answer
    }
}

/// The sequences of what is stored, in order.
async fn stored(client: &Client, name: &TopicName) -> Vec<u64> {
    let messages = read(client, name).await;
    let first = |m: &millstream::Message| m.value.as_deref().unwrap()[..8].try_into().unwrap();
    messages
        .iter()
        .map(|m| u64::from_be_bytes(first(m)))
        .collect()
}

fn says_stopped(e: &WireError, parts: &[&str]) {
    assert_eq!(e.code, ErrorCode::StorageStopped, "{e}");
    for part in parts {
        assert!(e.message.contains(part), "{part} in {e}");
    }
}

/// A shard that has stopped takes nothing, says why, and still gives what it has.
async fn stays_stopped(broker: &TestBroker, client: &Client, name: &TopicName, parts: &[&str]) {
    let mut again = Writer::new(broker, name).await;
    says_stopped(&again.send(100).await.unwrap_err(), parts);
    let status = broker.admin().await.status().await.unwrap();
    let why = status.shards[0].stopped.as_deref().unwrap();
    assert!(parts.iter().all(|part| why.contains(part)), "{why}");
    let (_raw, mut control) = RawConnection::connect(broker, "acme", "raw").await;
    let create = millstream_proto::message::Request::CreateTopic {
        topic: topic("acme/new"),
        config: partitions(1),
    };
    says_stopped(&control.request(1, &create).await.unwrap_err(), parts);
    assert!(!stored(client, name).await.is_empty());
}

#[tokio::test]
async fn a_full_disk_stops_the_shard_and_loses_nothing() {
    let disk = FaultDisk::new();
    let (mut broker, client, name) = scene(Some(disk.clone())).await;
    let mut writer = Writer::new(&broker, &name).await;
    writer.send(1000).await.unwrap();
    disk.set_capacity(disk.image().len() + (2 << 20));
    let mut acknowledged = 1;
    let e = loop {
        match writer.send(200_000).await {
            Ok(ack) => {
                assert_eq!(ack.placements[0].base, Offset(acknowledged));
                acknowledged += 1;
                assert!(acknowledged < 1000, "the disk does not fill");
            }
            Err(e) => break e,
        }
    };
    let parts = ["disk.redb", "full", "restart the broker"];
    says_stopped(&e, &parts);
    assert!(e.message.contains("acme/t"), "{e}");
    stays_stopped(&broker, &client, &name, &parts).await;
    let kept = stored(&client, &name).await;
    assert!(kept.into_iter().eq(0..acknowledged), "no less and no more");

    disk.set_capacity(usize::MAX);
    broker.restart().await;
    let kept = stored(&client, &name).await;
    assert!(
        kept.len() as u64 >= acknowledged && kept.into_iter().eq(0..end(&client, &name).await.0)
    );
    let mut writer = Writer::new(&broker, &name).await;
    writer.send(200_000).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_failed_sync_stops_the_shard_and_nothing_is_acknowledged_after_it() {
    let disk = FaultDisk::new();
    let (mut broker, client, name) = scene(Some(disk.clone())).await;
    let mut writer = Writer::new(&broker, &name).await;
    for _ in 0..20 {
        writer.send(1000).await.unwrap();
    }
    disk.set_fault(Fault {
        operation: Operation::Sync,
        nth: 1,
        effect: Effect::Fail(ErrorKind::Other),
    });
    let parts = ["disk.redb", "injected fault", "check the disk"];
    says_stopped(&writer.send(1000).await.unwrap_err(), &parts);
    assert!(disk.has_struck());
    // The disk works again, and is not trusted.
    says_stopped(&writer.send(1000).await.unwrap_err(), &parts);
    stays_stopped(&broker, &client, &name, &parts).await;
    let kept = stored(&client, &name).await;
    assert!(
        kept.into_iter().eq(0..20),
        "what was not acknowledged is not shown"
    );

    // As if the power had gone with it: what was acknowledged is there.
    let left = disk.after_power_cut(|_, _| 0);
    broker.restart_on(left).await;
    let kept = stored(&client, &name).await;
    assert!(kept.into_iter().eq(0..20));
    let mut writer = Writer::new(&broker, &name).await;
    assert_eq!(
        writer.send(10).await.unwrap().placements[0].base,
        Offset(20)
    );
    broker.stop().await;
}

/// Where `marker` lies in the disk's image.
fn find(image: &[u8], marker: &[u8]) -> usize {
    let mut places = image.windows(marker.len()).enumerate();
    places.find(|(_, window)| *window == marker).unwrap().0
}

#[tokio::test]
async fn a_flipped_bit_is_reported_and_never_served() {
    let disk = FaultDisk::new();
    let (mut broker, client, name) = scene(Some(disk.clone())).await;
    let marker = b"the record that rots on the disk";
    for n in 0..10 {
        let value = if n == 6 {
            marker.to_vec()
        } else {
            format!("good {n}").into_bytes()
        };
        produce(&client, &name, [value]).await;
    }
    let other = topic("acme/other");
    client
        .create_topic(other.clone(), partitions(1))
        .await
        .unwrap();
    produce(&client, &other, ["elsewhere"]).await;
    broker.stop().await;
    let mut image = disk.image();
    let place = find(&image, marker);
    image[place + 3] ^= 0x10;

    // A store that is small enough is verified, and not opened.
    let damaged = FaultDisk::from_image(image.clone());
    let opened =
        RedbStore::open_with_backend(damaged.backend(), "disk.redb", &RedbConfig::default());
    let e = opened.err().expect("the damage is found").to_string();
    assert!(e.contains("disk.redb") && e.contains("damaged"), "{e}");

    // In a larger one it is found when it is read.
    broker.restart_on(FaultDisk::from_image(image)).await;
    let consumer = client.consumer(name.clone()).start(StartAt::Earliest);
    let mut consumer = consumer.until_end(true).build().await.unwrap();
    let mut seen = Vec::new();
    let e = loop {
        match consumer
            .next_message()
            .await
            .expect("it does not end as if all were well")
        {
            Ok(message) => seen.push(text(&message)),
            Err(e) => break e,
        }
    };
    let wire = e.wire().unwrap_or_else(|| panic!("{e}"));
    assert_eq!(wire.code, ErrorCode::Corrupt, "{e}");
    for part in ["acme/t", "partition 0", "offset 6"] {
        assert!(wire.message.contains(part), "{part} in {wire}");
    }
    let good: Vec<_> = (0..6).map(|n| format!("good {n}")).collect();
    assert!(good.starts_with(&seen), "{seen:?}");
    // What is good elsewhere is served.
    assert_eq!(texts(&client, &other).await, ["elsewhere"]);
    broker.stop().await;
}

/// An upload that the broker's end interrupts leaves no plugin.
#[tokio::test]
async fn half_an_upload_at_shutdown_leaves_nothing() {
    let (mut broker, client, _) = scene(None).await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let mut stream = raw.stream().await;
    let open = millstream_proto::message::OpenUpload {
        plugin: "acme/p".parse().unwrap(),
        size: 1000,
        digest: millstream_proto::message::Digest([0; 32]),
    };
    let open = millstream_proto::message::StreamOpen::Upload(open);
    stream.message(FrameKind::Open, 0, &open).await;
    stream.frame(FrameKind::Chunk, 0, &[0; 500]).await;
    let told = tokio::spawn(async move { stream.expect().await.unwrap_err() });
    // The broker has seen the upload begin once it answers what was asked behind it.
    client.list_topics(None).await.unwrap();
    broker.restart().await;
    assert_eq!(told.await.unwrap().code, ErrorCode::ShuttingDown);
    assert_eq!(client.list_plugins(None).await.unwrap(), []);
    broker.stop().await;
}

/// Whoever starts and stops brokers in one process gets everything back.
#[tokio::test]
async fn nothing_of_a_stopped_broker_stays_in_memory() {
    let (mut broker, client, name) = scene(None).await;
    let out = topic("acme/out");
    client
        .create_topic(out.clone(), partitions(1))
        .await
        .unwrap();
    upload(&client, "acme", FILTER_FIELD).await;
    let config = [("type", "u8"), ("op", ">"), ("value", "0")];
    let step = using("acme", FILTER_FIELD, &config, ErrorPolicy::Stop);
    client.attach(name.clone(), step.clone()).await.unwrap();
    let pipeline = PipelineSpec {
        name: "acme/p".parse().unwrap(),
        input: name.clone(),
        from_latest: false,
        steps: vec![step.clone()],
        outputs: vec![("out".into(), out)],
    };
    client.apply_pipeline(pipeline).await.unwrap();
    let consumer = client.consumer(name.clone()).start(StartAt::Earliest);
    let mut consumer = consumer.plugin(step).build().await.unwrap();
    produce(&client, &name, ["v"]).await;
    consumer.next_message().await.unwrap().unwrap();
    let of_broker = Arc::downgrade(broker.inner());
    let of_topic = Arc::downgrade(&broker.inner().catalog.topic(&name).unwrap());
    let of_store = Arc::downgrade(&broker.inner().store);
    broker.stop().await;
    eventually("the last of the broker to go", async || {
        let left = [
            of_broker.strong_count(),
            of_topic.strong_count(),
            of_store.strong_count(),
        ];
        (left == [0; 3]).then_some(())
    })
    .await;
}
