//! Reading backups back.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use millstream_proto::message::Digest;
use millstream_store::backup::{PartReader, PartRow, check_segment_copy};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::error::TargetError;
use super::manifest::{BackupId, Manifest, ObjectHash, PartCopy, SegmentCopy};
use super::progress::Progress;
use super::target::{PARTS, SEGMENTS, Target, digest};
use crate::limits::{MAX_BACKUP_PART_BYTES, MAX_DAMAGED_SEGMENT_BYTES};

/// Something that is wrong with backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// What was found to be wrong, and where in it.
    pub detail: String,
    /// The backups that cannot be restored whole because of it.
    pub backups: Vec<BackupId>,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Backups.
    pub backups: u64,
    /// Objects that they name, each counted once, and their manifests.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Reads one backup, or all, to the last byte.
///
/// # Errors
/// If the place cannot be reached; what is wrong with objects is a finding.
pub async fn verify(
    target: &Target,
    only: Option<&BackupId>,
    progress: &Progress,
) -> Result<Verified, TargetError> {
    let mut verified = Verified::default();
    let ids = match only {
        Some(id) => vec![id.clone()],
        None => target.ids().await?,
    };
    let mut objects = Objects::default();
    for id in ids {
        verified.backups += 1;
        verified.objects += 1;
        match target.manifest(&id).await {
            Ok(manifest) => objects.add(manifest),
            Err(TargetError::Damaged { object, detail, .. }) => verified.findings.push(Finding {
                object,
                detail,
                backups: vec![id],
            }),
            Err(error) => return Err(error),
        }
    }
    progress.expect(objects.bytes());
    verified.objects += (objects.parts.len() + objects.segments.len()) as u64;
    for named in objects.parts.values() {
        let object = format!("{PARTS}/{}", named.copy.sha256);
        let found = check_part(target, &object, named).await?;
        verified.take(object, named.copy.bytes, found, &named.backups, progress);
    }
    for named in objects.segments.values() {
        let object = format!("{SEGMENTS}/{}", named.copy.sha256);
        let found = check_segment(target, &object, &named.copy).await?;
        verified.take(object, named.copy.bytes, found, &named.backups, progress);
    }
    Ok(verified)
}

impl Verified {
    fn take(
        &mut self,
        object: String,
        bytes: u64,
        found: Option<String>,
        backups: &[BackupId],
        progress: &Progress,
    ) {
        self.bytes += bytes;
        progress.add(bytes);
        self.findings.extend(found.map(|detail| Finding {
            object,
            detail,
            backups: backups.to_vec(),
        }));
    }
}

/// An object that backups name.
struct Named<T> {
    copy: T,
    /// The segments that each of those backups has.
    numbers: BTreeSet<u64>,
    backups: Vec<BackupId>,
}

/// What backups name, each object once.
#[derive(Default)]
struct Objects {
    parts: BTreeMap<ObjectHash, Named<PartCopy>>,
    segments: BTreeMap<ObjectHash, Named<SegmentCopy>>,
}

impl Objects {
    fn add(&mut self, manifest: Manifest) {
        let numbers: BTreeSet<u64> = manifest.segments.iter().map(|s| s.number).collect();
        for copy in manifest.parts {
            let named = self.parts.entry(copy.sha256.clone());
            let named = named.or_insert_with(|| Named {
                copy,
                numbers: numbers.clone(),
                backups: Vec::new(),
            });
            named.numbers.retain(|number| numbers.contains(number));
            named.backups.push(manifest.id.clone());
        }
        for copy in manifest.segments {
            let named = self.segments.entry(copy.sha256.clone());
            let named = named.or_insert_with(|| Named {
                copy,
                numbers: BTreeSet::new(),
                backups: Vec::new(),
            });
            named.backups.push(manifest.id.clone());
        }
    }

    fn bytes(&self) -> u64 {
        let parts: u64 = self.parts.values().map(|named| named.copy.bytes).sum();
        let segments = self.segments.values().map(|named| named.copy.bytes);
        parts + segments.sum::<u64>()
    }
}

/// What is wrong with an object that should have so many bytes and this checksum; the error is
/// that of a place that cannot be reached.
async fn sum(
    target: &Target,
    object: &str,
    bytes: u64,
    hash: &ObjectHash,
) -> Result<Option<String>, TargetError> {
    let mut pieces = match target.stream(object).await {
        Err(TargetError::Missing { .. }) => return Ok(Some("it is missing".to_owned())),
        other => other?,
    };
    let (mut read, mut sum) = (0, Sha256::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        read += piece.len() as u64;
        sum.update(&piece);
    }
    if read != bytes {
        return Ok(Some(format!("it is {read} bytes long and was {bytes}")));
    }
    let sum = ObjectHash::from(Digest(sum.finalize().into()));
    let wrong = format!("its bytes have the SHA-256 {sum}");
    Ok((sum != *hash).then_some(wrong))
}

async fn check_part(
    target: &Target,
    object: &str,
    named: &Named<PartCopy>,
) -> Result<Option<String>, TargetError> {
    let bytes = match target.get(object, MAX_BACKUP_PART_BYTES).await {
        Err(TargetError::Missing { .. }) => return Ok(Some("it is missing".to_owned())),
        Err(TargetError::Damaged { detail, .. }) => return Ok(Some(detail)),
        other => other?,
    };
    let (len, hash) = (bytes.len() as u64, ObjectHash::from(digest(&bytes)));
    let mut rows = 0;
    let read = PartReader::new(bytes).and_then(|reader| {
        for row in reader {
            rows += 1;
            if let PartRow::Extent(extent) = row?
                && !named.numbers.contains(&extent.segment)
            {
                return Ok(Some(extent.segment));
            }
        }
        Ok(None)
    });
    Ok(match read {
        Err(damaged) => Some(damaged.to_string()),
        Ok(Some(segment)) => Some(format!(
            "it says that records lie in segment {segment}, which the backup does not name"
        )),
        Ok(None) if len != named.copy.bytes || rows != named.copy.rows => Some(format!(
            "it holds {rows} rows in {len} bytes, and held {} in {}",
            named.copy.rows, named.copy.bytes
        )),
        Ok(None) if hash != named.copy.sha256 => Some(format!("its bytes have the SHA-256 {hash}")),
        Ok(None) => None,
    })
}

async fn check_segment(
    target: &Target,
    object: &str,
    copy: &SegmentCopy,
) -> Result<Option<String>, TargetError> {
    let Some(wrong) = sum(target, object, copy.bytes, &copy.sha256).await? else {
        return Ok(None);
    };
    // Where it is damaged tells what is lost with it.
    let bytes = match target.get(object, MAX_DAMAGED_SEGMENT_BYTES).await {
        Err(TargetError::Missing { .. } | TargetError::Damaged { .. }) => return Ok(Some(wrong)),
        other => other?,
    };
    let places = check_segment_copy(copy.number, bytes, object);
    let number = copy.number;
    Ok(Some(format!(
        "segment {number}: {wrong}: {}",
        places.join("; ")
    )))
}
