//! Reading certificates, lists and settings again, when somebody asks for it or a file changes, and
//! ending the connections that would not be let in any more.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::config::TlsFiles;
use crate::credentials::{Material, ReloadError, Reloaded};
use crate::limits::{WATCH_INTERVAL, WATCH_PATIENCE, WATCH_RETRY};
use crate::sessions::{self, Open};

/// Reads everything again and puts it in force, or leaves what is in force as it is.
pub(crate) async fn reload(broker: &Broker) -> Result<Reloaded, ReloadError> {
    attempt(broker, Occasion::News).await
}

/// What there is to read again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// Somebody asks for it, or a file has changed.
    News,
    /// It failed the last time. That it fails again in the same way is no news.
    Retry,
}

async fn attempt(broker: &Broker, occasion: Occasion) -> Result<Reloaded, ReloadError> {
    let credentials = &broker.credentials;
    let _turn = credentials.turn.lock().await;
    let started = broker.config.clone();
    let read = tokio::task::spawn_blocking(move || Material::again(&started)).await;
    let material = match read.unwrap_or(Err(ReloadError::Interrupted)) {
        Ok(material) => material,
        Err(e) => {
            let known = credentials
                .trouble()
                .is_some_and(|why| why == e.to_string());
            if occasion == Occasion::News || !known {
                tracing::error!("nothing new is in force, what was before still is: {e}");
                credentials.keep(&e);
            }
            return Err(e);
        }
    };
    let restart = material.restart.clone();
    credentials.replace(material, &broker.endpoint);
    let ended = expel(broker, broker.sessions.all()).await;
    tracing::info!(ended, "certificates, lists and settings were read again");
    if !restart.is_empty() {
        let changed = restart.join(", ");
        tracing::warn!("changed in the configuration, in force after a restart only: {changed}");
    }
    Ok(Reloaded { restart, ended })
}

/// Ends those of these connections that would not be let in now: how many.
async fn expel(broker: &Broker, sessions: Vec<Open>) -> u64 {
    if sessions.is_empty() {
        return 0;
    }
    let verifier = Arc::clone(&broker.credentials.now().verifier);
    // Thousands of signatures would hold up everybody else.
    let verified =
        tokio::task::spawn_blocking(move || sessions::expel(&sessions, &verifier, UnixTime::now()));
    let ended = verified.await.unwrap_or_else(|e| {
        tracing::error!("connections were not looked at again: {e}");
        0
    });
    broker.credentials.count_ended(ended);
    ended
}

/// Looks after files that change and certificates that run out, for as long as the broker runs.
/// `before` is how the files were before they were read for the first time.
pub(crate) async fn watch(broker: Arc<Broker>, before: Stamps) {
    let mut watched = Watched::new(before, Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            () = broker.gate.closing() => return,
        }
        expel(&broker, broker.sessions.due(UnixTime::now())).await;
        let files = broker.credentials.now().files.clone();
        let source = broker.config.source.clone();
        let stamped = tokio::task::spawn_blocking(move || Stamps::of(source.as_deref(), &files));
        let Ok(now) = stamped.await else {
            return;
        };
        let trouble = broker.credentials.trouble().is_some();
        if let Some(occasion) = watched.look(now, trouble, Instant::now()) {
            // Its outcome is logged and kept.
            let _ = attempt(&broker, occasion).await;
        }
    }
}

/// When files are to be read again, by how they look from time to time.
struct Watched {
    /// As they were before they were read the last time.
    read: Stamps,
    last: Stamps,
    /// When they were first seen to be different from what was read.
    changing: Option<Instant>,
    /// When they were read the last time.
    at: Instant,
}

impl Watched {
    fn new(read: Stamps, at: Instant) -> Self {
        Self {
            last: read.clone(),
            read,
            changing: None,
            at,
        }
    }

    /// Whether to read the files, which look so at `at`; with `trouble`, what they hold could not be
    /// used.
    fn look(&mut self, now: Stamps, trouble: bool, at: Instant) -> Option<Occasion> {
        let settled = now == self.last;
        self.last = now;
        if self.last == self.read {
            self.changing = None;
            let due = trouble && at.saturating_duration_since(self.at) >= WATCH_RETRY;
            if due {
                self.at = at;
            }
            return due.then_some(Occasion::Retry);
        }
        // Somebody may be writing: what changes is left alone until it has not changed for once, and
        // not for ever.
        let since = *self.changing.get_or_insert(at);
        if !settled && at.saturating_duration_since(since) < WATCH_PATIENCE {
            return None;
        }
        self.read = self.last.clone();
        self.changing = None;
        self.at = at;
        Some(Occasion::News)
    }
}

