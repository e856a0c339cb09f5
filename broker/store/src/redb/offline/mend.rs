//! Rows of the sealed part that do not match their checksums: put together again from the segments
//! themselves, or taken out.
//!
//! An extent that cannot be read began at its key and ended before the next one of its partition,
//! or before the first record that is not sealed. What a segment's own index has in there is what
//! the extent named: nothing else can be, since records of a partition are removed from the front
//! only, and never stored again under the same key. Where two segments have the same key, one was
//! rewritten into the other, and both have the same record. A segment's row only counts, so it can
//! be made anew from the file and the extents.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use ::redb::Error as RedbError;

use super::{OfflineStore, QuarantineError, apply_rows, is_gone};
use crate::batch::{Durability, Key, WriteBatch};
use crate::limits::TRAILER_LEN;
use crate::redb::extent::{Extent, SegmentRow, run_of, successor};
use crate::redb::pack;
use crate::redb::records::WriteFault;
use crate::redb::view::View;
use crate::redb::write::begin;
use crate::redb::{EXTENTS, LostRun, Recovery, SEGMENTS};
use crate::segment::{Segment, SegmentError, Segments, StoredFile};
use crate::store::Direction;
use crate::writer::caught;

/// What came of putting rows together again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Extents that were damaged, and stand again.
    pub extents: u64,
    /// Rows of segments that were made anew.
    pub segments: u64,
    /// What lay where damaged extents said, and is in no segment. Their number is 0.
    pub lost: Vec<LostRun>,
}

impl Mended {
    /// Whether there was nothing to do.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// The rows as they are, and as they will be.
#[derive(Default)]
struct Rows {
    extents: BTreeMap<Key, Extent>,
    damaged: BTreeSet<Key>,
    /// By number; none where it does not match its checksum.
    segments: BTreeMap<u64, Option<SegmentRow>>,
    /// Keys of records that are not sealed.
    hot: BTreeSet<Key>,
}

impl OfflineStore {
    /// Puts damaged rows of extents and segments together again, from the segments' own indexes,
    /// as far as they are there; what cannot be had goes. `rows` is told what is lost, as in
    /// [`OfflineStore::quarantine`], and all is one commit. A check behind it says whether the
    /// segments hold what the rows name now.
    ///
    /// # Errors
    /// See [`QuarantineError`].
    pub fn mend(
        &mut self,
        rows: &mut dyn FnMut(&[LostRun]) -> WriteBatch,
    ) -> Result<Mended, QuarantineError> {
        let view = self.view.take().filter(|_| !self.broken);
        let view = view.ok_or_else(|| self.hot("pages do not match their checksums"))?;
        let mended = self.mend_seen(&view, rows);
        drop(view);
        let looked = self.look().map_err(|error| self.hot(error));
        let mended = mended?;
        looked?;
        Ok(mended)
    }

    fn mend_seen(
        &self,
        view: &View,
        rows: &mut dyn FnMut(&[LostRun]) -> WriteBatch,
    ) -> Result<Mended, QuarantineError> {
        let read = caught(|| Rows::read(view)).map_err(|panic| self.hot(panic))?;
        let plan = read
            .map_err(|error| self.hot(error))?
            .plan(&self.open_all()?, &self.segments)?;
        let mended = plan.mended();
        if mended.is_nothing() {
            return Ok(mended);
        }
        let rows = rows(&mended.lost);
        caught(|| self.write(&plan, &rows))
            .map_err(|panic| self.hot(panic))?
            .map_err(|fault| self.hot(fault))?;
        Ok(mended)
    }

    fn write(&self, plan: &Plan, rows: &WriteBatch) -> Result<(), WriteFault> {
        let transaction = begin(&self.database, Durability::Sync, Recovery::TwoPhase)?;
        {
            let mut table = transaction.open_table(EXTENTS).map_err(RedbError::from)?;
            for start in &plan.damaged {
                table.remove(&start[..]).map_err(RedbError::from)?;
            }
            for (start, extent) in &plan.extents {
                let row = extent.encode(start);
                let put = table.insert(&start[..], &row[..]);
                put.map_err(RedbError::from)?;
            }
            let mut table = transaction.open_table(SEGMENTS).map_err(RedbError::from)?;
            for number in &plan.unused {
                table.remove(number).map_err(RedbError::from)?;
            }
            for (number, row) in &plan.segments {
                let row = row.encode(*number);
                table.insert(number, &row[..]).map_err(RedbError::from)?;
            }
        }
        apply_rows(&transaction, rows)?;
        transaction.commit().map_err(RedbError::from)?;
        Ok(())
    }

