//! Faults at every step of sealing, rewriting and unlinking. Nothing acknowledged is lost, nothing
//! is there twice, and what failed for a while goes on by itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;
mod script;

use std::io::ErrorKind;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use machine::{Machine, block_on, commit, tiny, wait_until};
use millstream_store::fault::{Effect, Fault, Operation};
use millstream_store::key::record;
use millstream_store::segment::Files;
use millstream_store::segment::fault::{FileFault, FileOperation};
use millstream_store::{
    CommitError, Durability, OpenError, RedbConfig, RedbStore, Space, StopCause, Store, WriteBatch,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use script::{APPENDS, LAST, batch, check, is_stopped, run, settle};

const SEGMENTS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("segments");

/// A machine on which batches 1 to [`APPENDS`] lie in the hot file, and nothing is sealed.
fn unsealed() -> Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        let machine = Machine::new();
        let store = machine.open(&RedbConfig {
            hot_bytes: 1 << 30,
            ..tiny()
        });
        for number in 1..=APPENDS {
            commit(&store, batch(number)).unwrap();
        }
        store.close();
        assert_eq!(machine.segments(), []);
        machine
    });
    machine.copy()
}

/// The segments that the rows of a closed store name.
fn in_use(machine: &Machine) -> Vec<u64> {
    let copy = machine.copy();
    let database = Database::builder()
        .create_with_backend(copy.disk.backend())
        .unwrap();
    let transaction = database.begin_read().unwrap();
    let table = transaction.open_table(SEGMENTS).unwrap();
    let rows = table.iter().unwrap();
    rows.map(|row| row.unwrap().0.value()).collect()
}

/// Seals, commits what makes rewriting and unlinking necessary, and waits until that is done.
/// Returns the last batch that was acknowledged.
fn seal_all(store: &RedbStore, machine: &Machine) -> u64 {
    let segment_bytes = tiny().segment_bytes;
    let at_rest = || settle(store, segment_bytes, || machine.is_off());
    at_rest();
    run(store, APPENDS + 1, at_rest)
}

/// What is left is complete: opened, it holds what was acknowledged; it can go on; and there is
/// no segment too many and none too few.
fn check_left(left: &Machine, acknowledged: u64, context: &str) {
    let store = left.open(&tiny());
    let found = check(&store, acknowledged, context);
    assert_eq!(run(&store, found + 1, || ()), LAST, "{context}");
    settle(&store, tiny().segment_bytes, || false);
    check(&store, LAST, context);
    drop(store);
    // Nothing moves meanwhile: a file that is emptied just before closing stays until the next start.
    let still = RedbConfig {
        hot_bytes: 1 << 30,
        segment_bytes: 1 << 30,
        ..tiny()
    };
    check(&left.open(&still), LAST, context);
    assert_eq!(left.segments(), in_use(left), "{context}");
    assert_eq!(left.files.unfinished(), 0, "{context}");
}

#[test]
fn sealing_writes_rewrites_and_unlinks() {
    let machine = unsealed();
    let store = machine.open(&tiny());
    assert_eq!(seal_all(&store, &machine), LAST);
    let count = |operation| machine.files.count(operation);
    let (written, removed) = (count(FileOperation::Rename), count(FileOperation::Remove));
    assert!(
        written > 6 && removed >= 4,
        "{written} written, {removed} removed"
    );
    let figures = store.stats().storage;
    assert!(figures.segments > 0 && figures.segment_written_bytes > figures.live_bytes);
    check(&store, LAST, "without faults");
    drop(store);
    check_left(&machine, LAST, "without faults");
}

/// One fault of the segments' disk, which then works again: nobody but the sealer is to notice.
fn sweep_segments(operation: FileOperation, effect: Effect) {
    for nth in 1.. {
        let machine = unsealed();
        let store = machine.open(&tiny());
        let context = format!("{effect:?} at {operation:?} {nth}");
        machine.files.set_fault(FileFault {
            operation,
            nth,
            effect,
        });
        assert_eq!(seal_all(&store, &machine), LAST, "{context}");
        let struck = machine.files.has_struck();
        if operation != FileOperation::Read && operation != FileOperation::Open {
            check(&store, LAST, &context);
        } else if let Err(error) = script::read(&store) {
            // It struck the reader: once, and with the file's name.
            let text = error.to_string();
            assert!(
                text.contains("memory/") && text.contains("injected"),
                "{context}: {text}"
            );
        }
        machine.files.clear_fault();
        check(&store, LAST, &context);
        assert!(!is_stopped(&store), "{context}");
        drop(store);
        check_left(&machine, LAST, &context);
        if !struck {
            assert!(nth > 1, "{context} never came");
            return;
        }
    }
}

