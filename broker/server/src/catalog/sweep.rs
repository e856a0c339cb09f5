//! Removes what deleted topics leave behind, in steps, beside everything else.
//!
//! A topic's own row goes first, together with the note that it is doomed, so that a restart
//! takes up where the last run stopped. A step is as large as the store can remove while it reads a
//! few MiB, and each waits in the same queue as everybody's writes.

use std::ops::Range;
use std::sync::Arc;

use millstream_store::key::{offset, partition, producer, record};
use millstream_store::{CommitError, Key, ReadError, ScanLimit, Space, Store, WriteBatch};

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
        if let Some(end) = snapshot.removable(space, bounds, limit)? {
            return Ok(Some((space, range.start..end)));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_store::fault::FaultDisk;
    use millstream_store::key::record::RecordKey;
    use millstream_store::segment::Files;
    use millstream_store::segment::fault::FaultFiles;
    use millstream_store::{RedbConfig, RedbStore};

    use super::*;

    const TOPIC: u32 = 5;

    async fn put(store: &RedbStore, partition: u32, offsets: Range<u64>) {
        let mut batch = WriteBatch::new();
        for base_offset in offsets {
            let key = RecordKey {
                topic: TOPIC,
                partition,
                base_offset,
            };
            batch.put(Space::Records, key.encode(), vec![7; DELETE_STEP_BYTES / 8]);
        }
        store.commit(batch).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_sealed_goes_at_once_and_what_is_hot_in_steps() {
        let files = FaultFiles::new();
        let (backend, config) = (FaultDisk::new().backend(), RedbConfig::default());
        let store =
            RedbStore::open_with(backend, Arc::new(files.clone()), "disk", &config).unwrap();
        for partition in 0..8 {
            put(&store, partition, 0..8).await;
        }
        for _ in 0..4 {
            store.seal_now();
        }
        put(&store, 3, 8..24).await;
        // Nothing of the files is needed to remove what lies in them.
        let sealed = files.list().unwrap();
        assert!(sealed.len() > 1);
        for file in &sealed {
            files.remove(file.number).unwrap();
        }
        let mut steps = 0;
        while let Some((space, range)) = next_step(&store, TOPIC).unwrap() {
            let mut batch = WriteBatch::new();
            batch.delete_range(space, range);
            store.commit(batch).await.unwrap();
            steps += 1;
        }
        // 8 MiB are hot and 32 are not.
        assert!((2..=4).contains(&steps), "{steps} steps");
        assert_eq!(store.stats().storage.live_bytes, 0);
    }
}
