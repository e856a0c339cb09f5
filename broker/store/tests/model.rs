//! The sealed store against a map: random appends, reads, snapshots that are held, sealing,
//! retention, restarts and power cuts, with so little room that records move all the time.
//!
//! What must hold: a snapshot shows exactly the state at which it was taken; after a power cut the
//! store is in a state after some number of the batches, no fewer than were acknowledged as
//! durable; and no segment stays that nobody needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use machine::{Machine, commit, tiny, wait_until};
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{
    CommitError, Direction, Durability, Key, RedbConfig, RedbStore, Row, ScanLimit, Snapshot,
    Space, Store, WriteBatch,
};
use proptest::prelude::*;
use proptest::sample::Index;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

/// The partitions that are written to: topic and partition.
const PARTITIONS: [(u32, u32); 5] = [(1, 0), (1, 1), (1, 7), (2, 0), (u32::MAX, u32::MAX)];
const COUNTER: &[u8] = b"applied";
const SEGMENTS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("segments");

type Rows = BTreeMap<Key, Bytes>;

/// One append: partition, how many offsets are passed over, bytes.
type Put = (usize, u64, usize);

#[derive(Clone, Debug)]
enum Step {
    Append {
        puts: Vec<Put>,
        durability: Durability,
    },
    Overwrite {
        at: Index,
        len: usize,
    },
    Delete {
        at: Index,
        durability: Durability,
    },
    Trim {
        partition: usize,
        at: Index,
        durability: Durability,
    },
    DeleteTopic {
        topic: u32,
    },
    Seal,
    Read(Read),
    /// Takes a snapshot and looks at it again after so many steps.
    Hold {
        steps: usize,
    },
    Reopen,
    /// Cuts the power of both disks at some change to come, see [`Machine::cut_at`]. `kept` says
    /// what survives of what was not synced.
    Cut {
        nth: u64,
        happens: bool,
        kept: Vec<u8>,
    },
}

#[derive(Clone, Debug)]
struct Read {
    /// Of the snapshots that are held, and the present.
    of: Index,
    from: Index,
    to: Index,
    direction: bool,
    rows: usize,
    bytes: usize,
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1usize..300,
        4 => 300usize..9_000,
        2 => 60_000usize..70_000,
        1 => 100_000usize..400_000,
    ]
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![4 => Just(Durability::Sync), 1 => Just(Durability::Interval)]
}

