//! Where a consumer stands in each partition, and how it takes up the thread.
//!
//! Pure.

use std::collections::BTreeMap;

use millstream_proto::{Offset, PartitionId};

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
    /// It was told that the partition stands still, and nothing came since.
    shut: bool,
}

/// The positions of one consumer.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    by_partition: BTreeMap<PartitionId, Position>,
}

impl Positions {
    /// A partition begins at `start`; one that is known keeps its place.
    pub(crate) fn begin(&mut self, partition: PartitionId, start: Offset) {
        self.by_partition.entry(partition).or_insert(Position {
            next: start,
            handed: start,
            committed: None,
            finished: false,
            shut: false,
        });
    }

    /// The partition goes on at `at`, if that lies before where the consumer stands: what it has
    /// received behind it is gone, and other records will have these offsets. Returns whether
    /// that is so.
    pub(crate) fn go_back(&mut self, partition: PartitionId, at: Offset) -> bool {
        let known = self.by_partition.get_mut(&partition);
        let Some(position) = known.filter(|position| at < position.next) else {
            return false;
        };
        position.next = at;
        position.handed = position.handed.min(at);
        true
    }

    /// The partition goes on at `at`, behind what is not there.
    pub(crate) fn pass_over(&mut self, partition: PartitionId, at: Offset) {
        if let Some(position) = self.by_partition.get_mut(&partition) {
            position.next = position.next.max(at);
            position.handed = position.handed.max(at);
        }
    }

    /// The partition stands still. Returns whether that is news.
    pub(crate) fn shut(&mut self, partition: PartitionId) -> bool {
        let known = self.by_partition.get_mut(&partition);
        known.is_some_and(|position| !std::mem::replace(&mut position.shut, true))
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
        position.shut = false;
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

    /// Where to go on after a lost connection, in what is not finished.
    pub(crate) fn resume(&self) -> Vec<(PartitionId, Offset)> {
        let open = self.by_partition.iter().filter(|(_, at)| !at.finished);
        open.map(|(partition, at)| (*partition, at.next)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
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
        assert_eq!(positions.resume(), [(P, Offset(20))]);
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
    fn what_a_crash_took_is_read_and_committed_again() {
        let mut positions = Positions::default();
        positions.begin(P, Offset(0));
        positions.receive(P, Offset(9), |_| true);
        positions.hand(P, Offset(9));
        positions.commit(&[(P, Offset(9))]);
        assert!(positions.go_back(P, Offset(5)));
        assert!(!positions.go_back(P, Offset(5)) && !positions.go_back(P, Offset(7)));
        assert!(!positions.go_back(PartitionId(9), Offset(0)));
        assert_eq!(positions.uncommitted(), [(P, Offset(5))]);
        assert_eq!(positions.receive(P, Offset(7), |_| true), Some(Offset(5)));
    }

    #[test]
    fn what_is_not_there_is_done_with() {
        let mut positions = Positions::default();
        positions.begin(P, Offset(0));
        positions.pass_over(P, Offset(4));
        assert_eq!(positions.uncommitted(), [(P, Offset(4))]);
        positions.pass_over(P, Offset(2));
        assert_eq!(positions.resume(), [(P, Offset(4))]);
    }

    #[test]
    fn a_partition_that_stands_still_is_news_once_until_something_comes() {
        let mut positions = Positions::default();
        positions.begin(P, Offset(0));
        assert!(positions.shut(P) && !positions.shut(P));
        positions.receive(P, Offset(1), |_| true);
        assert!(positions.shut(P) && !positions.shut(PartitionId(9)));
    }

    #[test]
    fn finished_partitions_are_not_resumed() {
        let mut positions = Positions::default();
        (0..3).for_each(|p| positions.begin(PartitionId(p), Offset(5)));
        positions.receive(PartitionId(2), Offset(9), |_| true);
        positions.finish(&[PartitionId(1)]);
        let expected = [(PartitionId(0), Offset(5)), (PartitionId(2), Offset(9))];
        assert_eq!(positions.resume(), expected);
    }
}