const FULL: Effect = Effect::Fail(ErrorKind::StorageFull);

#[test]
fn nobody_notices_when_a_segment_cannot_be_created() {
    sweep_segments(FileOperation::Create, FULL);
}

#[test]
fn nobody_notices_when_a_segment_cannot_be_written() {
    sweep_segments(FileOperation::Write, FULL);
    sweep_segments(FileOperation::Write, Effect::Tear);
}

#[test]
fn nobody_notices_when_a_segment_cannot_be_synced() {
    sweep_segments(FileOperation::Sync, FULL);
}

#[test]
fn nobody_notices_when_a_segment_cannot_be_renamed() {
    sweep_segments(FileOperation::Rename, FULL);
}

#[test]
fn nobody_notices_when_the_directory_cannot_be_synced() {
    sweep_segments(FileOperation::SyncDirectory, FULL);
}

#[test]
fn nobody_notices_when_a_segment_cannot_be_removed() {
    sweep_segments(FileOperation::Remove, FULL);
}

/// What cannot be read for once is not given up: it is rewritten later.
#[test]
fn nobody_but_a_reader_notices_when_a_segment_cannot_be_read_for_once() {
    let once = Effect::Fail(ErrorKind::Other);
    sweep_segments(FileOperation::Open, once);
    sweep_segments(FileOperation::Read, once);
}

/// A disk that dies for good under the segments: sealing ends, everything else goes on.
#[test]
fn a_dead_segment_disk_loses_nothing_and_stops_nothing() {
    use FileOperation::{Create, Remove, Rename, Sync, SyncDirectory, Write};
    for operation in [Create, Write, Sync, Rename, SyncDirectory, Remove] {
        for nth in 1..=4 {
            let machine = unsealed();
            let store = machine.open(&tiny());
            let effect = Effect::PowerCut;
            machine.files.set_fault(FileFault {
                operation,
                nth,
                effect,
            });
            let context = format!("dead at {operation:?} {nth}");
            // Whether removals come at all depends on the rest.
            let dead = || machine.files.has_struck();
            settle(&store, tiny().segment_bytes, dead);
            let acknowledged = run(&store, APPENDS + 1, || {
                settle(&store, tiny().segment_bytes, dead);
            });
            assert_eq!(acknowledged, LAST, "{context}");
            assert!(!is_stopped(&store), "{context}");
            assert!(dead() || operation == Remove, "{context}: never came");
            if dead() && operation != Remove {
                store.seal_now();
                let trouble = store.trouble().unwrap();
                assert!(trouble.contains("memory/"), "{context}: {trouble}");
            }
            store.close();
            for kept in [0, usize::MAX] {
                let left = machine.after_cut(|_, len| len, |_, len| kept.min(len));
                check_left(&left, LAST, &context);
            }
        }
    }
}

#[test]
fn a_store_opens_once_its_segments_can_be_listed_and_cleared_away() {
    for operation in [FileOperation::List, FileOperation::Remove] {
        let machine = unsealed();
        // Files that nobody knows, as a crash leaves them.
        machine.files.put(7, b"left over".to_vec());
        drop(machine.files.create(9).unwrap());
        machine.files.set_fault(FileFault {
            operation,
            nth: 1,
            effect: FULL,
        });
        let error = machine.try_open(&tiny()).err().unwrap();
        assert!(matches!(error, OpenError::Io { .. }), "{error}");
        assert!(error.to_string().contains("memory/"), "{error}");
        check_left(&machine, APPENDS, "opened again");
    }
}

