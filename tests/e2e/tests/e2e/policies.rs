//! What becomes of records whose plugin fails, by policy and place.

use millstream::{Client, ErrorCode, Message, Offset, PluginUse, StartAt, TopicName};
use millstream_e2e::{
    RawConnection, RawStream, TestBroker, batch, eventually, header, partitions, produce, read,
    text, texts, topic, upload, using,
};
use millstream_guests::BAD_FILTER;
use millstream_proto::message::Ack;
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PipelineState};
use millstream_proto::{ProducerId, WireError};

/// Fails on a record that begins with `poison`: alone, or with all of its call.
const ALONE: &str = "bad-record-on-poison";
const ALL: &str = "trap-on-poison";
/// Fails on every call, at a limit.
const LIMIT: &str = "eat-memory";

struct Scene {
    broker: TestBroker,
    client: Client,
    stream: RawStream,
    _raw: (RawConnection, RawStream),
    topic: TopicName,
    dead: TopicName,
    sequence: u64,
}

impl Scene {
    async fn new() -> Self {
        let tune = |config: &mut millstream_broker::Config| {
            let limits = &mut config.plugins.limits;
            limits.penalty_factor = 0;
            // A machine with much else to do must not end a call before its memory limit does.
            limits.call_cpu = limits.call_cpu.saturating_mul(20);
        };
        let broker = TestBroker::set_up().tuned(tune).start().await;
        let client = broker.tenant("acme").await;
        let (topic, dead) = (topic("acme/t"), topic("acme/dead"));
        for name in [&topic, &dead] {
            client
                .create_topic(name.clone(), partitions(1))
                .await
                .unwrap();
        }
        upload(&client, "acme", BAD_FILTER).await;
        let raw = RawConnection::connect(&broker, "acme", "raw").await;
        let (stream, _) = raw.0.producer(&topic, ProducerId::NONE, 0).await.unwrap();
        Self {
            broker,
            client,
            stream,
            _raw: raw,
            topic,
            dead,
            sequence: 0,
        }
    }

    fn to_dead(&self) -> ErrorPolicy {
        ErrorPolicy::DeadLetter(self.dead.clone())
    }

    async fn attach(&self, mode: &str, on_error: ErrorPolicy) {
        self.client
            .attach(self.topic.clone(), bad(mode, on_error))
            .await
            .unwrap();
    }

    /// Sends one batch.
    async fn send(&mut self, values: &[&[u8]]) -> Result<Ack, WireError> {
        let batch = batch(values, 0, 0, self.sequence);
        self.stream
            .produce(self.sequence, Some(0), batch.bytes())
            .await;
        let (tag, answer) = self.stream.answer().await;
        assert_eq!(tag, self.sequence);
        self.sequence += 1;
        answer
    }

    async fn stored(&self) -> Vec<String> {
        texts(&self.client, &self.topic).await
    }
}

fn bad(mode: &str, on_error: ErrorPolicy) -> PluginUse {
    using("acme", BAD_FILTER, &[("mode", mode)], on_error)
}

const MIXED: &[&[u8]] = &[b"a", b"poison", b"b"];

