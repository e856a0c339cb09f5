#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use bytes::Bytes;
use millstream_proto::message::Digest;
use millstream_proto::pipeline::{ErrorPolicy, PluginKind, PluginUse};
use millstream_proto::topic::{TopicChange, TopicConfig};
use millstream_proto::{ErrorCode, Principal, WireError};
use millstream_store::key::offset::{OffsetKey, OffsetRow};
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{Direction, MemoryStore, ScanLimit, Space, StopCause, WriteBatch};

use super::*;
use crate::gate::Gate;
use crate::guests::TopicChain;
use crate::limits::{DELETE_RETRY, DELETE_STEP_BYTES, MAX_PLUGIN_VERSIONS};
use crate::log::holed::Holed;

fn store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new().unwrap())
}

fn open(store: &Arc<MemoryStore>) -> Catalog {
    Catalog::load(
        Arc::clone(store) as Arc<dyn Store>,
        TailBudget::new(1 << 20),
    )
    .unwrap()
}

fn topic(name: &str) -> TopicName {
    name.parse().unwrap()
}

fn plugin(name: &str) -> PluginName {
    name.parse().unwrap()
}

fn who() -> Principal {
    "spiffe://d/acme/a".parse().unwrap()
}

fn with_partitions(partitions: u32) -> TopicConfig {
    TopicConfig {
        partitions,
        ..TopicConfig::default()
    }
}

fn grown(partitions: u32) -> TopicChange {
    TopicChange {
        partitions: Some(partitions),
        ..TopicChange::default()
    }
}

fn code<T, E: Into<WireError>>(result: Result<T, E>) -> ErrorCode {
    result.map(drop).map_err(Into::into).unwrap_err().code
}

async fn upload(catalog: &Catalog, name: &str, wasm: &'static [u8]) -> u32 {
    let new = NewPlugin {
        plugin: plugin(name),
        kind: PluginKind::Filter,
        digest: Digest([wasm[0]; 32]),
        wasm: Bytes::from_static(wasm),
        by: who(),
        now_ms: 5,
    };
    catalog.add_plugin(new).await.unwrap().version
}

fn unused(_: &PluginName, _: u32) -> Option<String> {
    None
}

#[tokio::test]
async fn topics_survive_a_restart_as_they_were_left() {
    let store = store();
    let catalog = open(&store);
    catalog
        .create_topic(&topic("acme/a"), with_partitions(2))
        .await
        .unwrap();
    catalog
        .create_topic(&topic("acme/b"), with_partitions(1))
        .await
        .unwrap();
    catalog
        .alter_topic(&topic("acme/a"), &grown(3))
        .await
        .unwrap();
    assert_eq!(
        catalog.topic(&topic("acme/a")).unwrap().partitions().len(),
        3
    );
    let again = open(&store);
    assert_eq!(again.topics().len(), 2);
    for catalog in [&catalog, &again] {
        let info = catalog.describe(&topic("acme/a")).unwrap();
        assert_eq!(
            (info.config, info.partitions.len()),
            (with_partitions(3), 3)
        );
    }
}

#[tokio::test]
async fn what_cannot_be_done_to_a_topic_is_refused_by_name() {
    let catalog = open(&store());
    let (a, gone) = (topic("acme/a"), topic("acme/gone"));
    catalog.create_topic(&a, with_partitions(2)).await.unwrap();
    assert_eq!(
        code(catalog.create_topic(&a, with_partitions(2)).await),
        ErrorCode::TopicExists
    );
    let none = catalog.create_topic(&gone, with_partitions(0)).await;
    assert_eq!(code(none), ErrorCode::InvalidConfig);
    let shrink = catalog.alter_topic(&a, &grown(1)).await.unwrap_err();
    assert!(
        shrink
            .to_string()
            .contains("2 partitions and cannot shrink to 1"),
        "{shrink}"
    );
    assert_eq!(
        code(catalog.alter_topic(&gone, &grown(1)).await),
        ErrorCode::UnknownTopic
    );
    assert_eq!(
        code(catalog.delete_topic(&gone).await),
        ErrorCode::UnknownTopic
    );
    assert_eq!(code(catalog.describe(&gone)), ErrorCode::UnknownTopic);
}