#[test]
fn nothing_is_lost_when_the_power_is_cut_at_any_change() {
    let leftovers: [fn(usize, usize) -> usize; 3] = [
        |_, _| 0,
        |_, len| len,
        |place, len| {
            if place % 2 == 0 {
                len
            } else {
                len / 1024 * 512
            }
        },
    ];
    for nth in 1.. {
        let machine = unsealed();
        machine.cut_at(nth, nth % 2 == 0);
        let mut acknowledged = APPENDS;
        if let Ok(store) = machine.try_open(&tiny()) {
            acknowledged = seal_all(&store, &machine);
            if !machine.is_off() {
                assert!(nth > 100, "only {nth} changes");
                return;
            }
        }
        // Each with its own leftovers, the neighbours with others: all of them take too long.
        let kept = leftovers[(nth / 2) as usize % leftovers.len()];
        let other = leftovers[(nth / 6) as usize % leftovers.len()];
        for (disk, files) in [(kept, other), (other, kept)] {
            check_left(
                &machine.after_cut(disk, files),
                acknowledged,
                &format!("change {nth}"),
            );
        }
    }
}

/// The hot file fails while records are being moved out of it: the shard stops, as ever.
fn sweep_hot(operation: Operation, effect: Effect) {
    for nth in 1.. {
        let machine = unsealed();
        let store = machine.open(&tiny());
        let context = format!("{effect:?} at {operation:?} {nth} of the hot file");
        machine.disk.set_fault(Fault {
            operation,
            nth,
            effect,
        });
        let acknowledged = seal_all(&store, &machine);
        let struck = machine.disk.has_struck();
        if struck {
            wait_until("the shard to stop", || is_stopped(&store));
            let error = commit(&store, batch(LAST)).unwrap_err();
            assert!(
                matches!(error, CommitError::Stopped { .. }),
                "{context}: {error}"
            );
            assert!(
                error.to_string().contains("disk.redb"),
                "{context}: {error}"
            );
            // Nobody waits for a sealer that has gone.
            store.seal_now();
        } else {
            assert!(nth > 10 && acknowledged == LAST, "{context}: never came");
            return;
        }
        // What closing does is another matter.
        let never = Fault {
            operation,
            nth: u64::MAX,
            effect,
        };
        machine.disk.set_fault(never);
        drop(store);
        for kept in [0, usize::MAX] {
            let left = machine.after_cut(|_, len| kept.min(len), |_, len| len);
            check_left(&left, acknowledged, &context);
        }
    }
}

#[test]
fn a_write_of_the_hot_file_that_fails_stops_the_shard_and_loses_nothing() {
    sweep_hot(Operation::Write, Effect::Fail(ErrorKind::Other));
}

#[test]
fn a_write_of_the_hot_file_that_is_torn_stops_the_shard_and_loses_nothing() {
    sweep_hot(Operation::Write, Effect::Tear);
}

#[test]
fn a_sync_of_the_hot_file_that_fails_stops_the_shard_and_loses_nothing() {
    sweep_hot(Operation::Sync, Effect::Fail(ErrorKind::Other));
}

#[test]
fn a_hot_file_that_the_sealer_cannot_read_stops_the_shard() {
    let machine = unsealed();
    // Nothing is sealed of its own accord, and nothing of the file is in memory.
    let config = RedbConfig {
        cache_bytes: 0,
        hot_bytes: 1 << 30,
        ..tiny()
    };
    let store = machine.open(&config);
    machine.disk.set_fault(Fault {
        operation: Operation::Read,
        nth: 2,
        effect: Effect::Fail(ErrorKind::Other),
    });
    store.seal_now();
    assert!(is_stopped(&store));
    let cause = store.health().borrow().cause().cloned().unwrap();
    assert!(matches!(&*cause, StopCause::Io { .. }), "{cause}");
    assert!(cause.to_string().contains("disk.redb"), "{cause}");
    store.seal_now();
    drop(store);
    check_left(&machine, APPENDS, "opened again");
}

/// Fills the hot file while no segment can be written.
fn filled(machine: &Machine) -> (RedbStore, u64) {
    machine.files.set_capacity(0);
    let store = machine.open(&tiny());
    let mut number = 0;
    while !matches!(store.try_reserve_append(1), Ok(None)) {
        number += 1;
        // Commits reserve as everybody does who does not append: that never waits for the sealer.
        commit(&store, batch(number)).unwrap();
        assert!(number < APPENDS, "it never was full");
    }
    store.seal_now();
    (store, number)
}

