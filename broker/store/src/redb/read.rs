//! Snapshots. Every value is checked against its trailer before it leaves.
//!
//! Values are copied out. redb can hand out its page without a copy, but that pins the read
//! transaction, and with it every page freed since, for as long as the bytes live; the bytes of a
//! fetch live in the send queue of a connection whose peer decides when to read. One stalled
//! consumer would make the file grow as fast as producers write.
//!
//! What it costs, from a profile of `store_bench` scanning 64 KiB values that the operating system
//! has cached, at 1.6 to 2.9 GB/s: the kernel's copy into redb's page takes about half of the
//! time, zeroing that page first a quarter, copying the value out less than a fifth.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use ::redb::{Error as RedbError, StorageError};
use bytes::Bytes;

use super::extent::RowDamaged;
use super::hot::Place;
use super::view::{Rows, View};
use super::{heads, merge};
use crate::batch::Key;
use crate::error::{ReadError, StopCause};
use crate::limits::TRAILER_LEN;
use crate::queue::Gate;
use crate::segment::SegmentError;
use crate::space::Space;
use crate::store::{
    Direction, HeadPage, Row, ScanLimit, ScanPage, Snapshot, heads_by_scan, removable_by_scan,
};
use crate::trailer::{self, Damaged};
use crate::writer::caught;

pub(super) struct RedbSnapshot {
    view: Arc<View>,
    gate: Arc<Gate>,
}

/// Why one read failed, before it is known which key to blame.
pub(super) enum Fault {
    Engine(RedbError),
    /// A value, with its key.
    Value(Key, Damaged),
    /// A row that says what is sealed, with its key.
    Row(Key, RowDamaged),
    /// A segment's file.
    Segment(SegmentError),
}

impl From<SegmentError> for Fault {
    fn from(error: SegmentError) -> Self {
        Self::Segment(error)
    }
}

impl From<RedbError> for Fault {
    fn from(error: RedbError) -> Self {
        Self::Engine(error)
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        Self::Engine(error.into())
    }
}

impl RedbSnapshot {
    pub(super) fn new(view: Arc<View>, gate: Arc<Gate>) -> Self {
        Self { view, gate }
    }

    /// Runs one read; whatever is wrong becomes an error that blames `key`, and stops the shard.
    pub(super) fn read<T>(
        &self,
        space: Space,
        key: &[u8],
        work: impl FnOnce(&View) -> Result<T, Fault>,
    ) -> Result<T, ReadError> {
        match caught(|| work(&self.view)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(fault)) => Err(report(&self.gate, space, key, fault)),
            Err(panic) => Err(report_damage(&self.gate, space, key, panic)),
        }
    }
}

