//! Ended over and over: what was acknowledged is there once and in order.

use millstream::proto::topic::Durability;
use millstream_crash::drill::{Drill, End, Outcome, run};

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
        end: End::Killed,
        cycles: 20,
        acks_apart: 1_000,
        durability: Durability::Fsync,
        chain: false,
        pipeline: true,
        readers: true,
        sealing: false,
    }
}

async fn show(drill: Drill) -> Outcome {
    println!("MILLSTREAM_CRASH_SEED={} repeats {drill:?}", drill.seed);
    let outcome = run(PROGRAM, drill).await;
    println!("{outcome:?}");
    assert!(outcome.ends >= drill.cycles);
    assert!(outcome.records.acked > 0);
    outcome
}

#[tokio::test]
async fn what_was_acknowledged_is_there_once_and_pipelines_count_every_record_once() {
    let outcome = show(drill()).await;
    assert_eq!(outcome.records.lost, 0);
    assert!(outcome.derived.is_some_and(|made| made.acked > 0));
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
    assert!(outcome.records.kept_out > 0, "the filter had work to do");
}

/// The broker dies while it writes segments, gives them their names, commits what moves, unlinks and
/// rewrites them, starts, and backs up. After each of its ends the stored data are checked, the
/// last backup is verified, and every topic is read and compared with what was acknowledged.
#[tokio::test]
async fn a_broker_killed_while_it_seals_unlinks_and_backs_up_loses_nothing() {
    let drill = Drill {
        cycles: 14,
        sealing: true,
        ..drill()
    };
    let outcome = show(drill).await;
    assert_eq!(outcome.records.lost, 0);
    assert!(outcome.derived.is_some_and(|made| made.acked > 0));
    let sealed = outcome.sealed.unwrap();
    let in_the_middle = sealed.unfinished + sealed.unknown;
    assert!(in_the_middle >= outcome.ends / 5, "{sealed:?}");
    assert!(sealed.unfinished > 0 && sealed.unknown > 0, "{sealed:?}");
    assert!(sealed.removed > 0, "{sealed:?}");
    assert!(sealed.backups > 1 && sealed.restored > 0, "{sealed:?}");
}

/// Acknowledgements that do not wait for the disk promise order, not presence; and of what a crash
/// leaves of the input, the pipeline's outputs are the fold. A reader along the way could see a
/// record that a crash takes back, so there is none.
#[tokio::test]
async fn without_a_sync_for_each_commit_a_crash_takes_the_newest_and_no_others() {
    let drill = Drill {
        durability: Durability::Interval,
        // So that some are flushed between two crashes.
        acks_apart: 20_000,
        readers: false,
        cycles: 8,
        ..drill()
    };
    let outcome = show(drill).await;
    assert!(outcome.derived.is_some_and(|made| made.acked > 0));
}

/// A broker that is asked to stop flushes what it has acknowledged, whatever the topic says.
#[tokio::test]
async fn stopping_takes_nothing_even_without_a_sync_for_each_commit() {
    let drill = Drill {
        end: End::Stopped,
        durability: Durability::Interval,
        cycles: 8,
        ..drill()
    };
    let outcome = show(drill).await;
    assert_eq!(outcome.records.lost, 0);
}
