#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::sync::Arc;

use millstream_guests::{FILTER_FIELD, Guest, ROUTE_BY_REGION};
use millstream_proto::acl::{AclRule, Effect, Operation, ResourceKind};
use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
use millstream_proto::frame::Assembler;
use millstream_proto::limits::{MAX_BATCH_BYTES, MAX_MESSAGE_BYTES};
use millstream_proto::message::LogLine;
use millstream_proto::pipeline::{ErrorPolicy, PluginUse};
use millstream_proto::topic::{StartAt, TopicChange, TopicConfig, TopicInfo};
use millstream_proto::{Codec, Offset, PartitionId, PluginName, TopicName};
use millstream_store::{Space, WriteBatch};

use super::*;
use crate::broker::{Broker, Running};
use crate::catalog::NewPlugin;
use crate::clock::Clock;
use crate::config::Config;
use crate::log::{Append, append, note_ends};
use crate::tls::tests::{Dir, good};

mod consumers;
mod rights;

fn line(sequence: u64, len: usize) -> LogLine {
    LogLine {
        sequence,
        time_ms: 0,
        level: "info".into(),
        place: String::new(),
        version: 1,
        message: "x".repeat(len),
    }
}

fn read(frame: Bytes) -> Frame {
    Assembler::default()
        .feed(&mut frame.clone())
        .unwrap()
        .unwrap()
}

#[test]
fn a_page_fits_one_message_and_is_never_empty() {
    let all = page((0..100).map(|n| line(n, MAX_MESSAGE_BYTES / 10)));
    assert!(!all.is_empty() && all.len() < 11, "{} lines", all.len());
    let frame = read(to_frame(&Counters::default(), 3, Ok(Response::Log(all))));
    assert_eq!((frame.kind, frame.tag), (FrameKind::Response, 3));
    assert_eq!(page([line(0, MAX_MESSAGE_BYTES)]).len(), 1);
    assert_eq!(page((0..50).map(|n| line(n, 1))).len(), 50);
    assert_eq!(page(Vec::<LogLine>::new()).len(), 0);
}

#[test]
fn an_answer_that_fits_no_frame_becomes_an_error() {
    let frame = read(to_frame(
        &Counters::default(),
        7,
        Ok(Response::Log(vec![line(0, MAX_MESSAGE_BYTES)])),
    ));
    assert_eq!((frame.kind, frame.tag), (FrameKind::Error, 7));
    assert_eq!(
        frame.message::<WireError>().unwrap().code,
        ErrorCode::FrameTooLarge
    );
}

pub(crate) const ADMIN: &str = "spiffe://d/ops/admin";
pub(crate) const STRANGER: &str = "spiffe://d/acme/stranger";

pub(crate) async fn start(dir: &Dir) -> Running {
    let listen = "127.0.0.1:0".parse().unwrap();
    let mut config = Config::new(listen, dir.dir.path().join("data"), dir.files.clone());
    config.admins = vec![ADMIN.parse().unwrap()];
    Broker::start(config, Clock::fixed(1_000)).await.unwrap()
}

pub(crate) fn peer(running: &Running, who: &str) -> Peer {
    Peer {
        broker: Arc::clone(running.broker()),
        principal: who.parse().unwrap(),
    }
}

async fn ask(peer: &Peer, request: Request) -> Result<Response, WireError> {
    match at_once(peer, request) {
        Ok(answer) => answer,
        Err(request) => later(peer.clone(), request).await,
    }
}

async fn refused(peer: &Peer, request: Request) -> ErrorCode {
    ask(peer, request).await.unwrap_err().code
}

async fn topic_info(peer: &Peer, request: Request) -> TopicInfo {
    match ask(peer, request).await.unwrap() {
        Response::Topic(info) => info,
        other => panic!("{other:?}"),
    }
}

fn topic(name: &str) -> TopicName {
    name.parse().unwrap()
}

fn plugin(name: &str) -> PluginName {
    name.parse().unwrap()
}

fn create(name: &str, partitions: u32) -> Request {
    let config = TopicConfig {
        partitions,
        ..TopicConfig::default()
    };
    Request::CreateTopic {
        topic: topic(name),
        config,
    }
}

fn list(after: Option<&str>) -> Request {
    Request::ListTopics {
        tenant: Some("acme".parse().unwrap()),
        after: after.map(topic),
    }
}

fn rule(who: &str, operations: &[Operation], resource: ResourceKind, name: &str) -> AclRule {
    AclRule {
        principal: who.parse().unwrap(),
        resource,
        name: name.parse().unwrap(),
        operations: operations.to_vec(),
        effect: Effect::Allow,
    }
}

