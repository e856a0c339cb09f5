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

use super::row::Row;
use super::{Catalog, Doomed};
use crate::gate::Gate;
use crate::limits::{DELETE_RECHECK, DELETE_RETRY, DELETE_STEP_BYTES, DELETE_STEP_ROWS};

/// Why a deleted topic's rows stay.
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
    /// Removes the rows of deleted topics until the gate closes or the store stops. What cannot be
    /// read is tried again later, and keeps no other topic waiting.
    pub(crate) async fn sweep(&self, gate: &Gate) {
        loop {
            let mut pause = DELETE_RECHECK;
            let doomed: Vec<Doomed> = self.view().doomed.values().cloned().collect();
            for doomed in doomed {
                let topic = &doomed.row.name;
                match self.remove(&doomed, gate).await {
                    Ok(true) => tracing::info!(%topic, "removed from the store"),
                    Ok(false) => {}
                    Err(SweepError::Closing) => return,
                    Err(SweepError::Read(e)) => {
                        tracing::error!(%topic, "deleted, and not removed for now: {e}");
                        pause = DELETE_RETRY;
                    }
                    Err(e @ SweepError::Commit(_)) => {
                        tracing::error!(%topic, "deleted, but not removed: {e}");
                        return;
                    }
                }
            }
            let waits = !self.view().doomed.is_empty();
            tokio::select! {
                () = self.doomed.notified() => {}
                () = tokio::time::sleep(pause), if waits => {}
                () = gate.closing() => return,
            }
        }
    }

    /// Removes what there is. Whoever had the topic open may have a batch under way yet: as long
    /// as somebody holds it, the note stays and rows that came later are removed later. Returns
    /// whether it is over.
    async fn remove(&self, doomed: &Doomed, gate: &Gate) -> Result<bool, SweepError> {
        let id = doomed.row.id;
        // Looked at before the last rows are: nobody can add any after it.
        let is_last = doomed.topic.strong_count() == 0;
        loop {
            if gate.is_closing() {
                return Err(SweepError::Closing);
            }
            let store = Arc::clone(&self.store);
            let step = tokio::task::spawn_blocking(move || next_step(&*store, id));
            let Some((space, range)) = step.await.map_err(|_| SweepError::Closing)?? else {
                break;
            };
            let mut batch = WriteBatch::new();
            batch.delete_range(space, range);
            self.store.commit(batch).await?;
        }
        if is_last {
            let mut batch = WriteBatch::new();
            doomed.row.delete(&mut batch);
            self.store.commit(batch).await?;
            self.show().doomed.remove(&id);
        }
        Ok(is_last)
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
