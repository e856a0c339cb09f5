//! Removing sealed packs from the hot file. redb reads what it removes, so each commit does a
//! little of it.

use std::collections::VecDeque;

use ::redb::{Error as RedbError, WriteTransaction};

use super::records::WriteFault;
use super::{DIRECTORIES, PACKS};

/// Removes the first of `packs` (numbers, each with its bytes), at least one if there is one and
/// no more than `budget` bytes otherwise. Returns how many were removed.
pub(super) fn packs(
    transaction: &WriteTransaction,
    packs: &VecDeque<(u64, u64)>,
    budget: u64,
) -> Result<usize, WriteFault> {
    if packs.is_empty() {
        return Ok(0);
    }
    let mut directories = opened(transaction.open_table(DIRECTORIES))?;
    let mut chunks = opened(transaction.open_table(PACKS))?;
    let (mut removed, mut left) = (0, budget);
    for &(pack, bytes) in packs {
        if removed > 0 && bytes > left {
            break;
        }
        left = left.saturating_sub(bytes);
        opened(directories.remove(pack))?;
        opened(chunks.retain_in((pack, 0)..=(pack, u32::MAX), |_, _| false))?;
        removed += 1;
    }
    Ok(removed)
}

fn opened<T, E: Into<RedbError>>(result: Result<T, E>) -> Result<T, WriteFault> {
    result.map_err(|error| WriteFault::Engine(error.into()))
}
