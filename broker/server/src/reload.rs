//! Reading certificates, lists and settings again, when somebody asks for it or a file changes, and
//! ending the connections that would not be let in any more.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::UnixTime;

use crate::broker::Broker;
use crate::config::TlsFiles;
use crate::credentials::{Material, ReloadError, Reloaded};
use crate::limits::WATCH_INTERVAL;
use crate::sessions::{self, Open};

/// Reads everything again and puts it in force, or leaves what is in force as it is.
pub(crate) async fn reload(broker: &Broker) -> Result<Reloaded, ReloadError> {
    let credentials = &broker.credentials;
    let _turn = credentials.turn.lock().await;
    let started = broker.config.clone();
    let read = tokio::task::spawn_blocking(move || Material::again(&started)).await;
    let material = match read.unwrap_or(Err(ReloadError::Interrupted)) {
        Ok(material) => material,
        Err(e) => {
            tracing::error!("nothing new is in force, what was before still is: {e}");
            credentials.keep(&e);
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
    let mut read = before;
    let mut last = read.clone();
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
        // Somebody may be writing: what changes is left alone until it has not changed for once.
        let settled = now == last;
        last = now.clone();
        if settled && now != read {
            read = now;
            // Its outcome is logged and kept.
            let _ = reload(&broker).await;
        }
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
}
