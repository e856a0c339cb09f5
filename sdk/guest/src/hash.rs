//! A hash that is the same in every plugin, on every machine and in every version.
//!
//! Absent: resistance to keys chosen to collide. It spreads records over partitions.

/// The 64-bit FNV-1a hash of `bytes`, mixed so that its low bits are as good as its high ones:
/// `stable_hash(key) % partitions` spreads well.
#[must_use]
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    let hash = bytes.iter().fold(start, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The finalizer of MurmurHash3: FNV alone leaves short keys that differ in one bit close.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_spread_over_few_partitions() {
        let mut counts = [0u32; 8];
        for key in 0..8_000 {
            counts[(stable_hash(format!("k{key}").as_bytes()) % 8) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1_100).contains(count)),
            "{counts:?}"
        );
    }

    /// Partitions of stored records depend on these numbers: they never change.
    #[test]
    fn the_hash_never_changes() {
        let hashes = [b"".as_slice(), b"a", b"millstream"].map(stable_hash);
        assert_eq!(
            hashes,
            [
                0xefd0_1f60_ba99_2926,
                0x82a2_a958_a9be_ce5b,
                0x1a41_4c6f_6336_0253
            ]
        );
    }
}