    /// The segments that can be opened, whatever the rows say. One that is damaged or missing holds
    /// nothing that a row could be made of; what its extents name is found to be lost with it.
    ///
    /// One that cannot be opened for another reason may be whole, so nothing may be given up for
    /// its sake. No more than the summaries are kept: there may be more segments than a process may
    /// have files open.
    fn open_all(&self) -> Result<BTreeMap<u64, Opened>, QuarantineError> {
        let files = self.segments.files();
        let listed = files.list().map_err(self.io("list", files.path(0)))?;
        let mut all = BTreeMap::new();
        for StoredFile { number, bytes } in listed {
            let holds = match Segment::open(&**files, number, bytes) {
                Ok(segment) => Some(Holds {
                    first: Key::from(segment.first_key()),
                    last: Key::from(segment.last_key()),
                    bytes: segment.data_bytes(),
                }),
                Err(error) if is_gone(&error) => None,
                Err(error) => return Err(error.into()),
            };
            all.insert(number, Opened { holds, bytes });
        }
        Ok(all)
    }
}

/// A segment's file.
struct Opened {
    /// What its index says, if that could be read.
    holds: Option<Holds>,
    bytes: u64,
}

/// What a segment holds as a whole.
struct Holds {
    first: Key,
    last: Key,
    /// Of keys and values.
    bytes: u64,
}

/// Where an extent must have ended, at the latest.
struct Bound {
    end: Key,
    /// Nothing is known to be there: it is only the end of the partition.
    open: bool,
}

/// What is to be written.
#[derive(Default)]
struct Plan {
    /// Extents that go.
    damaged: BTreeSet<Key>,
    /// How many of them stand again.
    stand: u64,
    /// Extents that come.
    extents: BTreeMap<Key, Extent>,
    /// Rows of segments that change.
    segments: BTreeMap<u64, SegmentRow>,
    /// Segments that no extent names.
    unused: Vec<u64>,
    lost: Vec<LostRun>,
}

impl Plan {
    fn mended(&self) -> Mended {
        Mended {
            extents: self.stand,
            segments: (self.segments.len() + self.unused.len()) as u64,
            lost: self.lost.clone(),
        }
    }
}

impl Rows {
    fn plan(
        mut self,
        open: &BTreeMap<u64, Opened>,
        segments: &Segments,
    ) -> Result<Plan, SegmentError> {
        let mut plan = Plan::default();
        for start in &self.damaged {
            let bound = self.bound(start);
            let found = rebuilt(open, segments, start, &bound)?;
            if found.is_empty() {
                let end = match bound.open {
                    true => successor(start),
                    false => bound.end,
                };
                plan.lost.push(LostRun {
                    segment: 0,
                    keys: start.clone()..end,
                    bytes: 0,
                });
            } else {
                plan.stand += 1;
            }
            plan.extents.extend(found);
        }
        self.extents.extend(plan.extents.clone());
        plan.segments = self.count(open);
        let known = std::mem::take(&mut self.segments);
        let unused = known.keys().filter(|n| !plan.segments.contains_key(n));
        plan.unused = unused.copied().collect();
        plan.segments
            .retain(|number, row| known.get(number) != Some(&Some(*row)));
        plan.damaged = self.damaged;
        Ok(plan)
    }

    fn read(view: &View) -> Result<Self, RedbError> {
        let mut rows = Self::default();
        for row in view.extents()?.range::<&[u8]>(..)? {
            let (start, row) = row?;
            let start = Key::from(start.value());
            match Extent::decode(&start, row.value()) {
                Ok(extent) => drop(rows.extents.insert(start, extent)),
                Err(_) => drop(rows.damaged.insert(start)),
            }
        }
        for row in view.segment_rows()?.range::<u64>(..)? {
            let (number, row) = row?;
            let number = number.value();
            let row = SegmentRow::decode(number, row.value()).ok();
            rows.segments.insert(number, row);
        }
        if !rows.damaged.is_empty() {
            for row in view.directories()?.range(view.sight.floor..)? {
                let (number, row) = row?;
                // A directory that cannot be read has been told of: it is not what is mended here.
                let entries = pack::decode_directory(number.value(), row.value());
                let keys = entries.into_iter().flatten().map(|entry| entry.key);
                rows.hot.extend(keys);
            }
        }
        Ok(rows)
    }

