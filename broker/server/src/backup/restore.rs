//! Making a data directory of a backup.
//!
//! Everything is written into a directory beside the one that is asked for, checked, synced, and
//! renamed when it is complete: who finds the directory finds all of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use millstream_proto::message::Digest;
use millstream_store::backup::{
    ExtentInfo, PartReader, PartRow, RestoreError as StoreError, Restorer, SegmentInfo,
};
use millstream_store::segment::{DirFiles, Files, Segment};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::error::RestoreError;
use super::manifest::{BackupId, Manifest, ObjectHash, PartCopy, SegmentCopy};
use super::progress::Progress;
use super::select::{Selection, Survey, Wanted};
use super::target::{PARTS, SEGMENTS, Target, digest};
use crate::broker::SHARD_FILE;
use crate::limits::MAX_BACKUP_PART_BYTES;

/// Where segments lie of which only a part is wanted, until that is copied.
const SOURCE_DIR: &str = "source";

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The backup.
    pub id: BackupId,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// The data directory.
    pub dir: PathBuf,
    /// Segments that were copied.
    pub segments: u64,
    /// Rows that were written.
    pub rows: u64,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Makes the data directory `into` of a backup, or of a part of it. It must be empty or not be
/// there. Files are written on this thread: it should be one that may block.
///
/// # Errors
/// See [`RestoreError`]. Nothing is left of what was written.
pub async fn restore(
    target: &Target,
    manifest: &Manifest,
    into: &Path,
    selection: &Selection,
    progress: &Progress,
) -> Result<Restored, RestoreError> {
    let into = std::path::absolute(into).map_err(failed("find", into))?;
    check_empty(&into)?;
    let parent = into.parent().unwrap_or(Path::new("/")).to_owned();
    fs::create_dir_all(&parent).map_err(failed("create", &parent))?;
    let staging = tempfile::Builder::new()
        .prefix(".restoring-")
        .tempdir_in(&parent)
        .map_err(failed("write to", &parent))?;
    let restoring = Restoring {
        target,
        manifest,
        staging: &staging,
        progress,
    };
    let mut restored = restoring.all(selection).await?;
    sync(staging.path())?;
    // Renaming over an empty directory replaces it.
    fs::rename(staging.path(), &into).map_err(failed(
        "rename the restored store (is it a mount point? name a directory within it) to",
        &into,
    ))?;
    // It has another name now: there is nothing to remove.
    let _ = staging.keep();
    sync(&parent)?;
    restored.dir = into;
    Ok(restored)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Io {
        action,
        path,
        source,
    }
}

fn check_empty(dir: &Path) -> Result<(), RestoreError> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("read", dir)(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(RestoreError::NotEmpty {
                dir: dir.to_owned(),
            }),
        },
    }
}

fn sync(dir: &Path) -> Result<(), RestoreError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed("sync", dir))
}

struct Restoring<'a> {
    target: &'a Target,
    manifest: &'a Manifest,
    staging: &'a TempDir,
    progress: &'a Progress,
}

