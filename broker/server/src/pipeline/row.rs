//! The rows of pipelines: what each is, and how far it is in every partition of its input.
//!
//! | kind | key | value |
//! |---|---|---|
//! | [`DefinitionRow`] | `d`, pipeline name | number, definition, owner, state |
//! | [`PositionKey`] | `p`, pipeline number, topic number, partition | the next offset it reads |
//!
//! A position belongs to the number of a topic, not to its name: a topic that was deleted and
//! created again is another one, and is read from its beginning.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use millstream_proto::pipeline::{PipelineSpec, PipelineState};
use millstream_proto::{Offset, PartitionId, PipelineName, Principal};
use millstream_store::{Direction, Key, ReadError, Row, ScanLimit, Snapshot, Space, WriteBatch};
use serde::{Deserialize, Serialize};

const DEFINITION: &[u8] = b"d";
const POSITION: &[u8] = b"p";
/// The layout that this version writes and reads.
const VERSION: u8 = 1;
/// Bytes read in one scan of the rows.
const SCAN_BYTES: usize = 4 << 20;

/// Why a row is not one of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the row of pipeline {what:?} cannot be read: {why}; run the version that wrote it")]
pub struct RowError {
    what: String,
    why: String,
}

fn bad(key: &[u8], why: impl ToString) -> RowError {
    RowError {
        what: key.escape_ascii().to_string(),
        why: why.to_string(),
    }
}

/// What a pipeline is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DefinitionRow {
    /// Its number, which keys of its positions begin with.
    pub(crate) id: u32,
    /// Its definition, versions filled in.
    pub(crate) spec: PipelineSpec,
    /// Who applied it, and as whom it runs.
    pub(super) owner: Principal,
    /// Whether it is to run.
    pub(super) state: PipelineState,
}

impl DefinitionRow {
    fn key(name: &PipelineName) -> Key {
        Key::from(DEFINITION).push_bytes(name.as_str().as_bytes())
    }

    pub(super) fn put(&self, batch: &mut WriteBatch) -> Result<(), postcard::Error> {
        let value = postcard::to_extend(self, vec![VERSION])?;
        batch.put(Space::Pipelines, Self::key(&self.spec.name), value);
        Ok(())
    }

    pub(crate) fn decode(row: &Row) -> Result<Self, RowError> {
        let name = row.key.get(DEFINITION.len()..).unwrap_or_default();
        let decoded: Self = match row.value.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|e| bad(&row.key, e))?,
            Some((version, _)) => return Err(bad(&row.key, format!("layout version {version}"))),
            None => return Err(bad(&row.key, "it is empty")),
        };
        if decoded.spec.name.as_str().as_bytes() != name {
            return Err(bad(
                &row.key,
                format!("it holds pipeline {}", decoded.spec.name),
            ));
        }
        Ok(decoded)
    }
}

/// Where a position stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PositionKey {
    /// The pipeline's number.
    pub(super) pipeline: u32,
    /// The input topic's number.
    pub(super) topic: u32,
    /// The partition.
    pub(super) partition: PartitionId,
}

impl PositionKey {
    fn encode(self) -> Key {
        let pipeline = Key::from(POSITION).push_u32(self.pipeline);
        pipeline.push_u32(self.topic).push_u32(self.partition.0)
    }

    /// Adds the position to a batch.
    pub(super) fn put(self, position: Offset, batch: &mut WriteBatch) {
        let mut value = BytesMut::with_capacity(9);
        value.put_u8(VERSION);
        value.put_u64(position.0);
        batch.put(Space::Pipelines, self.encode(), value);
    }

    fn decode(row: &Row) -> Result<(Self, Offset), RowError> {
        let number = |at: usize| {
            let field = row
                .key
                .get(at..at + 4)
                .and_then(|field| field.first_chunk::<4>());
            field
                .map(|field| u32::from_be_bytes(*field))
                .ok_or(bad(&row.key, "its key is short"))
        };
        let at = POSITION.len();
        let (pipeline, topic, partition) = (number(at)?, number(at + 4)?, number(at + 8)?);
        let key = Self {
            pipeline,
            topic,
            partition: PartitionId(partition),
        };
        let rest = match row.value.split_first() {
            Some((&VERSION, rest)) if row.key.len() == at + 12 => rest,
            _ => return Err(bad(&row.key, "unknown layout")),
        };
        let offset: [u8; 8] = rest.try_into().map_err(|_| bad(&row.key, "wrong length"))?;
        Ok((key, Offset(u64::from_be_bytes(offset))))
    }
}

/// Whether a row is one of a pipeline: its definition, or a position.
pub(crate) fn check_row(key: &[u8], value: &Bytes) -> Result<(), String> {
    let row = Row {
        key: Key::from(key),
        value: value.clone(),
    };
    let decoded = if key.starts_with(DEFINITION) {
        DefinitionRow::decode(&row).map(drop)
    } else if key.starts_with(POSITION) {
        PositionKey::decode(&row).map(drop)
    } else {
        Err(bad(key, "of a kind that is not known"))
    };
    decoded.map_err(|e| e.to_string())
}

