#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn item(source: usize, number: usize) -> Item {
    Item {
        key: Some(format!("k{}", number % 5).into()),
        value: Some(format!("{source}-{number}").into()),
    }
}

fn acked(home: u32) -> impl Fn(Item) -> Put {
    move |item| Put {
        item,
        home: Some(home),
        fate: Fate::Acked { offset: None },
    }
}

/// One source, three records in one partition, all acknowledged.
fn three() -> (Vec<Source>, Log) {
    let mut puts: Vec<Put> = (0..3).map(|n| acked(0)(item(0, n))).collect();
    for (offset, put) in (0..).zip(&mut puts) {
        put.fate = Fate::Acked {
            offset: Some(offset),
        };
    }
    let entries = (0..3)
        .map(|n| Entry {
            offset: n,
            item: item(0, n as usize),
        })
        .collect();
    let source = Source {
        name: "p".into(),
        puts,
    };
    (
        vec![source],
        Log {
            partitions: vec![entries],
        },
    )
}

/// Gives the entries the offsets that a broker would have given.
fn renumber(log: &mut Log) {
    for entries in &mut log.partitions {
        (0..)
            .zip(entries)
            .for_each(|(offset, entry)| entry.offset = offset);
    }
}

/// What is wrong with the three records after `break_it`.
fn broken(break_it: impl FnOnce(&mut Vec<Source>, &mut Log)) -> Vec<Violation> {
    let (mut sources, mut log) = three();
    assert!(check(&sources, &log, Promise::Durable).is_ok());
    break_it(&mut sources, &mut log);
    check(&sources, &log, Promise::Durable).unwrap_err()
}

fn at(offset: u64) -> Place {
    Place {
        partition: 0,
        offset,
    }
}

#[test]
fn what_retention_removes_is_excused_and_nothing_else() {
    let (mut sources, mut log) = three();
    log.partitions[0].remove(0);
    assert!(check(&sources, &log, Promise::Durable).is_err());
    let judge = |sources: &[Source], log: &Log, start| {
        check_retained(sources, log, &[start], Promise::Durable)
    };
    let tally = judge(&sources, &log, 1).unwrap();
    assert_eq!((tally.acked, tally.removed, tally.lost), (3, 1, 0));
    // The log does not start where it says.
    let gap = |expected, found| Violation::Gap {
        partition: 0,
        expected,
        found,
    };
    assert_eq!(judge(&sources, &log, 2), Err(vec![gap(2, 1)]));
    // A record is missing behind the start.
    let mut holey = log.clone();
    holey.partitions[0].remove(0);
    let lost = Violation::Lost {
        source_name: "p".into(),
        number: 1,
        home: 0,
    };
    assert_eq!(
        judge(&sources, &holey, 1),
        Err(vec![gap(1, 2), lost.clone()])
    );
    // Where the source was not told an offset, what comes before all that is there was removed.
    for put in &mut sources[0].puts {
        put.fate = Fate::Acked { offset: None };
    }
    assert_eq!(judge(&sources, &log, 1).unwrap().removed, 1);
    let (_, mut holey) = three();
    holey.partitions[0].remove(1);
    renumber(&mut holey);
    holey.partitions[0].iter_mut().for_each(|e| e.offset += 7);
    assert_eq!(judge(&sources, &holey, 7), Err(vec![lost]));
}

#[test]
fn a_lost_record_is_found() {
    let violations = broken(|_, log| drop(log.partitions[0].pop()));
    let lost = Violation::Lost {
        source_name: "p".into(),
        number: 2,
        home: 0,
    };
    assert_eq!(violations, [lost]);
}

#[test]
fn a_record_that_is_there_twice_is_found() {
    let violations = broken(|_, log| {
        log.partitions[0].push(Entry {
            offset: 3,
            item: item(0, 2),
        })
    });
    let twice = Violation::Twice {
        source_name: "p".into(),
        number: 2,
        first: at(2),
        second: at(3),
    };
    assert_eq!(violations, [twice]);
}

#[test]
fn records_in_the_wrong_order_are_found() {
    let violations = broken(|sources, log| {
        sources[0]
            .puts
            .iter_mut()
            .for_each(|put| put.fate = Fate::Acked { offset: None });
        log.partitions[0].swap(1, 2);
        renumber(log);
    });
    let reordered = Violation::Reordered {
        source_name: "p".into(),
        number: 1,
        behind: 2,
        place: at(2),
    };
    assert_eq!(violations, [reordered]);
}

