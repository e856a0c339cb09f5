//! The place where backups lie: a few operations on named objects, each with an error that names
//! the object.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use millstream_proto::message::Digest;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::error::TargetError;
use super::manifest::{BackupId, Manifest};
use crate::limits::MAX_MANIFEST_BYTES;

/// Where manifests lie.
pub(super) const BACKUPS: &str = "backups";
/// Where segments lie.
pub(super) const SEGMENTS: &str = "segments";
/// Where parts lie.
pub(super) const PARTS: &str = "parts";
/// Where locks lie.
pub(super) const LOCKS: &str = "locks";

/// Variables of the environment that set up the access to a place begin so.
const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// A place where backups lie.
#[derive(Clone, Debug)]
pub struct Target {
    store: Arc<dyn ObjectStore>,
    name: String,
    /// If it is one.
    dir: Option<PathBuf>,
}

/// Which backup is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest.
    Latest,
    /// The last that was made of those that say they are not younger than this, in milliseconds
    /// since the Unix epoch. The last, not the one with the latest time: should the clock have
    /// been set back, the time means what the clock said since.
    Before(i64),
    /// This one.
    Id(BackupId),
}

/// An object of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// By the place's clock, in milliseconds since the Unix epoch.
    pub(super) modified_ms: i64,
}

/// A manifest, or why it cannot be read.
#[derive(Debug)]
pub struct Found {
    /// The backup.
    pub id: BackupId,
    /// What it consists of.
    pub manifest: Result<Manifest, TargetError>,
}

impl Target {
    /// The place that `url` means: a directory, or a URL of `file`, `s3`, `gs` or `az`. The
    /// credentials and settings of the latter come from the usual variables of the environment.
    /// A directory must be there.
    ///
    /// # Errors
    /// If it is not such a place, or is a directory that cannot be used.
    pub fn open(url: &str) -> Result<Self, TargetError> {
        Self::reach(url, false)
    }

    /// As [`Target::open`]; makes a directory that is not there.
    ///
    /// # Errors
    /// As [`Target::open`].
    pub fn open_or_create(url: &str) -> Result<Self, TargetError> {
        Self::reach(url, true)
    }

