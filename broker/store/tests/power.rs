//! Disks that fail at every possible moment, and what is found on them afterwards.
//!
//! The oracle: batches are applied in order, so the state after a crash must be exactly the state
//! after some number of them, no fewer than were acknowledged and no more than were submitted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod workload;

use std::io::ErrorKind;
use std::sync::mpsc;

use millstream_store::fault::{Effect, Fault, FaultDisk, Operation};
use millstream_store::{CommitError, Durability, Health, Space, StopCause, Store, WriteBatch};
use proptest::prelude::*;
use workload::{State, batch, commit, open, try_open};

const BATCHES: u64 = 10;

/// A new store on a new disk, laid out and closed.
fn laid_out() -> FaultDisk {
    let disk = FaultDisk::new();
    open(&disk).close();
    FaultDisk::from_image(disk.image())
}

/// What a run under a fault told its caller.
#[derive(Debug, Default)]
struct Told {
    acknowledged: u64,
    submitted: u64,
    error: Option<CommitError>,
}

/// Commits batches one after another until one fails; goes on submitting after it.
fn run(disk: &FaultDisk, batches: u64) -> Told {
    let mut told = Told::default();
    // Opening writes too: it marks the file as in use.
    let Ok(store) = try_open(disk) else {
        return told;
    };
    for number in 1..=batches {
        told.submitted = number;
        match commit(&store, batch(number)) {
            Ok(_) => {
                assert!(
                    told.error.is_none(),
                    "acknowledged batch {number} after {:?}",
                    told.error
                );
                told.acknowledged = number;
            }
            Err(error) => {
                told.error.get_or_insert(error);
            }
        }
    }
    let stopped = matches!(*store.health().borrow(), Health::Stopped(_));
    assert_eq!(stopped, told.error.is_some());
    told
}

/// Opens what is left of `disk` and checks that nothing acknowledged is missing and that batches
/// are there whole, in order, or not at all. Then goes on writing.
fn check_after(disk: &FaultDisk, told: &Told, context: &str) {
    let store = open(disk);
    let state = State::read(&store).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(
        (told.acknowledged..=told.submitted).contains(&state.applied),
        "{context}: {} of {told:?} found",
        state.applied
    );
    assert_eq!(
        state,
        State::after(state.applied),
        "{context}: not a prefix"
    );
    commit(&store, batch(state.applied + 1)).unwrap();
    assert_eq!(
        State::read(&store).unwrap(),
        State::after(state.applied + 1),
        "{context}"
    );
}

/// How many bytes of an unsynced write survive: its place, its length.
type Survives = fn(usize, usize) -> usize;

/// After the fault: nothing unsynced survives, all of it, every other write, and halves.
fn check_all_leftovers(disk: &FaultDisk, told: &Told, context: &str) {
    let leftovers: [(&str, Survives); 5] = [
        ("nothing unsynced kept", |_, _| 0),
        ("all kept", |_, len| len),
        (
            "even writes kept",
            |place, len| {
                if place % 2 == 0 { len } else { 0 }
            },
        ),
        (
            "odd writes kept",
            |place, len| {
                if place % 2 == 1 { len } else { 0 }
            },
        ),
        ("later writes torn at a sector", |place, len| {
            if place < 2 { len } else { len / 1024 * 512 }
        }),
    ];
    for (name, kept) in leftovers {
        check_after(
            &disk.after_power_cut(kept),
            told,
            &format!("{context}, {name}"),
        );
    }
}