/// Removes everything of a pipeline.
pub(super) fn delete(row: &DefinitionRow, batch: &mut WriteBatch) {
    batch.delete(Space::Pipelines, DefinitionRow::key(&row.spec.name));
    let prefix = Key::from(POSITION).push_u32(row.id);
    let end = prefix.prefix_end().unwrap_or_else(|| Key::from("q"));
    batch.delete_range(Space::Pipelines, prefix..end);
}

/// Everything that is stored of pipelines.
pub(super) struct Rows {
    /// The pipelines, by name.
    pub(super) definitions: Vec<DefinitionRow>,
    /// How far they are.
    pub(super) positions: Vec<(PositionKey, Offset)>,
}

/// All pipelines and all positions. Blocking.
pub(super) fn load(snapshot: &dyn Snapshot) -> Result<Rows, LoadError> {
    let definitions = scan(snapshot, DEFINITION, DefinitionRow::decode)?;
    let positions = scan(snapshot, POSITION, PositionKey::decode)?;
    Ok(Rows {
        definitions,
        positions,
    })
}

/// Why the pipelines cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store cannot be read.
    #[error("the pipelines: {0}")]
    Read(#[from] ReadError),
    /// A row makes no sense.
    #[error(transparent)]
    Row(#[from] RowError),
}

fn scan<T>(
    snapshot: &dyn Snapshot,
    prefix: &[u8],
    decode: impl Fn(&Row) -> Result<T, RowError>,
) -> Result<Vec<T>, LoadError> {
    let start = Key::from(prefix);
    let end = start.prefix_end().unwrap_or_default();
    let mut range: Range<Key> = start..end;
    let mut rows = Vec::new();
    loop {
        let page = snapshot.scan(
            Space::Pipelines,
            &range.start[..]..&range.end[..],
            Direction::Forward,
            ScanLimit::bytes(SCAN_BYTES),
        )?;
        for row in &page.rows {
            rows.push(decode(row)?);
        }
        match page.rows.last() {
            // The smallest key behind the last one.
            Some(last) if page.more => range.start = last.key.clone().push_bytes(&[0]),
            _ => return Ok(rows),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_store::{MemoryStore, Store};
    use proptest::prelude::*;

    use super::*;

    fn definition(name: &str, id: u32) -> DefinitionRow {
        DefinitionRow {
            id,
            spec: PipelineSpec {
                name: name.parse().unwrap(),
                input: "acme/in".parse().unwrap(),
                from_latest: true,
                steps: Vec::new(),
                outputs: vec![("out".into(), "acme/out".parse().unwrap())],
            },
            owner: "spiffe://d/acme/me".parse().unwrap(),
            state: PipelineState::Failed("why".into()),
        }
    }

    fn commit(store: &dyn Store, batch: WriteBatch) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(store.commit(batch)).unwrap();
    }

    #[test]
    fn deleting_takes_the_definition_and_its_positions_and_nothing_else() {
        let store = MemoryStore::new().unwrap();
        let mut batch = WriteBatch::new();
        let rows = [
            definition("acme/a", 1),
            definition("acme/ab", 2),
            definition("b/a", u32::MAX),
        ];
        for row in &rows {
            row.put(&mut batch).unwrap();
            for (topic, partition) in [(0, 0), (7, 3), (u32::MAX, u32::MAX)] {
                let partition = PartitionId(partition);
                let key = PositionKey {
                    pipeline: row.id,
                    topic,
                    partition,
                };
                key.put(Offset(u64::from(row.id)), &mut batch);
            }
        }
        commit(&store, batch);
        for gone in 0..rows.len() {
            let mut batch = WriteBatch::new();
            delete(&rows[gone], &mut batch);
            commit(&store, batch);
            let Rows {
                definitions,
                positions,
            } = load(&*store.snapshot().unwrap()).unwrap();
            assert_eq!(definitions, rows[gone + 1..]);
            assert_eq!(positions.len(), 3 * definitions.len());
            assert!(
                positions
                    .iter()
                    .all(|(key, at)| at.0 == u64::from(key.pipeline))
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_row_or_an_error(key: Vec<u8>, value: Vec<u8>, versioned: bool) {
            let value = if versioned { [&[VERSION], &value[..]].concat() } else { value };
            for prefix in [DEFINITION, POSITION] {
                let key = Key::from(prefix).push_bytes(&key);
                let row = Row { key, value: Bytes::from(value.clone()) };
                let _ = (DefinitionRow::decode(&row), PositionKey::decode(&row));
            }
        }

        #[test]
        fn positions_round_trip(pipeline: u32, topic: u32, partition: u32, offset: u64) {
            let key = PositionKey { pipeline, topic, partition: PartitionId(partition) };
            let mut value = vec![VERSION];
            value.extend(offset.to_be_bytes());
            let row = Row { key: key.encode(), value: value.into() };
            prop_assert_eq!(PositionKey::decode(&row), Ok((key, Offset(offset))));
        }
    }
}
