//! Every hostile guest at every place, while a neighbour works.

use bytes::Bytes;
use millstream::{Client, ErrorClass, ErrorCode, PipelineName, StartAt, TopicName};
use millstream_e2e::{
    RawConnection, RawStream, TestBroker, batch, eventually, partitions, plugin, topic, upload,
    using,
};
use millstream_guests::{BAD_FILTER, FILTER_FIELD, Guest};
use millstream_proto::frame::FrameKind;
use millstream_proto::message::OpenSubscription;
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PipelineState};
use millstream_proto::{ProducerId, WireError};

use crate::cast::{Fate, Role, cast, deeds};
use crate::{Memory, Neighbour, alone};

/// How much the memory of broker and clients together may grow under attack: what guests may use
/// and give back, the batches they make, and the caches that fill meanwhile.
const MEMORY: u64 = 128 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Topic,
    Subscription,
    Pipeline,
}

/// What came of a deed.
#[derive(Debug)]
enum Heard {
    Passed,
    Refused(WireError),
    Stopped(WireError),
    Waits,
}

/// One of the hostile tenant's things.
struct Attacked {
    client: Client,
    raw: RawConnection,
    _control: RawStream,
    topic: TopicName,
    out: TopicName,
    pipeline: PipelineName,
}

impl Attacked {
    async fn new(broker: &TestBroker) -> Self {
        let client = broker.tenant("acme").await;
        let (topic, out) = (topic("acme/t"), topic("acme/out"));
        for name in [&topic, &out] {
            client
                .create_topic(name.clone(), partitions(1))
                .await
                .unwrap();
        }
        let (raw, control) = RawConnection::connect(broker, "acme", "raw").await;
        let pipeline = "acme/p".parse().unwrap();
        Self {
            client,
            raw,
            _control: control,
            topic,
            out,
            pipeline,
        }
    }

    /// Sends a batch with a poisonous record in it.
    async fn send(&self) -> Result<(), WireError> {
        let (mut stream, _) = self
            .raw
            .producer(&self.topic, ProducerId::NONE, 0)
            .await
            .unwrap();
        let values: &[&[u8]] = &[b"fine", b"poison", b"fine too"];
        stream
            .produce(0, None, batch(values, 0, 0, 0).bytes())
            .await;
        stream.answer().await.1.map(drop)
    }

    async fn happen(&self, place: Place, guest: Guest, mode: &str) -> Heard {
        match place {
            Place::Topic => self.on_topic(guest, mode).await,
            Place::Subscription => self.on_subscription(guest, mode).await,
            Place::Pipeline => self.in_pipeline(guest, mode).await,
        }
    }

    async fn on_topic(&self, guest: Guest, mode: &str) -> Heard {
        let step = using("acme", guest, &[("mode", mode)], ErrorPolicy::Stop);
        if let Err(e) = self.client.attach(self.topic.clone(), step).await {
            return Heard::Refused(e.wire().unwrap().clone());
        }
        let heard = outcome(self.send().await);
        let info = self
            .client
            .describe_topic(self.topic.clone())
            .await
            .unwrap();
        assert_eq!(
            info.stopped.is_some(),
            matches!(heard, Heard::Stopped(_)),
            "{mode}"
        );
        let name = plugin("acme", guest);
        self.client.detach(self.topic.clone(), name).await.unwrap();
        self.send().await.expect("the topic is free again");
        heard
    }

    async fn on_subscription(&self, guest: Guest, mode: &str) -> Heard {
        let open = OpenSubscription {
            topic: self.topic.clone(),
            partitions: Vec::new(),
            positions: Vec::new(),
            start: StartAt::Earliest,
            consumer: None,
            until_end: true,
            chain: vec![using("acme", guest, &[("mode", mode)], ErrorPolicy::Stop)],
        };
        let mut stream = match self.raw.subscription(open).await {
            Ok(stream) => stream,
            Err(e) => return Heard::Refused(e),
        };
        loop {
            match stream.expect().await {
                Ok(frame) if frame.kind == FrameKind::End => return Heard::Passed,
                Ok(_) => {}
                Err(e) => return outcome(Err(e)),
            }
        }
    }

