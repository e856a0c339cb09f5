//! The floor of the filter: the same comparison in native code, over the same batches.

use std::hint::black_box;
use std::time::Instant;

use millstream_proto::Codec;
use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};

use super::payload::Payload;
use crate::error::{CliError, Outcome};

/// Byte of the value that the filter looks at.
pub(super) const OFFSET: usize = 0;
/// The bytes that it keeps: all, which neither compiler knows. See the plugin `filter-field`.
const KEPT: (u64, u64) = (0, 255);
/// Records per batch.
const BATCH: u64 = 1000;
/// Batches per measurement.
const BATCHES: u32 = 2000;

/// Nanoseconds per record to look at every value of a batch and decide.
pub(super) fn filter(payload: &Payload) -> Outcome<f64> {
    let mut builder = BatchBuilder::new(usize::MAX);
    for number in 0..BATCH {
        let (key, value) = payload.parts(number);
        let record = NewRecord {
            key: Some(key),
            value: Some(value),
            ..NewRecord::default()
        };
        builder.push(&record).map_err(CliError::failure)?;
    }
    let batch = builder
        .build(Codec::None, Stamp::default())
        .map_err(CliError::failure)?;
    let body = batch.body().map_err(CliError::failure)?;
    let view = body.view().map_err(CliError::failure)?;
    let (least, width) = black_box(KEPT);
    let begun = Instant::now();
    for _ in 0..BATCHES {
        let keep = |value: Option<&[u8]>| {
            let byte = value.and_then(|value| value.get(OFFSET));
            byte.is_some_and(|byte| u64::from(*byte).wrapping_sub(least) <= width)
        };
        let verdicts: Vec<bool> = black_box(view).records().map(|r| keep(r.value)).collect();
        black_box(verdicts);
    }
    Ok(begun.elapsed().as_nanos() as f64 / (f64::from(BATCHES) * BATCH as f64))
}
