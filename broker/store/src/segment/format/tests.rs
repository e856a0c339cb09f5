//! Golden bytes, round trips, and bytes that were never a segment but have the right checksums.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

const NUMBER: u64 = 0x0102_0304_0506_0708;

type Entry = (Vec<u8>, Vec<u8>);

fn block_of(entries: &[Entry], offset: u64) -> (BlockBuilder, Vec<u8>) {
    let mut block = BlockBuilder::default();
    for (key, value) in entries {
        assert_eq!(block.is_empty(), block.entries() == 0);
        block.push(key, &[value]);
    }
    let bytes = sealed(&block, offset, &[]);
    (block, bytes)
}

fn sealed(block: &BlockBuilder, offset: u64, beyond: &[&[u8]]) -> Vec<u8> {
    let mut bytes = block.head(NUMBER, offset, beyond).to_vec();
    block
        .parts(beyond)
        .for_each(|part| bytes.extend_from_slice(part));
    assert_eq!(bytes.len(), block.len());
    bytes
}

/// A whole segment with one block for each of `blocks`.
fn segment_of(blocks: &[Vec<Entry>]) -> (Vec<u8>, Vec<u8>, Footer) {
    let (mut file, mut index) = (Vec::new(), IndexBuilder::default());
    for entries in blocks {
        let (block, bytes) = block_of(entries, file.len() as u64);
        index.push(block.first_key(), bytes.len() as u32, block.entries());
        file.extend(bytes);
    }
    let entries = blocks.iter().flatten();
    let totals = Totals {
        number: NUMBER,
        end: file.len() as u64,
        entries: entries.clone().count() as u64,
        data_bytes: entries
            .clone()
            .map(|(k, v)| k.len() + v.len())
            .sum::<usize>() as u64,
    };
    let (last, _) = entries.last().unwrap();
    let (index, footer) = index.finish(totals, last);
    (file, index, footer)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Computed from the diagram by a program in another language, checksums bit by bit.
#[test]
fn golden_bytes() {
    let entry = |key: &str, value: &str| (key.into(), value.into());
    let entries = vec![entry("a", "first"), entry("bc", ""), entry("bd", "third!")];
    let (block, index, footer) = segment_of(&[entries]);
    let expected = concat!(
        "ac65ba1203000000050000000b000000",
        "01000000050000000300000005000000",
        "050000000b0000006162636264666972",
        "7374746869726421",
    );
    assert_eq!(hex(&block), expected);
    assert_eq!(hex(&index), "010038000000030000006102006264");
    let expected = concat!(
        "4d494c4c5345470a0100000001000000",
        "08070605040302013800000000000000",
        "0f000000bee2ae750300000000000000",
        "100000000000000004e4d7c5",
    );
    assert_eq!(hex(&footer.encode()), expected);
}

#[test]
fn a_footer_of_another_version_says_so() {
    let (block, index, footer) = segment_of(&[vec![(vec![1], vec![])]]);
    let len = (block.len() + index.len() + FOOTER_LEN) as u64;
    let mut bytes = footer.encode();
    assert_eq!(Footer::decode(&bytes, len, NUMBER), Ok(footer));
    assert_eq!(
        Footer::decode(&bytes, len, 1),
        Err(Flaw::Number(NUMBER)),
        "a file under another's name"
    );
    assert_eq!(Footer::decode(&bytes, len + 1, NUMBER), Err(Flaw::Lengths));
    bytes[8] = 2;
    assert_eq!(Footer::decode(&bytes, len, NUMBER), Err(Flaw::Checksum));
    let crc = crc32c::crc32c(&bytes[..FOOTER_LEN - 4]);
    bytes[FOOTER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Footer::decode(&bytes, len, NUMBER), Err(Flaw::Version(2)));
    bytes[0] = 0;
    assert_eq!(Footer::decode(&bytes, len, NUMBER), Err(Flaw::Magic));
}

#[test]
fn keys_out_of_order_are_noticed_where_checksums_do_not_tell() {
    let entry = |key: u8| (vec![key], vec![]);
    for keys in [[1, 1], [2, 1]] {
        let (_, bytes) = block_of(&keys.map(entry), 0);
        let block = Block::decode(bytes.into(), NUMBER, 0).unwrap();
        assert_eq!(block.check_order(), Err(Flaw::Order));
        let (_, index, footer) = segment_of(&keys.map(|key| vec![entry(key)]));
        assert_eq!(Index::decode(&footer, &index), Err(Flaw::Order));
    }
}

fn any_entries(most: usize) -> impl Strategy<Value = Vec<Entry>> {
    let (key, value) = (
        prop::collection::vec(any::<u8>(), 1..20),
        prop::collection::vec(any::<u8>(), 0..50),
    );
    prop::collection::btree_map(key, value, 1..most).prop_map(|map| map.into_iter().collect())
}

/// As a writer that closes blocks wherever it likes.
fn any_blocks() -> impl Strategy<Value = Vec<Vec<Entry>>> {
    (any_entries(40), 1usize..8)
        .prop_map(|(entries, each)| entries.chunks(each).map(<[Entry]>::to_vec).collect())
}

/// Puts the right checksum over bytes that are no block.
fn resealed(mut bytes: Vec<u8>, offset: u64) -> Bytes {
    if let Some((crc, rest)) = bytes.split_first_chunk_mut::<4>() {
        *crc = placed_crc(NUMBER, offset, [&*rest]).to_le_bytes();
    }
    bytes.into()
}

/// Everything that may be asked of a block that was decoded.
fn use_block(block: &Block) {
    for at in 0..block.entries() {
        assert!(!block.key(at).is_empty());
        assert_eq!(
            block.shared_value(block.value_place(at)),
            block.values_within(block.value_place(at))
        );
        assert!(block.lower_bound(block.key(at)) <= block.entries());
    }
    assert!(block.check_order().is_ok() || block.entries() > 1);
}

fn use_index(index: &Index, keys: [&[u8]; 2]) {
    let count = index.blocks().len();
    for at in 0..count {
        assert!(*index.first_key(at) < *index.end_key(at));
    }
    for key in keys {
        assert!(index.block_of(key).is_none_or(|at| at < count));
    }
    assert!(index.blocks_within(keys[0], Some(keys[1])).end <= count);
    assert!(index.beginning_within(keys[0], keys[1]).len() <= count);
}

proptest! {
    #[test]
    fn both_checksums_are_the_same(
        bytes in prop::collection::vec(any::<u8>(), 0..5_000), cuts: [usize; 3],
    ) {
        let mut at = cuts.map(|cut| cut % (bytes.len() + 1));
        at.sort_unstable();
        let [one, two, three] = at;
        let first = &bytes[..one];
        let parts = [&bytes[one..two], &bytes[two..three], &bytes[three..]];
        let whole = crc32c::crc32c(&bytes);
        prop_assert_eq!(plain_crc(first, parts.into_iter()), whole);
        prop_assert_eq!(folded_crc(first, parts.into_iter()), whole);
    }

    #[test]
    fn blocks_round_trip(entries in any_entries(30), offset: u64) {
        let (builder, bytes) = block_of(&entries, offset);
        prop_assert_eq!(builder.first_key(), &entries[0].0[..]);
        let block = Block::decode(bytes.into(), NUMBER, offset).unwrap();
        prop_assert_eq!(block.entries(), entries.len());
        for (at, (key, value)) in entries.iter().enumerate() {
            prop_assert_eq!((block.key(at), block.values_within(block.value_place(at))), (&key[..], &value[..]));
            prop_assert_eq!(block.lower_bound(key), at);
            prop_assert_eq!(block.lower_bound(&[&key[..], &[0]].concat()), at + 1);
        }
        use_block(&block);
        prop_assert_eq!(block.check_order(), Ok(()));
    }

    #[test]
    fn a_value_may_stay_where_it_is(key in prop::collection::vec(any::<u8>(), 1..20), value: Vec<u8>, at: usize) {
        let (_, copied) = block_of(&[(key.clone(), value.clone())], 7);
        let mut block = BlockBuilder::default();
        block.push_key(&key, value.len());
        let (left, right) = value.split_at(at % (value.len() + 1));
        prop_assert_eq!(sealed(&block, 7, &[left, right]), copied);
    }

    #[test]
    fn a_block_belongs_to_one_place(entries in any_entries(5), offset: u64, other: u64) {
        prop_assume!(offset != other);
        let bytes = Bytes::from(block_of(&entries, offset).1);
        let decoded = |number, offset| Block::decode(bytes.clone(), number, offset).map(drop);
        prop_assert_eq!(decoded(NUMBER, other), Err(Flaw::Checksum));
        prop_assert_eq!(decoded(NUMBER + 1, offset), Err(Flaw::Checksum));
    }

    #[test]
    fn indexes_round_trip(blocks in any_blocks()) {
        let (file, bytes, footer) = segment_of(&blocks);
        let len = (file.len() + bytes.len() + FOOTER_LEN) as u64;
        prop_assert_eq!(Footer::decode(&footer.encode(), len, NUMBER), Ok(footer));
        let index = Index::decode(&footer, &bytes).unwrap();
        prop_assert_eq!(index.totals(), footer.totals);
        prop_assert_eq!(index.blocks().len(), blocks.len());
        for (at, entries) in blocks.iter().enumerate() {
            let place = index.blocks()[at];
            let bytes = file[place.offset as usize..place.end() as usize].to_vec();
            let block = Block::decode(bytes.into(), NUMBER, place.offset).unwrap();
            prop_assert_eq!(block.entries(), entries.len());
            prop_assert_eq!(index.first_key(at), &entries[0].0[..]);
            for (key, _) in entries {
                prop_assert_eq!(index.block_of(key), Some(at));
                prop_assert!(**key < *index.end_key(at));
            }
        }
        prop_assert_eq!(&**index.last_key(), &blocks.last().unwrap().last().unwrap().0[..]);
    }

    #[test]
    fn decodes_any_bytes_without_panic(bytes: Vec<u8>, len: u64, offset: u64) {
        prop_assert!(Footer::decode(&bytes, len, NUMBER).is_err());
        prop_assert!(Block::decode(bytes.into(), NUMBER, offset).is_err());
    }

    #[test]
    fn decodes_wrong_lengths_under_right_checksums_without_panic(
        blocks in any_blocks(),
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        keys: [Vec<u8>; 2],
        cut in 0usize..4,
    ) {
        let (file, mut index, mut footer) = segment_of(&blocks);
        let first = Index::decode(&footer, &index).unwrap().blocks()[0];
        let mut block = file[..first.len as usize - cut].to_vec();
        for (at, byte) in &changes {
            let (in_block, in_index) = (at % block.len(), at % index.len());
            block[in_block] = *byte;
            index[in_index] = *byte;
        }
        if let Ok(block) = Block::decode(resealed(block, 0), NUMBER, 0) {
            use_block(&block);
        }
        index.truncate(index.len() - cut);
        footer.index_len = index.len() as u32;
        footer.index_crc = placed_crc(NUMBER, footer.totals.end, [&index[..]]);
        if let Ok(index) = Index::decode(&footer, &index) {
            use_index(&index, [&keys[0], &keys[1]]);
        }
    }

    #[test]
    fn decodes_any_footer_under_a_right_checksum_without_panic(
        blocks: u32, end: u64, entries: u64, data_bytes: u64, index: Vec<u8>,
    ) {
        let totals = Totals { number: NUMBER, end, entries, data_bytes };
        let index_crc = placed_crc(NUMBER, end, [&index[..]]);
        let footer = Footer { totals, blocks, index_len: index.len() as u32, index_crc };
        let len = end.checked_add((index.len() + FOOTER_LEN) as u64);
        let decoded = Footer::decode(&footer.encode(), len.unwrap_or(0), NUMBER);
        prop_assert_eq!(decoded, len.map(|_| footer).ok_or(Flaw::Lengths));
        prop_assert!(Index::decode(&footer, &index).is_err());
    }
}