    async fn in_pipeline(&self, guest: Guest, mode: &str) -> Heard {
        let spec = PipelineSpec {
            name: self.pipeline.clone(),
            input: self.topic.clone(),
            from_latest: false,
            steps: vec![using("acme", guest, &[("mode", mode)], ErrorPolicy::Stop)],
            outputs: vec![("out".into(), self.out.clone())],
        };
        if let Err(e) = self.client.apply_pipeline(spec).await {
            return Heard::Refused(e.wire().unwrap().clone());
        }
        let show = async || {
            self.client
                .show_pipeline(self.pipeline.clone())
                .await
                .unwrap()
        };
        let heard = if mode == "retry" {
            // It waits longer and longer; nothing tells from outside that it has been asked.
            let info = show().await;
            assert_eq!(
                (info.state, info.progress[0].position.0),
                (PipelineState::Running, 0)
            );
            Heard::Waits
        } else {
            eventually("the pipeline to end or to stop", async || {
                let info = show().await;
                let ended = info.progress.iter().all(|p| p.position == p.end);
                match info.state {
                    PipelineState::Failed(why) => {
                        Some(Heard::Stopped(WireError::new(ErrorCode::PluginFailed, why)))
                    }
                    _ => ended.then_some(Heard::Passed),
                }
            })
            .await
        };
        self.client
            .delete_pipeline(self.pipeline.clone())
            .await
            .unwrap();
        heard
    }
}

fn outcome(answer: Result<(), WireError>) -> Heard {
    match answer {
        Ok(()) => Heard::Passed,
        Err(e) if e.class() == ErrorClass::Retry => Heard::Waits,
        Err(e) => Heard::Stopped(e),
    }
}

/// Whether an error says who did what.
fn names_the_deed(e: &WireError, guest: Guest, causes: &str) -> bool {
    let name = plugin("acme", guest).to_string();
    let says = |part: &str| e.message.contains(part);
    says(&name) && says("version 1") && causes.split('|').any(says)
}

fn is_as_expected(place: Place, guest: Guest, fate: Fate, heard: &Heard) -> bool {
    match (fate, heard) {
        (Fate::Passes | Fate::PassesOrIsSlow, Heard::Passed) | (Fate::Waits, Heard::Waits) => true,
        (Fate::PassesOrIsSlow, Heard::Stopped(e) | Heard::Refused(e)) => {
            names_the_deed(e, guest, "CPU time")
        }
        (Fate::Refused(cause), Heard::Refused(e)) => {
            let code = match place {
                Place::Topic | Place::Subscription => ErrorCode::AttachInvalid,
                Place::Pipeline => ErrorCode::InvalidPipeline,
            };
            e.code == code && names_the_deed(e, guest, cause)
        }
        (Fate::Stopped(cause), Heard::Stopped(e)) => {
            e.code == ErrorCode::PluginFailed && names_the_deed(e, guest, cause)
        }
        _ => false,
    }
}