/// Stores an example plugin as an upload would.
async fn store_plugin(peer: &Peer, name: &str, guest: Guest) -> u32 {
    let wasm = Bytes::from_static(guest.wasm);
    let (digest, kind) = peer
        .broker
        .guests
        .inspect_and_compile(wasm.clone())
        .await
        .unwrap();
    let by = peer.principal.clone();
    let new = NewPlugin {
        plugin: plugin(name),
        kind,
        digest,
        wasm,
        by,
        now_ms: 1,
    };
    peer.broker.catalog.add_plugin(new).await.unwrap().version
}

fn filter() -> PluginUse {
    let mut filter = PluginUse::new(plugin("acme/filter"));
    let config = [("type", "u8"), ("op", "<"), ("value", "9")];
    filter.config = config.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    filter
}

fn attach(plugin: PluginUse) -> Request {
    Request::Attach {
        topic: topic("acme/a"),
        plugin,
    }
}

#[tokio::test]
async fn topics_are_made_altered_listed_and_deleted() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    assert_eq!(
        topic_info(&admin, create("acme/a", 2))
            .await
            .partitions
            .len(),
        2
    );
    topic_info(&admin, create("acme/b", 1)).await;
    topic_info(&admin, create("zeta/a", 1)).await;
    assert_eq!(
        refused(&admin, create("acme/a", 2)).await,
        ErrorCode::TopicExists
    );
    let change = TopicChange {
        partitions: Some(3),
        ..TopicChange::default()
    };
    let altered = Request::AlterTopic {
        topic: topic("acme/a"),
        change,
    };
    assert_eq!(topic_info(&admin, altered).await.partitions.len(), 3);
    let both = Response::Topics(vec![topic("acme/a"), topic("acme/b")]);
    assert_eq!(ask(&admin, list(None)).await, Ok(both));
    let rest = Response::Topics(vec![topic("acme/b")]);
    assert_eq!(ask(&admin, list(Some("acme/a"))).await, Ok(rest));
    let delete = Request::DeleteTopic {
        topic: topic("acme/a"),
    };
    assert_eq!(ask(&admin, delete.clone()).await, Ok(Response::Done));
    assert_eq!(refused(&admin, delete).await, ErrorCode::UnknownTopic);
    running.shutdown().await;
}