/// How files look from outside: none are the same if one was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamps(Vec<(PathBuf, Option<Stamp>)>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamps {
    /// Of all files that are read again. Blocking.
    pub(crate) fn of(source: Option<&Path>, files: &TlsFiles) -> Self {
        let TlsFiles {
            cert,
            key,
            client_ca,
            revocation_lists,
            identity: _,
        } = files;
        let paths = [cert, key, client_ca].into_iter().map(PathBuf::as_path);
        let lists = revocation_lists.iter().map(PathBuf::as_path);
        let stamps = paths.chain(lists).chain(source).map(|path| {
            let stamp = std::fs::metadata(path).ok();
            (path.to_owned(), stamp.map(|m| Stamp::of(&m)))
        });
        Self(stamps.collect())
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;
    use crate::tls::tests::good;

    #[test]
    fn stamps_differ_when_a_file_is_written_replaced_or_gone() {
        let dir = good();
        let of = || Stamps::of(None, &dir.files);
        let first = of();
        assert_eq!(of(), first);
        let text = std::fs::read(&dir.files.cert).unwrap();
        // The same text, in another file of the same name.
        let beside = dir.dir.path().join("new");
        std::fs::write(&beside, &text).unwrap();
        std::fs::rename(&beside, &dir.files.cert).unwrap();
        let replaced = of();
        assert_ne!(replaced, first);
        std::fs::write(&dir.files.client_ca, "longer than it was").unwrap();
        let written = of();
        assert_ne!(written, replaced);
        std::fs::remove_file(&dir.files.key).unwrap();
        assert_ne!(of(), written);
    }

    /// When the files are read that look like `looks`, one look after the other.
    fn occasions(trouble: bool, looks: &[u64]) -> Vec<(usize, Occasion)> {
        let stamps = |len: u64| {
            let stamp = Stamp {
                file: (1, 1),
                len,
                modified: (0, 0),
                changed: (0, 0),
            };
            Stamps(vec![("cert.pem".into(), Some(stamp))])
        };
        let mut at = Instant::now();
        let mut watched = Watched::new(stamps(0), at);
        let look = |(n, len): (usize, &u64)| {
            at += WATCH_INTERVAL;
            let occasion = watched.look(stamps(*len), trouble, at)?;
            Some((n, occasion))
        };
        looks.iter().enumerate().filter_map(look).collect()
    }

    /// Looks in a time.
    fn looks_in(time: std::time::Duration) -> usize {
        usize::try_from(time.as_millis() / WATCH_INTERVAL.as_millis()).unwrap()
    }

    #[test]
    fn files_are_read_once_they_have_settled() {
        assert_eq!(occasions(false, &[0, 0, 1, 2, 2, 2]), [(4, Occasion::News)]);
        // Back to what was read.
        assert_eq!(occasions(false, &[1, 0, 0, 0]), []);
    }

    #[test]
    fn files_that_never_settle_are_read_all_the_same() {
        let patience = looks_in(WATCH_PATIENCE);
        let looks: Vec<u64> = (1..=2 * patience as u64 + 2).collect();
        let read = [patience, 2 * patience + 1];
        assert_eq!(occasions(false, &looks), read.map(|n| (n, Occasion::News)));
    }

    #[test]
    fn what_could_not_be_used_is_tried_again() {
        let retry = looks_in(WATCH_RETRY);
        let looks = vec![0; 2 * retry];
        let tried = [retry - 1, 2 * retry - 1];
        assert_eq!(occasions(true, &looks), tried.map(|n| (n, Occasion::Retry)));
        assert_eq!(occasions(false, &looks), []);
        // A change is news, and the wait begins with it.
        let mut looks = vec![0; retry - 2];
        looks.extend(vec![1; retry + 2]);
        let first = retry - 1;
        let all = [(first, Occasion::News), (first + retry, Occasion::Retry)];
        assert_eq!(occasions(true, &looks), all);
    }
}
