//! Plugins at work: on topics before storage, and on subscriptions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream::{Client, ConsumerName, ErrorCode, PluginUse, Record, RequestError, StartAt};
use millstream_e2e::{
    RawConnection, TestBroker, batch, end, header, partitions, plugin, produce, read, text, texts,
    topic, upload, using,
};
use millstream_guests::{
    BAD_FILTER, ENRICH_HEADER, FILTER_FIELD, FILTER_JSON, Guest, REDACT, ROUTE_BY_REGION,
    SPLIT_ALERTS,
};
use millstream_proto::frame::{DeliverPrefix, FrameKind};
use millstream_proto::message::OpenSubscription;
use millstream_proto::pipeline::ErrorPolicy;
use millstream_proto::{Offset, PartitionId, ProducerId, TopicName};

use crate::quakes::QUAKES;

async fn scene(count: u32, guests: &[Guest]) -> (TestBroker, Client, TopicName) {
    let broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/t");
    client
        .create_topic(name.clone(), partitions(count))
        .await
        .unwrap();
    for guest in guests {
        upload(&client, "acme", *guest).await;
    }
    (broker, client, name)
}

fn stopping(guest: Guest, config: &[(&str, &str)]) -> PluginUse {
    using("acme", guest, config, ErrorPolicy::Stop)
}

fn strong(magnitude: &str) -> PluginUse {
    stopping(
        FILTER_JSON,
        &[("field", "mag"), ("op", ">="), ("value", magnitude)],
    )
}

/// Keeps values whose first byte is less than this.
fn below(bound: u8) -> PluginUse {
    let bound = bound.to_string();
    stopping(
        FILTER_FIELD,
        &[("type", "u8"), ("op", "<"), ("value", &bound)],
    )
}

/// Produces every earthquake, keyed by its id.
async fn produce_quakes(client: &Client, name: &TopicName) {
    let producer = client.producer(name.clone()).build().await.unwrap();
    let quakes = QUAKES.iter();
    let records = quakes.map(|q| Record::value(q.line.as_bytes()).key(q.id.as_bytes()));
    producer.send_many(records).await.unwrap().await.unwrap();
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_partitioner_chooses_and_a_filter_leaves_out() {
    let (mut broker, client, name) = scene(8, &[ROUTE_BY_REGION, FILTER_JSON]).await;
    let route = stopping(ROUTE_BY_REGION, &[]);
    client.attach(name.clone(), route).await.unwrap();
    let info = client.attach(name.clone(), strong("2.5")).await.unwrap();
    let order: Vec<_> = info
        .chain
        .iter()
        .map(|u| u.plugin.local().to_owned())
        .collect();
    assert_eq!(
        order,
        ["filter-json", "route-by-region"],
        "a partitioner comes last"
    );
    assert!(info.chain.iter().all(|u| u.version == Some(1)));
    produce_quakes(&client, &name).await;
    // A chain outlives a restart.
    broker.restart().await;
    produce_quakes(&client, &name).await;
    let mut seen = vec![Vec::new(); 8];
    for message in read(&client, &name).await {
        seen[message.partition.0 as usize].push(text(&message));
    }
    for (region, seen) in (0..).zip(&seen) {
        let own = QUAKES
            .iter()
            .filter(|q| q.region == region && q.is_at_least(2.5));
        let expected: Vec<_> = own.map(|q| q.line.to_owned()).collect();
        assert_eq!(
            *seen,
            [expected.clone(), expected].concat(),
            "region {region}"
        );
    }
    broker.stop().await;
}

#[tokio::test]
async fn three_in_a_chain_and_a_partitioner_do_their_work_in_order() {
    let guests = [FILTER_JSON, REDACT, ENRICH_HEADER, ROUTE_BY_REGION];
    let (mut broker, client, name) = scene(8, &guests).await;
    let redact = stopping(REDACT, &[("fields", "place,net")]);
    let enrich = stopping(
        ENRICH_HEADER,
        &[("header.mag", "mag"), ("header.net", "net")],
    );
    // Headers are taken before the field that they are taken from is blanked.
    for step in [
        strong("4.5"),
        enrich,
        redact,
        stopping(ROUTE_BY_REGION, &[]),
    ] {
        client.attach(name.clone(), step).await.unwrap();
    }
    produce_quakes(&client, &name).await;
    let messages = read(&client, &name).await;
    let expected = QUAKES.iter().filter(|q| q.is_at_least(4.5));
    assert_eq!(messages.len(), expected.clone().count());
    for quake in expected {
        let own = |m: &&millstream::Message| m.key.as_deref() == Some(quake.id.as_bytes());
        let message = messages.iter().find(own).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text(message)).unwrap();
        assert!(json["place"].is_null() && json["net"].is_null(), "{json}");
        assert_eq!(json["mag"].as_f64(), quake.magnitude);
        assert_eq!(header(message, "net").as_deref(), Some(quake.net.as_str()));
        assert_eq!(message.partition.0, quake.region);
    }
    broker.stop().await;
}

