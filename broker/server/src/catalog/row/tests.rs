#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use millstream_proto::acl::{Effect, Operation, ResourceKind};
use millstream_proto::pipeline::{ErrorPolicy, PluginKind};
use millstream_store::{MemoryStore, Store};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9._-]{0,6}/[a-z0-9][a-z0-9._-]{0,6}"
}

fn principal() -> Principal {
    "spiffe://d/acme/a".parse().unwrap()
}

fn topic(id: u32, name: &str, config: BTreeMap<String, String>) -> TopicRow {
    let dead = ErrorPolicy::DeadLetter("acme/dead".parse().unwrap());
    let mut plugin = PluginUse::new("acme/p".parse().unwrap());
    plugin.config = config;
    plugin.on_error = dead;
    TopicRow {
        id,
        name: name.parse().unwrap(),
        config: TopicConfig {
            partitions: id,
            ..TopicConfig::default()
        },
        chain: vec![plugin],
        chain_owner: Some(principal()),
    }
}

fn plugin(name: &str, version: u32, size: u64) -> PluginRow {
    PluginRow(PluginVersion {
        plugin: name.parse().unwrap(),
        version,
        kind: PluginKind::Filter,
        digest: Digest([7; 32]),
        size,
        uploaded_ms: 3,
        uploaded_by: principal(),
    })
}

fn rule(who: &str, name: &str) -> RuleRow {
    RuleRow(AclRule {
        principal: who.parse().unwrap(),
        resource: ResourceKind::Topic,
        name: name.parse().unwrap(),
        operations: vec![Operation::Produce],
        effect: Effect::Allow,
    })
}

fn check<R: Row + PartialEq + Debug>(row: &R) {
    assert_eq!(R::decode(&row.encode()).as_ref(), Ok(row));
    assert_eq!(row.key()[0], R::TAG);
    let bytes = row.encode();
    for cut in 0..bytes.len() {
        assert!(
            R::decode(&bytes[..cut]).is_err(),
            "cut at {cut} of {}",
            bytes.len()
        );
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(R::decode(&longer), Err(RowError::Content { .. })));
    let mut newer = bytes.to_vec();
    newer[0] = VERSION + 1;
    assert_eq!(
        R::decode(&newer),
        Err(RowError::Version {
            what: R::WHAT,
            found: VERSION + 1
        })
    );
}

#[test]
fn no_two_kinds_share_a_tag() {
    let tags = [
        NextTopicRow::TAG,
        TopicRow::TAG,
        DoomedRow::TAG,
        PluginRow::TAG,
        NextVersionRow::TAG,
        RuleRow::TAG,
    ];
    assert_eq!(tags.iter().collect::<HashSet<_>>().len(), tags.len());
}

proptest! {
    #[test]
    fn rows_round_trip(
        id: u32,
        size: u64,
        name in name(),
        config in btree_map("[a-z]{0,4}", ".{0,6}", 0..3),
        who in "[a-z]{1,9}",
    ) {
        check(&NextTopicRow { next: id });
        check(&topic(id, &name, config));
        check(&DoomedRow { id, name: name.parse().unwrap() });
        check(&plugin(&name, id, size));
        check(&NextVersionRow { plugin: name.parse().unwrap(), next: id });
        check(&rule(&who, &name));
    }

    #[test]
    fn versions_of_a_plugin_sort_together(a in name(), b in name(), va: u32, vb: u32) {
        let (row_a, row_b) = (plugin(&a, va, 0), plugin(&b, vb, 0));
        prop_assert_eq!(row_a.key().cmp(&row_b.key()), (a, va).cmp(&(b, vb)));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let bytes = [&[VERSION], &bytes[..]].concat();
        let _ = (TopicRow::decode(&bytes), PluginRow::decode(&bytes), RuleRow::decode(&bytes));
        let _ = (DoomedRow::decode(&bytes), NextVersionRow::decode(&bytes));
    }
}

#[tokio::test]
async fn all_rows_of_a_kind_come_back_and_no_others() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new().unwrap());
    let mut batch = WriteBatch::new();
    let count = SCAN_ROWS as u32 * 2 + 1;
    for id in 0..count {
        DoomedRow {
            id,
            name: "acme/t".parse().unwrap(),
        }
        .put(&mut batch);
    }
    NextTopicRow { next: 9 }.put(&mut batch);
    rule("a", "b").put(&mut batch);
    store.commit(batch).await.unwrap();
    let snapshot = store.snapshot().unwrap();
    let ids: Vec<u32> = all::<DoomedRow>(&*snapshot)
        .unwrap()
        .iter()
        .map(|row| row.id)
        .collect();
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
    assert_eq!(
        all::<NextTopicRow>(&*snapshot).unwrap(),
        [NextTopicRow { next: 9 }]
    );
    assert_eq!(all::<TopicRow>(&*snapshot).unwrap(), []);
}

#[tokio::test]
async fn a_row_at_the_key_of_another_is_noticed() {
    let store = MemoryStore::new().unwrap();
    let mut batch = WriteBatch::new();
    let here = DoomedRow {
        id: 1,
        name: "acme/t".parse().unwrap(),
    };
    let there = DoomedRow {
        id: 2,
        ..here.clone()
    };
    batch.put(Space::Catalog, here.key(), there.encode());
    store.commit(batch).await.unwrap();
    let e = all::<DoomedRow>(&*store.snapshot().unwrap()).unwrap_err();
    assert!(
        matches!(e, CatalogError::Row(RowError::Misplaced { .. })),
        "{e}"
    );
}