fn sweep(operation: Operation, effects: &[Effect]) {
    let image = laid_out().image();
    let disk = FaultDisk::from_image(image.clone());
    assert_eq!(run(&disk, BATCHES).acknowledged, BATCHES);
    let count = disk.count(operation);
    assert!(
        count >= BATCHES,
        "only {count} of {operation:?} in a whole run"
    );
    for &effect in effects {
        for nth in 1..=count {
            let disk = FaultDisk::from_image(image.clone());
            disk.set_fault(Fault {
                operation,
                nth,
                effect,
            });
            let told = run(&disk, BATCHES);
            assert!(disk.has_struck(), "{operation:?} {nth} never came");
            check_all_leftovers(&disk, &told, &format!("{effect:?} at {operation:?} {nth}"));
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_any_sync_fails() {
    sweep(Operation::Sync, &[Effect::Fail(ErrorKind::Other)]);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut_at_any_sync() {
    sweep(Operation::Sync, &[Effect::PowerCut]);
}

#[test]
fn nothing_acknowledged_is_lost_when_any_write_fails() {
    sweep(Operation::Write, &[Effect::Fail(ErrorKind::Other)]);
}

#[test]
fn nothing_acknowledged_is_lost_when_any_write_is_torn() {
    sweep(Operation::Write, &[Effect::Tear]);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut_at_any_write() {
    sweep(Operation::Write, &[Effect::PowerCut]);
}

#[test]
fn a_failed_sync_is_final_and_says_which_file() {
    let disk = laid_out();
    let store = open(&disk);
    commit(&store, batch(1)).unwrap();
    let effect = Effect::Fail(ErrorKind::Other);
    disk.set_fault(Fault {
        operation: Operation::Sync,
        nth: 1,
        effect,
    });
    let failed = commit(&store, batch(2)).unwrap_err();
    assert!(matches!(failed, CommitError::Failed { .. }), "{failed}");
    assert!(failed.to_string().contains("disk.redb"), "{failed}");
    assert!(failed.to_string().contains("injected fault"), "{failed}");
    // Nobody sees what was not made durable. Reading may fail from now on, but not lie.
    if let Ok(state) = State::read(&store) {
        assert_eq!(state, State::after(1));
    }
    // The disk works again, and the shard must not believe it.
    let writes = disk.count(Operation::Write);
    let stopped = commit(&store, batch(3)).unwrap_err();
    assert!(matches!(stopped, CommitError::Stopped { .. }), "{stopped}");
    assert!(matches!(
        store.try_reserve(1),
        Err(CommitError::Stopped { .. })
    ));
    assert_eq!(disk.count(Operation::Write), writes);
    let health = store.health().borrow().clone();
    assert!(
        matches!(health.cause().unwrap().as_ref(), StopCause::Io { .. }),
        "{health}"
    );
    assert_eq!(
        State::read(&open(&disk.after_power_cut(|_, _| 0))).unwrap(),
        State::after(1)
    );
}

#[test]
fn a_full_disk_stops_the_shard_and_loses_nothing() {
    let disk = laid_out();
    disk.set_capacity(disk.image().len() + 500_000);
    let blob = |number: u64| {
        let mut batch = WriteBatch::new();
        batch.put(
            Space::Blobs,
            number.to_be_bytes(),
            vec![number as u8; 50_000],
        );
        batch
    };
    let store = open(&disk);
    let mut acknowledged = 0;
    let error = loop {
        match commit(&store, blob(acknowledged + 1)) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the disk never filled");
    };
    let CommitError::Failed { cause } = &error else {
        panic!("{error}")
    };
    assert!(
        matches!(cause.as_ref(), StopCause::DiskFull { .. }),
        "{cause}"
    );
    assert!(
        error
            .to_string()
            .contains("disk.redb is full (no space left"),
        "{error}"
    );
    assert!(acknowledged > 10);
    assert!(matches!(
        commit(&store, blob(1000)),
        Err(CommitError::Stopped { .. })
    ));
    drop(store);

    // Everything acknowledged is there, though the disk is still full when the store is opened.
    let store = open(&disk);
    let snapshot = store.snapshot().unwrap();
    for number in 1..=acknowledged {
        let value = snapshot
            .get(Space::Blobs, &number.to_be_bytes())
            .unwrap()
            .unwrap();
        assert!(value.len() == 50_000 && value.iter().all(|&byte| byte == number as u8));
    }
    drop((snapshot, store));
    disk.set_capacity(usize::MAX);
    let store = open(&disk);
    commit(&store, blob(acknowledged + 1)).unwrap();
}

#[test]
fn every_batch_of_a_failed_group_is_told_and_none_acknowledged() {
    let disk = laid_out();
    let store = open(&disk);
    let effect = Effect::Fail(ErrorKind::StorageFull);
    disk.set_fault(Fault {
        operation: Operation::Sync,
        nth: 2,
        effect,
    });
    let (sender, receiver) = mpsc::sync_channel(1024);
    let mut submitted = 0;
    for number in 1..=50 {
        let batch = batch(number);
        let Ok(permit) = store.try_reserve(batch.byte_len()) else {
            break;
        };
        let sender = sender.clone();
        let done = Box::new(move |result| sender.send((number, result)).unwrap());
        store.submit(permit.unwrap(), batch, done);
        submitted = number;
    }
    store.close();
    drop(sender);
    let answers: Vec<_> = receiver.iter().collect();
    let told: Vec<u64> = answers.iter().map(|(number, _)| *number).collect();
    assert_eq!(
        told,
        (1..=submitted).collect::<Vec<_>>(),
        "one answer each, in order"
    );
    let acknowledged = answers
        .iter()
        .take_while(|(_, result)| result.is_ok())
        .count() as u64;
    assert!(
        answers[acknowledged as usize..]
            .iter()
            .all(|(_, result)| result.is_err())
    );
    let told = Told {
        acknowledged,
        submitted,
        error: None,
    };
    check_all_leftovers(&disk, &told, "a failed group");
}

#[test]
fn a_failing_read_is_an_error_and_stops_the_shard() {
    let disk = laid_out();
    run(&disk, 40);
    // Too small to hold the file: reads reach the disk.
    let store = workload::open_with_cache(&disk, 0);
    let effect = Effect::Fail(ErrorKind::Other);
    disk.set_fault(Fault {
        operation: Operation::Read,
        nth: 3,
        effect,
    });
    let error = State::read(&store).unwrap_err();
    assert!(
        error.contains("disk.redb") && error.contains("injected fault"),
        "{error}"
    );
    assert!(matches!(
        commit(&store, WriteBatch::new()),
        Err(CommitError::Stopped { .. })
    ));
}

#[test]
fn an_interval_batch_may_be_lost_but_never_out_of_order() {
    let disk = laid_out();
    let store = open(&disk);
    for number in 1..=4 {
        commit(&store, batch(number)).unwrap();
    }
    for number in 5..=8 {
        let mut batch = WriteBatch::with_durability(Durability::Interval);
        workload::fill(&mut batch, number);
        commit(&store, batch).unwrap();
    }
    let told = Told {
        acknowledged: 4,
        submitted: 8,
        error: None,
    };
    check_all_leftovers(&disk, &told, "interval");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    /// Any subset of the unsynced writes may survive, each torn anywhere at a sector.
    #[test]
    fn nothing_acknowledged_is_lost_whatever_survives(
        nth in 1..40u64,
        at_sync: bool,
        kept in prop::collection::vec((0..4u8, 0..200usize), 64),
    ) {
        let operation = if at_sync { Operation::Sync } else { Operation::Write };
        let disk = laid_out();
        disk.set_fault(Fault { operation, nth, effect: Effect::PowerCut });
        let told = run(&disk, BATCHES);
        let left = disk.after_power_cut(|place, len| match kept[place % kept.len()] {
            (0, _) => 0,
            (1, sectors) => (sectors * 512).min(len),
            _ => len,
        });
        check_after(&left, &told, &format!("{operation:?} {nth}"));
    }
}
