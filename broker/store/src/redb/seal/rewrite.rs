//! Rewriting segments: when, which, and what becomes of those that cannot be read.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::time::Duration;

use super::copy::file_lens;
use super::round::{Aim, Step, StepLimits, plan};
use super::{FIRST_PAUSE, LONGEST_PAUSE, SealError, Sealer};
use crate::batch::Key;
use crate::limits::{
    EXTENT_SHARE, EXTENT_SPACE, GARBAGE_SHARE, MERGE_BELOW, MERGE_GAIN, MERGE_GAIN_FULL,
    MERGE_SHARE, REWRITE_EXTENTS, REWRITE_LOOKS,
};
use crate::pace::Stopwatch;
use crate::redb::desk::What;
use crate::redb::extent::{Extent, SegmentRow};
use crate::redb::read::Fault;
use crate::redb::view::View;
use crate::segment::SegmentError;

/// Once fewer than this part (one in so many) of the extents are there from which on they would be
/// looked through, that is lowered.
const MERGE_AGAIN: u64 = 4;

/// What has become of a rewriting.
pub(super) enum Rewritten {
    /// Nothing is to be rewritten.
    NothingDue,
    /// There may be more.
    Moved,
    /// All that was copied was cut meanwhile.
    Outrun,
}

/// A round that is under way.
struct Round {
    aim: Aim,
    /// It has come so far: the extents that begin below are done with.
    from: Key,
    /// Whether anything was moved.
    moved: bool,
}

/// What the sealer knows of rewriting.
pub(in crate::redb) struct Rewriting {
    round: Option<Round>,
    /// The last round was one of merging.
    merged_last: bool,
    /// How many extents there may be, unless there are so many runs.
    most_extents: u64,
    /// From how many extents on they are looked through.
    merge_from: u64,
    /// Segments that could not be read.
    avoided: BTreeMap<u64, Avoided>,
}

/// A segment that could not be read.
struct Avoided {
    why: String,
    /// It is no use to read it again before a restart.
    lasting: bool,
    since: Stopwatch,
    /// How long it is left alone.
    pause: Duration,
    /// It is over: the next attempt tells.
    over: bool,
}

impl Avoided {
    fn left(&self) -> Duration {
        self.pause.saturating_sub(self.since.elapsed())
    }
}

/// Whether it is no use to read a segment again.
fn is_lasting(why: &SegmentError) -> bool {
    match why {
        SegmentError::Damaged { .. } | SegmentError::Version { .. } => true,
        SegmentError::Io { source, .. } => source.kind() == ErrorKind::NotFound,
        _ => false,
    }
}

impl Rewriting {
    /// For a hot file of at most `hot_bytes`.
    pub(in crate::redb) fn new(hot_bytes: u64) -> Self {
        let most_extents = hot_bytes / EXTENT_SHARE / EXTENT_SPACE;
        Self {
            round: None,
            merged_last: false,
            most_extents,
            merge_from: most_extents / MERGE_SHARE,
            avoided: BTreeMap::new(),
        }
    }

    /// Whether so many extents are to be looked through.
    pub(super) fn wants_merging(&self, extents: u64) -> bool {
        extents >= self.merge_from.max(1)
    }

    /// Whether there are so many extents that sealing, which brings more, has to wait its turn.
    pub(super) fn is_behind(&self, extents: u64) -> bool {
        let most = self.most_extents.min(2 * self.merge_from);
        self.wants_merging(extents) && extents >= most
    }

    /// A round of merging has left so many extents: they are looked through again when there are
    /// twice as many, or a quarter more if that is too many.
    fn merged(&mut self, extents: u64) {
        let twice = extents.saturating_mul(2).min(self.most_extents);
        let more = extents.saturating_add(extents / 4);
        self.merge_from = twice.max(more).max(self.most_extents / MERGE_SHARE);
    }

