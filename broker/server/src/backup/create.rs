//! Making a backup.
//!
//! ```text
//! 1  rows into a temporary file           then the hot file's pages are let go
//! 2  parts from there to the place
//! 3  segments that are not there yet
//! 4  look whether all that will be named is there
//! 5  the manifest                         from here on the backup exists
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use millstream_proto::message::Digest;
use millstream_store::backup::{Frozen, FrozenSegment, PART_VERSION, SegmentInfo};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::error::{CreateError, TargetError};
use super::lock::{Lock, Work};
use super::manifest::{BackupId, Manifest, ObjectHash, PartCopy, SegmentCopy};
use super::progress::Progress;
use super::target::{BACKUPS, PARTS, SEGMENTS, Target, digest};
use super::throttle::Throttle;
use crate::limits::{BACKUP_BYTES_PER_SECOND, BACKUP_LOOK_BACK, BACKUP_PIECE_BYTES};

/// How a backup is to be made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The time, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Most bytes to read and to send in a second.
    pub bytes_per_second: Option<u64>,
    /// Where the rows are kept until they are sent: about as much as the hot file holds.
    pub spool_dir: PathBuf,
}

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Created {
    /// Its name.
    pub id: BackupId,
    /// Bytes that restoring it takes.
    pub bytes: u64,
    /// Bytes of those that had to be copied.
    pub copied_bytes: u64,
    /// Segments that it names.
    pub segments: u64,
    /// Those of them that had to be copied.
    pub copied_segments: u64,
    /// Parts that it names.
    pub parts: u64,
}

/// Copies a frozen store to `target`. The store's files are read on this thread: it should be one
/// that may block.
///
/// # Errors
/// See [`CreateError`]. Nothing that was there before is changed; what was copied so far needs no
/// second copy.
pub async fn create(
    target: &Target,
    mut frozen: Box<dyn Frozen>,
    options: &CreateOptions,
    progress: &Progress,
) -> Result<Created, CreateError> {
    let lock = Lock::take(target, Work::Create, &frozen.store().to_string()).await?;
    let mut copying = Copying {
        target,
        progress,
        lock,
        throttle: Throttle::new(options.bytes_per_second),
        copied_bytes: 0,
        copied_segments: 0,
    };
    let made = copying.all(&mut *frozen, options).await;
    copying.lock.release().await;
    made
}

struct Copying<'a> {
    target: &'a Target,
    progress: &'a Progress,
    lock: Lock<'a>,
    throttle: Throttle,
    copied_bytes: u64,
    copied_segments: u64,
}

/// Lengths of objects, by name.
type There = HashMap<String, u64>;