impl Restoring<'_> {
    async fn all(&self, selection: &Selection) -> Result<Restored, RestoreError> {
        let parts: u64 = self.manifest.parts.iter().map(|part| part.bytes).sum();
        self.progress.expect(parts);
        for part in &self.manifest.parts {
            self.fetch_part(part).await?;
        }
        let wanted = self.wanted(selection)?;
        let mut restorer = Restorer::create(&self.staging.path().join(SHARD_FILE))?;
        let infos = match &wanted {
            None => self.all_segments(&mut restorer).await?,
            Some(wanted) => self.some_segments(&mut restorer, wanted).await?,
        };
        let segments = restorer.segments().len() as u64;
        let rows = self.put_rows(restorer, &infos, wanted.as_ref()).await?;
        for part in &self.manifest.parts {
            let path = self.part_path(part);
            match fs::remove_file(&path) {
                // Two parts with the same rows are one file.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(Restored {
            id: self.manifest.id.clone(),
            created_ms: self.manifest.created_ms,
            dir: PathBuf::new(),
            segments,
            rows,
            notes: wanted.map_or_else(Vec::new, |wanted| wanted.notes),
        })
    }

    fn part_path(&self, part: &PartCopy) -> PathBuf {
        self.staging.path().join(format!("part-{}", part.sha256))
    }

    async fn fetch_part(&self, part: &PartCopy) -> Result<(), RestoreError> {
        let object = format!("{PARTS}/{}", part.sha256);
        let bytes = self.target.get(&object, MAX_BACKUP_PART_BYTES).await?;
        if ObjectHash::from(digest(&bytes)) != part.sha256 {
            let detail = "it does not match its SHA-256";
            return Err(self.target.damaged(&object, detail).into());
        }
        let path = self.part_path(part);
        fs::write(&path, &bytes).map_err(failed("write", &path))?;
        self.progress.add(part.bytes);
        Ok(())
    }

    /// The rows of a part that was fetched.
    fn rows(
        &self,
        part: &PartCopy,
    ) -> Result<impl Iterator<Item = Result<PartRow, RestoreError>>, RestoreError> {
        let path = self.part_path(part);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let id = self.manifest.id.clone();
        let wrong = move |why: millstream_store::backup::PartDamaged| RestoreError::Row {
            id: id.clone(),
            detail: why.to_string(),
        };
        let reader = PartReader::new(Bytes::from(bytes)).map_err(&wrong)?;
        Ok(reader.map(move |row| row.map_err(&wrong)))
    }

    fn misunderstood(&self, detail: String) -> RestoreError {
        RestoreError::Row {
            id: self.manifest.id.clone(),
            detail,
        }
    }

    /// What of the backup is wanted; `None` means everything.
    fn wanted(&self, selection: &Selection) -> Result<Option<Wanted>, RestoreError> {
        if *selection == Selection::All {
            return Ok(None);
        }
        let mut survey = Survey::default();
        for part in &self.manifest.parts {
            for row in self.rows(part)? {
                if let PartRow::Row { space, key, value } = row? {
                    let looked = survey.look(space, &key, &value);
                    looked.map_err(|detail| self.misunderstood(detail))?;
                }
            }
        }
        let wanted = survey.choose(selection);
        if wanted.topics() == 0 {
            return Err(RestoreError::Nothing {
                id: self.manifest.id.clone(),
                what: selection.to_string(),
            });
        }
        Ok(Some(wanted))
    }

    fn copy(&self, number: u64) -> Result<&SegmentCopy, RestoreError> {
        let mut segments = self.manifest.segments.iter();
        let copy = segments.find(|copy| copy.number == number);
        Ok(copy.ok_or(StoreError::UnknownSegment(number))?)
    }

    /// Copies the segments as they are.
    async fn all_segments(
        &self,
        restorer: &mut Restorer,
    ) -> Result<Vec<SegmentInfo>, RestoreError> {
        for part in &self.manifest.parts {
            for row in self.rows(part)? {
                if let PartRow::Extent(extent) = row? {
                    restorer.extent(extent)?;
                }
            }
        }
        let mut infos = Vec::new();
        for number in restorer.segments() {
            let copy = self.copy(number)?;
            self.progress.expect(copy.bytes);
            self.fetch_segment(restorer.files(), copy).await?;
            infos.push(copy.info());
        }
        Ok(infos)
    }

    /// Copies of the segments what is wanted: what belongs to others is not to be restored, and
    /// may be most of them.
    async fn some_segments(
        &self,
        restorer: &mut Restorer,
        wanted: &Wanted,
    ) -> Result<Vec<SegmentInfo>, RestoreError> {
        let mut extents = BTreeMap::<u64, Vec<ExtentInfo>>::new();
        for part in &self.manifest.parts {
            for row in self.rows(part)? {
                if let PartRow::Extent(extent) = row?
                    && wanted.records(&extent.start)
                {
                    extents.entry(extent.segment).or_default().push(extent);
                }
            }
        }
        let dir = self.staging.path().join(SOURCE_DIR);
        let source = DirFiles::open(&dir).map_err(StoreError::from)?;
        let mut infos = Vec::new();
        for (number, mut extents) in extents {
            extents.sort_unstable_by(|a, b| a.start.cmp(&b.start));
            let copy = self.copy(number)?;
            self.progress.expect(copy.bytes);
            self.fetch_segment(&source, copy).await?;
            let segment = Segment::open(&source, number, copy.bytes).map_err(StoreError::from)?;
            infos.extend(restorer.extract(&segment, &extents)?);
            let path = source.path(number);
            source.remove(number).map_err(failed("remove", &path))?;
        }
        fs::remove_dir(&dir).map_err(failed("remove", &dir))?;
        Ok(infos)
    }

    async fn fetch_segment(
        &self,
        files: &DirFiles,
        copy: &SegmentCopy,
    ) -> Result<(), RestoreError> {
        let object = format!("{SEGMENTS}/{}", copy.sha256);
        let path = files.path(copy.number);
        let refused = |action| failed(action, &path);
        let file = files.create(copy.number);
        let mut file = file.map_err(refused("create"))?;
        let mut pieces = self.target.stream(&object).await?;
        let (mut hash, mut len) = (Sha256::new(), 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            len += piece.len() as u64;
            if len > copy.bytes {
                break;
            }
            hash.update(&piece);
            file.append(&piece).map_err(refused("write"))?;
            self.progress.add(piece.len() as u64);
        }
        let sum = ObjectHash::from(Digest(hash.finalize().into()));
        if len != copy.bytes || sum != copy.sha256 {
            let detail = "it does not match its SHA-256";
            return Err(self.target.damaged(&object, detail).into());
        }
        file.sync().map_err(refused("sync"))?;
        file.rename().map_err(refused("rename"))
    }

    async fn put_rows(
        &self,
        restorer: Restorer,
        infos: &[SegmentInfo],
        wanted: Option<&Wanted>,
    ) -> Result<u64, RestoreError> {
        let mut restorer = restorer.rows(infos)?;
        let mut rows = 0;
        for part in &self.manifest.parts {
            for row in self.rows(part)? {
                let PartRow::Row { space, key, value } = row? else {
                    continue;
                };
                let is_wanted = match wanted {
                    None => true,
                    Some(wanted) => {
                        let asked = wanted.row(space, &key, &value);
                        asked.map_err(|detail| self.misunderstood(detail))?
                    }
                };
                if is_wanted {
                    restorer.put(space, key, value).await?;
                    rows += 1;
                }
            }
        }
        restorer.finish().await?;
        Ok(rows)
    }
}