#[test]
fn gaps_and_repeated_offsets_are_found() {
    for found in [0, 5] {
        let violations = broken(|sources, log| {
            sources[0].puts[2].fate = Fate::Acked { offset: None };
            log.partitions[0][2].offset = found;
        });
        assert_eq!(
            violations,
            [Violation::Gap {
                partition: 0,
                expected: 2,
                found
            }]
        );
    }
}

#[test]
fn a_record_that_nobody_sent_is_found() {
    let violations = broken(|_, log| {
        log.partitions[0].push(Entry {
            offset: 3,
            item: item(9, 9),
        })
    });
    assert_eq!(
        violations,
        [Violation::Alien {
            place: at(3),
            item: item(9, 9)
        }]
    );
}

#[test]
fn a_record_whose_bytes_changed_is_found() {
    let violations = broken(|_, log| log.partitions[0][1].item.value = Some("0-x".into()));
    assert!(matches!(
        &violations[..],
        [Violation::Alien { .. }, Violation::Lost { number: 1, .. }]
    ));
}

#[test]
fn an_acknowledgement_that_told_another_place_is_found() {
    let violations = broken(|sources, _| {
        sources[0].puts[1].fate = Fate::Acked { offset: Some(7) };
    });
    let moved = Violation::Moved {
        source_name: "p".into(),
        number: 1,
        told: 7,
        place: at(1),
    };
    assert_eq!(violations, [moved]);
}

#[test]
fn a_record_in_the_wrong_partition_is_found() {
    let violations = broken(|sources, log| {
        sources[0].puts[2].fate = Fate::InDoubt;
        let mut entry = log.partitions[0].pop().unwrap();
        entry.offset = 0;
        log.partitions.push(vec![entry]);
    });
    let place = Place {
        partition: 1,
        offset: 0,
    };
    let misrouted = Violation::Misrouted {
        source_name: "p".into(),
        number: 2,
        home: 0,
        place,
    };
    assert_eq!(violations, [misrouted]);
}

#[test]
fn a_record_that_passed_a_filter_is_found() {
    let violations = broken(|sources, _| sources[0].puts[2].home = None);
    let passed = Violation::NotKeptOut {
        source_name: "p".into(),
        number: 2,
        place: at(2),
    };
    assert_eq!(violations, [passed]);
}

#[test]
fn a_history_that_proves_nothing_is_refused() {
    let violations = broken(|sources, _| {
        let again = sources[0].puts[0].clone();
        sources[0].puts.push(Put {
            fate: Fate::InDoubt,
            ..again
        });
    });
    assert!(
        matches!(&violations[..], [Violation::Ambiguous { .. }, ..]),
        "{violations:?}"
    );
}

#[test]
fn a_crash_takes_the_newest_and_no_others() {
    let one = |crashes| Promise::NewestMayGo { crashes };
    let (sources, whole) = three();
    let without = |gone: usize| {
        let mut log = whole.clone();
        log.partitions[0].remove(gone);
        log
    };
    let tally = check(&sources, &without(2), one(1)).unwrap();
    assert_eq!((tally.acked, tally.lost), (3, 1));
    assert!(check(&sources, &without(2), one(0)).is_err());
    // A hole in the middle could be the newest of an earlier crash; two of them need two.
    let puts: Vec<Put> = (0..5).map(|n| acked(0)(item(0, n))).collect();
    let sources = [Source {
        name: "p".into(),
        puts,
    }];
    let mut log = Log {
        partitions: vec![Vec::new()],
    };
    log.partitions[0].extend([0, 2, 4].map(|n| Entry {
        offset: 0,
        item: item(0, n),
    }));
    renumber(&mut log);
    assert_eq!(check(&sources, &log, one(2)).unwrap().lost, 2);
    let apart = Violation::LostApart {
        source_name: "p".into(),
        home: 0,
        runs: 2,
        crashes: 1,
    };
    assert_eq!(check(&sources, &log, one(1)).unwrap_err(), [apart]);
}

