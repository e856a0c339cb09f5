//! What one backup consists of.
//!
//! A manifest is two lines of text: `millstream-backup 1 <SHA-256 of the second line>`, and a JSON
//! document. The first line's layout never changes, whatever the version.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use bytes::Bytes;
use millstream_proto::message::Digest;
use millstream_store::backup::{PART_VERSION, SegmentInfo};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::target::digest;

/// Raised whenever a build can write what an older one would misread.
const FORMAT: u32 = 1;
const MAGIC: &str = "millstream-backup";

/// The name of a backup: its number, when it was made, and a few digits that no other has. Of
/// two backups the later has the greater number, whatever the clock said, and that is their order.
/// Backups that the first builds made have no number in their names, and come before all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

const ID_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:3]Z");
const ID_TIME_LEN: usize = 20;
const ID_SEQUENCE_LEN: usize = 8;
/// The greatest number that fits a name; behind it names differ in time and digits only.
const LAST_SEQUENCE: u32 = 99_999_999;
const ID_RANDOM_LEN: usize = 8;

impl BackupId {
    /// A new name for a backup made at `ms`, in milliseconds since the Unix epoch, where those of
    /// `before` are.
    pub(super) fn new(ms: i64, before: &[Self]) -> Self {
        let last = before.iter().map(Self::sequence).max().unwrap_or(0);
        let sequence = last.saturating_add(1).min(LAST_SEQUENCE);
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
        // A year that four digits cannot say stands for a clock that was never set.
        let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(ID_TIME);
        let at = at.ok().filter(|text| text.len() == ID_TIME_LEN);
        let at = at.unwrap_or_else(|| "19700101T000000.000Z".to_owned());
        // Keyed by the system's randomness; it need not be secret, only different.
        let random = RandomState::new().hash_one(ms) as u32;
        Self(format!(
            "{sequence:0width$}-{at}-{random:08x}",
            width = ID_SEQUENCE_LEN
        ))
    }

    /// The name as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its number; 0 if it has none.
    pub(super) fn sequence(&self) -> u32 {
        split(&self.0)
            .and_then(|(sequence, _)| sequence)
            .unwrap_or(0)
    }

    /// The time that it says, in milliseconds since the Unix epoch.
    pub(super) fn ms(&self) -> i64 {
        let at = split(&self.0).map_or("", |(_, at)| at);
        let at = time::PrimitiveDateTime::parse(at, ID_TIME);
        let ms = at.map_or(0, |at| at.assume_utc().unix_timestamp_nanos() / 1_000_000);
        i64::try_from(ms).unwrap_or(0)
    }
}

/// The number in a name, if it has one, and the time; `None` if it is no such name.
fn split(text: &str) -> Option<(Option<u32>, &str)> {
    let (rest, random) = text.rsplit_once('-')?;
    let (sequence, at) = match rest.split_once('-') {
        None => (None, rest),
        Some((sequence, at)) => {
            let is_number =
                sequence.len() == ID_SEQUENCE_LEN && sequence.bytes().all(|b| b.is_ascii_digit());
            (Some(sequence.parse().ok().filter(|_| is_number)?), at)
        }
    };
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let is_one = at.len() == ID_TIME_LEN
        && time::PrimitiveDateTime::parse(at, ID_TIME).is_ok()
        && random.len() == ID_RANDOM_LEN
        && random.chars().all(is_hex);
    is_one.then_some((sequence, at))
}

impl PartialOrd for BackupId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BackupId {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.sequence(), &self.0).cmp(&(other.sequence(), &other.0))
    }
}

impl FromStr for BackupId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if split(text).is_some() {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is not the name of a backup, as 00000042-20261120T111655.123Z-1a2b3c4d"
        ))
    }
}

impl TryFrom<String> for BackupId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The SHA-256 of an object, which is also its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectHash(String);

impl From<Digest> for ObjectHash {
    fn from(digest: Digest) -> Self {
        Self(digest.to_string())
    }
}

impl TryFrom<String> for ObjectHash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        // It becomes part of a path: nothing else may pass.
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if text.len() == 64 && text.chars().all(is_hex) {
            return Ok(Self(text));
        }
        Err("a SHA-256 is 64 hexadecimal digits".to_owned())
    }
}

impl From<ObjectHash> for String {
    fn from(hash: ObjectHash) -> Self {
        hash.0
    }
}

impl fmt::Display for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A segment of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentCopy {
    /// Its number in the store.
    pub number: u64,
    /// Its length.
    pub bytes: u64,
    /// Bytes of the keys and values in it.
    pub data_bytes: u64,
    /// See [`millstream_store::backup::FrozenSegment::fingerprint`].
    pub fingerprint: u32,
    /// What it holds.
    pub sha256: ObjectHash,
}

impl SegmentCopy {
    pub(super) fn info(&self) -> SegmentInfo {
        SegmentInfo {
            number: self.number,
            file_bytes: self.bytes,
            data_bytes: self.data_bytes,
        }
    }
}

/// Rows of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartCopy {
    /// Their length.
    pub bytes: u64,
    /// How many there are.
    pub rows: u64,
    /// What they are.
    pub sha256: ObjectHash,
}

/// What one backup consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its name.
    pub id: BackupId,
    /// The store it was made of, see [`millstream_store::backup::StoreId`].
    pub store: String,
    /// Which shard of the broker that is.
    pub shard: u32,
    /// When, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Version of the software that made it.
    pub software: String,
    /// Version of the layout of its parts.
    pub part_format: u32,
    /// The sealed segments, by number.
    pub segments: Vec<SegmentCopy>,
    /// The rows that are in no segment, in their order.
    pub parts: Vec<PartCopy>,
}