    /// There are so many extents now. If most are gone since they were looked through, those that
    /// come are looked through before there are as many again.
    fn left(&mut self, extents: u64) {
        if extents < self.merge_from / MERGE_AGAIN {
            self.merged(extents);
        }
    }

    /// What to do about `extents` that hold `live` bytes, if a step may move `step` bytes. Large
    /// extents are left alone, unless there would be too many of them: then the average must grow.
    fn merging(&self, extents: u64, live: u64, step: u64) -> Aim {
        let most = self.most_extents.max(1);
        // Twice the average that would be just enough.
        let needed = live.saturating_mul(2) / most;
        Aim::Merge {
            below: needed.max(MERGE_BELOW).min(step / MERGE_GAIN),
            gain: if extents > most {
                MERGE_GAIN_FULL
            } else {
                MERGE_GAIN
            },
        }
    }

    fn avoids(&self, number: u64) -> bool {
        let avoided = self.avoided.get(&number);
        avoided.is_some_and(|avoided| !avoided.over)
    }

    /// Leaves segment `number` alone for a while: longer each time, and until a restart if it is no
    /// use to read it again.
    fn avoid(&mut self, number: u64, why: &SegmentError) {
        let lasting = is_lasting(why);
        let last = self.avoided.get(&number).map(|avoided| avoided.pause);
        let then = if lasting {
            "what is wanted of it stays where it is"
        } else {
            "it is tried again and again, and others are rewritten meanwhile"
        };
        let avoided = Avoided {
            why: format!("segment {number} cannot be rewritten: {why}; {then}"),
            lasting,
            since: Stopwatch::start(),
            pause: last.map_or(FIRST_PAUSE, |last| (last * 2).min(LONGEST_PAUSE)),
            over: false,
        };
        self.avoided.insert(number, avoided);
    }

    /// Those that were left alone for long enough may be read again.
    fn excuse(&mut self) {
        for avoided in self.avoided.values_mut() {
            avoided.over |= !avoided.lasting && avoided.left().is_zero();
        }
    }

    /// How long until one may be read again that is left alone now.
    pub(super) fn next_excuse(&self) -> Option<Duration> {
        let waiting = self.avoided.values();
        let waiting = waiting.filter(|avoided| !avoided.lasting && !avoided.over);
        waiting.map(Avoided::left).min()
    }

    /// The files of these are gone.
    pub(super) fn forget(&mut self, numbers: &[u64]) {
        self.avoided.retain(|number, _| !numbers.contains(number));
    }

    /// Which segment is left alone, and why.
    pub(super) fn trouble(&self) -> Option<&str> {
        let mut avoided = self.avoided.values();
        avoided
            .find(|avoided| !avoided.over)
            .map(|avoided| &avoided.why[..])
    }
}

impl Sealer {
    /// Goes a step on with the round that is under way, or begins one if it is due.
    pub(super) fn rewrite(&mut self) -> Result<Rewritten, SealError> {
        let Some(view) = self.shared.view() else {
            return Err(SealError::Closing);
        };
        self.rewriting.excuse();
        self.rewriting.left(self.shared.meter.extents());
        if self.rewriting.round.is_none() {
            self.rewriting.round = self.due(&view)?;
        }
        let Some(round) = &self.rewriting.round else {
            return Ok(Rewritten::NothingDue);
        };
        let step = self.next_step(&view, round)?;
        let lens = file_lens(&view, &step.sources)?;
        drop(view);
        let numbers: Vec<u64> = lens.keys().copied().collect();
        // Whatever fails now: the round goes on with this step once more.
        let anything = !step.sources.is_empty();
        let moved = anything && {
            let (segment, moved) = self.copy(step.sources, &lens)?;
            self.submit(What::Extents { segment, moved })?
        };
        self.rewriting.forget(&numbers);
        Ok(self.stepped(step.next, anything, moved))
    }