#[tokio::test]
async fn swapping_plugins_under_load_loses_and_doubles_nothing() {
    let (mut broker, client, name) = scene(1, &[FILTER_FIELD, ENRICH_HEADER]).await;
    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (client, name, done) = (client.clone(), name.clone(), Arc::clone(&done));
        async move {
            let producer = client
                .producer(name)
                .batch_bytes(1000)
                .build()
                .await
                .unwrap();
            let (mut sent, mut deliveries) = (0u32, Vec::new());
            while !done.load(Ordering::Relaxed) || sent < 2000 {
                let value = format!("{{\"n\":{sent}}}");
                deliveries.push(
                    producer
                        .send(&Record::value(value.as_bytes()))
                        .await
                        .unwrap(),
                );
                sent += 1;
                tokio::task::yield_now().await;
            }
            for delivery in deliveries {
                delivery.await.unwrap();
            }
            sent
        }
    });
    let seen = async |from: Offset| {
        while end(&client, &name).await <= from {
            tokio::task::yield_now().await;
        }
    };
    let enrich = |as_name: &str| stopping(ENRICH_HEADER, &[(as_name, "n")]);
    for round in 0..3u64 {
        for step in [
            below(200),
            enrich("header.a"),
            below(201),
            enrich("header.b"),
        ] {
            client.attach(name.clone(), step).await.unwrap();
            seen(end(&client, &name).await).await;
        }
        for guest in [FILTER_FIELD, ENRICH_HEADER] {
            client
                .detach(name.clone(), plugin("acme", guest))
                .await
                .unwrap();
            seen(end(&client, &name).await.plus(round)).await;
        }
    }
    done.store(true, Ordering::Relaxed);
    let sent = writing.await.unwrap();
    let messages = read(&client, &name).await;
    let values: Vec<_> = messages.iter().map(text).collect();
    let expected: Vec<_> = (0..sent).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(values, expected);
    // Every form of the chain was at work at some time.
    for form in [None, Some("a"), Some("b")] {
        let has = |name| messages.iter().any(|m| header(m, name).is_some());
        let found = form.map_or_else(|| messages.iter().any(|m| m.headers.is_empty()), has);
        assert!(found, "{form:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_changes_nothing() {
    let guests = [FILTER_FIELD, BAD_FILTER, ROUTE_BY_REGION, SPLIT_ALERTS];
    let (mut broker, client, name) = scene(1, &guests).await;
    client.attach(name.clone(), below(100)).await.unwrap();
    let before = client.describe_topic(name.clone()).await.unwrap();
    let no_such = PluginUse {
        version: Some(9),
        ..below(100)
    };
    let to_nowhere = using(
        "acme",
        FILTER_FIELD,
        &[("type", "u8"), ("op", "<"), ("value", "1")],
        ErrorPolicy::DeadLetter(topic("acme/nowhere")),
    );
    for (step, code, part) in [
        (
            stopping(FILTER_FIELD, &[]),
            ErrorCode::AttachInvalid,
            "type is missing",
        ),
        (
            stopping(BAD_FILTER, &[("mode", "init-fails")]),
            ErrorCode::AttachInvalid,
            "told to fail in init",
        ),
        (
            stopping(BAD_FILTER, &[("mode", "trap-in-init")]),
            ErrorCode::AttachInvalid,
            "version 1",
        ),
        (
            stopping(SPLIT_ALERTS, &[]),
            ErrorCode::AttachInvalid,
            "alerts",
        ),
        (no_such, ErrorCode::UnknownPlugin, "version 9"),
        (to_nowhere, ErrorCode::UnknownTopic, "acme/nowhere"),
    ] {
        let e = client.attach(name.clone(), step.clone()).await.unwrap_err();
        assert_eq!(e.wire().map(|e| e.code), Some(code), "{e}");
        assert!(e.to_string().contains(part), "{part} in {e}");
        let consumer = client.consumer(name.clone()).plugin(step);
        let e = consumer.build().await.unwrap_err();
        assert_eq!(e.wire().map(|e| e.code), Some(code), "{e}");
    }
    let route = client
        .consumer(name.clone())
        .plugin(stopping(ROUTE_BY_REGION, &[]));
    let e = route.build().await.unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::AttachInvalid, "{e}");
    let absent: RequestError = client
        .detach(name.clone(), plugin("acme", BAD_FILTER))
        .await
        .unwrap_err();
    assert_eq!(
        absent.wire().unwrap().code,
        ErrorCode::AttachInvalid,
        "{absent}"
    );
    assert_eq!(client.describe_topic(name.clone()).await.unwrap(), before);
    produce(&client, &name, ["a", "z"]).await;
    assert_eq!(texts(&client, &name).await, ["a"]);
    broker.stop().await;
}