/// Keeps even numbers and writes their square.
fn squares(item: &Item) -> Option<Item> {
    let value = item.value.as_ref()?;
    let number: u64 = std::str::from_utf8(value)
        .ok()?
        .strip_prefix("0-")?
        .parse()
        .ok()?;
    let value = Some(Bytes::from(format!(
        "square of {number}: {}",
        number * number
    )));
    number.is_multiple_of(2).then(|| Item {
        key: item.key.clone(),
        value,
    })
}

#[test]
fn an_output_that_is_not_the_fold_of_the_input_is_found() {
    let (_, input) = three();
    let sources = derived(&input, 1, squares);
    let made: Vec<Item> = sources[0].puts.iter().map(|put| put.item.clone()).collect();
    let log = |items: &[&Item]| {
        let entries = (0..).zip(items).map(|(offset, &item)| Entry {
            offset,
            item: item.clone(),
        });
        Log {
            partitions: vec![entries.collect()],
        }
    };
    let outcome = |items: &[&Item]| check(&sources, &log(items), Promise::Durable);
    assert_eq!(outcome(&[&made[0], &made[1]]).unwrap().acked, 2);
    for wrong in [
        vec![&made[0]],
        vec![&made[0], &made[1], &made[1]],
        vec![&made[1], &made[0]],
        vec![&made[0], &input.partitions[0][2].item],
    ] {
        outcome(&wrong).unwrap_err();
    }
}

#[test]
fn a_reader_must_see_the_log_once() {
    let (_, log) = three();
    let seen: Vec<(u32, Entry)> = log.partitions[0].iter().map(|e| (0, e.clone())).collect();
    check_reading(&seen, &log).unwrap();
    let twice: Vec<_> = seen.iter().chain(&seen[1..]).cloned().collect();
    let skipped = vec![seen[0].clone(), seen[2].clone()];
    let unread = seen[..2].to_vec();
    let beyond: Vec<_> = seen
        .iter()
        .cloned()
        .chain([(7, seen[0].1.clone())])
        .collect();
    for wrong in [twice, skipped, unread, beyond] {
        assert_eq!(
            check_reading(&wrong, &log).unwrap_err().len(),
            1,
            "{wrong:?}"
        );
    }
    let other = Log {
        partitions: vec![vec![Entry {
            offset: 0,
            item: item(1, 1),
        }]],
    };
    let expected = Read::Entry(at(0), item(1, 1));
    let found = Read::Entry(at(0), item(0, 0));
    assert_eq!(
        check_reading(&seen, &other),
        Err(vec![Violation::Misread { expected, found }])
    );
}

/// A history that holds: by source and record, its partition, whether it was acknowledged (with
/// the offset or without), and whether it was stored; and whose turn it is to store the next one.
#[derive(Clone, Debug)]
struct History {
    sources: Vec<Source>,
    log: Log,
}

fn history() -> impl Strategy<Value = History> {
    let put = (0u32..3, 0..4u8, any::<bool>());
    (vec(vec(put, 1..20), 1..4), vec(any::<Index>(), 60)).prop_map(|(plans, turns)| {
        let mut sources: Vec<Source> = Vec::new();
        let mut waiting = Vec::new();
        for (s, plan) in plans.iter().enumerate() {
            let puts = plan
                .iter()
                .enumerate()
                .map(|(number, (home, fate, _))| Put {
                    item: item(s, number),
                    home: (*fate != 3).then_some(*home),
                    fate: if *fate == 0 {
                        Fate::InDoubt
                    } else {
                        Fate::Acked { offset: None }
                    },
                });
            sources.push(Source {
                name: format!("p{s}"),
                puts: puts.collect(),
            });
            let stored = plan
                .iter()
                .enumerate()
                .filter(|(_, (_, fate, stored))| match fate {
                    0 => *stored,
                    fate => *fate != 3,
                });
            let stored: std::collections::VecDeque<usize> = stored.map(|(n, _)| n).collect();
            waiting.push((s, stored));
        }
        let mut log = Log {
            partitions: vec![Vec::new(); 3],
        };
        let mut turns = turns.iter().cycle();
        while !waiting.is_empty() {
            let turn = turns.next().unwrap().index(waiting.len());
            let (s, stored) = &mut waiting[turn];
            let Some(number) = stored.pop_front() else {
                waiting.swap_remove(turn);
                continue;
            };
            let put = &mut sources[*s].puts[number];
            let entries = &mut log.partitions[put.home.unwrap() as usize];
            let offset = entries.len() as u64;
            if plans[*s][number].1 == 1 {
                put.fate = Fate::Acked {
                    offset: Some(offset),
                };
            }
            entries.push(Entry {
                offset,
                item: put.item.clone(),
            });
        }
        History { sources, log }
    })
}

