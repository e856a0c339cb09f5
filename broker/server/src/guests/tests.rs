//! Chains with real plugins.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::sync::Arc;
use std::time::Duration;

use millstream_guests::{
    BAD_FILTER, BAD_PARTITIONER, BAD_TRANSFORM, ENRICH_HEADER, FILTER_FIELD, FILTER_JSON, Guest,
    REDACT, ROUTE_BY_REGION, SPLIT_ALERTS,
};
use millstream_proto::acl::Operation;
use millstream_proto::pipeline::{ErrorPolicy, PluginUse};
use millstream_proto::topic::TopicConfig;
use millstream_proto::{Codec, ErrorCode, Offset, PartitionId, WireError};

use super::fixture::{
    Rec, World, batch_of, contents, dead_letter, decoded, encoded, guests, me, using,
};
use super::*;
use crate::config::PluginsConfig;
use crate::limits::MAX_BAD_RECORDS;
use crate::log::Topic;

mod policies;
mod subscription;

/// Keeps records whose value's first byte is less than `bound`.
fn below(bound: u8) -> PluginUse {
    let bound = bound.to_string();
    let config = [("type", "u8"), ("op", "<"), ("value", bound.as_str())];
    using(FILTER_FIELD, &config, ErrorPolicy::Stop)
}

fn bad(guest: Guest, mode: &str, on_error: ErrorPolicy) -> PluginUse {
    using(guest, &[("mode", mode)], on_error)
}

fn numbered(count: u8) -> Vec<Rec> {
    let numbered = |n| Rec {
        key: (n % 3 != 0).then(|| vec![n]),
        value: Some(vec![n; 20]),
        headers: if n % 2 == 0 {
            vec![("n".into(), vec![n])]
        } else {
            vec![]
        },
        timestamp: i64::from(n) * 1_000,
        offset: 0,
    };
    (0..count).map(numbered).collect()
}

async fn attach(
    world: &Arc<World>,
    topic: &Topic,
    uses: &[PluginUse],
) -> Result<Arc<TopicChain>, WireError> {
    guests()
        .topic_chain(topic.name(), &me(), uses.to_vec(), world.directory())
        .await
}

/// Runs records through a chain on a topic of `partitions` partitions and commits what passes:
/// the topic's contents by partition, and how many were dropped.
async fn pass(partitions: u32, uses: &[PluginUse], records: &[Rec]) -> (Vec<Vec<Rec>>, u32) {
    let world = World::new();
    let topic = world.topic("acme/t", partitions);
    let chain = attach(&world, &topic, uses).await.unwrap();
    let passed = chain.run(batch_of(records), None, &topic).await.unwrap();
    world.commit(passed.appends).await;
    (contents(&topic).await, passed.dropped)
}

/// The same without the offsets, which the commit assigned.
fn unplaced(records: Vec<Rec>) -> Vec<Rec> {
    records
        .into_iter()
        .map(|rec| Rec { offset: 0, ..rec })
        .collect()
}

#[tokio::test]
async fn a_batch_that_passes_whole_is_not_copied() {
    let world = World::new();
    let topic = world.topic("acme/t", 4);
    let chain = attach(&world, &topic, &[below(200)]).await.unwrap();
    assert!(!chain.routes());
    assert_eq!(chain.uses()[0].version, Some(2));
    for codec in [Codec::None, Codec::Zstd] {
        let batch = encoded(&numbered(100), codec);
        let passed = chain
            .run(batch.clone(), Some(PartitionId(3)), &topic)
            .await
            .unwrap();
        let [append] = &passed.appends[..] else {
            panic!("{passed:?}")
        };
        assert_eq!((append.partition(), passed.dropped), (PartitionId(3), 0));
        assert!(passed.in_order);
        assert_eq!(append.batch().bytes().as_ptr(), batch.bytes().as_ptr());
    }
}

#[tokio::test]
async fn a_filter_drops_records_and_touches_no_others() {
    let (got, dropped) = pass(1, &[below(40), below(30)], &numbered(100)).await;
    assert_eq!(dropped, 70);
    assert_eq!(unplaced(got[0].clone()), numbered(30));
    let (got, dropped) = pass(1, &[below(0)], &numbered(100)).await;
    assert_eq!((got, dropped), (vec![vec![]], 100));
}

#[tokio::test]
async fn records_are_spread_as_if_the_dropped_had_never_been() {
    let keyed = |n: u8| Rec {
        key: Some(vec![n]),
        ..numbered(n + 1).remove(usize::from(n))
    };
    let all: Vec<_> = (0..60).map(keyed).collect();
    let (filtered, _) = pass(5, &[below(20)], &all).await;
    let (bare, _) = pass(5, &[below(60)], &all[..20]).await;
    assert_eq!(filtered, bare);
    assert!(bare.iter().filter(|records| !records.is_empty()).count() > 1);
}

