//! Faults at every step of taking damaged segments out. Whatever fails, and whenever the power goes,
//! nothing is lost that could be read before, the damaged files are kept, and a check can be run
//! again, which finds the store as it was or as it is to be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;
mod script;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::OnceLock;

use bytes::Bytes;
use machine::{Machine, commit, tiny};
use millstream_store::fault::{Effect, Fault, Operation};
use millstream_store::segment::Files;
use millstream_store::segment::fault::{FileFault, FileOperation};
use millstream_store::{
    CheckTotals, Finding, Inspector, Key, LostRun, OfflineStore, Pace, Quarantined, RedbConfig,
    Space, Store, WriteBatch,
};
use script::{PARTITIONS, Rows, key, read, same, value};

/// Batches that are committed, each with a row for every partition.
const BATCHES: u64 = 70;
/// Segments that most of them are moved to.
const SEGMENTS: usize = 4;

/// The row that says what is lost.
const LOST: &[u8] = b"lost";

/// A closed machine of whose segments one has a block that is damaged, one no end, and one is gone.
struct Wreck {
    machine: Machine,
    damaged: [u64; 2],
    /// What can be read all the same.
    left: Rows,
}

/// Nothing moves of its own accord, and segments have several blocks.
fn still() -> RedbConfig {
    RedbConfig {
        hot_bytes: 1 << 30,
        segment_bytes: 200 << 10,
        ..tiny()
    }
}

/// Everything that was stored.
fn stored() -> Rows {
    let at = |number| (0..PARTITIONS).map(move |partition| (number, partition));
    let row = |(number, partition)| (key(1, partition, number), value(number, partition));
    (1..=BATCHES).flat_map(at).map(row).collect()
}

fn wreck() -> &'static Wreck {
    static WRECK: OnceLock<Wreck> = OnceLock::new();
    WRECK.get_or_init(|| {
        let machine = Machine::new();
        let store = machine.open(&still());
        for number in 1..=BATCHES {
            let mut batch = WriteBatch::new();
            for partition in 0..PARTITIONS {
                let value = value(number, partition);
                batch.put(Space::Records, key(1, partition, number), value);
            }
            commit(&store, batch).unwrap();
        }
        for _ in 0..SEGMENTS {
            store.seal_now();
        }
        store.close();
        let [block, end, gone, whole] = *machine.segments().first_chunk().unwrap();
        assert!(machine.files.content(whole).is_some());
        machine.files.flip(block, 300, 0x40);
        machine.files.truncate(end, 1_000);
        machine.files.remove(gone).unwrap();
        machine.files.sync_directory().unwrap();
        let store = machine.copy().open(&still());
        let snapshot = store.snapshot().unwrap();
        let mut left = stored();
        left.retain(|key, _| snapshot.get(Space::Records, key).is_ok());
        assert!(left.len() < stored().len());
        Wreck {
            machine: machine.copy(),
            damaged: [block, end],
            left,
        }
    })
}

#[derive(Default)]
struct Seen(Vec<Finding>);

impl Inspector for Seen {
    fn row(&mut self, _: Space, _: &[u8], _: &Bytes) -> Result<(), String> {
        Ok(())
    }

    fn found(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    fn progress(&mut self, _: CheckTotals) {}
}

/// Checks everything. Returns the segments that are damaged; all else must be right.
fn damaged(store: &mut OfflineStore, context: &str) -> Vec<u64> {
    let mut seen = Seen::default();
    let totals = store.check(&mut seen, &Pace::new(None));
    assert!(totals.complete, "{context}");
    let wrong = seen.0.iter().filter(|finding| !finding.is_leftover());
    let numbers = wrong.map(|finding| finding.place.segment());
    let numbers: Option<BTreeSet<u64>> = numbers.collect();
    let numbers = numbers.unwrap_or_else(|| panic!("{context}: {:#?}", seen.0));
    numbers.into_iter().collect()
}

/// Takes out segments, and writes down what is lost.
fn take_out(store: &mut OfflineStore, numbers: &[u64]) -> Result<Quarantined, String> {
    let mut rows = |lost: &[LostRun]| {
        let keys: Vec<&std::ops::Range<Key>> = lost.iter().map(|run| &run.keys).collect();
        let mut rows = WriteBatch::new();
        rows.put(Space::Meta, LOST, format!("{keys:?}"));
        rows
    };
    let done = store.quarantine(numbers, &mut |_, _| true, &mut rows);
    done.map_err(|error| error.to_string())
}

/// What is left after a fault: a check runs, the files are there, and once the segments are taken
/// out everything else is served.
fn check_left(left: &Machine, context: &str) {
    let wreck = wreck();
    for number in wreck.damaged {
        let content = wreck.machine.files.content(number);
        let here = left.files.content(number);
        let there = left.files.content_aside(number);
        assert!(here.is_some() || there.is_some(), "{context}: {number}");
        for kept in here.iter().chain(&there) {
            assert_eq!(Some(kept), content.as_ref(), "{context}: {number}");
        }
    }
    let mut store = left.open_offline().unwrap();
    let numbers = damaged(&mut store, context);
    if !numbers.is_empty() {
        assert_eq!(numbers.len(), 3, "{context}: {numbers:?}");
        take_out(&mut store, &numbers).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(damaged(&mut store, context), [], "{context}");
    }
    drop(store);
    for number in wreck.damaged {
        assert!(left.files.content_aside(number).is_some(), "{context}");
    }
    let store = left.open(&still());
    let (_, rows) = read(&store).unwrap();
    same(&rows, &wreck.left, context);
    let lost = store.snapshot().unwrap().get(Space::Meta, LOST).unwrap();
    let lost = String::from_utf8(lost.unwrap().to_vec()).unwrap();
    assert_eq!(&lost, reference(), "{context}");
    assert!(wreck.damaged.iter().all(|n| !left.segments().contains(n)));
}

/// What is lost when nothing fails.
fn reference() -> &'static String {
    static LOST_THEN: OnceLock<String> = OnceLock::new();
    LOST_THEN.get_or_init(|| {
        let machine = wreck().machine.copy();
        let mut store = machine.open_offline().unwrap();
        let numbers = damaged(&mut store, "at first");
        let done = take_out(&mut store, &numbers).unwrap();
        let keys: Vec<_> = done.lost.iter().map(|run| &run.keys).collect();
        assert!(done.saved > 0 && keys.len() > 3);
        format!("{keys:?}")
    })
}