fn poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Poll<T> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn appends_wait_for_a_full_disk_and_go_on_when_there_is_room() {
    let machine = Machine::new();
    let (store, number) = filled(&machine);
    let trouble = store.trouble().unwrap();
    assert!(
        trouble.contains("memory/") && trouble.contains("no space left"),
        "{trouble}"
    );
    let advice = "appends wait once the hot file is full: free space on that disk";
    assert!(trouble.ends_with(advice), "{trouble}");
    let mut append = store.reserve_append(100);
    assert!(poll(&mut append).is_pending());
    assert!(
        poll(&mut store.reserve(100)).is_ready(),
        "what is no append does not wait"
    );
    assert!(!is_stopped(&store));
    check(&store, number, "full");

    machine.files.set_capacity(usize::MAX);
    block_on(append).unwrap();
    wait_until("the end of the trouble", || store.trouble().is_none());
    for number in number + 1..=APPENDS {
        drop(block_on(store.reserve_append(30_000)).unwrap());
        commit(&store, batch(number)).unwrap();
    }
    check(&store, APPENDS, "with room again");
    assert!(store.stats().storage.segments > 0);
}

#[test]
fn what_is_deleted_makes_room_for_appends_too() {
    let machine = Machine::new();
    let (store, _) = filled(&machine);
    let append = store.reserve_append(100);
    for topic in [1, 2] {
        let mut batch = WriteBatch::new();
        batch.delete_range(Space::Records, record::range_topic(topic));
        commit(&store, batch).unwrap();
    }
    block_on(append).unwrap();
    assert_eq!(machine.segments(), []);
}

/// Segments that are not wanted any more go once their last reader has, though sealing fails all
/// the while for want of their space, and nobody commits anything.
#[test]
fn what_a_reader_has_kept_makes_room_for_appends_too() {
    let machine = Machine::new();
    let store = machine.open(&tiny());
    for number in 1..=4 {
        commit(&store, batch(number)).unwrap();
    }
    while store.stats().storage.unsealed_bytes > 0 {
        store.seal_now();
    }
    machine
        .files
        .set_capacity(usize::try_from(machine.segment_bytes()).unwrap());
    let mut number = 4;
    while !matches!(store.try_reserve_append(1), Ok(None)) {
        number += 1;
        commit(&store, batch(number)).unwrap();
        assert!(number < APPENDS, "it never was full");
    }
    let snapshot = store.snapshot().unwrap();
    let mut batch = WriteBatch::new();
    for (topic, partition) in (0..script::PARTITIONS).flat_map(|at| [(1, at), (2, at)]) {
        batch.delete_range(Space::Records, record::range(topic, partition, 0..5));
    }
    commit(&store, batch).unwrap();
    let is_swept = || {
        let figures = store.stats().storage;
        figures.hot_bytes == figures.unsealed_bytes
    };
    wait_until("the end of the sweep", is_swept);
    store.seal_now();
    assert!(store.trouble().is_some());
    let mut append = store.reserve_append(100);
    assert!(poll(&mut append).is_pending());
    drop(snapshot);
    wait_until("room", || poll(&mut append).is_ready());
}

#[test]
fn an_append_that_waits_is_told_when_the_store_closes_or_stops() {
    let machine = Machine::new();
    let (store, number) = filled(&machine);
    let mut append = store.reserve_append(100);
    assert!(poll(&mut append).is_pending());
    store.close();
    assert!(matches!(block_on(append), Err(CommitError::Closed)));
    drop(store);

    machine.files.set_capacity(usize::MAX);
    check(&machine.open(&tiny()), number, "opened again");

    let (store, _) = filled(&Machine::with(machine.disk.clone(), machine.copy().files));
    let mut append = store.reserve_append(100);
    assert!(poll(&mut append).is_pending());
    machine.disk.set_fault(Fault {
        operation: Operation::Sync,
        nth: 1,
        effect: Effect::Fail(ErrorKind::Other),
    });
    commit(&store, WriteBatch::new()).unwrap_err();
    assert!(matches!(block_on(append), Err(CommitError::Stopped { .. })));
}