async fn produce(peer: &Peer, name: &str, timestamps: &[i64]) {
    let mut builder = BatchBuilder::new(MAX_BATCH_BYTES);
    for &timestamp in timestamps {
        let record = NewRecord {
            key: None,
            value: Some(b"v"),
            headers: &[],
            timestamp,
        };
        builder.push(&record).unwrap();
    }
    let batch = builder.build(Codec::None, Stamp::default()).unwrap();
    let topic = peer.broker.catalog.topic(&topic(name)).unwrap();
    let appends = vec![Append::to(&topic, PartitionId(0), batch).unwrap()];
    append(&peer.broker.store, appends, WriteBatch::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn offsets_are_committed_within_the_log_and_found() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    topic_info(&admin, create("acme/a", 2)).await;
    produce(&admin, "acme/a", &[10, 11]).await;
    produce(&admin, "acme/a", &[20]).await;
    let commit = |partition, offset| Request::CommitOffsets {
        topic: topic("acme/a"),
        consumer: "c".parse().unwrap(),
        offsets: vec![(PartitionId(partition), Offset(offset))],
    };
    assert_eq!(ask(&admin, commit(0, 2)).await, Ok(Response::Done));
    assert_eq!(
        refused(&admin, commit(0, 4)).await,
        ErrorCode::OffsetOutOfRange
    );
    assert_eq!(
        refused(&admin, commit(2, 0)).await,
        ErrorCode::UnknownPartition
    );
    let fetch = |consumer: &str| Request::FetchOffsets {
        topic: topic("acme/a"),
        consumer: consumer.parse().unwrap(),
    };
    let offsets = |offsets: &[(u32, u64)]| {
        let pairs = offsets.iter().map(|&(p, o)| (PartitionId(p), Offset(o)));
        Ok(Response::Offsets(pairs.collect()))
    };
    assert_eq!(ask(&admin, fetch("c")).await, offsets(&[(0, 2)]));
    assert_eq!(ask(&admin, fetch("d")).await, offsets(&[]));
    let find = |at| Request::FindOffsets {
        topic: topic("acme/a"),
        at,
    };
    assert_eq!(
        ask(&admin, find(StartAt::Latest)).await,
        offsets(&[(0, 3), (1, 0)])
    );
    assert_eq!(
        ask(&admin, find(StartAt::Timestamp(15))).await,
        offsets(&[(0, 2), (1, 0)])
    );
    let beyond = find(StartAt::Offset(Offset(9)));
    assert_eq!(refused(&admin, beyond).await, ErrorCode::OffsetOutOfRange);
    running.shutdown().await;

    let running = start(&dir).await;
    assert_eq!(
        ask(&peer(&running, ADMIN), fetch("c")).await,
        offsets(&[(0, 2)])
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_writes_down_where_partitions_end() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    topic_info(&admin, create("acme/a", 2)).await;
    produce(&admin, "acme/a", &[10, 11]).await;
    drop(admin);
    running.shutdown().await;
    let running = start(&dir).await;
    let kept = running.broker().catalog.topic(&topic("acme/a")).unwrap();
    assert_eq!(kept.partitions()[0].end(), Offset(2));
    assert_eq!(note_ends(&kept).await.unwrap(), 0, "nothing had to be read");
    running.shutdown().await;
}

#[tokio::test]
async fn chains_are_attached_in_order_and_come_back_after_a_restart() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    topic_info(&admin, create("acme/a", 2)).await;
    assert_eq!(
        refused(&admin, attach(filter())).await,
        ErrorCode::UnknownPlugin
    );
    store_plugin(&admin, "acme/route", ROUTE_BY_REGION).await;
    store_plugin(&admin, "acme/filter", FILTER_FIELD).await;
    topic_info(&admin, attach(PluginUse::new(plugin("acme/route")))).await;
    let info = topic_info(&admin, attach(filter())).await;
    let chain: Vec<_> = info
        .chain
        .iter()
        .map(|u| (u.plugin.local(), u.version))
        .collect();
    assert_eq!(chain, [("filter", Some(1)), ("route", Some(1))]);

    let unknown_dead = ErrorPolicy::DeadLetter(topic("acme/nowhere"));
    let unknown_dead = attach(PluginUse {
        on_error: unknown_dead,
        ..filter()
    });
    assert_eq!(refused(&admin, unknown_dead).await, ErrorCode::UnknownTopic);
    let delete = Request::DeletePlugin {
        plugin: plugin("acme/route"),
        version: None,
    };
    assert_eq!(
        refused(&admin, delete.clone()).await,
        ErrorCode::PluginInUse
    );
    running.shutdown().await;

    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    let describe = Request::DescribeTopic {
        topic: topic("acme/a"),
    };
    let again = topic_info(&admin, describe).await;
    assert_eq!((again.chain, again.stopped), (info.chain, None));
    assert!(
        admin
            .broker
            .catalog
            .topic(&topic("acme/a"))
            .unwrap()
            .chain()
            .unwrap()
            .routes()
    );
    let detach = Request::Detach {
        topic: topic("acme/a"),
        plugin: plugin("acme/route"),
    };
    assert_eq!(topic_info(&admin, detach).await.chain.len(), 1);
    assert_eq!(ask(&admin, delete).await, Ok(Response::Done));
    running.shutdown().await;
}

#[tokio::test]
async fn a_chain_that_does_not_start_with_the_broker_lets_nothing_pass() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    topic_info(&admin, create("acme/a", 1)).await;
    topic_info(&admin, create("acme/b", 1)).await;
    store_plugin(&admin, "acme/filter", FILTER_FIELD).await;
    topic_info(&admin, attach(filter())).await;
    let digest = admin
        .broker
        .catalog
        .plugin(&plugin("acme/filter"), None)
        .unwrap()
        .digest;
    let mut batch = WriteBatch::new();
    batch.delete(Space::Blobs, digest.0);
    admin.broker.store.commit(batch).await.unwrap();
    running.shutdown().await;

    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    let describe = |name| Request::DescribeTopic { topic: topic(name) };
    let info = topic_info(&admin, describe("acme/a")).await;
    assert!(
        info.stopped.unwrap().contains("not in the store"),
        "{:?}",
        info.chain
    );
    assert_eq!(topic_info(&admin, describe("acme/b")).await.stopped, None);
    // What was uploaded is mended by uploading and attaching it again.
    let detach = Request::Detach {
        topic: topic("acme/a"),
        plugin: plugin("acme/filter"),
    };
    assert_eq!(topic_info(&admin, detach).await.stopped, None);
    running.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_refuses_to_start_is_refused_at_attach() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    topic_info(&admin, create("acme/a", 1)).await;
    store_plugin(&admin, "acme/filter", FILTER_FIELD).await;
    let without_config = PluginUse {
        config: [].into(),
        ..filter()
    };
    let e = ask(&admin, attach(without_config)).await.unwrap_err();
    assert!(e.message.contains("acme/filter"), "{e}");
    let describe = Request::DescribeTopic {
        topic: topic("acme/a"),
    };
    assert_eq!(topic_info(&admin, describe).await.chain, []);
    running.shutdown().await;
}

#[tokio::test]
async fn the_status_is_for_admins() {
    let dir = good();
    let running = start(&dir).await;
    topic_info(&peer(&running, ADMIN), create("acme/a", 1)).await;
    match ask(&peer(&running, ADMIN), Request::Status).await.unwrap() {
        Response::Status(status) => {
            assert_eq!(
                (status.topics, status.shards.len(), status.uptime_s),
                (1, 1, 0)
            );
            assert!(status.shards[0].stopped.is_none() && status.shards[0].commits > 0);
        }
        other => panic!("{other:?}"),
    }
    running.shutdown().await;
}