#[tokio::test]
async fn a_stopped_store_takes_no_change_and_nothing_is_shown() {
    let store = store();
    let catalog = open(&store);
    store.fail(StopCause::DiskFull {
        file: "f".into(),
        detail: "d".into(),
    });
    let created = catalog
        .create_topic(&topic("acme/a"), with_partitions(1))
        .await;
    assert_eq!(code(created), ErrorCode::StorageStopped);
    assert!(catalog.topic(&topic("acme/a")).is_none());
}

#[tokio::test]
async fn names_are_listed_by_page() {
    let catalog = open(&store());
    for name in ["acme/a", "acme/b", "acme/c", "zeta/a"] {
        catalog
            .create_topic(&topic(name), with_partitions(1))
            .await
            .unwrap();
    }
    let names = |after: Option<&str>, count| {
        let after = after.map(topic);
        let page = catalog.topic_names(after.as_ref(), count, |n| n.tenant_str() == "acme");
        page.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(None, 2), ["acme/a", "acme/b"]);
    assert_eq!(names(Some("acme/b"), 2), ["acme/c"]);
    assert!(names(Some("acme/c"), 2).is_empty());
}

/// Rows of a topic in a space.
fn rows(store: &dyn Store, space: Space, topic: u32) -> usize {
    let range = record::range_topic(topic);
    let range = &range.start[..]..&range.end[..];
    let snapshot = store.snapshot().unwrap();
    let limit = ScanLimit::rows(usize::MAX);
    snapshot
        .scan(space, range, Direction::Forward, limit)
        .unwrap()
        .rows
        .len()
}

/// As many values as records, each a third of a step; no batches, so the topic cannot be opened.
async fn fill(store: &dyn Store, topic: u32, records: u64) {
    let mut batch = WriteBatch::new();
    let value = Bytes::from(vec![0; DELETE_STEP_BYTES / 3]);
    for base_offset in 0..records {
        let key = RecordKey {
            topic,
            partition: base_offset as u32 % 2,
            base_offset,
        };
        batch.put(Space::Records, key.encode(), value.clone());
    }
    let key = OffsetKey {
        topic,
        partition: 0,
        consumer: b"c",
    };
    batch.put(Space::Offsets, key.encode(), OffsetRow::default().encode());
    store.commit(batch).await.unwrap();
}

/// Runs the sweeper until nothing is doomed.
async fn swept(catalog: &Catalog) {
    let gate = Gate::default();
    let done = async {
        while !catalog.view().doomed.is_empty() {
            tokio::task::yield_now().await;
        }
        gate.close();
    };
    tokio::join!(catalog.sweep(&gate), done);
}

