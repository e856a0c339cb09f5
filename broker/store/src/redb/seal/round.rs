//! Which extents are moved next when segments are rewritten. Pure but for reading the rows.
//!
//! A *round* goes once through all extents, in the order of their keys, with one aim: to empty
//! segments of which little is wanted, or to merge neighbours that are small. It goes in steps, each
//! of which is one new segment and one commit at most, so what a step takes of memory and time does
//! not depend on how many extents there are, or in how few segments they lie. A round is not
//! remembered over a restart: what it has done stands, and the next one sees what is left.

use std::collections::HashSet;

use super::groups::groups;
use crate::batch::Key;
use crate::redb::extent::{Extent, run_of};

/// What a round is for.
#[derive(Debug)]
pub(super) enum Aim {
    /// To move all extents out of these segments.
    Empty(HashSet<u64>),
    /// To merge extents of less than `below` bytes with their neighbours, where that makes them
    /// `gain` times as large.
    Merge { below: u64, gain: u64 },
}

/// How much one step of a round takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepLimits {
    /// Extents that are moved.
    pub(super) extents: usize,
    /// Bytes in them, unless it is one that has more.
    pub(super) bytes: u64,
    /// Extents that are looked at.
    pub(super) looks: usize,
}

/// An extent that is to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Where it begins.
    pub(super) start: Key,
    pub(super) extent: Extent,
    /// Becomes one with the source before it, which is its neighbour.
    pub(super) joins: bool,
}

/// What one step moves.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) sources: Vec<Source>,
    /// Where the round goes on, if there is more to look at.
    pub(super) next: Option<Key>,
}

/// The next step with `aim` among `extents`, which come in order from where the round stands.
/// Those in segments of `avoided` stay where they are.
pub(super) fn plan<E>(
    aim: &Aim,
    limits: StepLimits,
    avoided: impl Fn(u64) -> bool,
    extents: impl Iterator<Item = Result<(Key, Extent), E>>,
) -> Result<Step, E> {
    let mut planner = Planner {
        limits,
        step: Step::default(),
        bytes: 0,
    };
    match aim {
        Aim::Empty(victims) => {
            let wanted =
                |extent: &Extent| victims.contains(&extent.segment) && !avoided(extent.segment);
            planner.gather(wanted, extents)?;
        }
        Aim::Merge { below, gain } => {
            let small = |extent: &Extent| extent.bytes < *below && !avoided(extent.segment);
            planner.merge(*gain, small, extents)?;
        }
    }
    Ok(planner.step)
}

struct Planner {
    limits: StepLimits,
    step: Step,
    /// Bytes in the sources so far.
    bytes: u64,
}

impl Planner {
    /// Whether `extents` more with `bytes` in them can be moved in this step.
    fn has_room(&self, extents: usize, bytes: u64) -> bool {
        let sources = self.step.sources.len();
        let fits = sources + extents <= self.limits.extents
            && self.bytes.saturating_add(bytes) <= self.limits.bytes;
        sources == 0 || fits
    }

    fn take(&mut self, start: Key, extent: Extent, joins: bool) {
        self.bytes = self.bytes.saturating_add(extent.bytes);
        self.step.sources.push(Source {
            start,
            extent,
            joins,
        });
    }

    /// Takes all that are wanted. Neighbours become one, since they are moved anyway.
    fn gather<E>(
        &mut self,
        wanted: impl Fn(&Extent) -> bool,
        extents: impl Iterator<Item = Result<(Key, Extent), E>>,
    ) -> Result<(), E> {
        let mut neighbour = None;
        for (looks, found) in extents.enumerate() {
            let (start, extent) = found?;
            let is_wanted = wanted(&extent);
            if looks >= self.limits.looks || is_wanted && !self.has_room(1, extent.bytes) {
                self.step.next = Some(start);
                return Ok(());
            }
            let run = is_wanted.then(|| Key::from(run_of(&start)));
            if is_wanted {
                self.take(start, extent, run == neighbour);
            }
            neighbour = run;
        }
        Ok(())
    }

    /// Takes the groups among those that are small.
    fn merge<E>(
        &mut self,
        gain: u64,
        small: impl Fn(&Extent) -> bool,
        extents: impl Iterator<Item = Result<(Key, Extent), E>>,
    ) -> Result<(), E> {
        let mut stretch = Stretch::default();
        for (looks, found) in extents.enumerate() {
            let (start, extent) = found?;
            if looks >= self.limits.looks {
                self.step.next = Some(stretch.start().unwrap_or(start));
                return Ok(());
            }
            let is_small = small(&extent);
            if is_small && stretch.goes_on_with(&start, &extent, self.limits) {
                stretch.push(start, extent);
                continue;
            }
            if let Some(next) = self.take_groups(std::mem::take(&mut stretch), gain) {
                self.step.next = Some(next);
                return Ok(());
            }
            if is_small {
                stretch.push(start, extent);
            }
        }
        self.step.next = self.take_groups(stretch, gain);
        Ok(())
    }

    /// Takes the groups of a stretch, or says where it begins if there is no room for them.
    fn take_groups(&mut self, stretch: Stretch, gain: u64) -> Option<Key> {
        let sizes: Vec<u64> = stretch.extents.iter().map(|(_, e)| e.bytes).collect();
        let found = groups(&sizes, gain);
        let members = found.iter().flat_map(|group| &sizes[group.clone()]);
        let (number, bytes) = (members.clone().count(), members.sum());
        if number > 0 && !self.has_room(number, bytes) {
            return stretch.start();
        }
        for group in found {
            let members = stretch.extents[group].iter();
            for (at, (start, extent)) in members.enumerate() {
                self.take(start.clone(), extent.clone(), at > 0);
            }
        }
        None
    }
}

/// Small extents of a run that follow each other.
#[derive(Default)]
struct Stretch {
    extents: Vec<(Key, Extent)>,
    bytes: u64,
}

impl Stretch {
    fn start(&self) -> Option<Key> {
        self.extents.first().map(|(start, _)| start.clone())
    }

    /// Whether the next extent belongs to it: one step must have room for the whole stretch.
    fn goes_on_with(&self, start: &Key, extent: &Extent, limits: StepLimits) -> bool {
        let Some((first, _)) = self.extents.first() else {
            return true;
        };
        run_of(first) == run_of(start)
            && self.extents.len() < limits.extents
            && self.bytes.saturating_add(extent.bytes) <= limits.bytes
    }

    fn push(&mut self, start: Key, extent: Extent) {
        self.bytes = self.bytes.saturating_add(extent.bytes);
        self.extents.push((start, extent));
    }
}

#[cfg(test)]
mod tests;