#[tokio::test]
async fn a_subscriptions_chain_keeps_offsets_and_moves_on() {
    let (mut broker, client, name) = scene(1, &[FILTER_FIELD, ENRICH_HEADER]).await;
    produce(&client, &name, (0..100u8).map(|n| [n])).await;
    let me: ConsumerName = "me".parse().unwrap();
    let consumer = client
        .consumer(name.clone())
        .start(StartAt::Earliest)
        .named(me.clone());
    let at_least = stopping(
        FILTER_FIELD,
        &[("type", "u8"), ("op", ">="), ("value", "30")],
    );
    let mut consumer = consumer
        .until_end(true)
        .plugin(at_least)
        .plugin(below(40))
        .build()
        .await
        .unwrap();
    let mut offsets = Vec::new();
    while let Some(message) = consumer.next_message().await {
        let message = message.unwrap();
        assert_eq!(
            message.value.as_deref(),
            Some(&[message.offset.0 as u8][..])
        );
        offsets.push(message.offset.0);
    }
    assert!(offsets.into_iter().eq(30..40));
    // What did not pass is done with all the same.
    assert_eq!(consumer.positions(), [(PartitionId(0), Offset(100))]);
    consumer.commit().await.unwrap();
    let committed = client.fetch_offsets(name.clone(), me).await.unwrap();
    assert_eq!(committed, [(PartitionId(0), Offset(100))]);

    let nothing = client
        .consumer(name.clone())
        .start(StartAt::Earliest)
        .until_end(true);
    let mut nothing = nothing.plugin(below(0)).build().await.unwrap();
    assert!(nothing.next_message().await.is_none());
    assert_eq!(nothing.positions(), [(PartitionId(0), Offset(100))]);

    // A live one hears only of what passes.
    let live = client.consumer(name.clone()).plugin(below(1));
    let mut live = live.build().await.unwrap();
    produce(&client, &name, [[9], [8], [0], [7]]).await;
    let message = live.next_message().await.unwrap().unwrap();
    assert_eq!(
        (message.offset, message.value.as_deref()),
        (Offset(102), Some(&[0][..]))
    );
    // The topic itself has no chain.
    assert_eq!(client.describe_topic(name).await.unwrap().chain, []);
    broker.stop().await;
}

#[tokio::test]
async fn a_subscription_can_transform_what_it_reads() {
    let (mut broker, client, name) = scene(3, &[FILTER_JSON, REDACT, ENRICH_HEADER]).await;
    produce_quakes(&client, &name).await;
    let redact = stopping(REDACT, &[("fields", "place")]);
    let enrich = stopping(ENRICH_HEADER, &[("header.net", "net")]);
    let consumer = client
        .consumer(name.clone())
        .start(StartAt::Earliest)
        .until_end(true);
    let consumer = consumer.plugin(strong("4")).plugin(redact).plugin(enrich);
    let mut consumer = consumer.build().await.unwrap();
    let mut seen = Vec::new();
    let stored = read(&client, &name).await;
    while let Some(message) = consumer.next_message().await {
        let message = message.unwrap();
        let json: serde_json::Value = serde_json::from_str(&text(&message)).unwrap();
        assert!(json["place"].is_null());
        assert_eq!(header(&message, "net").as_deref(), json["net"].as_str());
        let same = stored
            .iter()
            .find(|s| (s.partition, s.offset) == (message.partition, message.offset));
        assert_eq!(
            same.unwrap().key,
            message.key,
            "the offset is the stored record's"
        );
        seen.push(json["id"].as_str().unwrap().to_owned());
    }
    let mut expected: Vec<_> = QUAKES
        .iter()
        .filter(|q| q.is_at_least(4.0))
        .map(|q| q.id.clone())
        .collect();
    expected.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, expected);
    broker.stop().await;
}

