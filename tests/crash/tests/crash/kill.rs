//! Killed over and over: what was acknowledged is there once and in order.

use millstream::proto::topic::Durability;
use millstream_crash::drill::{Drill, Outcome, run};

use crate::PROGRAM;

/// Where to kill, unless somebody wants it elsewhere.
const SEED: u64 = 20_260;

fn seed() -> u64 {
    let given = std::env::var("MILLSTREAM_CRASH_SEED").ok();
    given.map_or(SEED, |text| {
        text.parse().expect("MILLSTREAM_CRASH_SEED is a number")
    })
}

/// A drill with everything, nothing of which may be lost.
fn drill() -> Drill {
    Drill {
        seed: seed(),
        cycles: 20,
        acks_apart: 1_000,
        durability: Durability::Fsync,
        chain: false,
        pipeline: true,
        tail: true,
    }
}

async fn show(drill: Drill) -> Outcome {
    println!("MILLSTREAM_CRASH_SEED={} repeats {drill:?}", drill.seed);
    let outcome = run(PROGRAM, drill).await;
    println!("{outcome:?}");
    assert!(outcome.crashes >= drill.cycles);
    assert!(outcome.records.acked > 0);
    outcome
}

#[tokio::test]
async fn what_was_acknowledged_is_there_once_and_pipelines_count_every_record_once() {
    let outcome = show(drill()).await;
    assert_eq!(outcome.records.lost, 0);
    assert!(
        outcome.derived.is_some_and(|made| made.acked > 0),
        "alerts were made"
    );
}

#[tokio::test]
async fn plugins_before_the_topic_see_every_record_once() {
    let drill = Drill {
        chain: true,
        pipeline: false,
        cycles: 8,
        ..drill()
    };
    let outcome = show(drill).await;
    assert_eq!(outcome.records.lost, 0);
    assert!(
        outcome.records.kept_out > 0,
        "the filter had something to do"
    );
}

/// A reader along the way could see a record that a crash takes back, so there is none; a topic
/// whose acknowledgements do not wait for the disk promises order, not presence.
#[tokio::test]
async fn without_a_sync_for_each_commit_a_crash_takes_the_newest_and_no_others() {
    let durability = Durability::Interval;
    // So that some are flushed between two crashes.
    let acks_apart = 20_000;
    let drill = Drill {
        durability,
        acks_apart,
        pipeline: false,
        tail: false,
        cycles: 8,
        ..drill()
    };
    show(drill).await;
}
