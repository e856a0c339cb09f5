//! Backups that a broker makes one after the other, for as long as somebody wants them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream::Client;
use millstream::proto::backup::BackupPhase;
use millstream_broker::backup::{BackupId, Finding, Progress, Target, prune, verify};

/// How many stay.
const KEPT: usize = 3;

/// What has become of them so far. Clones are the same.
#[derive(Clone, Debug)]
pub struct Backups {
    target: Target,
    finished: Arc<Mutex<Vec<BackupId>>>,
    running: Arc<AtomicBool>,
}

impl Backups {
    /// None yet, in this directory, which is made.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(place: &Path) -> Self {
        let target = Target::open_or_create(&place.display().to_string());
        Self {
            target: target.expect("the directory can be made"),
            finished: Arc::default(),
            running: Arc::default(),
        }
    }

    fn finished(&self) -> MutexGuard<'_, Vec<BackupId>> {
        // Every change under this lock is one statement.
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where they lie.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The last one that the broker said was made.
    #[must_use]
    pub fn last(&self) -> Option<BackupId> {
        self.finished().last().cloned()
    }

    /// How many the broker said were made.
    #[must_use]
    pub fn count(&self) -> usize {
        self.finished().len()
    }

    /// Whether the broker was about to make one when it was last asked.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Has the broker make one after the other, and removes the older ones in between. Goes on when
    /// it dies and comes back.
    ///
    /// # Panics
    /// When one fails for another reason than the broker's death.
    pub async fn keep_making(self, client: Client) {
        loop {
            // A broker that has died is asked again once it is back.
            while client.start_backup().await.is_err() {
                tokio::task::yield_now().await;
            }
            while let Ok(state) = client.show_backup().await {
                match state.phase {
                    BackupPhase::Running { .. } => self.running.store(true, Ordering::Relaxed),
                    BackupPhase::Done(made) => {
                        let id = made
                            .id
                            .parse()
                            .expect("the broker knows its backups' names");
                        self.finished().push(id);
                        break;
                    }
                    // It is another broker than the one that was asked to begin.
                    BackupPhase::Never => break,
                    BackupPhase::Failed { error, .. } => panic!("a backup failed: {error}"),
                }
            }
            self.running.store(false, Ordering::Relaxed);
            self.prune().await;
        }
    }

    async fn prune(&self) {
        let ids = self.target.ids().await.expect("the directory can be read");
        if ids.len() <= KEPT {
            return;
        }
        if let Err(error) = prune(&self.target, KEPT, &[]).await {
            // The lock of a broker that died half-way is there until the next backup is made.
            let busy = error.to_string().contains("create-");
            assert!(busy, "old backups cannot be removed: {error}");
        }
    }

    /// What is wrong with the newest backup that is listed, and with the last one that the broker
    /// said was made. Nobody may be making one.
    ///
    /// # Panics
    /// When the place cannot be read.
    pub async fn wrong(&self) -> Vec<Finding> {
        let ids = self.target.ids().await.expect("the directory can be read");
        let mut wrong = Vec::new();
        let mut chosen: Vec<BackupId> =
            ids.last().cloned().into_iter().chain(self.last()).collect();
        chosen.dedup();
        for id in chosen {
            let verified = verify(&self.target, Some(&id), &Progress::default()).await;
            wrong.extend(verified.expect("the directory can be read").findings);
        }
        wrong
    }
}