fn read() -> impl Strategy<Value = Read> {
    let (at, bytes) = (any::<Index>(), prop_oneof![1usize..2_000, 1usize..300_000]);
    (
        at,
        any::<Index>(),
        any::<Index>(),
        any::<bool>(),
        0usize..40,
        bytes,
    )
        .prop_map(|(of, from, to, direction, rows, bytes)| Read {
            of,
            from,
            to,
            direction,
            rows,
            bytes,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let partition = 0..PARTITIONS.len();
    let put = (partition.clone(), 1u64..4, len());
    let append = (prop::collection::vec(put, 1..9), durability());
    let trim = (partition, any::<Index>(), durability());
    let cut = (
        1u64..60,
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 1..40),
    );
    prop_oneof![
        12 => append.prop_map(|(puts, durability)| Step::Append { puts, durability }),
        1 => (any::<Index>(), len()).prop_map(|(at, len)| Step::Overwrite { at, len }),
        1 => (any::<Index>(), durability())
            .prop_map(|(at, durability)| Step::Delete { at, durability }),
        4 => trim.prop_map(|(partition, at, durability)| Step::Trim { partition, at, durability }),
        1 => prop::sample::select(vec![1, 2, u32::MAX]).prop_map(|topic| Step::DeleteTopic { topic }),
        3 => Just(Step::Seal),
        8 => read().prop_map(Step::Read),
        2 => (1usize..20).prop_map(|steps| Step::Hold { steps }),
        1 => Just(Step::Reopen),
        2 => cut.prop_map(|(nth, happens, kept)| Step::Cut { nth, happens, kept }),
    ]
}

/// A value that no other put has.
fn value(number: u64, at: usize, len: usize) -> Bytes {
    let seed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at as u64;
    let byte = |place: usize| (seed.rotate_left(place as u32 % 64) ^ (place as u64 >> 6)) as u8;
    (0..len).map(byte).collect()
}

struct Held {
    snapshot: Box<dyn Snapshot>,
    rows: Rows,
    steps: usize,
}

/// The store and what it must hold.
struct Run {
    machine: Machine,
    store: Option<RedbStore>,
    held: Vec<Held>,
    rows: Rows,
    /// Batches submitted so far.
    applied: u64,
    /// The states that may be found after a power cut, with the number of their last batch.
    possible: Vec<(u64, Rows)>,
    /// The next offset of each partition.
    next: [u64; PARTITIONS.len()],
    /// Every key there ever was: what reads begin and end at.
    keys: Vec<Key>,
    kept: Vec<u8>,
}

impl Run {
    fn new() -> Self {
        let machine = Machine::new();
        let store = Some(machine.open(&tiny()));
        Self {
            machine,
            store,
            held: Vec::new(),
            rows: Rows::new(),
            applied: 0,
            possible: vec![(0, Rows::new())],
            next: [0; PARTITIONS.len()],
            keys: vec![Key::from([0])],
            kept: vec![0],
        }
    }

    fn store(&self) -> &RedbStore {
        self.store.as_ref().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { puts, durability } => self.append(puts, *durability),
            Step::Overwrite { at, len } => {
                if let Some(key) = self.present(*at) {
                    let value = value(self.applied + 1, 0, *len);
                    let mut batch = WriteBatch::new();
                    batch.put(Space::Records, key.clone(), value.clone());
                    self.rows.insert(key, value);
                    self.commit(batch);
                }
            }
            Step::Delete { at, durability } => {
                if let Some(key) = self.present(*at) {
                    let mut batch = WriteBatch::with_durability(*durability);
                    batch.delete(Space::Records, key.clone());
                    self.rows.remove(&key);
                    self.commit(batch);
                }
            }
            Step::Trim {
                partition,
                at,
                durability,
            } => {
                let (topic, partition) = PARTITIONS[*partition];
                let all = record::range_all(topic, partition);
                let keys: Vec<Key> = self
                    .rows
                    .range(all.clone())
                    .map(|(key, _)| key.clone())
                    .collect();
                if !keys.is_empty() {
                    self.remove(all.start..keys[at.index(keys.len())].clone(), *durability);
                }
            }
            Step::DeleteTopic { topic } => {
                self.remove(record::range_topic(*topic), Durability::Sync);
            }
            Step::Seal => self.store().seal_now(),
            Step::Read(read) => self.read(read),
            Step::Hold { steps } => {
                if let Ok(snapshot) = self.store().snapshot() {
                    let rows = self.rows.clone();
                    self.held.push(Held {
                        snapshot,
                        rows,
                        steps: *steps,
                    });
                }
            }
            Step::Reopen => self.reopen(),
            Step::Cut { nth, happens, kept } => {
                self.kept.clone_from(kept);
                self.machine.cut_at(*nth, *happens);
            }
        }
        self.let_go();
        if self.machine.is_off() {
            self.recover();
        }
    }

    fn present(&self, at: Index) -> Option<Key> {
        let count = self.rows.len();
        (count > 0).then(|| self.rows.keys().nth(at.index(count)).unwrap().clone())
    }

    fn append(&mut self, puts: &[Put], durability: Durability) {
        let mut batch = WriteBatch::with_durability(durability);
        for (at, (place, gap, len)) in puts.iter().enumerate() {
            let (topic, partition) = PARTITIONS[*place];
            let base_offset = self.next[*place];
            self.next[*place] += gap;
            let key = RecordKey {
                topic,
                partition,
                base_offset,
            }
            .encode();
            let value = value(self.applied + 1, at, *len);
            batch.put(Space::Records, key.clone(), value.clone());
            self.keys.push(key.clone());
            self.rows.insert(key, value);
        }
        // As producers do; the sealer must make room, unless it has no power to.
        let store = self.store.as_ref().unwrap();
        wait_until("room for an append", || {
            self.machine.is_off() || !matches!(store.try_reserve_append(1), Ok(None))
        });
        self.commit(batch);
    }

    fn remove(&mut self, range: Range<Key>, durability: Durability) {
        let mut batch = WriteBatch::with_durability(durability);
        self.rows.retain(|key, _| !range.contains(key));
        batch.delete_range(Space::Records, range);
        self.commit(batch);
    }

    /// Commits what leads to `self.rows`.
    fn commit(&mut self, mut batch: WriteBatch) {
        self.applied += 1;
        batch.put(Space::Meta, COUNTER, self.applied.to_be_bytes().to_vec());
        let state = (self.applied, self.rows.clone());
        match commit(self.store(), batch) {
            Ok(done) if done.durability == Durability::Sync => self.possible = vec![state],
            Ok(_) => self.possible.push(state),
            Err(error) => {
                assert!(self.machine.is_off(), "{error}");
                let failed = matches!(
                    error,
                    CommitError::Failed { .. } | CommitError::Stopped { .. }
                );
                assert!(failed, "{error}");
                self.possible.push(state);
            }
        }
    }

    /// Looks at snapshots whose time has come, and gives them up.
    fn let_go(&mut self) {
        self.held.iter_mut().for_each(|held| held.steps -= 1);
        for held in self.held.extract_if(.., |held| held.steps == 0) {
            check_all(&self.machine, &*held.snapshot, &held.rows);
        }
    }

    fn read(&self, read: &Read) {
        let now;
        let (snapshot, rows) = match self.held.get(read.of.index(self.held.len() + 1)) {
            Some(held) => (&*held.snapshot, &held.rows),
            None => match self.store().snapshot() {
                Ok(snapshot) => {
                    now = snapshot;
                    (&*now, &self.rows)
                }
                Err(error) => {
                    assert!(self.machine.is_off(), "{error}");
                    return;
                }
            },
        };
        let key = |at: Index| self.keys[at.index(self.keys.len())].clone();
        let (mut from, mut to) = (key(read.from), key(read.to));
        let got = snapshot.get(Space::Records, &to);
        self.check(got, |value| {
            assert_eq!(value.as_ref(), rows.get(&to), "get {to:?}")
        });
        if from > to {
            std::mem::swap(&mut from, &mut to);
        }
        let floor = snapshot.floor_key(Space::Records, &from, &to);
        let expected = rows.range(from.clone()..=to.clone()).next_back();
        self.check(floor, |floor| {
            assert_eq!(
                floor.as_ref(),
                expected.map(|(key, _)| key),
                "floor {from:?} {to:?}"
            );
        });
        let direction = if read.direction {
            Direction::Forward
        } else {
            Direction::Backward
        };
        let limit = ScanLimit {
            rows: read.rows,
            bytes: read.bytes,
        };
        self.heads(snapshot, rows, from.clone()..to.clone(), limit);
        self.scan(snapshot, rows, from..to, direction, limit);
    }

    /// What is told of rows without their values, and which may be removed at once.
    fn heads(&self, snapshot: &dyn Snapshot, rows: &Rows, range: Range<Key>, limit: ScanLimit) {
        let bounds = || &range.start[..]..&range.end[..];
        let context = format!("{range:?} {limit:?}");
        for head in [0, 1, 64, 100] {
            let page = snapshot.heads(Space::Records, bounds(), limit, head);
            self.check(page, |page| {
                let mut expected = rows.range(range.clone());
                for told in &page.heads {
                    let several: Vec<_> = expected.by_ref().take(told.rows).collect();
                    assert_eq!(several.len(), told.rows, "{context}: {told:?}");
                    assert_eq!(*several[0].0, told.key, "{context}");
                    let of = |(key, value): &(&Key, &Bytes)| (key.len() + value.len()) as u64;
                    let bytes: u64 = several.iter().map(of).sum();
                    assert_eq!(bytes, told.bytes, "{context}: {told:?}");
                    let value = several[0].1;
                    assert_eq!(told.head, value[..head.min(value.len())], "{context}");
                    assert!(head == 0 || told.rows == 1, "{context}: {told:?}");
                }
                let all = expected.next().is_none();
                assert!(page.more || all, "{context}: {page:?}");
                assert!(!(page.more && all) || self.machine.is_off(), "{context}");
                let bytes: u64 = page.heads.iter().map(|told| told.bytes).sum();
                assert!(page.heads.len() < 2 || bytes <= limit.bytes as u64);
                assert!(page.heads.len() <= limit.rows, "{context}");
            });
        }
        let end = snapshot.removable(Space::Records, bounds(), limit);
        self.check(end, |end| {
            // What lies sealed around a record that was deleted may hold none.
            let any = rows.range(range.clone()).next().is_some();
            assert!(end.is_some() || !any, "{context}");
            let within = |end| range.start < end && end <= range.end;
            assert!(end.is_none_or(within), "{context}");
        });
    }

    fn scan(
        &self,
        snapshot: &dyn Snapshot,
        rows: &Rows,
        range: Range<Key>,
        direction: Direction,
        limit: ScanLimit,
    ) {
        let page = snapshot.scan(Space::Records, &range.start..&range.end, direction, limit);
        self.check(page, |page| {
            let mut expected: Vec<_> = rows.range(range.clone()).collect();
            if direction == Direction::Backward {
                expected.reverse();
            }
            let context = format!("{direction:?} {range:?} {limit:?}");
            assert!(page.rows.len() <= limit.rows, "{context}");
            let found: Vec<_> = page.rows.iter().map(|row| (&row.key, &row.value)).collect();
            assert!(
                expected.starts_with(&found),
                "{context}: {:?} is no beginning of {:?}",
                sizes(&found),
                sizes(&expected)
            );
            if found.len() < expected.len() {
                assert!(page.more, "{context}");
            } else if page.more {
                self.is_told_of(snapshot, &range, direction, page.rows.last());
            }
            let bytes: usize = found
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .sum();
            assert!(
                found.len() < 2 || bytes <= limit.bytes,
                "{context}: {bytes} bytes"
            );
            assert!(
                !found.is_empty() || expected.is_empty() || limit.rows == 0,
                "{context}"
            );
        });
    }

    /// A page with all there is promised more: because of something that cannot be read for want
    /// of power, and whoever asks for what follows the page must be told of that.
    fn is_told_of(
        &self,
        snapshot: &dyn Snapshot,
        range: &Range<Key>,
        direction: Direction,
        last: Option<&Row>,
    ) {
        let context = format!("{direction:?} {range:?} behind {last:?}");
        let last = last.unwrap_or_else(|| panic!("an empty page promised more: {context}"));
        let behind = last.key.clone().push_bytes(&[0]);
        let rest = match direction {
            Direction::Forward => &behind[..]..&range.end[..],
            Direction::Backward => &range.start[..]..&last.key[..],
        };
        let rest = snapshot.scan(Space::Records, rest, direction, ScanLimit::ONE);
        let error = rest.expect_err(&context);
        assert!(self.machine.is_off(), "{context}: {error}");
    }

    /// Only without power may a read fail.
    fn check<T>(&self, read: Result<T, millstream_store::ReadError>, check: impl FnOnce(T)) {
        match read {
            Ok(found) => check(found),
            Err(error) => assert!(self.machine.is_off(), "{error}"),
        }
    }

    fn reopen(&mut self) {
        self.held.clear();
        self.store().close();
        self.store = None;
        if self.machine.is_off() {
            return;
        }
        match self.machine.try_open(&tiny()) {
            Ok(store) => {
                // All that was acknowledged is on the disk now.
                self.possible.drain(..self.possible.len() - 1);
                self.store = Some(store);
                self.check_now();
            }
            Err(error) => assert!(self.machine.is_off(), "{error}"),
        }
    }

    /// The power is back: which state is it?
    fn recover(&mut self) {
        self.held.clear();
        self.store = None;
        let kept = |place: usize| usize::from(self.kept[place % self.kept.len()]);
        let survives = |place, len: usize| match kept(place) {
            0..80 => 0,
            at @ 80..140 => (at * 512).min(len),
            _ => len,
        };
        self.machine = self.machine.after_cut(survives, survives);
        self.store = Some(self.machine.open(&tiny()));
        let snapshot = self.store().snapshot().unwrap();
        let counter = snapshot.get(Space::Meta, COUNTER).unwrap();
        let found = counter.map_or(0, |count| u64::from_be_bytes(count[..].try_into().unwrap()));
        drop(snapshot);
        let numbers: Vec<u64> = self.possible.iter().map(|(number, _)| *number).collect();
        let state = self.possible.iter().find(|(number, _)| *number == found);
        let (_, rows) = state.unwrap_or_else(|| panic!("{found} found, of {numbers:?}"));
        self.rows = rows.clone();
        self.possible = vec![(found, self.rows.clone())];
        self.check_now();
    }

    fn check_now(&self) {
        if let Ok(snapshot) = self.store().snapshot() {
            check_all(&self.machine, &*snapshot, &self.rows);
        }
    }

    /// Restarts in good order, and finds every segment in use and every one in use there.
    fn settle(&mut self) {
        if self.machine.is_off() {
            self.recover();
        }
        self.store().close();
        if self.machine.is_off() {
            // A cut that had not come before.
            self.recover();
            self.store().close();
        }
        self.store = None;
        self.machine = self.machine.copy();
        // Nothing moves meanwhile: a file that is emptied just before closing stays until the next
        // start.
        let still = RedbConfig {
            hot_bytes: 1 << 30,
            segment_bytes: 1 << 30,
            ..tiny()
        };
        self.store = Some(self.machine.open(&still));
        self.check_now();
        self.store().close();
        self.store = None;
        assert_eq!(self.machine.segments(), in_use(&self.machine));
        assert_eq!(self.machine.files.unfinished(), 0);
        self.store = Some(self.machine.open(&tiny()));
    }

    /// Takes everything away: the files must go, and the hot file's pages must be free.
    fn empty(&mut self) {
        for (topic, _) in PARTITIONS {
            self.remove(record::range_topic(topic), Durability::Sync);
        }
        self.held.clear();
        self.commit(WriteBatch::new());
        let (machine, store) = (self.machine.clone(), self.store());
        wait_until("the end of the last segment", || {
            machine.segments().is_empty() && store.stats().storage.hot_bytes == 0
        });
        let figures = store.stats().storage;
        let left = [figures.segments, figures.live_bytes, figures.garbage_bytes];
        assert_eq!(left, [0; 3], "{figures:?}");
        self.check_now();
        self.settle();
        assert_eq!(self.machine.segments(), []);
    }
}