    /// Whether `url` could be such a place, without looking.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(url: &str) -> Result<(), String> {
        parse(url).map(drop)
    }

    fn reach(text: &str, create: bool) -> Result<Self, TargetError> {
        let wrong = |detail: String| TargetError::Url {
            url: text.to_owned(),
            detail,
        };
        let url = parse(text).map_err(wrong)?;
        if url.scheme() == "file" {
            let dir = url.to_file_path();
            let dir = dir.map_err(|()| wrong("it names no file of this machine".into()))?;
            return Self::directory(&dir, create).map_err(wrong);
        }
        let name = |name: &str| VARIABLES.iter().any(|prefix| name.starts_with(prefix));
        let settings = std::env::vars_os().filter_map(|(key, value)| {
            let (key, value) = (key.into_string().ok()?, value.into_string().ok()?);
            name(&key).then_some((key, value))
        });
        let opened = object_store::parse_url_opts(&url, settings);
        let (store, root) = opened.map_err(|error| wrong(error.to_string()))?;
        Ok(Self::new(
            Arc::new(PrefixStore::new(store, root)),
            url.as_str(),
        ))
    }

    fn directory(dir: &FilePath, create: bool) -> Result<Self, String> {
        if create {
            let made = std::fs::create_dir_all(dir);
            made.map_err(|error| format!("it cannot be made: {error}"))?;
        }
        let store = LocalFileSystem::new_with_prefix(dir)
            .map_err(|_| "there is no such directory".to_owned())?;
        let name = dir.display().to_string();
        Ok(Self {
            dir: Some(dir.to_owned()),
            ..Self::new(Arc::new(store.with_fsync(true)), &name)
        })
    }

    /// The place `store`, called `name` in errors.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self {
            store,
            name: name.to_owned(),
            dir: None,
        }
    }

    /// The directory `dir`, behind `store`.
    #[cfg(test)]
    pub(super) fn of_directory(store: Arc<dyn ObjectStore>, dir: &FilePath) -> Self {
        Self {
            dir: Some(dir.to_owned()),
            ..Self::new(store, &dir.display().to_string())
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn error(
        &self,
        action: &'static str,
        object: &str,
    ) -> impl FnOnce(Error) -> TargetError {
        let (object, target) = (object.to_owned(), self.name.clone());
        move |source| match source {
            Error::NotFound { .. } => TargetError::Missing { object, target },
            source => TargetError::Object {
                action,
                object,
                target,
                source: Box::new(source),
            },
        }
    }

    pub(super) fn damaged(&self, object: &str, detail: impl ToString) -> TargetError {
        TargetError::Damaged {
            object: object.to_owned(),
            target: self.name.clone(),
            detail: detail.to_string(),
        }
    }

    /// Writes an object, over one of that name.
    pub(super) async fn put(&self, object: &str, bytes: Bytes) -> Result<(), TargetError> {
        let put = self.store.put(&Path::from(object), bytes.into()).await;
        put.map(drop).map_err(self.error("write", object))
    }

    /// Writes an object that must not be there yet.
    pub(super) async fn put_new(&self, object: &str, bytes: Bytes) -> Result<(), TargetError> {
        let (path, payload) = (Path::from(object), PutPayload::from(bytes.clone()));
        let mode = PutMode::Create.into();
        match self.store.put_opts(&path, payload, mode).await {
            // Not every S3 knows the condition. No two backups have the same name by chance.
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                self.put(object, bytes).await
            }
            put => put.map(drop).map_err(self.error("write", object)),
        }
    }

    /// Begins an object that is written piece by piece; it is there once it is complete.
    pub(super) async fn begin(&self, object: &str) -> Result<Upload<'_>, TargetError> {
        let begun = self.store.put_multipart(&Path::from(object)).await;
        Ok(Upload {
            target: self,
            object: object.to_owned(),
            upload: begun.map_err(self.error("write", object))?,
        })
    }

    /// An object, piece by piece.
    pub(super) async fn stream(&self, object: &str) -> Result<Pieces, TargetError> {
        let got = self.store.get(&Path::from(object)).await;
        let pieces = got.map_err(self.error("read", object))?.into_stream();
        let target = self.clone();
        let object = object.to_owned();
        Ok(pieces
            .map_err(move |error| target.error("read", &object)(error))
            .boxed())
    }

    /// An object, whole; an error if it is longer than `most` bytes.
    pub(super) async fn get(&self, object: &str, most: u64) -> Result<Bytes, TargetError> {
        let mut pieces = self.stream(object).await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() as u64 > most {
                return Err(self.damaged(object, format!("it is longer than {most} bytes")));
            }
        }
        Ok(bytes.freeze())
    }

    /// The objects of a folder, by name.
    pub(super) async fn list(&self, folder: &'static str) -> Result<Vec<Listed>, TargetError> {
        let prefix = Path::from(folder);
        let listed = self.store.list(Some(&prefix)).map_ok(|meta| Listed {
            name: meta.location.filename().unwrap_or_default().to_owned(),
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
        });
        let listed: Result<Vec<Listed>, Error> = listed.try_collect().await;
        match listed {
            Ok(mut listed) => {
                listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                Ok(listed)
            }
            Err(Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(self.error("list", folder)(error)),
        }
    }

    /// Removes an object; one that is not there is removed already.
    pub(super) async fn delete(&self, object: &str) -> Result<(), TargetError> {
        match self.store.delete(&Path::from(object)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("remove", object)(error)),
        }
    }

    /// Makes durable what was removed of a folder. Other places than directories do that at once.
    pub(super) fn sync_removed(&self, folder: &'static str) -> Result<(), TargetError> {
        let Some(dir) = &self.dir else {
            return Ok(());
        };
        let synced = std::fs::File::open(dir.join(folder)).and_then(|folder| folder.sync_all());
        synced.map_err(|source| TargetError::Object {
            action: "sync",
            object: folder.to_owned(),
            target: self.name.clone(),
            source: Box::new(Error::Generic {
                store: "directory",
                source: source.into(),
            }),
        })
    }

    /// Removes what a kill in the middle of writing has left in a folder of a directory: files with
    /// names that no listing shows. How many there were, and their bytes. Nobody must be writing.
    pub(super) fn remove_unfinished(
        &self,
        folder: &'static str,
    ) -> Result<(u64, u64), TargetError> {
        let Some(dir) = &self.dir else {
            return Ok((0, 0));
        };
        let failed = |source: std::io::Error| TargetError::Object {
            action: "remove unfinished files of",
            object: folder.to_owned(),
            target: self.name.clone(),
            source: Box::new(Error::Generic {
                store: "directory",
                source: source.into(),
            }),
        };
        let entries = match std::fs::read_dir(dir.join(folder)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((0, 0)),
            other => other.map_err(failed)?,
        };
        let (mut files, mut bytes) = (0, 0);
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.split_once('#'));
            let is_digit = |byte: u8| byte.is_ascii_digit();
            if number.is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(is_digit)) {
                bytes += entry.metadata().map_err(failed)?.len();
                std::fs::remove_file(entry.path()).map_err(failed)?;
                files += 1;
            }
        }
        Ok((files, bytes))
    }

    /// What backup `id` consists of.
    ///
    /// # Errors
    /// If there is none, or its manifest cannot be read or understood.
    pub async fn manifest(&self, id: &BackupId) -> Result<Manifest, TargetError> {
        let object = format!("{BACKUPS}/{id}");
        let bytes = match self.get(&object, MAX_MANIFEST_BYTES).await {
            Err(TargetError::Missing { .. }) => return Err(self.no_backup(id.to_string())),
            other => other?,
        };
        Manifest::decode(&bytes, id).map_err(|why| self.damaged(&object, why))
    }

    fn no_backup(&self, what: String) -> TargetError {
        TargetError::NoBackup {
            what,
            target: self.name.clone(),
        }
    }

    /// The ids of all backups, the oldest first.
    ///
    /// # Errors
    /// If the place cannot be listed.
    pub async fn ids(&self) -> Result<Vec<BackupId>, TargetError> {
        let listed = self.list(BACKUPS).await?;
        // Names that no backup has belong to somebody else.
        let names = listed.iter();
        let mut ids: Vec<BackupId> = names.filter_map(|l| l.name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The last backup that was made before `id` and says a later time, if the clock has been set
    /// back in between.
    ///
    /// # Errors
    /// If the place cannot be listed.
    pub async fn ahead_of(&self, id: &BackupId) -> Result<Option<BackupId>, TargetError> {
        let ids = self.ids().await?.into_iter().rev();
        let mut earlier = ids.skip_while(|other| other >= id);
        Ok(earlier.find(|other| other.ms() > id.ms()))
    }

    /// All backups, the oldest first, readable or not.
    ///
    /// # Errors
    /// If the place cannot be listed.
    pub async fn backups(&self) -> Result<Vec<Found>, TargetError> {
        let mut all = Vec::new();
        for id in self.ids().await? {
            let manifest = self.manifest(&id).await;
            all.push(Found { id, manifest });
        }
        Ok(all)
    }

    /// The backup that is meant.
    ///
    /// # Errors
    /// If there is none, or its manifest cannot be read.
    pub async fn find(&self, which: &Which) -> Result<Manifest, TargetError> {
        let before = match which {
            Which::Id(id) => return self.manifest(id).await,
            Which::Latest => i64::MAX,
            Which::Before(ms) => *ms,
        };
        for id in self.ids().await?.into_iter().rev() {
            if id.ms() <= before {
                return self.manifest(&id).await;
            }
        }
        let what = match which {
            Which::Before(_) => "from before that time",
            _ => "at all",
        };
        Err(self.no_backup(what.to_owned()))
    }
}

/// The bytes of an object as they come.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, TargetError>>;

fn parse(text: &str) -> Result<Url, String> {
    if text.contains("://") {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        return match url.scheme() {
            "file" | "s3" | "s3a" | "gs" | "az" | "azure" | "adl" | "abfs" | "abfss" => Ok(url),
            other => Err(format!("backups cannot be kept by {other:?}")),
        };
    }
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    Url::from_file_path(path).map_err(|()| "it is not a path".to_owned())
}

/// An object that is being written.
pub(super) struct Upload<'t> {
    target: &'t Target,
    object: String,
    upload: Box<dyn MultipartUpload>,
}

