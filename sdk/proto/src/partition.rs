//! The built-in choice of a partition by key, the same on both sides.
//!
//! MurmurHash2 (Austin Appleby, public domain) with the seed that Kafka's
//! default partitioner uses, so a key lands in the same partition number here as
//! there.

use crate::offset::PartitionId;

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;
const R: u32 = 24;

/// MurmurHash2 of `data`, 32 bits.
#[must_use]
pub fn murmur2(data: &[u8]) -> u32 {
    // The algorithm mixes in the length modulo 2^32.
    let mut h = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (i, byte) in tail.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ h >> 15
}

/// The partition of a key in a topic of `partitions` partitions (at least 1).
#[must_use]
pub fn key_partition(key: &[u8], partitions: u32) -> PartitionId {
    PartitionId((murmur2(key) & 0x7fff_ffff) % partitions.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that Kafka's own clients agree on.
    #[test]
    fn hashes_are_those_of_the_field() {
        let cases: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ];
        for (text, expected) in cases {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), expected, "{text}");
        }
    }

    #[test]
    fn every_key_has_a_partition_of_the_topic() {
        assert!((0..1000u32).all(|i| key_partition(&i.to_le_bytes(), 7).0 < 7));
        assert_eq!(key_partition(b"k", 1), PartitionId(0));
    }
}