fn quake(key: &str, mag: f64, lon: f64, lat: f64) -> Rec {
    let value = format!(r#"{{"id":"{key}","mag":{mag},"lon":{lon},"lat":{lat}}}"#);
    Rec {
        timestamp: 7,
        ..Rec::new(key, &value)
    }
}

#[tokio::test]
async fn a_whole_chain_transforms_filters_and_routes() {
    let uses = [
        using(ENRICH_HEADER, &[("header.mag", "mag")], ErrorPolicy::Stop),
        using(
            FILTER_JSON,
            &[("field", "mag"), ("op", ">="), ("value", "2")],
            ErrorPolicy::Stop,
        ),
        using(REDACT, &[("fields", "mag")], ErrorPolicy::Stop),
        using(ROUTE_BY_REGION, &[], ErrorPolicy::Stop),
    ];
    let quakes = [
        quake("a", 2.5, -150.0, 61.0),
        quake("b", 1.5, -150.0, 61.0),
        quake("c", 3.5, 140.0, 36.0),
        quake("d", 4.5, -150.0, 61.0),
    ];
    let (got, dropped) = pass(8, &uses, &quakes).await;
    assert_eq!(dropped, 1);
    let place = |key: &str| {
        let has = |records: &Vec<Rec>| {
            records
                .iter()
                .any(|r| r.key.as_deref() == Some(key.as_bytes()))
        };
        got.iter().position(has).unwrap()
    };
    assert_eq!(place("a"), place("d"));
    assert_ne!(place("a"), place("c"));
    let alaska = &got[place("a")];
    assert_eq!(alaska.len(), 2, "in their order, {alaska:?}");
    assert_eq!(
        alaska[1].value_text(),
        r#"{"id":"d","mag":null,"lon":-150,"lat":61}"#
    );
    assert_eq!(alaska[1].header("mag").as_deref(), Some("4.5"));
    assert_eq!(alaska[1].timestamp, 7);
}

#[tokio::test]
async fn a_partitioner_that_sends_all_to_one_place_copies_nothing() {
    let world = World::new();
    let topic = world.topic("acme/t", 8);
    let uses = [using(ROUTE_BY_REGION, &[], ErrorPolicy::Stop)];
    let chain = attach(&world, &topic, &uses).await.unwrap();
    assert!(chain.routes());
    let batch = batch_of(&[quake("a", 2.5, -150.0, 61.0), quake("b", 2.5, -150.0, 61.0)]);
    let passed = chain.run(batch.clone(), None, &topic).await.unwrap();
    assert_eq!(passed.appends.len(), 1);
    assert_eq!(
        passed.appends[0].batch().bytes().as_ptr(),
        batch.bytes().as_ptr()
    );
}

#[tokio::test]
async fn what_a_topic_does_not_take_a_transform_cannot_put_there() {
    let world = World::new();
    let config = TopicConfig {
        max_record_bytes: 60,
        ..TopicConfig::default()
    };
    let (topic, dead) = (
        world.configured("acme/t", config),
        world.topic("acme/dead", 1),
    );
    let blank = "x".repeat(60);
    let blank = format!("\"{blank}\"");
    let config = [("fields", "mag"), ("with", blank.as_str())];
    let uses = [using(REDACT, &config, dead_letter("acme/dead"))];
    let chain = attach(&world, &topic, &uses).await.unwrap();
    let records = [Rec::new("a", r#"{"mag":1}"#), Rec::new("b", r#"{"gap":1}"#)];
    let passed = chain.run(batch_of(&records), None, &topic).await.unwrap();
    assert_eq!(passed.dropped, 1);
    world.commit(passed.appends).await;
    assert_eq!(contents(&topic).await[0].len(), 1);
    let error = contents(&dead).await[0][0].header(ERROR_HEADER).unwrap();
    assert!(error.contains("at most 60 are allowed"), "{error}");
}

#[tokio::test]
async fn what_cannot_work_is_refused_when_it_is_attached() {
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    world.topic("acme/dead", 1);
    let refused = async |uses: &[PluginUse], code: ErrorCode, part: &str| {
        let error = attach(&world, &topic, uses).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(part), "{part} in {error}");
    };
    let stop = || ErrorPolicy::Stop;
    let invalid = ErrorCode::AttachInvalid;
    refused(&[using(FILTER_FIELD, &[], stop())], invalid, "type").await;
    refused(
        &[bad(BAD_FILTER, "trap-in-init", stop())],
        invalid,
        "acme/bad-filter version 2",
    )
    .await;
    refused(&[bad(BAD_FILTER, "spin-in-init", stop())], invalid, "CPU").await;
    let route = using(ROUTE_BY_REGION, &[], stop());
    refused(&[route.clone(), below(3)], invalid, "must be the last").await;
    let unknown = PluginUse {
        version: Some(9),
        ..below(3)
    };
    refused(
        &[unknown],
        ErrorCode::UnknownPlugin,
        "version 9 does not exist",
    )
    .await;
    let nowhere = bad(BAD_FILTER, "behave", dead_letter("acme/nowhere"));
    refused(&[nowhere], ErrorCode::UnknownTopic, "acme/nowhere").await;
    world.deny(Operation::Produce, "acme/dead");
    let dead = bad(BAD_FILTER, "behave", dead_letter("acme/dead"));
    refused(&[dead], ErrorCode::NotAuthorized, "acme/dead").await;
}

#[tokio::test]
async fn a_broken_chain_lets_nothing_pass() {
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    let chain = TopicChain::broken(topic.name(), vec![below(3)], "it is broken".into());
    let error = chain
        .run(batch_of(&numbered(1)), None, &topic)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::PluginFailed);
    assert!(error.message.contains("it is broken") && chain.stopped().is_some());
}

#[tokio::test]
async fn batches_handed_over_in_order_come_back_in_order() {
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    let chain = attach(&world, &topic, &[below(200)]).await.unwrap();
    let runs = (0..100u8).map(|n| {
        let batch = batch_of(&[Rec {
            value: Some(vec![n]),
            ..Rec::default()
        }]);
        let (chain, topic) = (Arc::clone(&chain), Arc::clone(&topic));
        async move { chain.run(batch, None, &topic).await.unwrap() }
    });
    let passed = futures_util::future::join_all(runs).await;
    for passed in passed {
        world.commit(passed.appends).await;
    }
    let values = contents(&topic).await.remove(0);
    let values: Vec<u8> = values
        .iter()
        .map(|rec| rec.value.as_deref().unwrap()[0])
        .collect();
    assert_eq!(values, (0..100).collect::<Vec<u8>>());
}

#[tokio::test]
async fn a_partition_that_is_not_there_is_the_producers_mistake() {
    let world = World::new();
    let topic = world.topic("acme/t", 2);
    let chain = attach(&world, &topic, &[below(2)]).await.unwrap();
    let wanted = Some(PartitionId(2));
    let error = chain
        .run(batch_of(&numbered(4)), wanted, &topic)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownPartition);
    assert_eq!(chain.stopped(), None);
}