    fn bound(&self, start: &Key) -> Bound {
        let behind = successor(start);
        let within = |key: &&Key| run_of(key) == run_of(start);
        let next = [
            self.extents
                .range(behind.clone()..)
                .next()
                .map(|(key, _)| key),
            self.damaged.range(behind.clone()..).next(),
            self.hot.range(behind..).next(),
        ];
        match next.into_iter().flatten().filter(within).min() {
            Some(end) => Bound {
                end: end.clone(),
                open: false,
            },
            None => Bound {
                end: end_of_run(start),
                open: true,
            },
        }
    }

    /// The rows of all segments that extents name.
    fn count(&self, open: &BTreeMap<u64, Opened>) -> BTreeMap<u64, SegmentRow> {
        let mut counts: HashMap<u64, (u64, u64)> = HashMap::new();
        for extent in self.extents.values() {
            let (extents, bytes) = counts.entry(extent.segment).or_default();
            *extents += 1;
            *bytes += extent.bytes;
        }
        let row = |(number, (extents, live_bytes)): (u64, (u64, u64))| {
            let known = self.segments.get(&number).copied().flatten();
            let file = open.get(&number);
            let data = file.and_then(|file| file.holds.as_ref());
            let data = data.map(|holds| holds.bytes);
            let row = SegmentRow {
                // What the row says, if it can be read: a file of another length is damaged.
                file_bytes: known.map_or(file.map_or(0, |file| file.bytes), |row| row.file_bytes),
                data_bytes: known.map_or(data.unwrap_or(live_bytes), |row| row.data_bytes),
                live_bytes,
                extents,
            };
            (number, row)
        };
        counts.into_iter().map(row).collect()
    }
}

/// The smallest key behind all that share the run of `start`.
fn end_of_run(start: &Key) -> Key {
    let mut prefix = run_of(start).to_vec();
    while let Some(last) = prefix.pop() {
        if let Some(next) = last.checked_add(1) {
            prefix.push(next);
            break;
        }
    }
    Key::from(&prefix[..])
}

/// The extents that lie between `start` and `bound`, as the segments say.
fn rebuilt(
    open: &BTreeMap<u64, Opened>,
    segments: &Segments,
    start: &Key,
    bound: &Bound,
) -> Result<BTreeMap<Key, Extent>, SegmentError> {
    let range = &start[..]..&bound.end[..];
    let overlaps = |holds: &Holds| *holds.first < *range.end && *range.start <= *holds.last;
    let mut keys = Keys::new();
    for (number, opened) in open {
        if !opened.holds.as_ref().is_some_and(overlaps) {
            continue;
        }
        let segment = segments.get(*number, opened.bytes)?;
        match keys_in(&segment, &range) {
            // Of two that have a key the newer one counts.
            Ok(found) => keys.extend(found),
            Err(why) if is_gone(&why) => return Ok(damaged(&segment, &range)),
            Err(why) => return Err(why),
        }
    }
    let mut extents: BTreeMap<Key, Extent> = BTreeMap::new();
    for (key, (number, bytes)) in keys {
        match extents.last_entry() {
            Some(mut last) if last.get().segment == number => {
                let extent = last.get_mut();
                extent.end = successor(&key);
                extent.bytes += bytes;
            }
            _ => {
                let extent = Extent {
                    segment: number,
                    end: successor(&key),
                    bytes,
                };
                extents.insert(key, extent);
            }
        }
    }
    Ok(extents)
}

/// Of each key, the segment that has it, and the bytes of the entry.
type Keys = BTreeMap<Key, (u64, u64)>;

fn keys_in(segment: &Segment, range: &Range<&[u8]>) -> Result<Keys, SegmentError> {
    let entries = segment.iter_range(range.clone(), Direction::Forward);
    let entries = entries.map(|row| {
        let row = row?;
        let bytes = (row.key.len() + row.value.len()).saturating_sub(TRAILER_LEN) as u64;
        Ok((row.key, (segment.number(), bytes)))
    });
    entries.collect()
}

/// All of `range` that `segment` can hold, which has a damaged block in there: what can be read of
/// it is saved when the segment is taken out, and what cannot is known to be lost then.
fn damaged(segment: &Segment, range: &Range<&[u8]>) -> BTreeMap<Key, Extent> {
    let start = Key::from(range.start.max(segment.first_key()));
    let end = successor(segment.last_key()).min(Key::from(range.end));
    let bytes = segment.bytes_in(&start[..]..&end[..]);
    let extent = Extent {
        segment: segment.number(),
        end,
        bytes,
    };
    BTreeMap::from([(start, extent)])
}
