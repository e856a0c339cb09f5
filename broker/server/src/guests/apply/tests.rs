//! Records gathered into batches: all of them, in order, where they belong.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use millstream_proto::limits::MAX_RECORD_BYTES;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::guests::fixture::{Rec, World, batch_of, decoded};

const PARTITIONS: u32 = 4;

/// Records that a plugin placed or left to the topic, and where they ended up.
fn gathered(recs: &[(Rec, Option<u32>)], config: TopicConfig, form: Form) -> Vec<(u32, Batch)> {
    let world = World::new();
    let topic = world.configured("acme/t", config);
    let all: Vec<_> = recs.iter().map(|(rec, _)| rec.clone()).collect();
    let mut records = Records::default();
    records.load(&batch_of(&all), None).unwrap();
    let none = millstream_plugin::NONE;
    let chosen: Vec<_> = recs
        .iter()
        .map(|(_, chosen)| chosen.unwrap_or(none))
        .collect();
    records.place(&chosen);
    let mut appends = Vec::new();
    let target = Target {
        topic,
        wanted: None,
    };
    let mut assembler = Assembler::default();
    // Twice, so that what is left in the buffers would show.
    for _ in 0..2 {
        appends.clear();
        let target = [target.clone()];
        assembler
            .gather(&mut records, &target, form, None, &mut appends)
            .unwrap();
    }
    appends
        .iter()
        .map(|append| (append.partition().0, append.batch().clone()))
        .collect()
}

fn config() -> TopicConfig {
    TopicConfig {
        partitions: PARTITIONS,
        ..TopicConfig::default()
    }
}

fn form(codec: Codec) -> Form {
    Form {
        codec,
        stamp: Stamp::default(),
        like: 0,
    }
}

proptest! {
    #[test]
    fn every_record_is_there_once_and_in_order(
        recs in vec((vec(any::<u8>(), 0..50), any::<bool>(), 0..=PARTITIONS), 1..100),
        packed: bool,
        max_batch_bytes in prop_oneof![Just(1u32 << 20), 300u32..2_000],
    ) {
        let make = |(index, (value, keyed, chosen)): (usize, &(Vec<u8>, bool, u32))| {
            let key = keyed.then(|| value.clone());
            let headers = if value.len() % 5 == 0 { vec![("h".to_owned(), vec![1])] } else { vec![] };
            let timestamp = index as i64;
            let rec = Rec { key, value: Some(value.clone()), headers, timestamp, offset: 0 };
            (rec, Some(*chosen).filter(|&chosen| chosen < PARTITIONS))
        };
        let recs: Vec<_> = recs.iter().enumerate().map(make).collect();
        let codec = if packed { Codec::Lz4 } else { Codec::None };
        let config = TopicConfig { max_batch_bytes, ..config() };
        let batches = gathered(&recs, config, form(codec));
        let mut seen: Vec<Vec<Rec>> = vec![Vec::new(); PARTITIONS as usize];
        for (partition, batch) in &batches {
            prop_assert_eq!(batch.header().codec, codec);
            if !packed {
                prop_assert!(batch.bytes().len() <= max_batch_bytes as usize);
            }
            let records = decoded(batch, None).into_iter().map(|rec| Rec { offset: 0, ..rec });
            seen[*partition as usize].extend(records);
        }
        let mut keyless = None;
        for (partition, seen) in (0..).zip(&seen) {
            let expected: Vec<Rec> = recs
                .iter()
                .filter(|(rec, chosen)| {
                    let home = chosen.or_else(|| {
                        rec.key.as_deref().map(|key| key_partition(key, PARTITIONS).0)
                    });
                    match home {
                        Some(home) => home == partition,
                        // Records without a key stay together, wherever that is.
                        None => {
                            if keyless.is_none() && seen.contains(rec) {
                                keyless = Some(partition);
                            }
                            keyless == Some(partition)
                        }
                    }
                })
                .map(|(rec, _)| rec.clone())
                .collect();
            prop_assert_eq!(seen, &expected);
        }
    }
}