impl Manifest {
    /// Bytes of all that it names.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let segments: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        segments + self.parts.iter().map(|part| part.bytes).sum::<u64>()
    }

    pub(super) fn encode(&self) -> Bytes {
        let body = serde_json::to_string(self)
            .expect("a manifest is plain data, which can always be written as JSON");
        let hash = digest(body.as_bytes());
        Bytes::from(format!("{MAGIC} {FORMAT} {hash}\n{body}\n"))
    }

    /// The manifest that `bytes`, found under the name of `id`, are.
    pub(super) fn decode(bytes: &[u8], id: &BackupId) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
        let (head, rest) = text.split_once('\n').ok_or("it has one line only")?;
        let body = rest.strip_suffix('\n').ok_or("it is cut off")?;
        let mut head = head.split(' ');
        if head.next() != Some(MAGIC) {
            return Err("it does not begin as a manifest does".to_owned());
        }
        let version: Option<u32> = head.next().and_then(|version| version.parse().ok());
        match version {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(format!(
                    "it has format version {found}, and this version of Millstream reads version \
                     {FORMAT}: use the version that wrote it"
                ));
            }
            None => return Err("its first line says no version".to_owned()),
        }
        if head.next() != Some(digest(body.as_bytes()).to_string().as_str()) {
            return Err("it does not match its checksum".to_owned());
        }
        let manifest: Self = serde_json::from_str(body).map_err(|error| error.to_string())?;
        if manifest.id != *id {
            return Err(format!("it is that of backup {}", manifest.id));
        }
        if manifest.part_format != PART_VERSION {
            return Err(format!(
                "its rows have format version {}, and this version of Millstream reads version \
                 {PART_VERSION}: use the version that wrote it",
                manifest.part_format
            ));
        }
        let numbers: BTreeSet<u64> = manifest.segments.iter().map(|s| s.number).collect();
        if numbers.len() != manifest.segments.len() {
            return Err("it names a segment twice".to_owned());
        }
        Ok(manifest)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            id: BackupId::new(1_795_173_415_123, &[]),
            store: format!("{:032x}", 7),
            shard: 0,
            created_ms: 1_795_173_415_123,
            software: "0.1.0".into(),
            part_format: PART_VERSION,
            segments: vec![SegmentCopy {
                number: 3,
                bytes: 10,
                data_bytes: 5,
                fingerprint: 9,
                sha256: digest(b"a").into(),
            }],
            parts: vec![PartCopy {
                bytes: 20,
                rows: 2,
                sha256: digest(b"b").into(),
            }],
        }
    }

    #[test]
    fn names_say_the_time_and_sort_by_number() {
        const MS: i64 = 1_795_173_415_123;
        let id = BackupId::new(MS, &[]);
        let begins = "00000001-20261120T111655.123Z-";
        assert!(id.as_str().starts_with(begins), "{id}");
        assert_eq!((id.ms(), id.sequence()), (MS, 1));
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        // At the same moment, and after the clock was set back.
        let mut all = vec![id];
        for ms in [MS, MS - 3_600_000, i64::MIN] {
            let next = BackupId::new(ms, &all);
            assert!(all.iter().all(|earlier| *earlier < next), "{next}");
            all.push(next);
        }
        assert_eq!(all[3].ms(), 0);
        // As the first builds named them.
        let first: BackupId = "20261120T111655.124Z-1a2b3c4d".parse().unwrap();
        assert_eq!((first.ms(), first.sequence()), (MS + 1, 0));
        assert!(first < all[0]);
        assert_eq!(BackupId::new(MS, &[first]).sequence(), 1);
        let last: BackupId = "99999999-20261120T111655.124Z-1a2b3c4d".parse().unwrap();
        assert_eq!(BackupId::new(MS, &[last]).sequence(), LAST_SEQUENCE);
        for bad in [
            "",
            "x",
            "20261120T111655.123Z",
            "20261120T111655.123Z-1a2b3c4G",
            "1-20261120T111655.123Z-1a2b3c4d",
            "+0000001-20261120T111655.123Z-1a2b3c4d",
            "00000001-00000001-20261120T111655.123Z-1a2b3c4d",
            "00000001-1a2b3c4d",
            "../../etc/passwd",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_manifest_reads_back_and_every_flipped_bit_is_noticed() {
        let manifest = manifest();
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes, &manifest.id), Ok(manifest.clone()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Manifest::decode(&damaged, &manifest.id).is_err(),
                "bit {bit}"
            );
        }
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len], &manifest.id).is_err());
        }
        let other = BackupId::new(0, &[]);
        let refused = Manifest::decode(&bytes, &other).unwrap_err();
        assert!(refused.contains(manifest.id.as_str()), "{refused}");
    }

    #[test]
    fn names_of_objects_lead_nowhere_else() {
        let text = String::from_utf8(manifest().encode().to_vec()).unwrap();
        let body = text.lines().nth(1).unwrap();
        let hash = digest(b"a").to_string();
        let body = body.replace(&hash, &format!("../../{}", &hash[6..]));
        let text = format!("{MAGIC} {FORMAT} {}\n{body}\n", digest(body.as_bytes()));
        let id = body.split('"').nth(3).unwrap().parse().unwrap();
        let refused = Manifest::decode(text.as_bytes(), &id).unwrap_err();
        assert!(refused.contains("hexadecimal"), "{refused}");
    }
}