impl Copying<'_> {
    async fn all(
        &mut self,
        frozen: &mut dyn Frozen,
        options: &CreateOptions,
    ) -> Result<Created, CreateError> {
        let known = self.known(&frozen.store().to_string()).await?;
        let spool = self.spool(frozen, options).await?;
        let parts = self.send_parts(&spool).await?;
        let segments = self.send_segments(frozen, &known).await?;
        // Now, not before: another store's backup may have come meanwhile.
        let before = self.target.ids().await?;
        let manifest = Manifest {
            id: BackupId::new(options.now_ms, &before),
            store: frozen.store().to_string(),
            shard: 0,
            created_ms: options.now_ms,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            part_format: PART_VERSION,
            segments,
            parts,
        };
        self.check_there(&manifest).await?;
        let object = format!("{BACKUPS}/{}", manifest.id);
        self.target.put_new(&object, manifest.encode()).await?;
        Ok(Created {
            bytes: manifest.bytes(),
            copied_bytes: self.copied_bytes,
            segments: manifest.segments.len() as u64,
            copied_segments: self.copied_segments,
            parts: manifest.parts.len() as u64,
            id: manifest.id,
        })
    }

    async fn there(&self, folder: &'static str) -> Result<There, TargetError> {
        let listed = self.target.list(folder).await?.into_iter();
        Ok(listed.map(|object| (object.name, object.bytes)).collect())
    }

    /// The segments of this store's last backup, by number. One whose manifest cannot be read
    /// costs time, since segments are read that need not be, and must not keep a new one from
    /// being made.
    async fn known(&self, store: &str) -> Result<BTreeMap<u64, SegmentCopy>, TargetError> {
        let ids = self.target.ids().await?;
        for id in ids.iter().rev().take(BACKUP_LOOK_BACK) {
            match self.target.manifest(id).await {
                Ok(manifest) if manifest.store == store => {
                    let segments = manifest.segments.into_iter();
                    return Ok(segments.map(|copy| (copy.number, copy)).collect());
                }
                Ok(_) => {}
                Err(error @ (TargetError::Damaged { .. } | TargetError::NoBackup { .. })) => {
                    tracing::warn!("an earlier backup is of no use to this one: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(BTreeMap::new())
    }

    /// Takes all rows out of the store.
    async fn spool(
        &mut self,
        frozen: &mut dyn Frozen,
        options: &CreateOptions,
    ) -> Result<Spool, CreateError> {
        let failed = |source: io::Error| CreateError::Spool {
            dir: options.spool_dir.clone(),
            source,
        };
        let mut spool = Spool {
            file: tempfile::tempfile_in(&options.spool_dir).map_err(failed)?,
            dir: options.spool_dir.clone(),
            parts: Vec::new(),
            len: 0,
        };
        // The rows hold what the hot file frees, so they do not wait for a slow network.
        let rate = options.bytes_per_second;
        let mut throttle = Throttle::new(rate.map(|rate| rate.max(BACKUP_BYTES_PER_SECOND)));
        while let Some(part) = frozen.next_part()? {
            let copy = PartCopy {
                bytes: part.bytes.len() as u64,
                rows: part.rows,
                sha256: digest(&part.bytes).into(),
            };
            spool
                .file
                .write_all_at(&part.bytes, spool.len)
                .map_err(failed)?;
            spool.len += copy.bytes;
            self.progress.expect(copy.bytes);
            throttle.take(copy.bytes).await;
            self.lock.keep().await?;
            spool.parts.push(copy);
        }
        Ok(spool)
    }

    async fn send_parts(&mut self, spool: &Spool) -> Result<Vec<PartCopy>, CreateError> {
        let there = self.there(PARTS).await?;
        let mut at = 0;
        for part in &spool.parts {
            let object = format!("{PARTS}/{}", part.sha256);
            let start = at;
            at += part.bytes;
            if there.get(&part.sha256.to_string()) == Some(&part.bytes) {
                self.progress.add(part.bytes);
                continue;
            }
            let read = |bytes: &mut [u8], offset: u64| spool.read(bytes, start + offset);
            let sent = self.send(&object, part.bytes, read).await?;
            if ObjectHash::from(sent) != part.sha256 {
                let source = io::Error::other("it does not hold what was written to it");
                let dir = spool.dir.clone();
                return Err(CreateError::Spool { dir, source });
            }
        }
        Ok(spool.parts.clone())
    }

    async fn send_segments(
        &mut self,
        frozen: &dyn Frozen,
        known: &BTreeMap<u64, SegmentCopy>,
    ) -> Result<Vec<SegmentCopy>, CreateError> {
        let there = self.there(SEGMENTS).await?;
        let mut copies: Vec<SegmentCopy> = Vec::new();
        let mut unknown = Vec::new();
        for info in frozen.segments() {
            let segment = frozen.open_segment(*info)?;
            match reusable(&segment, known, &there)? {
                Some(copy) => copies.push(copy),
                None => unknown.push(*info),
            }
        }
        self.progress
            .expect(unknown.iter().map(|info| info.file_bytes).sum());
        for info in unknown {
            copies.push(self.send_segment(frozen, info, &there).await?);
        }
        copies.sort_unstable_by_key(|copy| copy.number);
        Ok(copies)
    }

    async fn send_segment(
        &mut self,
        frozen: &dyn Frozen,
        info: SegmentInfo,
        there: &There,
    ) -> Result<SegmentCopy, CreateError> {
        let segment = frozen.open_segment(info)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BACKUP_PIECE_BYTES];
        let mut at = 0;
        while at < info.file_bytes {
            let piece = piece(&mut buffer, info.file_bytes - at);
            segment.read(piece, at)?;
            hash.update(&*piece);
            at += piece.len() as u64;
            // Half for reading, half for sending.
            self.throttle.take(piece.len() as u64 / 2).await;
            self.lock.keep().await?;
        }
        let sha256 = Digest(hash.finalize().into());
        // From memory, since all of it was read just now.
        segment.check()?;
        let copy = SegmentCopy {
            number: info.number,
            bytes: info.file_bytes,
            data_bytes: info.data_bytes,
            fingerprint: segment.fingerprint()?,
            sha256: sha256.into(),
        };
        if there.get(&copy.sha256.to_string()) == Some(&copy.bytes) {
            // An interrupted backup has left it, or another store's, which this one was made of.
            self.progress.add(copy.bytes);
            return Ok(copy);
        }
        let object = format!("{SEGMENTS}/{}", copy.sha256);
        let read = |bytes: &mut [u8], offset: u64| Ok(segment.read(bytes, offset)?);
        if self.send(&object, copy.bytes, read).await? != sha256 {
            self.target.delete(&object).await?;
            return Err(CreateError::Changed(info.number));
        }
        self.copied_segments += 1;
        Ok(copy)
    }

    /// Writes an object of `len` bytes; returns the SHA-256 of what was written.
    async fn send(
        &mut self,
        object: &str,
        len: u64,
        read: impl Fn(&mut [u8], u64) -> Result<(), CreateError>,
    ) -> Result<Digest, CreateError> {
        let mut hash = Sha256::new();
        let mut next = |at: u64| {
            let mut bytes = vec![0; (len - at).min(BACKUP_PIECE_BYTES as u64) as usize];
            read(&mut bytes, at)?;
            hash.update(&bytes);
            Ok::<_, CreateError>(Bytes::from(bytes))
        };
        if len <= BACKUP_PIECE_BYTES as u64 {
            let bytes = next(0)?;
            self.throttle.take(len / 2).await;
            self.target.put(object, bytes).await?;
            self.sent(len);
            return Ok(Digest(hash.finalize().into()));
        }
        let mut upload = self.target.begin(object).await?;
        let mut at = 0;
        while at < len {
            let sent = async {
                let bytes = next(at)?;
                let sent = bytes.len() as u64;
                self.throttle.take(sent / 2).await;
                upload.put(bytes).await?;
                self.lock.keep().await?;
                self.sent(sent);
                Ok::<_, CreateError>(sent)
            };
            match sent.await {
                Ok(sent) => at += sent,
                Err(error) => {
                    upload.abort().await;
                    return Err(error);
                }
            }
        }
        upload.complete().await?;
        Ok(Digest(hash.finalize().into()))
    }

    fn sent(&mut self, bytes: u64) {
        self.copied_bytes += bytes;
        self.progress.add(bytes);
    }

    /// Whether all that the manifest will name is there: its name must promise nothing else.
    async fn check_there(&mut self, manifest: &Manifest) -> Result<(), CreateError> {
        self.lock.keep().await?;
        let (segments, parts) = (self.there(SEGMENTS).await?, self.there(PARTS).await?);
        let segments = manifest
            .segments
            .iter()
            .map(|copy| (SEGMENTS, &segments, &copy.sha256, copy.bytes));
        let parts = manifest
            .parts
            .iter()
            .map(|copy| (PARTS, &parts, &copy.sha256, copy.bytes));
        for (folder, there, hash, bytes) in segments.chain(parts) {
            if there.get(&hash.to_string()) != Some(&bytes) {
                return Err(CreateError::Target(TargetError::Missing {
                    object: format!("{folder}/{hash}"),
                    target: self.target.name().to_owned(),
                }));
            }
        }
        Ok(())
    }
}

/// The copy of a segment that an earlier backup made, if it is one of this very file.
fn reusable(
    segment: &FrozenSegment,
    known: &BTreeMap<u64, SegmentCopy>,
    there: &There,
) -> Result<Option<SegmentCopy>, CreateError> {
    let info = segment.info();
    let Some(copy) = known.get(&info.number) else {
        return Ok(None);
    };
    let is_it = copy.info() == info
        && there.get(&copy.sha256.to_string()) == Some(&copy.bytes)
        && copy.fingerprint == segment.fingerprint()?;
    Ok(is_it.then(|| copy.clone()))
}

/// The part of a buffer that the next piece of `left` bytes fills.
fn piece(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let len = left.min(buffer.len() as u64) as usize;
    &mut buffer[..len]
}

/// A temporary file that holds parts. It has no name, so nothing is left of it.
struct Spool {
    file: File,
    dir: PathBuf,
    parts: Vec<PartCopy>,
    len: u64,
}

impl Spool {
    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), CreateError> {
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|source| CreateError::Spool {
            dir: self.dir.clone(),
            source,
        })
    }
}