#[test]
fn batches_are_cut_at_the_topics_limit() {
    let rec = Rec {
        value: Some(vec![1; 100]),
        ..Rec::default()
    };
    let recs = vec![(rec, Some(2)); 100];
    let config = TopicConfig {
        max_batch_bytes: 1_000,
        ..config()
    };
    let batches = gathered(&recs, config, form(Codec::None));
    assert!(
        batches
            .iter()
            .all(|(to, batch)| *to == 2 && batch.bytes().len() <= 1_000)
    );
    let counts: Vec<_> = batches.iter().map(|(_, batch)| batch.count()).collect();
    assert_eq!(counts.iter().sum::<u32>(), 100);
    assert!(counts.len() <= 13, "and not sooner: {counts:?}");
}

#[test]
fn timestamps_too_far_apart_for_one_batch_make_two() {
    // Within reach of the first record's, but not of each other once that one is gone.
    let at = |timestamp| Rec {
        timestamp,
        ..Rec::default()
    };
    let recs = [at(0), at(-(2 << 30)), at((2 << 30) - 1)];
    let mut records = Records::default();
    records.load(&batch_of(&recs), Some(Offset(0))).unwrap();
    records.remove(0, 1);
    let times = |batches: &[Batch]| {
        let all = batches.iter().flat_map(|batch| decoded(batch, None));
        all.map(|rec| (rec.timestamp, rec.offset))
            .collect::<Vec<_>>()
    };
    let views = view(&mut records, Codec::None).unwrap();
    assert_eq!(views.len(), 2);
    assert_eq!(times(&views), [(-(2 << 30), 1), ((2 << 30) - 1, 2)]);
    let topic = World::new().configured("acme/t", config());
    let (target, mut appends) = (
        Target {
            topic,
            wanted: Some(PartitionId(1)),
        },
        Vec::new(),
    );
    let mut assembler = Assembler::default();
    assembler
        .gather(
            &mut records,
            &[target],
            form(Codec::None),
            None,
            &mut appends,
        )
        .unwrap();
    let batches: Vec<_> = appends
        .iter()
        .map(|append| append.batch().clone())
        .collect();
    assert_eq!(times(&batches).len(), 2);
    assert_eq!(batches.len(), 2);
}

#[test]
fn a_large_record_gets_a_batch_of_its_own() {
    let large = Rec {
        value: Some(vec![1; MAX_RECORD_BYTES]),
        ..Rec::default()
    };
    let recs = [
        (Rec::default(), Some(0)),
        (large, Some(0)),
        (Rec::default(), Some(0)),
    ];
    let counts: Vec<_> = gathered(&recs, config(), form(Codec::None))
        .iter()
        .map(|(_, b)| b.count())
        .collect();
    assert_eq!(counts, [1, 1, 1]);
}

#[test]
fn a_record_for_nowhere_is_a_fault_and_no_panic() {
    let world = World::new();
    let topic = world.configured("acme/t", config());
    let mut records = Records::default();
    records
        .load(&batch_of(&[Rec::new("k", "v")]), None)
        .unwrap();
    records.place(&[PARTITIONS]);
    let mut gather = |targets: &[Target]| {
        let mut assembler = Assembler::default();
        assembler.gather(
            &mut records,
            targets,
            form(Codec::None),
            None,
            &mut Vec::new(),
        )
    };
    assert!(matches!(gather(&[]), Err(Halt::Fault(_))));
    let wanted = Some(PartitionId(0));
    assert!(matches!(
        gather(&[Target { topic, wanted }]),
        Err(Halt::Fault(_))
    ));
}

#[test]
fn offsets_of_a_view_never_fall() {
    let recs: Vec<_> = (0..5).map(|n| Rec::new("k", &n.to_string())).collect();
    let mut records = Records::default();
    records.load(&batch_of(&recs), Some(Offset(10))).unwrap();
    records.remove(0, 2);
    let batches = view(&mut records, Codec::Zstd).unwrap();
    assert_eq!(batches[0].header().base_offset, Offset(12));
    let offsets: Vec<_> = decoded(&batches[0], None)
        .iter()
        .map(|rec| rec.offset)
        .collect();
    assert_eq!(offsets, [12, 13, 14]);
    records.remove(0, 3);
    assert_eq!(view(&mut records, Codec::None).unwrap(), []);
}
