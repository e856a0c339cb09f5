//! The trailer that binds every stored value to the key it stands at.
//!
//! redb verifies its page checksums when it opens a file, not when it reads a page, and a page
//! that verifies can still be the wrong page. So every value ends in a CRC-32C over its space, its
//! key and itself: a value that was damaged, or that turned up under another key, is noticed by
//! whoever reads it.
//!
//! A record batch carries a CRC-32C over its own body, which everybody who reads it verifies. For
//! [`Space::Records`] the trailer covers the key, the length and the first bytes (where the
//! batch's own checksum lies) only: the write path does not checksum a body twice.

use bytes::Bytes;

use crate::limits::{RECORD_PREFIX, TRAILER_LEN};
use crate::space::Space;

fn head(space: Space, key: &[u8], len: usize) -> u32 {
    // The lengths keep apart what concatenation would confuse.
    let mut fixed = [0; 9];
    fixed[0] = space as u8;
    fixed[1..5].copy_from_slice(&(key.len() as u32).to_le_bytes());
    fixed[5..9].copy_from_slice(&(len as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&fixed), key)
}

/// How many bytes of a value of `len` bytes its trailer covers.
fn covered(space: Space, len: usize) -> usize {
    if space == Space::Records {
        len.min(RECORD_PREFIX)
    } else {
        len
    }
}

/// The trailer of the value that `parts` make up.
pub(crate) fn of_parts(space: Space, key: &[u8], parts: &[Bytes]) -> [u8; TRAILER_LEN] {
    let len = parts.iter().map(Bytes::len).sum();
    let mut crc = head(space, key, len);
    let mut left = covered(space, len);
    for part in parts {
        let taken = part.len().min(left);
        crc = crc32c::crc32c_append(crc, &part[..taken]);
        left -= taken;
    }
    crc.to_le_bytes()
}

/// The value within `stored`, if its trailer says that it belongs to `key`.
pub(crate) fn open<'a>(space: Space, key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], Damaged> {
    let (value, trailer) = stored
        .split_last_chunk::<TRAILER_LEN>()
        .ok_or(Damaged::TooShort)?;
    let crc = head(space, key, value.len());
    let crc = crc32c::crc32c_append(crc, &value[..covered(space, value.len())]);
    if crc.to_le_bytes() == *trailer {
        Ok(value)
    } else {
        Err(Damaged::Mismatch)
    }
}

/// Whether `trailer` belongs to the record batch of `len` bytes at `key` that begins with `first`,
/// which is all that the trailer covers, or more.
pub(crate) fn fits_beginning(
    key: &[u8],
    len: usize,
    first: &[u8],
    trailer: [u8; TRAILER_LEN],
) -> bool {
    let covered = first.get(..covered(Space::Records, len));
    covered.is_some_and(|covered| {
        let crc = crc32c::crc32c_append(head(Space::Records, key, len), covered);
        crc.to_le_bytes() == trailer
    })
}

/// What is wrong with a stored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damaged {
    #[error("the value is shorter than its checksum")]
    TooShort,
    #[error("the value does not match its checksum")]
    Mismatch,
    #[error("the pack ends before the value does")]
    Missing,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(space: Space, key: &[u8], value: &[u8]) -> Vec<u8> {
        let trailer = of_parts(space, key, &[Bytes::copy_from_slice(value)]);
        [value, &trailer].concat()
    }

    fn any_space() -> impl Strategy<Value = Space> {
        (0..Space::COUNT).prop_map(|index| Space::ALL[index])
    }

    proptest! {
        #[test]
        fn opens_to_what_was_sealed(space in any_space(), key: Vec<u8>, value: Vec<u8>, at: usize) {
            let stored = sealed(space, &key, &value);
            prop_assert_eq!(open(space, &key, &stored), Ok(&value[..]));

            let value = Bytes::from(value);
            let (left, right) = (value.slice(..at % (value.len() + 1)), value.slice(at % (value.len() + 1)..));
            let trailer = of_parts(space, &key, &[left, right]);
            prop_assert_eq!(&stored[value.len()..], &trailer);
        }

        #[test]
        fn notices_every_flipped_bit_it_covers(
            space in any_space(), key: Vec<u8>, value: Vec<u8>, bit: usize,
        ) {
            let mut stored = sealed(space, &key, &value);
            let bits = (covered(space, value.len()) + TRAILER_LEN) * 8;
            let mut bit = bit % bits;
            if bit / 8 >= covered(space, value.len()) {
                bit = stored.len() * 8 - 1 - bit % (TRAILER_LEN * 8);
            }
            stored[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(open(space, &key, &stored), Err(Damaged::Mismatch));
        }

        #[test]
        fn notices_another_key_or_space(key: Vec<u8>, other: Vec<u8>, value: Vec<u8>) {
            prop_assume!(key != other);
            let stored = sealed(Space::Producers, &key, &value);
            prop_assert!(open(Space::Producers, &other, &stored).is_err());
            prop_assert!(open(Space::Offsets, &key, &stored).is_err());
        }

        #[test]
        fn the_beginning_tells_as_much_as_the_whole(
            key: Vec<u8>, value in prop::collection::vec(any::<u8>(), 0..200), more in 0usize..50, bit: usize,
        ) {
            let stored = sealed(Space::Records, &key, &value);
            let trailer = *stored.last_chunk().unwrap();
            let first = &value[..value.len().min(RECORD_PREFIX + more)];
            prop_assert!(fits_beginning(&key, value.len(), first, trailer));
            prop_assert!(!fits_beginning(&key, value.len() + 1, first, trailer));
            let covered = covered(Space::Records, value.len());
            prop_assert!(covered == 0 || !fits_beginning(&key, value.len(), &first[..covered - 1], trailer));
            let mut flipped = first.to_vec();
            if covered > 0 {
                let bit = bit % (covered * 8);
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(!fits_beginning(&key, value.len(), &flipped, trailer));
            }
        }

        #[test]
        fn never_panics(space in any_space(), key: Vec<u8>, stored: Vec<u8>) {
            let _ = open(space, &key, &stored);
        }
    }

    #[test]
    fn notices_a_record_batch_of_another_length() {
        let long = vec![7; 300];
        let mut stored = sealed(Space::Records, b"k", &long);
        stored.remove(200);
        assert_eq!(open(Space::Records, b"k", &stored), Err(Damaged::Mismatch));
        assert_eq!(
            open(Space::Records, b"k", &[1, 2, 3]),
            Err(Damaged::TooShort)
        );
    }
}
