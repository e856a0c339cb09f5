//! What a caller hands over to be committed: keys, values, and how durable they must be.

use std::fmt;
use std::ops::{Deref, Range};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN, OP_COST};
use crate::space::Space;

/// A key. Short ones, which are nearly all, lie inline; ordered as bytes.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(SmallVec<[u8; 24]>);

impl Key {
    /// An empty key, to be built up with the `push` methods. Empty keys are refused at submit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a big-endian number, so that keys sort as their numbers do.
    #[must_use]
    pub fn push_u32(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Appends a big-endian number, so that keys sort as their numbers do.
    #[must_use]
    pub fn push_u64(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Appends raw bytes. Only the last part of a key may vary in length, or keys stop sorting
    /// part by part.
    #[must_use]
    pub fn push_bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The smallest key greater than every key that begins with this one, or `None` if there is
    /// none (all bytes are 0xFF). The exclusive end of a prefix scan.
    #[must_use]
    pub fn prefix_end(&self) -> Option<Self> {
        let mut end = self.clone();
        while let Some(last) = end.0.pop() {
            if last < u8::MAX {
                end.0.push(last + 1);
                return Some(end);
            }
        }
        None
    }
}

impl Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

impl<const N: usize> From<[u8; N]> for Key {
    fn from(bytes: [u8; N]) -> Self {
        Self(SmallVec::from_slice(&bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.escape_ascii())
    }
}

/// When a batch's callback may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// After the batch is on stable storage. The only one under which an acknowledgement means
    /// something after a power cut.
    #[default]
    Sync,
    /// As soon as the batch can be read; it reaches stable storage within
    /// [`crate::limits::FLUSH_INTERVAL`]. A kill before that loses it.
    Interval,
}

/// One operation; applied in the order they were added.
#[derive(Debug)]
pub(crate) enum Op {
    Put {
        space: Space,
        key: Key,
        parts: SmallVec<[Bytes; 2]>,
    },
    Delete {
        space: Space,
        key: Key,
    },
    DeleteRange {
        space: Space,
        start: Key,
        end: Key,
    },
}

/// Changes that are committed together or not at all, applied in the order they were added.
#[derive(Debug, Default)]
pub struct WriteBatch {
    ops: Vec<Op>,
    bytes: usize,
    durability: Durability,
}

impl WriteBatch {
    /// An empty batch that asks for [`Durability::Sync`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch that asks for `durability`.
    #[must_use]
    pub fn with_durability(durability: Durability) -> Self {
        Self {
            durability,
            ..Self::default()
        }
    }

    /// Sets what stands at `key`, replacing what stood there.
    pub fn put(&mut self, space: Space, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.put_parts(space, key, [value.into()]);
    }

    /// Sets what stands at `key` to the concatenation of `parts`, copying them only once, into
    /// the page they are stored in.
    pub fn put_parts(
        &mut self,
        space: Space,
        key: impl Into<Key>,
        parts: impl IntoIterator<Item = Bytes>,
    ) {
        let parts: SmallVec<[Bytes; 2]> = parts.into_iter().collect();
        let key = key.into();
        self.bytes += OP_COST + key.len() + parts.iter().map(Bytes::len).sum::<usize>();
        self.ops.push(Op::Put { space, key, parts });
    }

    /// Removes what stands at `key`; nothing happens if nothing does.
    pub fn delete(&mut self, space: Space, key: impl Into<Key>) {
        let key = key.into();
        self.bytes += OP_COST + key.len();
        self.ops.push(Op::Delete { space, key });
    }

    /// Removes everything in `range`, start included and end excluded. The engine may have to read
    /// what it removes, so remove large ranges in steps, each in a batch of its own:
    /// [`crate::Snapshot::removable`] says how large one may be.
    pub fn delete_range(&mut self, space: Space, range: Range<Key>) {
        self.bytes += OP_COST + range.start.len() + range.end.len();
        self.ops.push(Op::DeleteRange {
            space,
            start: range.start,
            end: range.end,
        });
    }

    /// What it asked for.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Bytes it is charged for in the queue: keys, values and a constant for each operation. The
    /// number to reserve.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// Whether it changes nothing. An empty batch is still committed in its turn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(crate) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Finds what the engine could not apply, before the batch is grouped with batches of others.
    pub(crate) fn check(&self) -> Result<(), BatchRefused> {
        for op in &self.ops {
            match op {
                Op::Put { space, key, parts } => {
                    check_key(*space, key)?;
                    let len = parts.iter().map(Bytes::len).sum::<usize>();
                    if len > MAX_VALUE_LEN {
                        return Err(BatchRefused::ValueTooLong { space: *space, len });
                    }
                }
                Op::Delete { space, key } => check_key(*space, key)?,
                Op::DeleteRange { space, start, end } => {
                    check_key(*space, end)?;
                    if start.len() > MAX_KEY_LEN {
                        return Err(BatchRefused::KeyLen {
                            space: *space,
                            len: start.len(),
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

fn check_key(space: Space, key: &Key) -> Result<(), BatchRefused> {
    if key.is_empty() || key.len() > MAX_KEY_LEN {
        return Err(BatchRefused::KeyLen {
            space,
            len: key.len(),
        });
    }
    Ok(())
}

/// Why a batch can never be committed: a mistake of the caller, not of the disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchRefused {
    /// A key is empty or longer than [`MAX_KEY_LEN`].
    #[error("a key in {space} is {len} bytes; keys have 1 to {MAX_KEY_LEN}")]
    KeyLen {
        /// Where the key was to stand.
        space: Space,
        /// Its length in bytes.
        len: usize,
    },
    /// A value is longer than [`MAX_VALUE_LEN`].
    #[error("a value in {space} is {len} bytes; the largest allowed is {MAX_VALUE_LEN}")]
    ValueTooLong {
        /// Where the value was to stand.
        space: Space,
        /// Its length in bytes.
        len: usize,
    },
    /// The batch outgrew its reservation by more than [`crate::limits::PERMIT_SLACK`].
    #[error("the batch is {needed} bytes but only {reserved} were reserved for it")]
    PermitTooSmall {
        /// Bytes reserved.
        reserved: usize,
        /// Bytes the batch is charged for.
        needed: usize,
    },
    /// The permit was issued by another store.
    #[error("the permit belongs to another shard's queue")]
    ForeignPermit,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_the_engine_could_not_hold() {
        let mut empty_key = WriteBatch::new();
        empty_key.put(Space::Meta, "", "v");
        assert_eq!(
            empty_key.check(),
            Err(BatchRefused::KeyLen {
                space: Space::Meta,
                len: 0
            })
        );

        let long = vec![1; MAX_KEY_LEN + 1];
        let mut long_key = WriteBatch::new();
        long_key.delete(Space::Blobs, &long[..]);
        assert_eq!(
            long_key.check(),
            Err(BatchRefused::KeyLen {
                space: Space::Blobs,
                len: MAX_KEY_LEN + 1
            })
        );

        let half = Bytes::from(vec![0; MAX_VALUE_LEN / 2 + 1]);
        let mut long_value = WriteBatch::new();
        long_value.put_parts(Space::Blobs, "k", [half.clone(), half]);
        assert_eq!(
            long_value.check(),
            Err(BatchRefused::ValueTooLong {
                space: Space::Blobs,
                len: MAX_VALUE_LEN + 2
            })
        );
    }

    #[test]
    fn charges_for_keys_values_and_operations() {
        let mut batch = WriteBatch::new();
        batch.put_parts(
            Space::Records,
            [0; 16],
            [Bytes::from_static(b"ab"), Bytes::from("cde")],
        );
        batch.delete(Space::Meta, "xy");
        assert_eq!(batch.byte_len(), 2 * OP_COST + 16 + 5 + 2);
    }

    proptest! {
        #[test]
        fn prefix_end_bounds_exactly_the_prefix(prefix: Vec<u8>, tail: Vec<u8>, other: Vec<u8>) {
            let start = Key::from(&prefix[..]);
            let inside = start.clone().push_bytes(&tail);
            let other = Key::from(&other[..]);
            if let Some(end) = start.prefix_end() {
                prop_assert!(start <= inside && inside < end);
                prop_assert_eq!(other >= start && other < end, other.starts_with(&prefix));
            } else {
                prop_assert!(prefix.iter().all(|&byte| byte == 0xFF));
            }
        }
    }
}