fn sizes(rows: &[(&Key, &Bytes)]) -> Vec<(Key, usize)> {
    let row = |(key, value): &(&Key, &Bytes)| (Key::clone(key), value.len());
    rows.iter().map(row).collect()
}

/// Everything there is, in pages.
fn check_all(machine: &Machine, snapshot: &dyn Snapshot, rows: &Rows) {
    let (mut start, end, mut found) = (Key::from([0]), Key::from([0xFF; 20]), Rows::new());
    loop {
        let limit = ScanLimit::bytes(50_000);
        let page = match snapshot.scan(Space::Records, &start..&end, Direction::Forward, limit) {
            Ok(page) => page,
            Err(error) => {
                assert!(machine.is_off(), "{error}");
                return;
            }
        };
        if let Some(last) = page.rows.last() {
            start = last.key.clone().push_bytes(&[0]);
        }
        for row in page.rows {
            assert!(
                found.insert(row.key, row.value).is_none(),
                "a row came twice"
            );
        }
        if !page.more {
            break;
        }
    }
    let (found, rows): (Vec<_>, Vec<_>) = (found.iter().collect(), rows.iter().collect());
    assert_eq!(sizes(&found), sizes(&rows));
    assert!(found == rows, "a value has changed");
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 100, ..Default::default() })]

    #[test]
    fn the_sealed_store_agrees_with_a_map(steps in prop::collection::vec(step(), 1..70)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        run.settle();
        run.empty();
    }
}
