//! Removes what deleted topics leave behind, in steps, beside everything else.
//!
//! A topic's own row goes first, together with the note that it is doomed, so that a restart
//! takes up where the last run stopped. The store reads what it removes: a step is a few MiB, and
//! each waits in the same queue as everybody's writes.

use std::ops::Range;
use std::sync::Arc;

use millstream_store::key::{offset, partition, producer, record};
use millstream_store::{
    CommitError, Direction, Key, ReadError, ScanLimit, Space, Store, WriteBatch,
};

use super::Catalog;
use super::row::{DoomedRow, Row};
use crate::gate::Gate;
use crate::limits::{DELETE_STEP_BYTES, DELETE_STEP_ROWS};

/// Why a deleted topic's rows stay. A restart tries again.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Commit(#[from] CommitError),
    #[error("the broker is shutting down")]
    Closing,
}

impl Catalog {
    /// Removes the rows of deleted topics until the gate closes or the store stops.
    pub(crate) async fn sweep(&self, gate: &Gate) {
        loop {
            let doomed = self.view().doomed.values().next().cloned();
            let Some(doomed) = doomed else {
                tokio::select! {
                    () = self.doomed.notified() => continue,
                    () = gate.closing() => return,
                }
            };
            match self.remove(&doomed, gate).await {
                Ok(()) => tracing::info!(topic = %doomed.name, "removed from the store"),
                Err(SweepError::Closing) => return,
                Err(e) => {
                    tracing::error!(topic = %doomed.name, "deleted, but not removed: {e}");
                    return;
                }
            }
        }
    }

    async fn remove(&self, doomed: &DoomedRow, gate: &Gate) -> Result<(), SweepError> {
        loop {
            if gate.is_closing() {
                return Err(SweepError::Closing);
            }
            let (store, id) = (Arc::clone(&self.store), doomed.id);
            let step = tokio::task::spawn_blocking(move || next_step(&*store, id));
            let mut batch = WriteBatch::new();
            match step.await.map_err(|_| SweepError::Closing)?? {
                Some((space, range)) => {
                    batch.delete_range(space, range);
                    self.store.commit(batch).await?;
                }
                None => {
                    doomed.delete(&mut batch);
                    self.store.commit(batch).await?;
                    self.show().doomed.remove(&id);
                    return Ok(());
                }
            }
        }
    }
}

/// The next rows of a topic to remove. Blocking.
fn next_step(store: &dyn Store, topic: u32) -> Result<Option<(Space, Range<Key>)>, ReadError> {
    let snapshot = store.snapshot()?;
    let limit = ScanLimit {
        rows: DELETE_STEP_ROWS,
        bytes: DELETE_STEP_BYTES,
    };
    let spaces = [
        (Space::Records, record::range_topic(topic)),
        (Space::Producers, producer::range_topic(topic)),
        (Space::Offsets, offset::range_topic(topic)),
        (Space::Partitions, partition::range_topic(topic)),
    ];
    for (space, range) in spaces {
        let bounds = &range.start[..]..&range.end[..];
        let page = snapshot.scan(space, bounds, Direction::Forward, limit)?;
        if let Some(last) = page.rows.last() {
            // Up to and with the last: nothing sorts between a key and the same with a 0 behind.
            return Ok(Some((
                space,
                range.start..last.key.clone().push_bytes(&[0]),
            )));
        }
    }
    Ok(None)
}