#[tokio::test]
async fn a_topic_that_nobody_writes_to_takes_no_instance_from_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = PluginsConfig::default();
    config.engine.instances = 1;
    let guests = Guests::start(&config, dir.path(), Clock::fixed(0)).unwrap();
    let world = World::new();
    let mut chains = Vec::new();
    for name in ["acme/a", "acme/b"] {
        let topic = world.topic(name, 1);
        let chain = guests
            .topic_chain(topic.name(), &me(), vec![below(3)], world.directory())
            .await
            .unwrap();
        chains.push((chain, topic));
    }
    let (chain, topic) = &chains[0];
    let passed = chain.run(batch_of(&numbered(5)), None, topic).await;
    assert_eq!(passed.unwrap().dropped, 2);
}

#[tokio::test]
async fn no_plugin_holds_up_the_start_of_the_broker() {
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    let uses = vec![bad(BAD_FILTER, "init-fails", ErrorPolicy::Stop)];
    assert!(attach(&world, &topic, &uses).await.is_err());
    let chain = guests()
        .topic_chain_again(topic.name(), &me(), uses, world.directory())
        .await
        .unwrap();
    let error = chain.run(batch_of(&numbered(1)), None, &topic).await;
    assert_eq!(error.unwrap_err().code, ErrorCode::PluginFailed);
    assert!(chain.stopped().is_some());
}

#[tokio::test]
async fn uploads_are_checked_and_logs_can_be_read() {
    let guests = guests();
    let wasm = Bytes::from_static(SPLIT_ALERTS.wasm);
    let (digest, kind) = guests.inspect_and_compile(wasm).await.unwrap();
    assert_eq!(kind, PluginKind::Transform);
    assert_eq!(
        digest,
        millstream_plugin::inspect(SPLIT_ALERTS.wasm)
            .unwrap()
            .digest
    );
    for (what, bytes) in millstream_guests::NOT_COMPONENTS {
        let error = guests
            .inspect_and_compile(Bytes::from_static(bytes))
            .await
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::UploadRejected, "{what}");
    }
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    let mut flood = bad(BAD_FILTER, "flood-logs", ErrorPolicy::Stop);
    flood.plugin = "logs/bad-filter".parse().unwrap();
    assert_eq!(guests.log(&flood.plugin, 0, 10), []);
    let chain = attach(&world, &topic, &[flood.clone()]).await.unwrap();
    chain
        .run(batch_of(&numbered(1)), None, &topic)
        .await
        .unwrap();
    let lines = guests.log(&flood.plugin, 0, 10);
    assert_eq!(lines.len(), 10);
    assert_eq!(
        (lines[0].version, lines[0].place.as_str()),
        (2, "topic acme/t")
    );
    assert_eq!(
        guests.log(&flood.plugin, lines[9].sequence + 1, 1)[0].sequence,
        10
    );
    guests.forget(&flood.plugin);
    assert_eq!(guests.log(&flood.plugin, 0, 10), []);
}