/// Lets every deed of every hostile guest happen at a place, and the neighbour work meanwhile.
async fn attack(place: Place) {
    let _alone = alone().await;
    // What a penalty does is the plugin crate's to test; here it would only take time.
    let tune = |config: &mut millstream_broker::Config| config.plugins.limits.penalty_factor = 0;
    let mut broker = TestBroker::set_up().tuned(tune).start().await;
    let attacked = Attacked::new(&broker).await;
    attacked.send().await.unwrap();
    let mut neighbour = Neighbour::new(&broker).await;
    neighbour.round().await;
    let mut memory = Memory::watch(&broker).await;
    let mut attacks = 0;
    let mut wrong = Vec::new();
    for (guest, role) in cast() {
        let Role::Hostile {
            nonsense,
            everywhere,
        } = role
        else {
            continue;
        };
        if place != Place::Topic && !everywhere {
            continue;
        }
        upload(&attacked.client, "acme", guest).await;
        for (mode, fate) in deeds(nonsense) {
            let (heard, ()) = tokio::join!(attacked.happen(place, guest, mode), neighbour.round());
            if !is_as_expected(place, guest, fate, &heard) {
                wrong.push(format!("{} {mode}: {fate:?}, but {heard:?}", guest.name));
            }
            attacks += 1;
            memory.look().await;
        }
    }
    assert!(wrong.is_empty(), "{place:?}:\n{}", wrong.join("\n"));
    assert!(attacks > 50, "{attacks} attacks");
    assert_eq!(neighbour.done, (attacks + 1) * crate::ROUND);
    memory.stayed_below(MEMORY);
    broker.stop().await;
}

#[tokio::test]
async fn on_a_topic() {
    attack(Place::Topic).await;
}

#[tokio::test]
async fn on_a_subscription() {
    attack(Place::Subscription).await;
}

#[tokio::test]
async fn in_a_pipeline() {
    attack(Place::Pipeline).await;
}

#[tokio::test]
async fn what_must_not_be_uploaded_is_not() {
    let _alone = alone().await;
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    for (guest, role) in cast() {
        let name = plugin("acme", guest);
        let wasm = Bytes::from_static(guest.wasm);
        let uploaded = client.upload_plugin(name, wasm, |_| {}).await;
        match role {
            Role::Refused(why) => {
                let e = uploaded.unwrap_err();
                assert_eq!(e.wire().unwrap().code, ErrorCode::UploadRejected, "{e}");
                assert!(e.to_string().contains(why), "{why} in {e}");
            }
            Role::Hostile { .. } | Role::Useful => drop(uploaded.unwrap()),
        }
    }
    broker.stop().await;
}

/// Plugins of many tenants spin at once, as the usual limits let them. A neighbour with an honest
/// plugin of its own shares their thread.
#[tokio::test]
async fn many_at_once() {
    const TENANTS: usize = 6;
    let _alone = alone().await;
    let mut broker = TestBroker::start().await;
    let mut neighbour = Neighbour::new(&broker).await;
    upload(&neighbour.client, "neighbour", FILTER_FIELD).await;
    let config = [("type", "u8"), ("op", "<"), ("value", "255")];
    let honest = using("neighbour", FILTER_FIELD, &config, ErrorPolicy::Stop);
    neighbour
        .client
        .attach(topic("neighbour/t"), honest)
        .await
        .unwrap();
    let mut memory = Memory::watch(&broker).await;
    let mut spinning = Vec::new();
    for n in 0..TENANTS {
        let tenant = format!("evil{n}");
        let client = broker.tenant(&tenant).await;
        let name = topic(&format!("{tenant}/t"));
        client
            .create_topic(name.clone(), partitions(1))
            .await
            .unwrap();
        upload(&client, &tenant, BAD_FILTER).await;
        let spin = using(&tenant, BAD_FILTER, &[("mode", "spin")], ErrorPolicy::Skip);
        client.attach(name.clone(), spin).await.unwrap();
        let (raw, control) = RawConnection::connect(&broker, &tenant, "raw").await;
        let (mut stream, _) = raw.producer(&name, ProducerId::NONE, 0).await.unwrap();
        stream
            .produce(0, None, batch(&[b"v"], 0, 0, 0).bytes())
            .await;
        spinning.push((stream, raw, control));
    }
    for _ in 0..20 {
        neighbour.round().await;
        memory.look().await;
    }
    for (mut stream, ..) in spinning {
        let ack = stream.answer().await.1.unwrap();
        assert_eq!((ack.dropped, ack.placements), (1, Vec::new()));
    }
    memory.stayed_below(MEMORY);
    broker.stop().await;
}
