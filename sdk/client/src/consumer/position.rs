//! Where a consumer stands in each partition, and how it takes up the thread.
//!
//! Pure.

use std::collections::BTreeMap;

use millstream_proto::{Offset, PartitionId};

/// Most subscription streams that one consumer opens when it resumes. A
/// subscription begins all its partitions at one offset, and the broker bounds
/// the streams of a connection.
const MAX_RESUME_STREAMS: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// The next offset to receive.
    next: Offset,
    /// Everything before it was handed to the application.
    handed: Offset,
    /// Everything before it was committed, as far as this consumer did it.
    committed: Option<Offset>,
    /// The broker has delivered everything that was asked for.
    finished: bool,
}

/// The positions of one consumer.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    by_partition: BTreeMap<PartitionId, Position>,
}

/// One stream to open: partitions and the offset they begin at.
pub(crate) type Group = (Vec<PartitionId>, Offset);

impl Positions {
    /// A partition begins at `start`; one that is known keeps its place.
    pub(crate) fn begin(&mut self, partition: PartitionId, start: Offset) {
        self.by_partition.entry(partition).or_insert(Position {
            next: start,
            handed: start,
            committed: None,
            finished: false,
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_partition.is_empty()
    }

    /// Something that ends at `next` came in. Returns where the news begins, or
    /// `None` when there is none in it, or nobody asked for the partition.
    ///
    /// What plugins made of one record may come in several parts, of which only
    /// the last moves the position on. `reaches` tells such a part from something
    /// that comes twice: whether there are records at that offset or behind.
    pub(crate) fn receive(
        &mut self,
        partition: PartitionId,
        next: Offset,
        reaches: impl FnOnce(Offset) -> bool,
    ) -> Option<Offset> {
        let position = self.by_partition.get_mut(&partition)?;
        let from = position.next;
        if next < from || (next == from && !reaches(from)) {
            return None;
        }
        position.next = next;
        Some(from)
    }

    /// Everything before `next` was handed to the application.
    pub(crate) fn hand(&mut self, partition: PartitionId, next: Offset) {
        if let Some(position) = self.by_partition.get_mut(&partition) {
            position.handed = position.handed.max(next);
        }
    }

    /// The broker has nothing more for these.
    pub(crate) fn finish(&mut self, partitions: &[PartitionId]) {
        for partition in partitions {
            if let Some(position) = self.by_partition.get_mut(partition) {
                position.finished = true;
            }
        }
    }

    /// Partitions and the next offset to hand out, as they stand.
    pub(crate) fn handed(&self) -> impl Iterator<Item = (PartitionId, Offset)> + '_ {
        self.by_partition.iter().map(|(p, at)| (*p, at.handed))
    }

    /// What there is to commit: where something was handed out since last time.
    pub(crate) fn uncommitted(&self) -> Vec<(PartitionId, Offset)> {
        let moved = self
            .by_partition
            .iter()
            .filter(|(_, at)| at.committed != Some(at.handed));
        moved.map(|(p, at)| (*p, at.handed)).collect()
    }

    /// These were committed.
    pub(crate) fn commit(&mut self, offsets: &[(PartitionId, Offset)]) {
        for (partition, offset) in offsets {
            if let Some(position) = self.by_partition.get_mut(partition) {
                position.committed = Some(*offset);
            }
        }
    }

    /// The streams to open after a lost connection. Partitions that stand at the
    /// same offset share one; where there would be too many streams, neighbours
    /// share one that begins at the lowest, and [`Positions::receive`] leaves out
    /// what comes twice.
    pub(crate) fn resume(&self) -> Vec<Group> {
        let mut open: Vec<(Offset, PartitionId)> = self
            .by_partition
            .iter()
            .filter(|(_, at)| !at.finished)
            .map(|(p, at)| (at.next, *p))
            .collect();
        open.sort_unstable();
        let mut groups: Vec<Group> = Vec::new();
        for (next, partition) in &open {
            match groups.last_mut() {
                Some((partitions, start)) if start == next => partitions.push(*partition),
                _ => groups.push((vec![*partition], *next)),
            }
        }
        if groups.len() <= MAX_RESUME_STREAMS {
            return groups;
        }
        let share = open.len().div_ceil(MAX_RESUME_STREAMS);
        let merge = |chunk: &[(Offset, PartitionId)]| {
            let partitions = chunk.iter().map(|(_, p)| *p).collect();
            (partitions, chunk[0].0)
        };
        open.chunks(share).map(merge).collect()
    }

    /// Two streams instead of one that the broker refuses because some of its
    /// partitions do not reach back to the offset it begins at any more; `None`
    /// when all of them stand there.
    pub(crate) fn split(&self, (partitions, start): &Group) -> Option<[Group; 2]> {
        let next = |p: &PartitionId| self.by_partition.get(p).map_or(*start, |at| at.next);
        // Ascending, as `resume` made them.
        let same = partitions.iter().take_while(|p| next(p) == *start).count();
        let at = same.max(partitions.len() / 2);
        let second = partitions.get(at)?;
        let groups = [
            (partitions[..at].to_vec(), *start),
            (partitions[at..].to_vec(), next(second)),
        ];
        Some(groups)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P: PartitionId = PartitionId(0);

    #[test]
    fn what_comes_twice_is_left_out() {
        let mut positions = Positions::default();
        positions.begin(P, Offset(10));
        let to = |last| move |from| Offset(last) >= from;
        assert_eq!(positions.receive(P, Offset(15), to(14)), Some(Offset(10)));
        assert_eq!(positions.receive(P, Offset(15), to(14)), None);
        assert_eq!(positions.receive(P, Offset(20), to(19)), Some(Offset(15)));
        assert_eq!(positions.receive(PartitionId(9), Offset(20), to(19)), None);
        positions.begin(P, Offset(0));
        assert_eq!(positions.resume(), [(vec![P], Offset(20))]);
    }

    #[test]
    fn every_part_of_what_was_made_of_one_record_is_news() {
        let mut positions = Positions::default();
        positions.begin(P, Offset(10));
        for _ in 0..2 {
            let part = positions.receive(P, Offset(10), |from| from <= Offset(10));
            assert_eq!(part, Some(Offset(10)));
        }
        let last = positions.receive(P, Offset(11), |_| true);
        assert_eq!(last, Some(Offset(10)));
        assert_eq!(positions.receive(P, Offset(10), |_| true), None);
    }

    #[test]
    fn only_what_was_handed_out_is_committed_and_once() {
        let mut positions = Positions::default();
        positions.begin(P, Offset(0));
        positions.receive(P, Offset(9), |_| true);
        positions.hand(P, Offset(4));
        let offsets = positions.uncommitted();
        assert_eq!(offsets, [(P, Offset(4))]);
        positions.commit(&offsets);
        assert_eq!(positions.uncommitted(), []);
        positions.hand(P, Offset(9));
        assert_eq!(positions.uncommitted(), [(P, Offset(9))]);
    }

    #[test]
    fn finished_partitions_are_not_resumed() {
        let mut positions = Positions::default();
        (0..3).for_each(|p| positions.begin(PartitionId(p), Offset(5)));
        positions.finish(&[PartitionId(1)]);
        let expected = vec![PartitionId(0), PartitionId(2)];
        assert_eq!(positions.resume(), [(expected, Offset(5))]);
    }

    #[test]
    fn a_stream_for_neighbours_can_be_split_until_each_begins_at_its_place() {
        let mut positions = Positions::default();
        for p in 0..100 {
            positions.begin(PartitionId(p), Offset(u64::from(p / 2)));
        }
        let mut exact = 0;
        let mut groups = positions.resume();
        assert!(groups.len() <= MAX_RESUME_STREAMS);
        while let Some(group) = groups.pop() {
            match positions.split(&group) {
                Some(halves) => {
                    assert!(halves.iter().all(|half| half.0.len() < group.0.len()));
                    groups.extend(halves);
                }
                None => {
                    let (partitions, start) = group;
                    assert!(partitions.iter().all(|p| u64::from(p.0 / 2) == start.0));
                    exact += partitions.len();
                }
            }
        }
        assert_eq!(exact, 100);
    }

    proptest! {
        #[test]
        fn resuming_covers_every_partition_from_at_or_before_its_place(
            places in proptest::collection::vec(0u64..100, 1..200),
        ) {
            let mut positions = Positions::default();
            for (p, next) in (0u32..).zip(&places) {
                positions.begin(PartitionId(p), Offset(*next));
            }
            let groups = positions.resume();
            prop_assert!(groups.len() <= MAX_RESUME_STREAMS);
            let mut seen = Vec::new();
            for (partitions, start) in &groups {
                for p in partitions {
                    prop_assert!(start.0 <= places[p.0 as usize]);
                    seen.push(p.0);
                }
            }
            seen.sort_unstable();
            let all: Vec<u32> = (0..).take(places.len()).collect();
            prop_assert_eq!(seen, all);
            let mut distinct = places.clone();
            distinct.sort_unstable();
            distinct.dedup();
            if distinct.len() <= MAX_RESUME_STREAMS {
                let exact = groups.iter().all(|(partitions, start)| {
                    partitions.iter().all(|p| places[p.0 as usize] == start.0)
                });
                prop_assert!(exact, "nothing is sent twice without need");
            }
        }
    }
}
