//! Damaged rows of the sealed part are made anew of the segments, or what they named is given up.

use std::io::ErrorKind;
use std::sync::Arc;

use ::redb::backends::FileBackend;

use super::*;
use crate::fault::Effect;
use crate::redb::Mended;
use crate::segment::fault::{FaultFiles, FileFault, FileOperation};

impl Closed {
    fn mend(&self) -> Mended {
        let mut store = OfflineStore::open(self.path()).unwrap();
        store.mend(&mut lost_rows).unwrap()
    }

    /// Flips a bit of the extent that begins at `start`.
    fn damage_extent(&self, start: &Key) {
        let database = Database::open(self.path()).unwrap();
        let write = database.begin_write().unwrap();
        {
            let mut rows = write.open_table(EXTENTS).unwrap();
            let mut row = rows.get(&start[..]).unwrap().unwrap().value().to_vec();
            row[3] ^= 0x10;
            rows.insert(&start[..], &row[..]).unwrap();
        }
        write.commit().unwrap();
    }

    fn remove(&self, keys: Range<Key>) {
        let mut batch = WriteBatch::new();
        batch.delete_range(Space::Records, keys);
        commit(&self.open(), batch);
    }

    /// Nothing is wrong, and these are the offsets of the two partitions.
    fn holds(&self, first: Range<u64>, second: Range<u64>) {
        assert_eq!(self.check().found, []);
        assert_eq!(self.offsets(0), first.collect::<Vec<_>>());
        assert_eq!(self.offsets(1), second.collect::<Vec<_>>());
    }
}

const ALL: Range<u64> = 0..SEALED + HOT;

fn mended(extents: u64, segments: u64) -> Mended {
    Mended {
        extents,
        segments,
        lost: Vec::new(),
    }
}

#[test]
fn where_nothing_is_damaged_there_is_nothing_to_do() {
    let closed = Closed::new();
    assert!(closed.mend().is_nothing());
    closed.holds(ALL, ALL);
}

#[test]
fn a_damaged_extent_stands_again_where_its_segment_is_whole() {
    // In the middle of a partition, at its end, both of a partition, all that there are.
    let half = SEALED / 2;
    let all = [key(0, 0), key(0, half), key(1, 0), key(1, half)];
    for damaged in [&all[..1], &all[1..2], &all[2..], &all[..]] {
        let closed = Closed::new();
        damaged.iter().for_each(|start| closed.damage_extent(start));
        assert!(!closed.check().found.is_empty());
        assert_eq!(closed.mend(), mended(damaged.len() as u64, 0));
        closed.holds(ALL, ALL);
        assert!(closed.mend().is_nothing());
    }
}

#[test]
fn a_damaged_or_missing_row_of_a_segment_is_made_anew() {
    for flip in [Some(0), Some(20), None] {
        let closed = Closed::new();
        closed.damage(SEGMENTS, flip);
        closed.damage(EXTENTS, Some(9));
        assert_eq!(closed.mend(), mended(1, 1));
        closed.holds(ALL, ALL);
    }
}

#[test]
fn what_was_removed_does_not_come_back() {
    let closed = Closed::new();
    closed.remove(key(0, 0)..key(0, 5));
    closed.damage_extent(&key(0, 5));
    // What was cut is known about, and what is counted anew to the byte.
    assert_eq!(closed.mend(), mended(1, 1));
    closed.holds(5..SEALED + HOT, ALL);
    // A row that nothing is behind any more goes.
    closed.remove(key(1, 0)..key(1, SEALED));
    closed.holds(5..SEALED + HOT, SEALED..SEALED + HOT);
}

#[test]
fn of_a_segment_with_a_damaged_block_only_that_is_lost() {
    let closed = Closed::new();
    let number = closed.listed()[0];
    closed.flip(number, |_| 100);
    let lost = closed.only().records;
    closed.damage_extent(&key(0, 0));
    assert_eq!(closed.mend().extents, 1);
    let done = closed.quarantine(&[number]);
    assert_eq!((done.lost.len(), &done.lost[0].keys), (1, &lost[0]));
    closed.holds(base(&lost[0].end)..SEALED + HOT, ALL);
}

#[test]
fn what_no_segment_has_is_given_up_up_to_what_follows() {
    let closed = Closed::new();
    let last = closed.listed()[1];
    fs::remove_file(closed.segment(last)).unwrap();
    let half = SEALED / 2;
    closed.damage_extent(&key(0, half));
    let done = closed.mend();
    let keys = key(0, half)..key(0, SEALED);
    assert_eq!(done.extents, 0);
    let [lost] = &done.lost[..] else {
        panic!("{done:?}")
    };
    assert_eq!((&lost.keys, lost.segment), (&keys, 0));
    // The other extent still names it.
    assert_eq!(closed.only().place, Place::Segment(last));
    closed.quarantine(&[last]);
    assert_eq!(closed.check().found, []);
    let rest: Vec<u64> = (0..half).chain(SEALED..SEALED + HOT).collect();
    assert_eq!((closed.offsets(0), closed.offsets(1)), (rest.clone(), rest));
    let store = closed.open();
    let snapshot = store.snapshot().unwrap();
    for partition in [0, 1] {
        let end = lost::end_of_loss(&*snapshot, 7, partition, half).unwrap();
        assert_eq!(end, Some(SEALED));
    }
}

/// What cannot be read now, for another reason than damage, may be whole: it is not given up.
#[test]
fn nothing_is_given_up_for_a_segment_that_cannot_be_read_now() {
    let closed = Closed::new();
    let files = FaultFiles::new();
    for number in closed.listed() {
        files.put(number, fs::read(closed.segment(number)).unwrap());
    }
    for operation in [FileOperation::Open, FileOperation::Read] {
        closed.damage_extent(&key(0, 0));
        for nth in 1.. {
            let mut options = fs::File::options();
            let file = options.read(true).write(true).open(closed.path()).unwrap();
            let backend = FileBackend::new(file).unwrap();
            let segments = Arc::new(files.clone());
            let mut store = OfflineStore::open_with(backend, segments, closed.path()).unwrap();
            let effect = Effect::Fail(ErrorKind::Other);
            files.set_fault(FileFault {
                operation,
                nth,
                effect,
            });
            // A block is read again, by itself, if it could not be read with those behind it.
            if let Ok(done) = store.mend(&mut lost_rows) {
                assert!(nth > 3, "both were opened, and one was read");
                assert_eq!(done, mended(1, 0));
                break;
            }
            assert!(files.has_struck(), "{operation:?} {nth}");
        }
        files.clear_fault();
        closed.holds(ALL, ALL);
    }
}