impl Snapshot for RedbSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.read(space, key, |view| {
            if space == Space::Records {
                return merge::get(view, key);
            }
            match view.table(space)?.get(key)? {
                Some(stored) => opened(space, key, stored.value()).map(Some),
                None => Ok(None),
            }
        })
    }

    fn scan(
        &self,
        space: Space,
        range: Range<&[u8]>,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<ScanPage, ReadError> {
        if range.start >= range.end {
            return Ok(ScanPage::default());
        }
        self.read(space, range.start, |view| match space {
            Space::Records => merge::scan(view, range, direction, limit),
            _ => scan_rows(view.table(space)?, space, range, direction, limit),
        })
    }

    fn heads(
        &self,
        space: Space,
        range: Range<&[u8]>,
        limit: ScanLimit,
        head: usize,
    ) -> Result<HeadPage, ReadError> {
        if space != Space::Records || range.start >= range.end {
            return heads_by_scan(self, space, range, limit, head);
        }
        self.read(space, range.start, |view| {
            heads::heads(view, range, limit, head)
        })
    }

    fn removable(
        &self,
        space: Space,
        range: Range<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Option<Key>, ReadError> {
        if space != Space::Records || range.start >= range.end {
            return removable_by_scan(self, space, range, limit);
        }
        self.read(space, range.start, |view| {
            heads::removable(view, range, limit)
        })
    }

    fn floor_key(&self, space: Space, start: &[u8], at: &[u8]) -> Result<Option<Key>, ReadError> {
        if start > at {
            return Ok(None);
        }
        self.read(space, at, |view| {
            if space == Space::Records {
                return merge::floor_key(view, start, at);
            }
            match view.table(space)?.range::<&[u8]>(start..=at)?.next_back() {
                Some(row) => Ok(Some(Key::from(row?.0.value()))),
                None => Ok(None),
            }
        })
    }
}

fn scan_rows(
    table: &Rows,
    space: Space,
    range: Range<&[u8]>,
    direction: Direction,
    limit: ScanLimit,
) -> Result<ScanPage, Fault> {
    let mut rows = table.range::<&[u8]>(range)?;
    let mut page = ScanPage::default();
    let mut bytes = 0usize;
    loop {
        let next = match direction {
            Direction::Forward => rows.next(),
            Direction::Backward => rows.next_back(),
        };
        let Some(row) = next else { return Ok(page) };
        let (key, stored) = row?;
        let (key, stored) = (key.value(), stored.value());
        bytes = bytes.saturating_add(key.len() + stored.len());
        if limit.is_reached(page.rows.len(), bytes) {
            page.more = true;
            return Ok(page);
        }
        let value = opened(space, key, stored)?;
        page.rows.push(Row {
            key: Key::from(key),
            value,
        });
    }
}

/// The value at `key`, which lies at `place`: within one chunk, or over several.
pub(super) fn packed(view: &View, key: &[u8], place: Place) -> Result<Bytes, Fault> {
    let Place { pack, offset, len } = place;
    let damaged = |damaged| Fault::Value(Key::from(key), damaged);
    let chunks = view.packs()?;
    let (mut stored, len) = (Vec::with_capacity(len as usize), len as usize);
    while stored.len() < len {
        let at = offset + stored.len() as u32;
        let chunk = chunks.range((pack, 0)..=(pack, at))?.next_back();
        let (start, chunk) = chunk.ok_or_else(|| damaged(Damaged::Missing))??;
        let within = (at - start.value().1) as usize;
        let found = chunk.value().get(within..).unwrap_or_default();
        let found = &found[..found.len().min(len - stored.len())];
        if found.is_empty() {
            return Err(damaged(Damaged::Missing));
        }
        stored.extend_from_slice(found);
    }
    trailer::open(Space::Records, key, &stored).map_err(damaged)?;
    stored.truncate(len - TRAILER_LEN);
    Ok(Bytes::from(stored))
}

fn opened(space: Space, key: &[u8], stored: &[u8]) -> Result<Bytes, Fault> {
    match trailer::open(space, key, stored) {
        Ok(value) => Ok(Bytes::copy_from_slice(value)),
        Err(damaged) => Err(Fault::Value(Key::from(key), damaged)),
    }
}

fn report(gate: &Gate, space: Space, key: &[u8], fault: Fault) -> ReadError {
    let file = || gate.file.clone();
    match fault {
        Fault::Value(key, damaged) => report_damage(gate, space, &key, damaged.to_string()),
        Fault::Row(key, damaged) => report_damage(gate, space, &key, damaged.to_string()),
        Fault::Segment(error) => report_segment(space, key, error),
        Fault::Engine(RedbError::DatabaseClosed) => ReadError::Closed { file: file() },
        Fault::Engine(error @ (RedbError::Io(_) | RedbError::PreviousIo)) => {
            let detail = error.to_string();
            gate.stop(StopCause::Io {
                file: file(),
                detail: detail.clone(),
            });
            ReadError::Io {
                file: file(),
                space,
                detail,
            }
        }
        // Whatever else redb says of a read, only a damaged file can make it say: a table that is
        // missing, of another type, or poisoned by an earlier panic.
        Fault::Engine(error) => report_damage(gate, space, key, error.to_string()),
    }
}

/// Damage stops the shard: the disk that lost this value is not one to acknowledge more on.
fn report_damage(gate: &Gate, space: Space, key: &[u8], detail: String) -> ReadError {
    let error = ReadError::Corrupt {
        file: gate.file.clone(),
        space,
        key: key.to_vec(),
        detail,
    };
    gate.stop(StopCause::Corrupt {
        detail: error.to_string(),
    });
    error
}

/// What is wrong with a sealed segment is the trouble of those who read it: what lies in others,
/// and what is still to come, does not depend on it, so the shard goes on.
fn report_segment(space: Space, key: &[u8], error: SegmentError) -> ReadError {
    // Only what happened: the answer names the file and says what to do, and says it once.
    let (file, detail) = match error {
        SegmentError::Io {
            action,
            file,
            source,
        } => {
            let detail = if source.kind() == ErrorKind::NotFound {
                "it is missing: put it back, restore from a backup, or stop the broker and give it \
                 up with `millstream check --quarantine`"
                    .to_owned()
            } else {
                format!("{action}: {source}")
            };
            tracing::error!(file = %file.display(), detail, "a sealed segment cannot be read");
            return ReadError::Io {
                file,
                space,
                detail,
            };
        }
        SegmentError::Damaged {
            file,
            offset,
            detail,
        } => (file, format!("{detail}, at byte {offset}")),
        SegmentError::Version {
            file,
            found,
            expected,
        } => {
            let detail = format!(
                "it has format version {found}, and this version of Millstream reads {expected}; \
                 if another version wrote it, run that one"
            );
            (file, detail)
        }
        SegmentError::Refused { file, refused } => (file, refused.to_string()),
    };
    let error = ReadError::Corrupt {
        file,
        space,
        key: key.to_vec(),
        detail,
    };
    tracing::error!(%error, "a sealed segment cannot be read");
    error
}
