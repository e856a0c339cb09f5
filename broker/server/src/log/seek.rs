//! Where a reader begins.

use std::sync::Arc;

use millstream_proto::Offset;
use millstream_proto::topic::StartAt;
use tokio::sync::Semaphore;

use super::partition::{Partition, Stored};
use super::read::ReadFault;
use crate::limits::{READ_CHUNK_BYTES, TIME_SEEKERS};

/// Looking for a timestamp may read all there is: it must not take every turn at the store from
/// those who read what they found.
pub(super) static SEEKING: Semaphore = Semaphore::const_new(TIME_SEEKERS);

/// The offset in `partition` that `at` means at this moment.
///
/// By timestamp it reads the partition from its beginning: timestamps come from
/// producers and need not rise, so nothing short of looking is exact.
///
/// # Errors
/// [`ReadFault::OutOfRange`] for an offset that is not there; otherwise when the
/// store cannot be read, or could not when the partition was opened.
pub async fn seek(partition: &Arc<Partition>, at: StartAt) -> Result<Offset, ReadFault> {
    partition.check_readable()?;
    match approach(partition, at).await? {
        (offset, None) => Ok(offset),
        (_, Some(fault)) => Err(fault),
    }
}

/// As [`seek`], for a reader who is to stand before what cannot be read rather than hear of it
/// now: the offset, and why it is no better, if nobody can tell what `at` means.
///
/// # Errors
/// [`ReadFault::OutOfRange`] for an offset that is not there; when the broker goes down.
pub(crate) async fn approach(
    partition: &Arc<Partition>,
    at: StartAt,
) -> Result<(Offset, Option<ReadFault>), ReadFault> {
    let (start, end) = (partition.start(), partition.end());
    let is_shut = partition.unreadable().is_some();
    match at {
        StartAt::Earliest => Ok((start, None)),
        StartAt::Latest => Ok((end, None)),
        StartAt::Offset(wanted) if wanted < start || (wanted > end && !is_shut) => {
            Err(ReadFault::OutOfRange { wanted, start, end })
        }
        StartAt::Offset(wanted) => Ok((wanted, None)),
        StartAt::Timestamp(wanted) => {
            let _turn = SEEKING.acquire().await.map_err(|_| ReadFault::Closing)?;
            let mut from = start;
            while from < end {
                let batches = match partition.read(from, READ_CHUNK_BYTES).await {
                    // Retention was faster.
                    Err(ReadFault::OutOfRange { start, .. }) if start > from => {
                        from = start;
                        continue;
                    }
                    // There is nothing in what is lost.
                    Err(ReadFault::Lost { next, .. }) if next > from => {
                        from = next;
                        continue;
                    }
                    Err(fault @ (ReadFault::Store(_) | ReadFault::Damaged { .. })) => {
                        return Ok((from, Some(fault)));
                    }
                    read => read?,
                };
                if let Some(found) = batches.iter().find(|s| reaches(s, wanted)) {
                    return Ok((found.base.max(partition.start()), None));
                }
                match batches.last() {
                    Some(last) => from = last.end(),
                    None => break,
                }
            }
            Ok((end, None))
        }
    }
}

/// Whether a batch has a record at `wanted` or later. One that cannot be looked
/// into counts as having one: the reader will hear of it.
fn reaches(stored: &Stored, wanted: i64) -> bool {
    let header = stored.batch.header();
    if header.base_timestamp >= wanted {
        return true;
    }
    if !header.flags.timestamps {
        return false;
    }
    let Ok(body) = stored.batch.body() else {
        return true;
    };
    body.view()
        .map_or(true, |view| view.records().any(|r| r.timestamp >= wanted))
}