impl Upload<'_> {
    /// Writes the next piece.
    pub(super) async fn put(&mut self, bytes: Bytes) -> Result<(), TargetError> {
        let put = self.upload.put_part(bytes.into()).await;
        put.map_err(self.target.error("write", &self.object))
    }

    /// Completes the object.
    pub(super) async fn complete(mut self) -> Result<(), TargetError> {
        let completed = self.upload.complete().await;
        completed
            .map(drop)
            .map_err(self.target.error("write", &self.object))
    }

    /// Gives it up.
    pub(super) async fn abort(mut self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(
                object = self.object, target = self.target.name, %error,
                "pieces of an object that was given up may remain"
            );
        }
    }
}

/// The SHA-256 of `bytes`.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn places_are_directories_or_urls_that_are_known() {
        for good in [
            "/backups",
            "backups",
            "file:///backups",
            "s3://bucket/a/b",
            "gs://bucket",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "http://host/x", "memory:///", "ftp://host", "://"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let error = Target::open("https://host/x").unwrap_err().to_string();
        assert!(error.contains("s3://"), "{error}");
    }

    #[tokio::test]
    async fn a_directory_is_made_only_by_who_writes() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        let text = place.display().to_string();
        assert!(Target::open(&text).is_err());
        let target = Target::open_or_create(&text).unwrap();
        assert_eq!(target.list(SEGMENTS).await.unwrap(), []);
        target
            .put("segments/x", Bytes::from_static(b"abc"))
            .await
            .unwrap();
        let again = Target::open(&format!("file://{text}")).unwrap();
        assert_eq!(again.get("segments/x", 3).await.unwrap(), "abc");
        let error = again.get("segments/x", 2).await.unwrap_err().to_string();
        assert!(error.contains("segments/x"), "{error}");
        let listed = again.list(SEGMENTS).await.unwrap();
        assert_eq!((listed[0].name.as_str(), listed[0].bytes), ("x", 3));
        let taken = again.put_new("segments/x", Bytes::new()).await;
        assert!(taken.is_err());
        again.delete("segments/x").await.unwrap();
        again.delete("segments/x").await.unwrap();
        let unfinished = place.join("segments/x#1");
        std::fs::write(&unfinished, b"abc").unwrap();
        std::fs::write(place.join("segments/x#y"), b"abc").unwrap();
        assert_eq!(again.remove_unfinished(SEGMENTS).unwrap(), (1, 3));
        assert_eq!(again.remove_unfinished(PARTS).unwrap(), (0, 0));
        assert!(!unfinished.exists());
        let gone = again.get("segments/x", 3).await.unwrap_err();
        assert!(matches!(gone, TargetError::Missing { .. }), "{gone}");
    }
}