impl History {
    fn check(&self) -> Result<Tally, Vec<Violation>> {
        check(&self.sources, &self.log, Promise::Durable)
    }

    /// A stored record, if there is any.
    fn pick(&self, index: Index) -> Option<(usize, usize)> {
        let places = self.log.partitions.iter().enumerate();
        let places: Vec<(usize, usize)> = places
            .flat_map(|(p, entries)| (0..entries.len()).map(move |i| (p, i)))
            .collect();
        (!places.is_empty()).then(|| places[index.index(places.len())])
    }

    fn put_of(&self, item: &Item) -> &Put {
        let puts = self.sources.iter().flat_map(|s| &s.puts);
        puts.into_iter().find(|put| put.item == *item).unwrap()
    }
}

proptest! {
    #[test]
    fn histories_that_hold_pass(history in history()) {
        let tally = history.check().unwrap();
        prop_assert_eq!(tally.lost, 0);
        prop_assert_eq!(tally.acked + tally.doubt_there, history.log.len());
        let puts: usize = history.sources.iter().map(|s| s.puts.len()).sum();
        prop_assert_eq!(tally.acked + tally.doubt_there + tally.doubt_gone + tally.kept_out, puts);
    }

    #[test]
    fn whatever_is_taken_away_is_missed_if_it_was_acknowledged(
        history in history(), index: Index,
    ) {
        let mut broken = history;
        let Some((p, i)) = broken.pick(index) else { return Ok(()) };
        let gone = broken.log.partitions[p].remove(i);
        prop_assert!(i == broken.log.partitions[p].len() || broken.check().is_err(), "a gap");
        renumber(&mut broken.log);
        let missed = broken.check().is_err();
        let in_doubt = broken.put_of(&gone.item).fate == Fate::InDoubt;
        // Those behind it have moved, which shows if their places were told.
        prop_assert!(missed || in_doubt);
    }

    #[test]
    fn whatever_is_put_in_again_is_found(history in history(), index: Index, to in 0usize..3) {
        let mut broken = history;
        let Some((p, i)) = broken.pick(index) else { return Ok(()) };
        let again = broken.log.partitions[p][i].item.clone();
        let offset = broken.log.partitions[to].len() as u64;
        broken.log.partitions[to].push(Entry { offset, item: again });
        let twice = |v: &Violation| matches!(v, Violation::Twice { .. });
        prop_assert!(broken.check().unwrap_err().iter().any(twice));
    }

    #[test]
    fn two_of_one_source_that_change_places_are_found(history in history(), index: Index) {
        let mut broken = history;
        let Some((p, i)) = broken.pick(index) else { return Ok(()) };
        let source = |entry: &Entry| entry.item.value.as_ref().unwrap()[0];
        let entries = &mut broken.log.partitions[p];
        let later = (i + 1..entries.len()).find(|j| source(&entries[*j]) == source(&entries[i]));
        let Some(j) = later else { return Ok(()) };
        entries.swap(i, j);
        renumber(&mut broken.log);
        let reordered = |v: &Violation| matches!(v, Violation::Reordered { .. });
        prop_assert!(broken.check().unwrap_err().iter().any(reordered));
    }

    #[test]
    fn a_reader_who_missed_repeated_or_swapped_is_found(
        history in history(), index: Index, how in 0..3u8,
    ) {
        let log = &history.log;
        let seen = (0..).zip(&log.partitions);
        let mut seen: Vec<(u32, Entry)> =
            seen.flat_map(|(p, entries)| entries.iter().map(move |e| (p, e.clone()))).collect();
        prop_assert!(check_reading(&seen, log).is_ok());
        if seen.is_empty() {
            return Ok(());
        }
        let i = index.index(seen.len());
        match how {
            0 => drop(seen.remove(i)),
            1 => seen.insert(i, seen[i].clone()),
            _ if i + 1 < seen.len() && seen[i].0 == seen[i + 1].0 => seen.swap(i, i + 1),
            _ => return Ok(()),
        }
        prop_assert!(check_reading(&seen, log).is_err());
    }
}