#[tokio::test]
async fn only_what_passes_crosses_the_network() {
    let (mut broker, client, name) = scene(1, &[FILTER_JSON]).await;
    produce_quakes(&client, &name).await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let open = |chain: Vec<PluginUse>| OpenSubscription {
        topic: name.clone(),
        partitions: Vec::new(),
        positions: Vec::new(),
        start: StartAt::Earliest,
        consumer: None,
        until_end: true,
        chain,
    };
    let received = async |chain| {
        let mut stream = raw.subscription(open(chain)).await.unwrap();
        let (mut bytes, mut next) = (0, Offset(0));
        loop {
            let frame = stream.expect().await.unwrap();
            if frame.kind == FrameKind::End {
                return (bytes, next);
            }
            bytes += frame.payload.len();
            next = DeliverPrefix::split(frame.payload).unwrap().0.next;
        }
    };
    let (whole, end) = received(Vec::new()).await;
    let (filtered, same_end) = received(vec![strong("5")]).await;
    assert_eq!((end, same_end), (Offset(QUAKES.len() as u64), end));
    let kept = QUAKES.iter().filter(|q| q.is_at_least(5.0));
    let payload: usize = kept.map(|q| q.line.len() + q.id.len()).sum();
    assert!(
        filtered < payload * 3 / 2 + 1000,
        "{filtered} bytes for {payload}"
    );
    assert!(filtered * 10 < whole, "{filtered} of {whole} bytes");
    let (nothing, same_end) = received(vec![strong("99")]).await;
    assert_eq!(same_end, end);
    assert!(nothing < 1000, "{nothing} bytes");
    broker.stop().await;
}

#[tokio::test]
async fn a_plugin_that_wants_time_holds_records_back_in_order() {
    let (mut broker, client, name) = scene(1, &[BAD_FILTER]).await;
    let later = stopping(BAD_FILTER, &[("mode", "retry")]);
    client.attach(name.clone(), later).await.unwrap();
    let producer = client.producer(name.clone()).batch_bytes(256);
    // Room for all, so that none waits to be taken.
    let producer = producer.in_flight(256).build().await.unwrap();
    let mut deliveries = Vec::new();
    for n in 0..200u32 {
        let value = n.to_be_bytes();
        deliveries.push(producer.send(&Record::value(&value)).await.unwrap());
    }
    let info = client.describe_topic(name.clone()).await.unwrap();
    assert_eq!((info.stopped, info.partitions[0].end), (None, Offset(0)));
    let plugin = plugin("acme", BAD_FILTER);
    client.detach(name.clone(), plugin).await.unwrap();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    let values = read(&client, &name)
        .await
        .into_iter()
        .map(|m| m.value.unwrap().to_vec());
    assert!(values.eq((0..200u32).map(|n| n.to_be_bytes().to_vec())));
    broker.stop().await;
}

#[tokio::test]
async fn a_batch_sent_again_leaves_nothing_twice_behind_a_chain() {
    let (mut broker, client, name) = scene(1, &[BAD_FILTER]).await;
    let dead = topic("acme/dead");
    client
        .create_topic(dead.clone(), partitions(1))
        .await
        .unwrap();
    let mode = [("mode", "bad-record-on-poison")];
    let step = using(
        "acme",
        BAD_FILTER,
        &mode,
        ErrorPolicy::DeadLetter(dead.clone()),
    );
    client.attach(name.clone(), step).await.unwrap();
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let sent = batch(&[b"a", b"poison", b"b"], 9, 0, 0);
    for time in 0..3 {
        let (mut stream, _) = raw.producer(&name, ProducerId(9), 0).await.unwrap();
        for again in 0..2 {
            stream.produce(0, Some(0), sent.bytes()).await;
            let ack = stream.answer().await.1.unwrap();
            assert_eq!(ack.duplicate, time + again > 0);
            assert!(ack.duplicate || ack.dropped == 1);
        }
    }
    assert_eq!(texts(&client, &name).await, ["a", "b"]);
    assert_eq!(texts(&client, &dead).await, ["poison"]);
    broker.stop().await;
}