/// What a crash has left to sweep is swept, though the only one who comes waits for that.
#[test]
fn an_append_does_not_wait_for_a_sweep_that_waits_for_it() {
    let machine = unsealed();
    // Sealed, and the power cut before any of it is swept.
    for nth in 1.. {
        let machine = machine.copy();
        machine.cut_at(nth, false);
        let Ok(store) = machine.try_open(&RedbConfig {
            hot_bytes: 64 << 10,
            segment_bytes: 1 << 20,
            ..tiny()
        }) else {
            continue;
        };
        settle(&store, 1 << 20, || machine.is_off());
        let is_over = !machine.is_off();
        drop(store);
        let left = machine.after_cut(|_, _| 0, |_, len| len);
        let store = left.open(&RedbConfig {
            hot_bytes: 64 << 10,
            segment_bytes: 1 << 20,
            ..tiny()
        });
        block_on(store.reserve_append(1)).unwrap();
        check(&store, APPENDS, "with room");
        if is_over {
            return;
        }
    }
}

/// The power may be cut before an interval batch is on the disk. What it removed is back then, so
/// the files must be there still.
#[test]
fn segments_are_unlinked_when_their_end_is_durable() {
    for _ in 0..20 {
        let machine = Machine::new();
        let store = machine.open(&tiny());
        for number in 1..=4 {
            commit(&store, batch(number)).unwrap();
        }
        while store.stats().storage.unsealed_bytes > 0 {
            store.seal_now();
        }
        let at_rest = || store.stats().storage.hot_bytes == 0;
        wait_until("the end of the sweep", at_rest);
        let syncs = machine.disk.count(Operation::Sync);
        let mut batch = WriteBatch::with_durability(Durability::Interval);
        batch.delete_range(Space::Records, record::range_topic(1));
        batch.delete_range(Space::Records, record::range_topic(2));
        commit(&store, batch).unwrap();
        wait_until("the end of the segments", || {
            let is_there = !machine.segments().is_empty();
            let is_synced = machine.disk.count(Operation::Sync) > syncs;
            assert!(
                is_there || is_synced,
                "unlinked before the commit was durable"
            );
            !is_there
        });
    }
}

/// Removed one by one, keys leave extents without any between them.
#[test]
fn single_deletes_leave_no_segment_behind() {
    let machine = Machine::new();
    let store = machine.open(&tiny());
    for number in 1..=APPENDS {
        commit(&store, batch(number)).unwrap();
    }
    while store.stats().storage.unsealed_bytes > 0 {
        store.seal_now();
    }
    let mut batch = WriteBatch::new();
    for key in script::after(APPENDS).into_keys() {
        batch.delete(Space::Records, key);
    }
    commit(&store, batch).unwrap();
    let (_, rows) = script::read(&store).unwrap();
    assert!(rows.is_empty());
    wait_until("the end of nearly all segments", || {
        machine.segment_bytes() < 3 * tiny().segment_bytes && store.trouble().is_none()
    });
}

/// Segments that are empty but still seen by a snapshot stay, and go when it does, though nothing
/// else happens.
#[test]
fn a_snapshot_keeps_its_segments_until_it_is_dropped() {
    let machine = Machine::new();
    let store = machine.open(&tiny());
    for number in 1..=4 {
        commit(&store, batch(number)).unwrap();
    }
    while store.stats().storage.unsealed_bytes > 0 {
        store.seal_now();
    }
    let before = machine.segments();
    let snapshot = store.snapshot().unwrap();
    let mut batch = WriteBatch::new();
    batch.delete_range(Space::Records, record::range_topic(1));
    batch.delete_range(Space::Records, record::range_topic(2));
    commit(&store, batch).unwrap();
    store.seal_now();
    assert_eq!(machine.segments(), before);
    for (key, value) in script::after(4) {
        assert_eq!(
            snapshot.get(Space::Records, &key).unwrap().as_ref(),
            Some(&value)
        );
    }
    drop(snapshot);
    wait_until("the end of the segments", || machine.segments().is_empty());
}
