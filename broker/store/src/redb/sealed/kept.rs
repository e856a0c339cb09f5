//! How much of an extent is left when part of it is cut off, as far as that can be told without
//! reading its records.
//!
//! The index of the segment knows blocks. It does not tell how much of a block belongs to whom, and
//! small extents share one: by the blocks that begin in it alone, nothing would be left of such an
//! extent once its first record is cut off. Wanted records would count as garbage and be copied for
//! it, which counts them again as what they are, until the next cut. So the offsets tell the share.

use std::ops::Range;

use crate::redb::extent::{RUN_PREFIX, run_of, successor};
use crate::segment::Segment;
use crate::segment::limits::BLOCK_BYTES;

/// About how many bytes of keys and values lie in `part` of an extent that is `whole` and has
/// `bytes` of them, never more than that. Without the `segment`, if its index cannot be read, the
/// offsets alone tell.
///
/// How many offsets the last batch of an extent has is not known; they count as one. So what is cut
/// off is overestimated: twice, if there are two batches alike, and less if there are more.
pub(super) fn kept(
    whole: &Range<&[u8]>,
    bytes: u64,
    part: &Range<&[u8]>,
    segment: Option<&Segment>,
) -> u64 {
    let (least, most) = segment.map_or((0, bytes), |segment| bounds(segment, part));
    let (least, most) = (least.min(bytes), most.min(bytes));
    share(whole, bytes, part).map_or(least, |about| about.clamp(least, most))
}

/// What the index knows of `part`: what the blocks hold that begin in it, and how much it can be at
/// most with what lies in the block that reaches into it.
fn bounds(segment: &Segment, part: &Range<&[u8]>) -> (u64, u64) {
    let least = segment.bytes_in(part.start..part.end);
    let begins_block = segment.bytes_in(part.start..&successor(part.start)) > 0;
    // A block that is longer holds one entry, and does not reach behind its key.
    let reaching = if begins_block { 0 } else { BLOCK_BYTES as u64 };
    (least, least.saturating_add(reaching))
}

/// The share of `bytes` that the offsets in `part` have in all those of `whole`. `None` if these are
/// not the keys of a partition's records.
fn share(whole: &Range<&[u8]>, bytes: u64, part: &Range<&[u8]>) -> Option<u64> {
    let run = run_of(whole.start);
    let offset = |key| offset_at(run, key);
    let all = offset(whole.end)?.checked_sub(offset(whole.start)?)?;
    let kept = offset(part.end)?.checked_sub(offset(part.start)?)?;
    // No overflow: a number of offsets is 2^64 at most.
    let share = (u128::from(bytes) * kept).checked_div(all)?;
    u64::try_from(share).ok()
}

/// The first offset that does not lie below `key`, which is a record's of this run, or the smallest
/// key behind one.
fn offset_at(run: &[u8], key: &[u8]) -> Option<u128> {
    let (prefix, rest) = key.split_first_chunk::<RUN_PREFIX>()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let behind = match rest {
        [] => 0,
        [0] => 1,
        _ => return None,
    };
    (prefix == run).then_some(u128::from(u64::from_be_bytes(*offset)) + behind)
}

#[cfg(test)]
mod tests;
