//! Which neighbours among the extents of a run are worth making one of. Pure.
//!
//! A group is merged if together it is at least `gain` times as large as its largest member. So
//! whatever the order in which extents come and are merged, each byte that is rewritten lies in an
//! extent `gain` times as large afterwards, and is rewritten at most log(size / first size) times
//! to the base of `gain`, until its extent is too large to be looked at. And of extents that are
//! left, none of which makes a group with its neighbours, there are few of each size.

use std::ops::Range;

/// The groups among extents of these `sizes`, which follow each other; the groups do not overlap.
pub(super) fn groups(sizes: &[u64], gain: u64) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let all = 0..sizes.len();
    let mut open = vec![all];
    // What is no group as a whole is searched on both sides of its largest member, which is more
    // than a part in `gain` of it: so it is not searched deeply.
    while let Some(range) = open.pop() {
        let members = &sizes[range.clone()];
        // What a cut has left may be counted as nothing.
        let size = |size: &u64| (*size).max(1);
        let Some(largest) = (0..members.len()).max_by_key(|at| members[*at]) else {
            continue;
        };
        let together: u64 = members.iter().map(size).sum();
        if together >= size(&members[largest]).saturating_mul(gain) {
            found.push(range);
            continue;
        }
        let largest = range.start + largest;
        open.push(largest + 1..range.end);
        open.push(range.start..largest);
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(sizes: &[u64], gain: u64, expected: &[(usize, usize)]) {
        let found = groups(sizes, gain).into_iter();
        let found: Vec<_> = found.map(|group| (group.start, group.end)).collect();
        assert_eq!(found, expected, "{sizes:?}");
    }

    #[test]
    fn equals_make_a_group_when_there_are_enough() {
        check(&[], 4, &[]);
        check(&[7], 4, &[]);
        check(&[7; 3], 4, &[]);
        check(&[7; 4], 4, &[(0, 4)]);
        check(&[0; 5], 4, &[(0, 5)]);
        check(&[7; 2], 2, &[(0, 2)]);
    }

    #[test]
    fn what_is_large_stays_and_parts_those_beside_it() {
        check(&[1, 1, 1, 1, 100, 2, 2, 2, 2], 4, &[(0, 4), (5, 9)]);
        check(&[100, 9, 9, 9, 9], 4, &[(1, 5)]);
        check(&[100, 9, 9, 9], 4, &[]);
    }

    fn sizes() -> impl Strategy<Value = Vec<u64>> {
        let size = prop_oneof![Just(0), 1u64..100, 1u64..100_000, Just(64)];
        prop::collection::vec(size, 0..60)
    }

    /// The places before, between and behind `groups`.
    fn between(groups: &[Range<usize>], len: usize) -> Vec<Range<usize>> {
        let ends = groups.iter().map(|group| group.end);
        let starts = groups.iter().map(|group| group.start).chain([len]);
        [0].into_iter()
            .chain(ends)
            .zip(starts)
            .map(|(end, start)| end..start)
            .collect()
    }

    /// An extent in a history: its size, and the largest product of the size that one of its bytes
    /// came with and of the gains of the times it was rewritten since.
    type Grown = (u64, u64);

    fn merge(extents: &[Grown], gain: u64) -> Grown {
        let size = extents.iter().map(|(size, _)| size).sum();
        let grown = extents.iter().map(|(_, grown)| *grown).max();
        (size, gain * grown.unwrap_or_default())
    }

    proptest! {
        #[test]
        fn groups_gain_and_none_is_left(sizes in sizes(), gain in 2u64..6) {
            let found = groups(&sizes, gain);
            for group in &found {
                let members = sizes[group.clone()].iter().map(|size| (*size).max(1));
                let largest = members.clone().max().unwrap_or_default();
                prop_assert!(group.len() as u64 >= gain);
                prop_assert!(members.sum::<u64>() >= gain * largest);
            }
            for gap in between(&found, sizes.len()) {
                prop_assert!(gap.start <= gap.end, "{:?} overlap", found);
                prop_assert_eq!(groups(&sizes[gap], gain), []);
            }
        }

        /// Extents come one by one and are merged now and then: no byte is rewritten more often
        /// than its extent can grow.
        #[test]
        fn a_byte_is_rewritten_as_often_as_its_extent_grows(
            steps in prop::collection::vec((1u64..2_000, prop::bool::weighted(0.2)), 1..400),
            gain in 2u64..6,
        ) {
            const BELOW: u64 = 20_000;
            let mut extents: Vec<Grown> = Vec::new();
            for (size, merges) in steps {
                extents.push((size, size));
                if !merges {
                    continue;
                }
                let small = extents.iter().rposition(|(size, _)| *size >= BELOW);
                let small = small.map_or(0, |at| at + 1);
                let sizes: Vec<u64> = extents[small..].iter().map(|(size, _)| *size).collect();
                for group in groups(&sizes, gain).into_iter().rev() {
                    let group = small + group.start..small + group.end;
                    let merged = merge(&extents[group.clone()], gain);
                    extents.splice(group, [merged]);
                }
                for (size, grown) in &extents {
                    prop_assert!(grown <= size, "{} rewritten to {}", grown, size);
                }
            }
        }
    }

    /// Extents of about one size that come by the thousand, looked at after each few: those that
    /// stay small are few, whatever the number that came.
    #[test]
    fn few_small_extents_are_left() {
        const BELOW: u64 = 64 << 10;
        let mut sizes: Vec<u64> = Vec::new();
        for number in 0..5_000u64 {
            sizes.push(200 + number * 7919 % 400);
            if number % 16 > 0 {
                continue;
            }
            let small = sizes.iter().rposition(|size| *size >= BELOW);
            let small = small.map_or(0, |at| at + 1);
            for group in groups(&sizes[small..], 4).into_iter().rev() {
                let group = small + group.start..small + group.end;
                let merged = sizes[group.clone()].iter().sum();
                sizes.splice(group, [merged]);
            }
            let left = sizes.iter().filter(|size| **size < BELOW).count();
            assert!(left < 40, "{left} of {number}: {sizes:?}");
        }
    }
}
