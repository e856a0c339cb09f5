//! Removing backups, and what only they needed.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::error::{PruneError, TargetError};
use super::lock::{Lock, Work};
use super::manifest::{BackupId, Manifest};
use super::target::{BACKUPS, Found, PARTS, SEGMENTS, Target};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// The backups.
    pub removed: Vec<BackupId>,
    /// Those that stay.
    pub kept: Vec<BackupId>,
    /// Segments and parts that no backup names any more.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Keeps the newest `keep` backups of each store, and none of those that `remove` names; then
/// removes all segments and parts that no backup names any more, among them what interrupted
/// backups have left.
///
/// # Errors
/// See [`PruneError`]. Backups that are listed afterwards are whole.
pub async fn prune(
    target: &Target,
    keep: usize,
    remove: &[BackupId],
) -> Result<Pruned, PruneError> {
    let lock = Lock::take(target, Work::Prune, "all").await?;
    let pruned = Pruning { target, lock }.run(keep, remove).await;
    let (lock, pruned) = pruned;
    lock.release().await;
    pruned
}

struct Pruning<'t> {
    target: &'t Target,
    lock: Lock<'t>,
}

impl<'t> Pruning<'t> {
    async fn run(
        mut self,
        keep: usize,
        remove: &[BackupId],
    ) -> (Lock<'t>, Result<Pruned, PruneError>) {
        let pruned = self.work(keep, remove).await;
        (self.lock, pruned)
    }

    async fn work(&mut self, keep: usize, remove: &[BackupId]) -> Result<Pruned, PruneError> {
        let found = self.target.backups().await?;
        if let Some(unknown) = remove
            .iter()
            .find(|id| !found.iter().any(|found| found.id == **id))
        {
            return Err(PruneError::Target(TargetError::NoBackup {
                what: unknown.to_string(),
                target: self.target.name().to_owned(),
            }));
        }
        let (kept, removed) = choose(found, keep, remove);
        let mut pruned = Pruned::default();
        // A backup ends to exist before anything that it needs does.
        for id in removed {
            self.target.delete(&format!("{BACKUPS}/{id}")).await?;
            self.lock.keep().await?;
            pruned.removed.push(id);
        }
        if !pruned.removed.is_empty() {
            // After a power cut too.
            self.target.sync_removed(BACKUPS)?;
        }
        let (mut segments, mut parts) = (BTreeSet::new(), BTreeSet::new());
        for found in kept {
            let manifest = found.manifest.map_err(PruneError::Unreadable)?;
            segments.extend(manifest.segments.iter().map(|c| c.sha256.to_string()));
            parts.extend(manifest.parts.iter().map(|c| c.sha256.to_string()));
            pruned.kept.push(found.id);
        }
        self.sweep(PARTS, &parts, &mut pruned).await?;
        self.sweep(SEGMENTS, &segments, &mut pruned).await?;
        for folder in [PARTS, SEGMENTS, BACKUPS] {
            let (objects, bytes) = self.target.remove_unfinished(folder)?;
            pruned.objects += objects;
            pruned.bytes += bytes;
        }
        Ok(pruned)
    }

    async fn sweep(
        &mut self,
        folder: &'static str,
        needed: &BTreeSet<String>,
        pruned: &mut Pruned,
    ) -> Result<(), TargetError> {
        for object in self.target.list(folder).await? {
            if needed.contains(&object.name) {
                continue;
            }
            self.target
                .delete(&format!("{folder}/{}", object.name))
                .await?;
            self.lock.keep().await?;
            pruned.objects += 1;
            pruned.bytes += object.bytes;
        }
        Ok(())
    }
}

/// Which stay and which go. One that cannot be read stays unless it is named.
fn choose(found: Vec<Found>, keep: usize, remove: &[BackupId]) -> (Vec<Found>, Vec<BackupId>) {
    let mut counts = BTreeMap::<String, usize>::new();
    let (mut kept, mut removed) = (Vec::new(), Vec::new());
    for found in found.into_iter().rev() {
        let store = |manifest: &Manifest| manifest.store.clone();
        let count = found.manifest.as_ref().ok().map(store);
        let goes = remove.contains(&found.id)
            || count.is_some_and(|store| {
                let count = counts.entry(store).or_default();
                *count += 1;
                *count > keep
            });
        if goes {
            removed.push(found.id);
        } else {
            kept.push(found);
        }
    }
    kept.reverse();
    removed.reverse();
    (kept, removed)
}