    /// Notes how a step of the round has gone, and where it goes on.
    fn stepped(&mut self, next: Option<Key>, anything: bool, moved: bool) -> Rewritten {
        let Some(mut round) = self.rewriting.round.take() else {
            return Rewritten::NothingDue;
        };
        round.moved |= moved;
        if let Some(from) = next {
            round.from = from;
            self.rewriting.round = Some(round);
        } else {
            let merged = matches!(round.aim, Aim::Merge { .. });
            self.rewriting.merged_last = merged;
            if merged {
                let extents = self.shared.meter.extents();
                self.rewriting.merged(extents);
            } else if !round.moved {
                // What was to be moved has been cut, or is not there: not again at once.
                return Rewritten::Outrun;
            }
        }
        if anything && !moved {
            Rewritten::Outrun
        } else {
            Rewritten::Moved
        }
    }

    fn next_step(&self, view: &View, round: &Round) -> Result<Step, SealError> {
        let limits = StepLimits {
            extents: REWRITE_EXTENTS,
            bytes: self.segment_bytes,
            looks: REWRITE_LOOKS,
        };
        let rows = view.extents()?.range::<&[u8]>(&round.from[..]..)?;
        let extents = rows.map(|row| -> Result<_, SealError> {
            let (start, row) = row?;
            let extent = Extent::decode(start.value(), row.value())
                .map_err(|why| Fault::Row(Key::from(start.value()), why))?;
            Ok((Key::from(start.value()), extent))
        });
        plan(
            &round.aim,
            limits,
            |number| self.rewriting.avoids(number),
            extents,
        )
    }

    /// The round that is due, if one is. Emptying and merging take turns.
    fn due(&self, view: &View) -> Result<Option<Round>, SealError> {
        let extents = self.shared.meter.extents();
        let merges = self.rewriting.wants_merging(extents);
        let aim = if merges && !self.rewriting.merged_last {
            None
        } else {
            Some(self.victims(view)?).filter(|victims| !victims.is_empty())
        };
        let aim = match aim {
            Some(victims) => Some(Aim::Empty(victims)),
            None => merges.then(|| {
                let live = self.shared.meter.live();
                self.rewriting.merging(extents, live, self.segment_bytes)
            }),
        };
        Ok(aim.map(|aim| Round {
            aim,
            from: Key::new(),
            moved: false,
        }))
    }

    /// The segments to empty: those with the least that is wanted, as many as fit one segment.
    fn victims(&self, view: &View) -> Result<HashSet<u64>, SealError> {
        let (mut rows, mut data, mut live) = (Vec::new(), 0u64, 0u64);
        for found in view.segment_rows()?.range::<u64>(..)? {
            let (number, row) = found?;
            let number = number.value();
            let row = SegmentRow::decode(number, row.value())
                .map_err(|why| SealError::Damaged(format!("segment {number}: {why}")))?;
            if self.rewriting.avoids(number) {
                continue;
            }
            data += row.data_bytes;
            live += row.live_bytes;
            if row.live_bytes < row.data_bytes {
                rows.push((number, row));
            }
        }
        let garbage = data.saturating_sub(live);
        if garbage < self.segment_bytes || garbage < data / GARBAGE_SHARE {
            return Ok(HashSet::new());
        }
        let share = |row: &SegmentRow| row.live_bytes as f64 / row.data_bytes.max(1) as f64;
        rows.sort_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)));
        let (mut victims, mut bytes) = (HashSet::new(), 0);
        for (number, row) in rows {
            bytes += row.live_bytes;
            if !victims.is_empty() && bytes > self.segment_bytes {
                break;
            }
            victims.insert(number);
        }
        Ok(victims)
    }

    /// Leaves segment `number` as it is for now.
    pub(super) fn avoid(&mut self, number: u64, why: SegmentError) -> SealError {
        self.rewriting.avoid(number, &why);
        SealError::Unreadable { number, why }
    }
}

#[cfg(test)]
mod tests;
