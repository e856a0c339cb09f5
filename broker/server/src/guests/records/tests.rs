//! What a batch is after each kind of change.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use millstream_proto::Codec;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::guests::fixture::{Rec, batch_of, encoded};

fn rec() -> impl Strategy<Value = Rec> {
    let bytes = || vec(any::<u8>(), 0..20);
    let headers = vec(("[a-zü]{0,4}", bytes()), 0..3);
    let some = (any::<bool>(), any::<bool>());
    (bytes(), bytes(), headers, some, 0i64..3).prop_map(
        |(key, value, headers, (has_key, has_value), timestamp)| Rec {
            key: has_key.then_some(key),
            value: has_value.then_some(value),
            headers,
            timestamp,
            offset: 0,
        },
    )
}

/// Batches with and without headers and keys, so that every layout of columns is met.
fn recs() -> impl Strategy<Value = Vec<Rec>> {
    (vec(rec(), 1..40), any::<bool>(), any::<bool>()).prop_map(|(mut recs, headers, keys)| {
        for rec in &mut recs {
            if !headers {
                rec.headers.clear();
            }
            if !keys {
                rec.key = None;
            }
        }
        recs
    })
}

fn loaded(recs: &[Rec], base: Option<u64>) -> Records {
    let mut records = Records::default();
    records
        .load(&encoded(recs, Codec::Lz4), base.map(Offset))
        .unwrap();
    records
}

/// What the records are now, read one by one as batches are built of them.
fn read(records: &mut Records) -> Vec<Rec> {
    records.want_times();
    let read = |index| {
        let mut headers = Vec::new();
        records.headers(index, &mut headers);
        let record = records.record(index, &headers);
        assert_eq!(record.size(), records.size(index));
        assert_eq!(record.key, records.key(index));
        assert_eq!(record.headers.len(), records.header_count(index));
        Rec {
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: headers
                .iter()
                .map(|(n, v)| ((*n).to_owned(), v.to_vec()))
                .collect(),
            timestamp: record.timestamp,
            offset: records.offset(index).map_or(0, |offset| offset.0),
        }
    };
    (0..records.len()).map(read).collect()
}

/// What a plugin is given, read as the interface says it is to be read.
fn seen(columns: &Columns<'_>) -> Vec<Rec> {
    let piece = |offset: u32, len: u32| columns.data[offset as usize..][..len as usize].to_vec();
    let optional = |offset, len| (len != NONE).then(|| piece(offset, len));
    let seen = |(index, span): (usize, &[u32; SPAN])| {
        let &[key, key_len, value, value_len, first, count] = span;
        let entries = columns.headers.as_chunks::<HEADER>().0;
        let headers = entries[first as usize..][..count as usize]
            .iter()
            .map(|header| {
                let &[name, name_len, value, value_len] = header;
                (
                    String::from_utf8(piece(name, name_len)).unwrap(),
                    piece(value, value_len),
                )
            });
        Rec {
            key: optional(key, key_len),
            value: optional(value, value_len),
            headers: headers.collect(),
            timestamp: columns.timestamps.get(index).copied().unwrap_or(0),
            offset: columns
                .offsets
                .get(index)
                .map_or(0, |offset| offset.cast_unsigned()),
        }
    };
    columns
        .spans
        .as_chunks::<SPAN>()
        .0
        .iter()
        .enumerate()
        .map(seen)
        .collect()
}

/// The part of a record that a plugin with these needs sees.
fn needed(rec: &Rec, needs: Needs) -> Rec {
    Rec {
        key: rec.key.clone().filter(|_| needs.keys),
        value: rec.value.clone().filter(|_| needs.values),
        headers: if needs.headers {
            rec.headers.clone()
        } else {
            Vec::new()
        },
        timestamp: if needs.timestamps { rec.timestamp } else { 0 },
        offset: if needs.offsets { rec.offset } else { 0 },
    }
}

fn with_offsets(recs: &[Rec], base: u64) -> Vec<Rec> {
    (base..)
        .zip(recs)
        .map(|(offset, rec)| Rec {
            offset,
            ..rec.clone()
        })
        .collect()
}

