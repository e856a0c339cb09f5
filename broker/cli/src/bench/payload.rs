//! Records that do not compress and are not all equal, at no cost per record.

use millstream::Record;

/// Bytes of the pool that keys and values are cut from: small enough to stay in
/// the processor's cache, or the bench would measure its own memory accesses.
const POOL_BYTES: usize = 128 << 10;

/// The sizes of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
    pub(super) batch_bytes: usize,
    pub(super) in_flight: usize,
    pub(super) partitions: u32,
}

impl Shape {
    /// Bytes of key and value.
    pub(super) fn record_bytes(&self) -> u64 {
        (self.key_bytes + self.value_bytes).max(1) as u64
    }
}

/// Random bytes that every record of a run is a slice of.
pub(super) struct Payload {
    pool: Vec<u8>,
    shape: Shape,
}

/// Random enough bytes: xorshift64 (Marsaglia, 2003).
pub(super) fn random(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Payload {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            pool: random(POOL_BYTES + shape.key_bytes + shape.value_bytes),
            shape,
        }
    }

    /// Key and value of the record with this number. Odd strides walk through
    /// the whole pool.
    pub(super) fn parts(&self, number: u64) -> (&[u8], &[u8]) {
        let at = |stride: u64| (number.wrapping_mul(stride) as usize) & (POOL_BYTES - 1);
        let (key, value) = (at(7919), at(104_729));
        let Shape {
            key_bytes,
            value_bytes,
            ..
        } = self.shape;
        (
            &self.pool[key..key + key_bytes],
            &self.pool[value..value + value_bytes],
        )
    }

    /// The record with this number; without a key where keys have no bytes.
    pub(super) fn record(&self, number: u64) -> Record<'_> {
        let (key, value) = self.parts(number);
        let record = Record::value(value).timestamp(0);
        if key.is_empty() {
            record
        } else {
            record.key(key)
        }
    }
}
