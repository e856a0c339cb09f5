//! Which offsets of a partition there are: ranges that do not touch each other.

use std::ops::Range;

/// A set of offsets. Batches mostly come in order, so there are few ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Coverage(Vec<Range<u64>>);

impl Coverage {
    /// Adds a range. Says whether it overlaps some of what was there and is not all of it there.
    pub(super) fn add(&mut self, range: Range<u64>) -> bool {
        if range.is_empty() {
            return false;
        }
        // The ranges that the new one touches or overlaps.
        let first = self.0.partition_point(|other| other.end < range.start);
        let behind = self.0.partition_point(|other| other.start <= range.end);
        let touched = &self.0[first..behind];
        let overlap = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        let holds = |other: &Range<u64>| other.start <= range.start && range.end <= other.end;
        let clash = touched.iter().any(overlap) && !touched.iter().any(holds);
        let start = touched
            .first()
            .map_or(range.start, |r| r.start.min(range.start));
        let end = touched.last().map_or(range.end, |r| r.end.max(range.end));
        self.0.splice(first..behind, std::iter::once(start..end));
        clash
    }

    /// Behind the last offset; 0 if there is none.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.end)
    }

    /// Where the first range behind `offset` begins.
    pub(super) fn next_start(&self, offset: u64) -> Option<u64> {
        let at = self.0.partition_point(|range| range.start <= offset);
        self.0.get(at).map(|range| range.start)
    }

    /// The parts of `range` that are not there.
    pub(super) fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut gaps, mut at) = (Vec::new(), range.start);
        for there in &self.0 {
            if there.start >= range.end {
                break;
            }
            if there.start > at {
                gaps.push(at..there.start);
            }
            at = at.max(there.end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_added(
            ranges in prop::collection::vec((0u64..40, 0u64..6), 0..20),
            (from, len) in (0u64..40, 0u64..20),
        ) {
            let (mut coverage, mut model) = (Coverage::default(), BTreeSet::new());
            for (start, len) in ranges {
                let range = start..start + len;
                let there = range.clone().filter(|offset| model.contains(offset)).count();
                let clash = coverage.add(range.clone());
                prop_assert_eq!(clash, there > 0 && there < range.clone().count());
                model.extend(range);
            }
            prop_assert_eq!(coverage.end(), model.last().map_or(0, |last| last + 1));
            let gaps = coverage.gaps(from..from + len);
            let missing: Vec<u64> = gaps.iter().cloned().flatten().collect();
            let expected: Vec<u64> = (from..from + len).filter(|o| !model.contains(o)).collect();
            prop_assert_eq!(missing, expected);
            let starts = |offset: &u64| *offset == 0 || !model.contains(&(offset - 1));
            let next = model.iter().copied().filter(|o| *o > from).find(starts);
            prop_assert_eq!(coverage.next_start(from), next);
        }
    }
}
