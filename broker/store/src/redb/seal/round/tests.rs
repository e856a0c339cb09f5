//! Rounds against a table of extents.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

type Table = BTreeMap<Key, Extent>;

const LIMITS: StepLimits = StepLimits {
    extents: 6,
    bytes: 1_000,
    looks: 15,
};

/// A run and a segment for each extent, and its bytes.
fn table() -> impl Strategy<Value = Table> {
    let size = prop_oneof![3 => 0u64..50, 1 => 0u64..400, 1 => 400u64..3_000];
    let extent = (0u64..3, 0u64..5, size);
    prop::collection::vec(extent, 0..80).prop_map(|mut extents| {
        extents.sort_by_key(|(run, ..)| *run);
        let row = |(at, (run, segment, bytes)): (usize, (u64, u64, u64))| {
            let start = Key::new().push_u64(run).push_u64(at as u64 * 10);
            let end = Key::new().push_u64(run).push_u64(at as u64 * 10 + 7);
            let extent = Extent {
                segment,
                end,
                bytes,
            };
            (start, extent)
        };
        extents.into_iter().enumerate().map(row).collect()
    })
}

/// The steps of a round through `table`, which stays as it is.
fn steps(aim: &Aim, avoided: u64, table: &Table) -> Vec<Step> {
    let (mut from, mut steps) = (Key::new(), Vec::new());
    loop {
        let rows = table.range(from.clone()..);
        let rows = rows.map(|(start, extent)| Ok((start.clone(), extent.clone())));
        let Ok(step) = plan::<Infallible>(aim, LIMITS, |number| number == avoided, rows);
        let next = step.next.clone();
        steps.push(step);
        match next {
            Some(next) => {
                assert!(next > from, "the round goes on");
                from = next;
            }
            None => return steps,
        }
    }
}

fn check_limits(step: &Step) {
    let bytes: u64 = step.sources.iter().map(|source| source.extent.bytes).sum();
    assert!(step.sources.len() <= LIMITS.extents);
    assert!(
        step.sources.len() <= 1 || bytes <= LIMITS.bytes,
        "{bytes} bytes"
    );
}

/// Who joins follows whom it joins, in the table and in its run.
fn check_joins(step: &Step, table: &Table) {
    for (at, source) in step.sources.iter().enumerate() {
        assert_eq!(table.get(&source.start), Some(&source.extent));
        if source.joins {
            let before = &step.sources[at - 1];
            let mut below = table.range(..source.start.clone());
            assert_eq!(
                below.next_back().map(|(start, _)| start),
                Some(&before.start)
            );
            assert_eq!(run_of(&before.start), run_of(&source.start));
        }
    }
}

proptest! {
    #[test]
    fn a_round_empties_its_segments(
        table in table(), victims in prop::collection::hash_set(0u64..5, 0..4), avoided in 0u64..6,
    ) {
        let wanted = |extent: &Extent| {
            victims.contains(&extent.segment) && extent.segment != avoided
        };
        let expected = table.iter().filter(|(_, extent)| wanted(extent));
        let expected: BTreeSet<&Key> = expected.map(|(start, _)| start).collect();
        let steps = steps(&Aim::Empty(victims.clone()), avoided, &table);
        let sources = steps.iter().flat_map(|step| &step.sources);
        let found: Vec<&Key> = sources.map(|source| &source.start).collect();
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        for step in &steps {
            check_limits(step);
            check_joins(step, &table);
        }
    }

    #[test]
    fn a_round_merges_groups_of_small_neighbours(
        table in table(), below in 10u64..400, gain in 2u64..5, avoided in 0u64..6,
    ) {
        let steps = steps(&Aim::Merge { below, gain }, avoided, &table);
        let mut last = None;
        for step in &steps {
            check_limits(step);
            check_joins(step, &table);
            for source in &step.sources {
                prop_assert!(source.extent.bytes < below && source.extent.segment != avoided);
                prop_assert!(last.as_ref() < Some(&source.start), "once, and in order");
                last = Some(source.start.clone());
            }
            let groups = step.sources.chunk_by(|_, next| next.joins);
            for group in groups {
                let sizes: Vec<u64> = group.iter().map(|source| source.extent.bytes).collect();
                let found = super::groups(&sizes, gain);
                prop_assert!(found.len() == 1 && found[0].len() == sizes.len(), "{:?}", sizes);
            }
        }
    }
}

#[test]
fn equal_neighbours_become_one_in_one_round() {
    let extent = |run: u64, at: u64| {
        let end = Key::new().push_u64(run).push_u64(at * 10 + 7);
        let start = Key::new().push_u64(run).push_u64(at * 10);
        let extent = Extent {
            segment: at,
            end,
            bytes: 9,
        };
        (start, extent)
    };
    let table: Table = (0..4)
        .flat_map(|run| (0..5).map(move |at| extent(run, at)))
        .collect();
    let aim = Aim::Merge { below: 10, gain: 4 };
    let steps = steps(&aim, u64::MAX, &table);
    let sources: Vec<&Source> = steps.iter().flat_map(|step| &step.sources).collect();
    assert_eq!(sources.len(), 20);
    let groups = sources.iter().filter(|source| !source.joins).count();
    assert_eq!(groups, 4);
}