/// What a plugin's failure names.
fn names_the_plugin(text: &str, cause: &str) {
    for part in ["acme/bad-filter", "version 1", cause] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn stop_on_a_topic_lets_nothing_pass_until_somebody_acts() {
    let mut scene = Scene::new().await;
    for (mode, cause) in [
        (ALONE, "told to"),
        (ALL, "trap"),
        (LIMIT, "bytes of memory"),
    ] {
        scene.attach(mode, ErrorPolicy::Stop).await;
        if mode != LIMIT {
            scene.send(&[b"before"]).await.unwrap();
        }
        for values in [MIXED, &[b"after"]] {
            let e = scene.send(values).await.unwrap_err();
            assert_eq!(e.code, ErrorCode::PluginFailed);
            names_the_plugin(&e.message, cause);
            assert!(e.message.contains("attached again"), "{e}");
        }
        let info = scene
            .client
            .describe_topic(scene.topic.clone())
            .await
            .unwrap();
        names_the_plugin(&info.stopped.unwrap(), cause);
        // Attaching again is an answer, even with the same.
        if mode != LIMIT {
            scene.attach(mode, ErrorPolicy::Stop).await;
            scene.send(&[b"again"]).await.unwrap();
            let info = scene
                .client
                .describe_topic(scene.topic.clone())
                .await
                .unwrap();
            assert_eq!(info.stopped, None);
        }
    }
    let name = "acme/bad-filter".parse().unwrap();
    scene
        .client
        .detach(scene.topic.clone(), name)
        .await
        .unwrap();
    scene.send(&[b"free"]).await.unwrap();
    assert_eq!(
        scene.stored().await,
        ["again", "again", "before", "before", "free"]
    );
    scene.broker.stop().await;
}

#[tokio::test]
async fn skip_on_a_topic_leaves_out_and_counts() {
    let mut scene = Scene::new().await;
    for (mode, dropped, stored) in [(ALONE, 1, &["a", "b"][..]), (ALL, 3, &[]), (LIMIT, 3, &[])] {
        scene.attach(mode, ErrorPolicy::Skip).await;
        let before = scene.stored().await.len();
        let ack = scene.send(MIXED).await.unwrap();
        assert_eq!(ack.dropped, dropped, "{mode}");
        let records: u32 = ack.placements.iter().map(|p| p.count).sum();
        assert_eq!(records, 3 - dropped, "{mode}");
        assert_eq!(scene.stored().await.len(), before + stored.len(), "{mode}");
        if mode != LIMIT {
            assert_eq!(scene.send(&[b"fine"]).await.unwrap().dropped, 0);
        }
    }
    assert_eq!(scene.stored().await, ["a", "b", "fine", "fine"]);
    assert_eq!(read(&scene.client, &scene.dead).await, []);
    scene.broker.stop().await;
}

fn letter(message: &Message, cause: &str, source: &str) {
    let said = |name: &str| header(message, name).unwrap();
    assert!(said("millstream-error").contains(cause), "{message:?}");
    assert!(
        said("millstream-plugin").contains("acme/bad-filter version 1"),
        "{message:?}"
    );
    assert_eq!(said("millstream-source"), source);
}

#[tokio::test]
async fn dead_letters_of_a_topic_say_why() {
    let mut scene = Scene::new().await;
    let mut letters = 0;
    for (mode, cause, dead) in [
        (ALONE, "told to", &["poison"][..]),
        (ALL, "trap", &["a", "poison", "b"]),
        (LIMIT, "bytes of memory", &["a", "poison", "b"]),
    ] {
        scene.attach(mode, scene.to_dead()).await;
        let ack = scene.send(MIXED).await.unwrap();
        assert_eq!(ack.dropped as usize, dead.len(), "{mode}");
        let all = read(&scene.client, &scene.dead).await;
        let new = &all[letters..];
        letters = all.len();
        assert_eq!(new.iter().map(text).collect::<Vec<_>>(), dead, "{mode}");
        // Before storage a record has no place yet.
        new.iter()
            .for_each(|message| letter(message, cause, "acme/t"));
    }
    assert_eq!(scene.stored().await, ["a", "b"]);
    scene.broker.stop().await;
}

#[tokio::test]
async fn a_subscription_stops_skips_or_buries_by_itself() {
    let scene = Scene::new().await;
    produce(&scene.client, &scene.topic, MIXED).await;
    let subscribe = async |mode, on_error| {
        let consumer = scene
            .client
            .consumer(scene.topic.clone())
            .start(StartAt::Earliest);
        let consumer = consumer.until_end(true).plugin(bad(mode, on_error));
        let mut consumer = consumer.build().await.unwrap();
        let mut seen = Vec::new();
        while let Some(message) = consumer.next_message().await {
            match message {
                Ok(message) => seen.push((message.offset.0, text(&message))),
                Err(e) => return Err(e.wire().unwrap().clone()),
            }
        }
        Ok(seen)
    };
    for (mode, cause) in [
        (ALONE, "told to"),
        (ALL, "trap"),
        (LIMIT, "bytes of memory"),
    ] {
        let e = subscribe(mode, ErrorPolicy::Stop).await.unwrap_err();
        assert_eq!(e.code, ErrorCode::PluginFailed);
        names_the_plugin(&e.message, cause);
        assert!(e.message.contains("subscri"), "{e}");
    }
    let passed = vec![(0, "a".to_owned()), (2, "b".to_owned())];
    assert_eq!(subscribe(ALONE, ErrorPolicy::Skip).await.unwrap(), passed);
    assert_eq!(subscribe(LIMIT, ErrorPolicy::Skip).await.unwrap(), []);
    assert_eq!(read(&scene.client, &scene.dead).await, []);
    assert_eq!(subscribe(ALONE, scene.to_dead()).await.unwrap(), passed);
    let dead = read(&scene.client, &scene.dead).await;
    assert_eq!(dead.len(), 1);
    letter(&dead[0], "told to", "acme/t/0/1");
    // The topic itself has not stopped for anybody.
    produce(&scene.client, &scene.topic, ["c"]).await;
    assert_eq!(scene.stored().await, ["a", "b", "c", "poison"]);
    let mut broker = scene.broker;
    broker.stop().await;
}

#[tokio::test]
async fn a_pipeline_stops_skips_or_buries_by_itself() {
    let scene = Scene::new().await;
    let out = topic("acme/out");
    scene
        .client
        .create_topic(out.clone(), partitions(1))
        .await
        .unwrap();
    produce(&scene.client, &scene.topic, MIXED).await;
    let name: millstream::PipelineName = "acme/p".parse().unwrap();
    let apply = async |mode, on_error| {
        let spec = PipelineSpec {
            name: name.clone(),
            input: scene.topic.clone(),
            from_latest: false,
            steps: vec![bad(mode, on_error)],
            outputs: vec![("out".into(), out.clone())],
        };
        scene.client.apply_pipeline(spec).await.unwrap();
        // It ends, or comes to the end.
        eventually("the pipeline", async || {
            let info = scene.client.show_pipeline(name.clone()).await.unwrap();
            // Counters follow the position a moment later.
            let counted = info.records_out + info.skipped + info.dead_letters == 3;
            let ended = counted && info.progress.iter().all(|p| p.position == p.end);
            let stopped = matches!(info.state, PipelineState::Failed(_));
            (ended || stopped).then_some(info)
        })
        .await
    };
    for (mode, cause) in [
        (ALONE, "told to"),
        (ALL, "trap"),
        (LIMIT, "bytes of memory"),
    ] {
        let info = apply(mode, ErrorPolicy::Stop).await;
        let PipelineState::Failed(why) = info.state else {
            panic!("{mode}: {:?}", info.state)
        };
        names_the_plugin(&why, cause);
        // Records before the bad one may have passed; the bad one has not.
        assert!(info.progress[0].position <= Offset(1), "{mode}");
        assert!(why.contains("acme/p"), "{why}");
        scene.client.delete_pipeline(name.clone()).await.unwrap();
    }
    let before = texts(&scene.client, &out).await;
    assert!(!before.contains(&"poison".to_owned()), "{before:?}");
    let info = apply(ALONE, ErrorPolicy::Skip).await;
    assert_eq!((info.records_in, info.records_out, info.skipped), (3, 2, 1));
    scene.client.delete_pipeline(name.clone()).await.unwrap();
    let info = apply(ALONE, scene.to_dead()).await;
    assert_eq!(
        (info.records_in, info.records_out, info.dead_letters),
        (3, 2, 1)
    );
    let dead = read(&scene.client, &scene.dead).await;
    letter(&dead[0], "told to", "acme/t/0/1");
    assert_eq!(texts(&scene.client, &out).await.len(), before.len() + 4);
    let mut broker = scene.broker;
    broker.stop().await;
}
