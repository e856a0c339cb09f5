//! Steps over batches of every shape, and over more records than one call is given.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::sync::{Arc, LazyLock};

use millstream_guests::{BAD_FILTER, BAD_PARTITIONER, BAD_TRANSFORM, FILTER_FIELD, Guest};
use millstream_proto::pipeline::ErrorPolicy;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::guests::TopicChain;
use crate::guests::fixture::{Rec, World, batch_of, contents, dead_letter, guests, me, using};
use crate::limits::CALL_RECORDS;
use crate::log::Topic;

/// A world with topic `acme/t`, its dead letters, and a plugin attached.
struct Attached {
    world: Arc<World>,
    topic: Arc<Topic>,
    dead: Arc<Topic>,
    chain: Arc<TopicChain>,
}

impl Attached {
    async fn new(guest: Guest, config: &[(&str, &str)], on_error: ErrorPolicy) -> Self {
        let world = World::new();
        let (topic, dead) = (world.topic("acme/t", 1), world.topic("acme/dead", 1));
        let uses = vec![using(guest, config, on_error)];
        let directory = world.directory();
        let chain = guests()
            .topic_chain(topic.name(), &me(), uses, directory)
            .await
            .unwrap();
        Self {
            world,
            topic,
            dead,
            chain,
        }
    }

    /// What arrives in the topic and in the dead letters, and how many are told to be dropped.
    async fn pass(&self, records: &[Rec]) -> (Vec<Rec>, Vec<Rec>, usize) {
        let passed = self
            .chain
            .run(batch_of(records), None, &self.topic)
            .await
            .unwrap();
        let dropped = passed.dropped as usize;
        self.world.commit(passed.appends).await;
        let (got, dead) = (contents(&self.topic).await, contents(&self.dead).await);
        (got.concat(), dead.concat(), dropped)
    }
}

fn rec() -> impl Strategy<Value = Rec> {
    let bytes = || vec(any::<u8>(), 0..30);
    let headers = vec(("[a-z]{1,4}", bytes()), 0..3);
    let optional = || proptest::option::of(bytes());
    (optional(), optional(), headers, any::<i16>()).prop_map(|(key, value, headers, timestamp)| {
        Rec {
            key,
            value,
            headers,
            timestamp: timestamp.into(),
            offset: 0,
        }
    })
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_transform_that_keeps_everything_changes_nothing(recs in vec(rec(), 1..60)) {
        let (got, dead, dropped) = RUNTIME.block_on(async {
            let attached = Attached::new(BAD_TRANSFORM, &[], ErrorPolicy::Stop).await;
            attached.pass(&recs).await
        });
        let expected: Vec<_> =
            (0..).zip(&recs).map(|(offset, rec)| Rec { offset, ..rec.clone() }).collect();
        prop_assert_eq!((got, dead, dropped), (expected, vec![], 0));
    }

    #[test]
    fn a_filter_is_the_same_as_filtering(recs in vec(rec(), 1..60), bound: u8) {
        let text = bound.to_string();
        let config = [("type", "u8"), ("op", "<="), ("value", text.as_str())];
        let (got, _, dropped) = RUNTIME.block_on(async {
            let attached = Attached::new(FILTER_FIELD, &config, ErrorPolicy::Stop).await;
            attached.pass(&recs).await
        });
        let low = |rec: &&Rec| {
            rec.value.as_deref().and_then(<[u8]>::first).is_some_and(|&first| first <= bound)
        };
        let kept = recs.iter().filter(low);
        let expected: Vec<_> =
            (0..).zip(kept).map(|(offset, rec)| Rec { offset, ..rec.clone() }).collect();
        prop_assert_eq!(dropped, recs.len() - expected.len());
        prop_assert_eq!(got, expected);
    }
}

/// More than two calls of records, with poison in the second one.
fn three_calls() -> (Vec<Rec>, usize) {
    let numbered = |n: usize| Rec::new("k", &format!("{n:08}"));
    let mut records: Vec<_> = (0..2 * CALL_RECORDS + 10).map(numbered).collect();
    let poisoned = CALL_RECORDS + 5;
    records[poisoned].value = Some(b"poison".to_vec());
    (records, poisoned)
}

#[tokio::test]
async fn a_failed_call_costs_the_records_of_that_call_only() {
    for guest in [BAD_FILTER, BAD_TRANSFORM, BAD_PARTITIONER] {
        let config = [("mode", "trap-on-poison")];
        let attached = Attached::new(guest, &config, dead_letter("acme/dead")).await;
        let (records, _) = three_calls();
        let (got, dead, dropped) = attached.pass(&records).await;
        let texts = |records: &[Rec]| records.iter().map(Rec::value_text).collect::<Vec<_>>();
        let call = CALL_RECORDS..2 * CALL_RECORDS;
        assert_eq!(texts(&dead), texts(&records[call.clone()]), "{guest:?}");
        let others = [&records[..call.start], &records[call.end..]].concat();
        assert_eq!(texts(&got), texts(&others), "{guest:?}");
        assert_eq!(dropped, CALL_RECORDS);
    }
}

#[tokio::test]
async fn a_bad_record_costs_itself_only() {
    for guest in [BAD_FILTER, BAD_TRANSFORM, BAD_PARTITIONER] {
        let config = [("mode", "bad-record-on-poison")];
        let attached = Attached::new(guest, &config, dead_letter("acme/dead")).await;
        let (mut records, poisoned) = three_calls();
        let (got, dead, dropped) = attached.pass(&records).await;
        assert_eq!((dead.len(), dropped), (1, 1), "{guest:?}");
        assert_eq!(dead[0].value_text(), "poison");
        records.remove(poisoned);
        let texts = |records: &[Rec]| records.iter().map(Rec::value_text).collect::<Vec<_>>();
        assert_eq!(texts(&got), texts(&records), "{guest:?}");
    }
}

#[tokio::test]
async fn nonsense_is_answered_by_the_policy_and_never_stored() {
    let acts = [
        (BAD_FILTER, &millstream_guests::acts::FILTER[..]),
        (BAD_TRANSFORM, &millstream_guests::acts::TRANSFORM[..]),
        (BAD_PARTITIONER, &millstream_guests::acts::PARTITIONER[..]),
    ];
    for (guest, modes) in acts {
        for mode in modes
            .iter()
            .chain(&["trap", "recurse", "eat-memory", "panic"])
        {
            let attached = Attached::new(guest, &[("mode", mode)], dead_letter("acme/dead")).await;
            let records = [Rec::new("k", "a"), Rec::new("k", "b")];
            let (got, dead, dropped) = attached.pass(&records).await;
            assert_eq!(
                (got.len(), dead.len(), dropped),
                (0, 2, 2),
                "{guest:?} {mode}"
            );
        }
    }
}
