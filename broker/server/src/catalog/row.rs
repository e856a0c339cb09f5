//! The rows of the catalogue: every kind with its key, all listed here.
//!
//! | kind | key | value |
//! |---|---|---|
//! | [`NextTopicRow`] | `n` | the number of the next topic |
//! | [`TopicRow`] | `t`, topic name | number, settings, chain |
//! | [`DoomedRow`] | `x`, topic number | a deleted topic whose records are not removed yet |
//! | [`PluginRow`] | `p`, plugin name, 0, version | one version of a plugin |
//! | [`NextVersionRow`] | `v`, plugin name | the number of a plugin's next version |
//! | [`RuleRow`] | `r`, SHA-256 of the rule | one access rule |
//!
//! Every value begins with a version byte, followed by postcard. Names have no byte below `-`,
//! so the 0 behind one sorts its versions together. Components lie in `Space::Blobs`, by digest.

use bytes::Bytes;
use millstream_proto::acl::AclRule;
use millstream_proto::message::{Digest, PluginVersion};
use millstream_proto::pipeline::PluginUse;
use millstream_proto::topic::TopicConfig;
use millstream_proto::{PluginName, Principal, TopicName};
use millstream_store::{Direction, Key, ReadError, ScanLimit, Snapshot, Space, WriteBatch};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The version byte that every value begins with today.
const VERSION: u8 = 1;
/// Rows read from the store at once.
const SCAN_ROWS: usize = 1000;

/// One kind of row.
pub(crate) trait Row: Serialize + DeserializeOwned {
    /// First byte of its keys; no two kinds have the same.
    const TAG: u8;
    /// The noun used in errors.
    const WHAT: &'static str;

    /// Where it stands.
    fn key(&self) -> Key;

    /// The row's bytes.
    fn encode(&self) -> Bytes {
        postcard::to_extend(self, vec![VERSION])
            .expect("rows are plain data, which postcard can always write to memory")
            .into()
    }

    /// The row that `bytes` are.
    fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let what = Self::WHAT;
        match bytes.split_first() {
            Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
                Ok((row, [])) => Ok(row),
                Ok((_, rest)) => {
                    let why = format!("{} bytes are left over", rest.len());
                    Err(RowError::Content { what, why })
                }
                Err(e) => Err(RowError::Content {
                    what,
                    why: e.to_string(),
                }),
            },
            Some((&found, _)) => Err(RowError::Version { what, found }),
            None => Err(RowError::Content {
                what,
                why: "it is empty".into(),
            }),
        }
    }

    /// Writes it in its place.
    fn put(&self, batch: &mut WriteBatch) {
        batch.put(Space::Catalog, self.key(), self.encode());
    }

    /// Removes it from its place.
    fn delete(&self, batch: &mut WriteBatch) {
        batch.delete(Space::Catalog, self.key());
    }
}

/// Why the bytes of a row are not one. The store has verified their checksum: this is a row of
/// another version, or a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Written by a version that this one does not know.
    #[error("a {what} row has layout version {found}: run the version that wrote it")]
    Version {
        /// The kind of row.
        what: &'static str,
        /// The version it carries.
        found: u8,
    },
    /// Not what the kind looks like.
    #[error("a {what} row cannot be read: {why}")]
    Content {
        /// The kind of row.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A row that belongs elsewhere.
    #[error("a {what} row stands at the key of another")]
    Misplaced {
        /// The kind of row.
        what: &'static str,
    },
}

/// Why the catalogue cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store cannot read it.
    #[error("the catalogue cannot be read: {0}")]
    Store(#[from] ReadError),
    /// A row that makes no sense.
    #[error("the catalogue cannot be read: {0}")]
    Row(#[from] RowError),
}

/// Every row of a kind, in the order of the keys. Blocking.
pub(crate) fn all<R: Row>(snapshot: &dyn Snapshot) -> Result<Vec<R>, CatalogError> {
    let (mut from, end) = (Key::from([R::TAG]), Key::from([R::TAG + 1]));
    let mut rows = Vec::new();
    loop {
        let range = &from[..]..&end[..];
        let limit = ScanLimit::rows(SCAN_ROWS);
        let page = snapshot.scan(Space::Catalog, range, Direction::Forward, limit)?;
        for found in &page.rows {
            let row = R::decode(&found.value)?;
            if row.key() != found.key {
                return Err(RowError::Misplaced { what: R::WHAT }.into());
            }
            rows.push(row);
        }
        match page.rows.last() {
            Some(last) if page.more => from = last.key.clone().push_bytes(&[0]),
            _ => return Ok(rows),
        }
    }
}

fn key(tag: u8) -> Key {
    Key::from([tag])
}

/// The number that the next topic gets. Numbers are never used again: rows of a deleted topic
/// must not be taken for those of a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NextTopicRow {
    pub(crate) next: u32,
}

impl Row for NextTopicRow {
    const TAG: u8 = b'n';
    const WHAT: &'static str = "topic number";
    fn key(&self) -> Key {
        key(Self::TAG)
    }
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicRow {
    pub(crate) id: u32,
    pub(crate) name: TopicName,
    pub(crate) config: TopicConfig,
    /// Attached plugins in order, a partitioner last, versions filled in.
    pub(crate) chain: Vec<PluginUse>,
    /// Who changed the chain last.
    pub(crate) chain_owner: Option<Principal>,
}

impl Row for TopicRow {
    const TAG: u8 = b't';
    const WHAT: &'static str = "topic";
    fn key(&self) -> Key {
        key(Self::TAG).push_bytes(self.name.as_str().as_bytes())
    }
}

/// A deleted topic that still takes room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DoomedRow {
    pub(crate) id: u32,
    pub(crate) name: TopicName,
}

impl Row for DoomedRow {
    const TAG: u8 = b'x';
    const WHAT: &'static str = "deleted topic";
    fn key(&self) -> Key {
        key(Self::TAG).push_u32(self.id)
    }
}

/// One version of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PluginRow(pub(crate) PluginVersion);

impl Row for PluginRow {
    const TAG: u8 = b'p';
    const WHAT: &'static str = "plugin";
    fn key(&self) -> Key {
        let name = self.0.plugin.as_str().as_bytes();
        key(Self::TAG)
            .push_bytes(name)
            .push_bytes(&[0])
            .push_u32(self.0.version)
    }
}

/// The number that a plugin's next version gets. It outlives the versions, so that a number never
/// means two things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NextVersionRow {
    pub(crate) plugin: PluginName,
    pub(crate) next: u32,
}

impl Row for NextVersionRow {
    const TAG: u8 = b'v';
    const WHAT: &'static str = "plugin version number";
    fn key(&self) -> Key {
        key(Self::TAG).push_bytes(self.plugin.as_str().as_bytes())
    }
}

/// One access rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RuleRow(pub(crate) AclRule);

impl Row for RuleRow {
    const TAG: u8 = b'r';
    const WHAT: &'static str = "access rule";
    fn key(&self) -> Key {
        // By hash, since two patterns together can be longer than a key may be.
        key(Self::TAG).push_bytes(&Sha256::digest(self.encode()))
    }
}

/// Where a component's bytes stand in `Space::Blobs`.
pub(crate) fn blob_key(digest: &Digest) -> Key {
    Key::from(digest.0)
}

#[cfg(test)]
mod tests;