/// Runs the whole with a fault that `set` sets before segments are taken out; `clear` takes it back.
/// Says whether it struck.
fn run(
    context: &str,
    set: impl FnOnce(&Machine),
    has_struck: impl FnOnce(&Machine) -> bool,
    clear: impl FnOnce(&Machine),
) -> bool {
    let machine = wreck().machine.copy();
    let mut store = machine.open_offline().unwrap();
    let numbers = damaged(&mut store, context);
    set(&machine);
    let done = take_out(&mut store, &numbers);
    let struck = has_struck(&machine);
    if !struck {
        done.unwrap();
        return false;
    }
    // What closing does is another matter.
    clear(&machine);
    drop(store);
    for kept in [0, usize::MAX] {
        let left = machine.after_cut(|_, len| kept.min(len), |_, len| kept.min(len));
        check_left(&left, &format!("{context}, {kept} kept: {done:?}"));
    }
    true
}

fn sweep_files(operation: FileOperation, effect: Effect) {
    for nth in 1.. {
        let fault = FileFault {
            operation,
            nth,
            effect,
        };
        let struck = run(
            &format!("{effect:?} at {operation:?} {nth}"),
            |machine| machine.files.set_fault(fault),
            |machine| machine.files.has_struck(),
            |machine| machine.files.clear_fault(),
        );
        if !struck {
            assert!(nth > 1, "{operation:?} never came");
            return;
        }
    }
}

fn sweep_hot(operation: Operation, effect: Effect) {
    let fault = |nth| Fault {
        operation,
        nth,
        effect,
    };
    for nth in 1.. {
        let struck = run(
            &format!("{effect:?} at {operation:?} {nth} of the hot file"),
            |machine| machine.disk.set_fault(fault(nth)),
            |machine| machine.disk.has_struck(),
            |machine| machine.disk.set_fault(fault(u64::MAX)),
        );
        if !struck {
            assert!(nth > 1, "{operation:?} never came");
            return;
        }
    }
}

const EFFECTS: [Effect; 2] = [Effect::Fail(ErrorKind::StorageFull), Effect::PowerCut];

#[test]
fn a_new_segment_that_cannot_be_written_leaves_everything_as_it_was() {
    use FileOperation::{Create, Rename, Sync, SyncDirectory, Write};
    for operation in [Create, Write, Sync, Rename, SyncDirectory] {
        for effect in EFFECTS {
            sweep_files(operation, effect);
        }
    }
    sweep_files(Write, Effect::Tear);
}

#[test]
fn a_file_that_cannot_be_set_aside_or_removed_is_kept() {
    use FileOperation::{List, Remove, SetAside, SyncAside};
    for operation in [List, SetAside, SyncAside, Remove] {
        for effect in EFFECTS {
            sweep_files(operation, effect);
        }
    }
}

/// What could be read a moment ago is not given up because it cannot be read once.
#[test]
fn a_segment_that_cannot_be_read_for_once_loses_nothing_more() {
    use FileOperation::{Open, Read};
    for operation in [Open, Read] {
        sweep_files(operation, Effect::Fail(ErrorKind::Other));
        sweep_files(operation, Effect::PowerCut);
    }
}

#[test]
fn a_hot_file_that_fails_leaves_the_store_as_it_was_or_as_it_is_to_be() {
    for operation in [Operation::Write, Operation::Sync] {
        for effect in EFFECTS {
            sweep_hot(operation, effect);
        }
    }
    sweep_hot(Operation::Write, Effect::Tear);
}