proptest! {
    #[test]
    fn a_plugin_is_given_what_it_needs_of_any_range(
        recs in recs(),
        bits in 0u8..32,
        mask: [bool; 40],
        cut: (prop::sample::Index, prop::sample::Index),
    ) {
        let needs = Needs {
            keys: bits & 1 != 0,
            values: bits & 2 != 0,
            headers: bits & 4 != 0,
            timestamps: bits & 8 != 0,
            offsets: bits & 16 != 0,
        };
        let mut records = loaded(&recs, Some(100));
        let mut model = with_offsets(&recs, 100);
        for _ in 0..2 {
            let ends = [cut.0.index(model.len() + 1), cut.1.index(model.len() + 1)];
            let (from, to) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            let mut scratch = Scratch::default();
            let columns = records.columns(from, to, needs, true, &mut scratch);
            let expected: Vec<_> = model[from..to].iter().map(|rec| needed(rec, needs)).collect();
            prop_assert_eq!(seen(&columns), expected);
            let sizes = columns.sizes.to_vec();
            if needs.keys && needs.values && needs.headers {
                prop_assert!(sizes.is_empty());
            } else {
                let size = |index| records.size(index) as u32;
                prop_assert_eq!(sizes, (from..to).map(size).collect::<Vec<_>>());
            }
            // Once more when some are gone.
            records.retain(|index| mask[index]);
            let mut keep = mask.iter();
            model.retain(|_| *keep.next().unwrap());
        }
    }

    #[test]
    fn removing_keeps_the_others_as_they_are(
        recs in recs(),
        masks in vec(any::<[bool; 40]>(), 0..4),
    ) {
        let mut records = loaded(&recs, Some(7));
        let mut model = with_offsets(&recs, 7);
        prop_assert!(records.is_whole());
        for mask in masks {
            records.retain(|index| mask[index]);
            let mut keep = mask.iter();
            model.retain(|_| *keep.next().unwrap());
            prop_assert_eq!(records.lost() as usize, recs.len() - model.len());
        }
        prop_assert!(!records.is_whole() || model.len() == recs.len());
        prop_assert_eq!(read(&mut records), model);
    }

    #[test]
    fn batches_put_together_are_all_their_records(all in vec(recs(), 1..5)) {
        let batches: Vec<_> = all.iter().map(|recs| batch_of(recs)).collect();
        let mut records = Records::default();
        // Buffers are used again: what was there before must not show.
        records.load(&batches[0], None).unwrap();
        records.load_all(&batches, Offset(30)).unwrap();
        prop_assert!(records.is_whole());
        let mut scratch = Scratch::default();
        let everything =
            Needs { keys: true, values: true, headers: true, timestamps: true, offsets: true };
        let count = records.len();
        let columns = records.columns(0, count, everything, false, &mut scratch);
        let expected = with_offsets(&all.concat(), 30);
        prop_assert_eq!(seen(&columns), expected.clone());
        prop_assert_eq!(read(&mut records), expected);
    }

    #[test]
    fn calls_cover_all_records_once_and_keep_their_limits(
        sizes in vec(prop_oneof![0usize..10, Just(CALL_BYTES / 3), Just(CALL_BYTES + 5)], 1..12),
    ) {
        let value = |&size: &usize| Rec { value: Some(vec![0; size]), ..Rec::default() };
        let recs: Vec<_> = sizes.iter().map(value).collect();
        let records = loaded(&recs, None);
        let mut at = 0;
        while at < records.len() {
            let end = records.call_end(at);
            prop_assert!(end > at);
            let bytes = |end: usize| sizes[at..end].iter().sum::<usize>();
            prop_assert!(end == at + 1 || bytes(end) <= CALL_BYTES);
            prop_assert!(end == sizes.len() || bytes(end + 1) > CALL_BYTES, "as many as fit");
            at = end;
        }
        prop_assert_eq!(records.call_end(at), at);
    }
}

#[test]
fn a_call_has_no_more_records_than_its_limit() {
    let records = loaded(&vec![Rec::default(); CALL_RECORDS + 3], None);
    assert_eq!(records.call_end(0), CALL_RECORDS);
    assert_eq!(records.call_end(CALL_RECORDS), CALL_RECORDS + 3);
}

#[test]
fn partitions_stay_with_their_records() {
    let recs: Vec<_> = (0..4).map(|n| Rec::new("k", &n.to_string())).collect();
    let mut records = loaded(&recs, None);
    assert!(records.is_unplaced());
    records.place(&[5, 6, 5, 5]);
    assert!(!records.is_unplaced());
    records.remove(1, 2);
    assert_eq!(records.partition(2), Some(5));
    assert_eq!((records.source(1), records.partition(1)), (2, Some(5)));
    records.release();
    assert!(records.is_empty() && records.is_unplaced());
}

#[test]
fn as_many_as_came_are_not_always_the_same() {
    let recs = ["a", "b", "c"].map(|key| Rec::new(key, "v"));
    let mut records = loaded(&recs, None);
    assert!(records.is_one_to_one());
    for (source, expected) in [
        (vec![0, 1, 2], true),
        (vec![0, 0, 2], false),
        (vec![1, 0, 2], false),
    ] {
        records.source = source;
        assert_eq!(records.is_one_to_one(), expected);
    }
    let mut records = loaded(&recs, None);
    records.retain(|index| index != 1);
    assert!(!records.is_one_to_one());
}
