//! Keeps one from removing what another is about to name.
//!
//! A backup under way may name an object that no manifest names yet: one that it has just written,
//! or one that an interrupted backup has left. So nobody prunes while somebody backs up, and the
//! other way round. Each writes its lock first and looks for others' then; of two who begin at
//! once at least one sees the other, since all these places show what was written. A lock that was
//! not renewed for [`BACKUP_LOCK_LIFE`] is one that a crash has left. Ages are measured by the
//! place's own clock.

use bytes::Bytes;
use tokio::time::Instant;

use super::error::TargetError;
use super::target::{LOCKS, Target};
use crate::limits::{BACKUP_LOCK_GOODBYE, BACKUP_LOCK_LIFE, BACKUP_LOCK_RENEWAL};

/// What somebody is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Adding objects.
    Create,
    /// Removing objects.
    Prune,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Prune => "prune",
        }
    }

    /// What must not happen meanwhile.
    fn excludes(self) -> Self {
        match self {
            Self::Create => Self::Prune,
            Self::Prune => Self::Create,
        }
    }
}

/// Somebody is at work, and the place knows.
pub(super) struct Lock<'t> {
    target: &'t Target,
    name: String,
    renewed: Instant,
}

impl<'t> Lock<'t> {
    /// Announces `who`, unless somebody is at work who must not be disturbed.
    pub(super) async fn take(
        target: &'t Target,
        work: Work,
        who: &str,
    ) -> Result<Self, TargetError> {
        let lock = Self::named(target, work, who);
        lock.write().await?;
        match lock.conflict(work).await {
            Ok(None) => Ok(lock),
            Ok(Some(who)) => {
                lock.release().await;
                Err(TargetError::Busy {
                    target: target.name().to_owned(),
                    who,
                    minutes: BACKUP_LOCK_LIFE.as_secs() / 60,
                })
            }
            Err(error) => {
                lock.release().await;
                Err(error)
            }
        }
    }

    fn named(target: &'t Target, work: Work, who: &str) -> Self {
        Self {
            target,
            name: format!("{}-{who}", work.name()),
            renewed: Instant::now(),
        }
    }

    fn object(&self) -> String {
        format!("{LOCKS}/{}", self.name)
    }

    async fn write(&self) -> Result<(), TargetError> {
        let text = Bytes::from_static(b"somebody is at work here\n");
        self.target.put(&self.object(), text).await
    }

    async fn conflict(&self, work: Work) -> Result<Option<String>, TargetError> {
        let listed = self.target.list(LOCKS).await?;
        let own = listed.iter().find(|lock| lock.name == self.name);
        let now = own.map(|own| own.modified_ms);
        let excluded = work.excludes().name();
        let fresh = |modified_ms: i64| {
            let age = now.map_or(0, |now| now.saturating_sub(modified_ms));
            age < BACKUP_LOCK_LIFE.as_millis() as i64
        };
        let other = listed.into_iter().find(|lock| {
            let kind = lock.name.split('-').next();
            kind == Some(excluded) && fresh(lock.modified_ms)
        });
        Ok(other.map(|lock| lock.name))
    }

    /// Says from time to time that it still goes on.
    pub(super) async fn keep(&mut self) -> Result<(), TargetError> {
        if self.renewed.elapsed() < BACKUP_LOCK_RENEWAL {
            return Ok(());
        }
        self.write().await?;
        self.renewed = Instant::now();
        Ok(())
    }

    /// It is done. A lock that cannot be removed holds others up for a while, and is not an error.
    pub(super) async fn release(self) {
        if let Err(error) = self.target.delete(&self.object()).await {
            tracing::warn!("a lock remains: {error}");
        }
    }
}

/// Removes the lock of work that was dropped half-way.
pub(super) async fn abandon(target: &Target, work: Work, who: &str) {
    let removed = Lock::named(target, work, who).release();
    if tokio::time::timeout(BACKUP_LOCK_GOODBYE, removed)
        .await
        .is_err()
    {
        tracing::warn!("a lock remains at {}", target.name());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn who_removes_and_who_adds_exclude_each_other() {
        let target = Target::new(Arc::new(InMemory::new()), "memory");
        let one = Lock::take(&target, Work::Create, "one").await.unwrap();
        let two = Lock::take(&target, Work::Create, "two").await.unwrap();
        let refused = Lock::take(&target, Work::Prune, "me").await.err().unwrap();
        assert!(refused.to_string().contains("create-one"), "{refused}");
        one.release().await;
        assert!(Lock::take(&target, Work::Prune, "me").await.is_err());
        two.release().await;
        let prune = Lock::take(&target, Work::Prune, "me").await.unwrap();
        assert!(Lock::take(&target, Work::Create, "one").await.is_err());
        prune.release().await;
        assert_eq!(target.list(LOCKS).await.unwrap(), []);
    }
}