#[tokio::test]
async fn a_deleted_topic_is_gone_at_once_and_its_rows_soon() {
    let store = store();
    let catalog = open(&store);
    let (a, b) = (topic("acme/a"), topic("acme/b"));
    let old = catalog.create_topic(&a, with_partitions(2)).await.unwrap();
    let kept = catalog.create_topic(&b, with_partitions(2)).await.unwrap();
    fill(&*store, old.id(), 10).await;
    fill(&*store, kept.id(), 0).await;
    catalog.delete_topic(&a).await.unwrap();
    assert!(catalog.topic(&a).is_none() && old.is_deleted());
    let old = old.id();
    let new = catalog.create_topic(&a, with_partitions(1)).await.unwrap();
    assert_ne!(new.id(), old);

    // A restart before the rows are gone, then one after.
    let catalog = open(&store);
    assert_eq!(rows(&*store, Space::Records, old), 10);
    swept(&catalog).await;
    for space in [Space::Records, Space::Offsets] {
        assert_eq!(rows(&*store, space, old), 0, "{space}");
    }
    assert_eq!(rows(&*store, Space::Offsets, kept.id()), 1);
    let catalog = open(&store);
    assert!(catalog.view().doomed.is_empty());
    let next = catalog
        .create_topic(&topic("acme/c"), with_partitions(1))
        .await
        .unwrap();
    assert!(next.id() > new.id());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_topic_that_cannot_be_read_keeps_no_other_waiting() {
    let holed = Holed::new();
    let store = Arc::clone(&holed) as Arc<dyn Store>;
    let catalog = Catalog::load(Arc::clone(&store), TailBudget::new(1 << 20)).unwrap();
    let mut ids = Vec::new();
    for name in ["acme/a", "acme/b"].map(topic) {
        let created = catalog.create_topic(&name, with_partitions(2)).await;
        ids.push(created.unwrap().id());
        fill(&*store, *ids.last().unwrap(), 2).await;
        catalog.delete_topic(&name).await.unwrap();
    }
    holed.hole(record::range_topic(ids[0]));
    let gate = Gate::default();
    let left = || catalog.view().doomed.keys().copied().collect::<Vec<_>>();
    let watching = async {
        while left() != [ids[0]] {
            tokio::task::yield_now().await;
        }
        assert_eq!(rows(&*store, Space::Records, ids[1]), 0);
        holed.mend();
        // The clock stands still but for this: the sweeper has to come back by itself.
        while !left().is_empty() {
            tokio::time::advance(DELETE_RETRY).await;
        }
        assert_eq!(rows(&*store, Space::Records, ids[0]), 0);
    };
    tokio::select! {
        () = catalog.sweep(&gate) => panic!("the sweeper has given up"),
        () = watching => {}
    }
}

#[tokio::test]
async fn a_deleted_topic_is_not_forgotten_while_somebody_may_write_to_it() {
    let store = store();
    let catalog = open(&store);
    let a = topic("acme/a");
    let held = catalog.create_topic(&a, with_partitions(1)).await.unwrap();
    fill(&*store, held.id(), 4).await;
    catalog.delete_topic(&a).await.unwrap();
    let gate = Gate::default();
    let late = async {
        while rows(&*store, Space::Records, held.id()) > 0 {
            tokio::task::yield_now().await;
        }
        fill(&*store, held.id(), 2).await;
        gate.close();
    };
    tokio::join!(catalog.sweep(&gate), late);
    assert_eq!(catalog.view().doomed.len(), 1);
    let id = held.id();
    drop(held);
    swept(&catalog).await;
    assert_eq!(rows(&*store, Space::Records, id), 0);
}

#[tokio::test]
async fn versions_count_up_and_a_number_never_means_two_things() {
    let store = store();
    let catalog = open(&store);
    assert_eq!(upload(&catalog, "acme/p", b"1").await, 1);
    assert_eq!(upload(&catalog, "acme/p", b"2").await, 2);
    assert_eq!(upload(&catalog, "acme/p", b"1").await, 1);
    assert_eq!(upload(&catalog, "acme/q", b"1").await, 1);
    catalog
        .delete_plugin(&plugin("acme/p"), None, unused)
        .await
        .unwrap();
    assert_eq!(
        code(catalog.find_plugin(&plugin("acme/p"), None)),
        ErrorCode::UnknownPlugin
    );
    // The bytes are another plugin's too.
    assert!(catalog.plugin_bytes(Digest([b'1'; 32])).is_ok());
    assert_eq!(
        code(catalog.plugin_bytes(Digest([b'2'; 32]))),
        ErrorCode::UnknownPlugin
    );
    let catalog = open(&store);
    assert_eq!(upload(&catalog, "acme/p", b"3").await, 3);
    let e = catalog
        .find_plugin(&plugin("acme/p"), Some(2))
        .unwrap_err()
        .to_string();
    assert!(e.contains("no version 2; it has 3"), "{e}");
    assert_eq!(catalog.plugin(&plugin("acme/p"), None).unwrap().version, 3);
    catalog
        .delete_plugin(&plugin("acme/q"), Some(1), unused)
        .await
        .unwrap();
    assert!(catalog.plugin_bytes(Digest([b'1'; 32])).is_err());
}

#[tokio::test]
async fn a_plugin_in_use_stays() {
    let catalog = open(&store());
    upload(&catalog, "acme/p", b"1").await;
    let used = |_: &PluginName, version| Some(format!("pipeline acme/x at {version}"));
    let e = catalog
        .delete_plugin(&plugin("acme/p"), None, used)
        .await
        .unwrap_err();
    assert!(
        e.to_string().contains("in use by pipeline acme/x at 1"),
        "{e}"
    );
    assert_eq!(WireError::from(e).code, ErrorCode::PluginInUse);
    assert!(catalog.plugin(&plugin("acme/p"), Some(1)).is_some());
}

#[tokio::test]
async fn a_page_of_plugins_has_all_versions_of_each() {
    let catalog = open(&store());
    for (name, wasm) in [
        ("acme/a", b"1"),
        ("acme/a", b"2"),
        ("acme/b", b"3"),
        ("acme/c", b"4"),
    ] {
        upload(&catalog, name, wasm).await;
    }
    let page = |after: Option<&str>, count| {
        let after = after.map(plugin);
        let page = catalog.plugin_versions(after.as_ref(), count, |n| n.local() != "b");
        page.iter()
            .map(|v| format!("{} {}", v.plugin.local(), v.version))
            .collect::<Vec<_>>()
    };
    assert_eq!(page(None, 1), ["a 1", "a 2"]);
    assert_eq!(page(None, 3), ["a 1", "a 2", "c 1"]);
    assert_eq!(page(Some("acme/a"), 3), ["c 1"]);
    assert!(page(Some("acme/c"), 3).is_empty());
}

#[tokio::test]
async fn versions_have_a_limit() {
    let catalog = open(&store());
    upload(&catalog, "acme/p", b"1").await;
    let version = catalog.plugin(&plugin("acme/p"), None).unwrap();
    {
        let mut view = catalog.show();
        let all = &mut view.plugins.get_mut(&plugin("acme/p")).unwrap().all;
        all.extend((2..=MAX_PLUGIN_VERSIONS as u32).map(|number| (number, version.clone())));
    }
    let new = NewPlugin {
        plugin: plugin("acme/p"),
        kind: PluginKind::Filter,
        digest: Digest([9; 32]),
        wasm: Bytes::from_static(b"x"),
        by: who(),
        now_ms: 0,
    };
    assert_eq!(
        code(catalog.add_plugin(new).await),
        ErrorCode::InvalidConfig
    );
}

async fn does_not_start(_: Vec<PluginUse>) -> Result<Arc<TopicChain>, WireError> {
    Err(WireError::new(ErrorCode::PluginFailed, "init says no"))
}

#[tokio::test]
async fn what_cannot_be_attached_is_refused_and_the_topic_stays_as_it_was() {
    let catalog = open(&store());
    let a = topic("acme/a");
    catalog.create_topic(&a, with_partitions(1)).await.unwrap();
    let attach = async |name: &TopicName, u: PluginUse| {
        code(catalog.attach(name, u, &who(), does_not_start).await)
    };
    let p = PluginUse::new(plugin("acme/p"));
    assert_eq!(attach(&a, p.clone()).await, ErrorCode::UnknownPlugin);
    upload(&catalog, "acme/p", b"1").await;
    assert_eq!(
        attach(&topic("acme/none"), p.clone()).await,
        ErrorCode::UnknownTopic
    );
    let other = PluginUse {
        version: Some(7),
        ..p.clone()
    };
    assert_eq!(attach(&a, other).await, ErrorCode::UnknownPlugin);
    let to_itself = PluginUse {
        on_error: ErrorPolicy::DeadLetter(a.clone()),
        ..p.clone()
    };
    assert_eq!(attach(&a, to_itself).await, ErrorCode::AttachInvalid);
    assert_eq!(attach(&a, p.clone()).await, ErrorCode::PluginFailed);
    let detached = catalog.detach(&a, &p.plugin, &who(), does_not_start).await;
    assert_eq!(code(detached), ErrorCode::AttachInvalid);
    assert_eq!(catalog.describe(&a).unwrap().chain, []);
    assert!(catalog.attached().is_empty());
}
