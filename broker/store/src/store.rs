//! The seam itself: what every engine offers, and nothing about how.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::backup::{BackupError, Frozen};
use crate::batch::{Durability, Key, WriteBatch};
use crate::check::{CheckTotals, Inspector};
use crate::error::{CommitError, ReadError, StopCause};
use crate::figures::{Histogram, StorageFigures};
use crate::pace::Pace;
use crate::queue::Permit;
use crate::space::Space;

/// A future that holds nothing of the caller.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// What is called once a batch's fate is known.
pub type Done = Box<dyn FnOnce(Result<Committed, CommitError>) + Send + 'static>;

/// One shard: an ordered key-value store with atomic, ordered commits.
pub trait Store: Send + Sync + 'static {
    /// A consistent view of everything committed so far. Blocking, and meant to live for one
    /// chunk of reading: as long as it lives, space freed since cannot be used again.
    ///
    /// # Errors
    /// If the store is closed or the file cannot be read.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, ReadError>;

    /// Waits until `bytes` more fit the queue (see [`WriteBatch::byte_len`]). More than
    /// [`crate::limits::QUEUE_BYTES`] waits for an empty queue. Fair: first come, first served.
    ///
    /// The future resolves to [`CommitError::Stopped`] or [`CommitError::Closed`] once the shard
    /// has stopped or is closed.
    fn reserve(&self, bytes: usize) -> Pending<Result<Permit, CommitError>>;

    /// As [`Store::reserve`], without waiting: `None` if there is no room now.
    ///
    /// # Errors
    /// If the shard has stopped or is closed.
    fn try_reserve(&self, bytes: usize) -> Result<Option<Permit>, CommitError>;

    /// As [`Store::reserve`], for a batch that appends records: waits as well while the engine has
    /// no room for more of them. What removes records must not wait for that.
    fn reserve_append(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
        self.reserve(bytes)
    }

    /// As [`Store::reserve_append`], without waiting: `None` if there is no room now.
    ///
    /// # Errors
    /// If the shard has stopped or is closed.
    fn try_reserve_append(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        self.try_reserve(bytes)
    }

    /// Puts a batch in the queue. Never blocks. Batches are applied in the order of submission.
    ///
    /// `done` is called exactly once, never from within this call, on the shard's writer thread,
    /// in the order of submission: with `Ok` when the batch is as durable as it asked to be, with
    /// an error when it must not be acknowledged. It should be short: the next commit waits for
    /// it. After [`Store::close`] it is called, with [`CommitError::Closed`], on some thread.
    fn submit(&self, permit: Permit, batch: WriteBatch, done: Done);

    /// Reserves, submits and waits.
    ///
    /// The future resolves to an error if the batch must not be acknowledged, see
    /// [`CommitError`]. Dropping it after its first poll does not recall the batch.
    fn commit(&self, batch: WriteBatch) -> Pin<Box<dyn Future<Output = CommitResult> + Send + '_>> {
        Box::pin(async move {
            let permit = match self.try_reserve(batch.byte_len())? {
                Some(permit) => permit,
                None => self.reserve(batch.byte_len()).await?,
            };
            let (sender, receiver) = oneshot::channel();
            // The caller may have gone; the batch is committed all the same.
            self.submit(
                permit,
                batch,
                Box::new(move |result| drop(sender.send(result))),
            );
            receiver.await.unwrap_or(Err(CommitError::Closed))
        })
    }

    /// Whether the shard accepts writes; changes at most once, to [`Health::Stopped`].
    fn health(&self) -> watch::Receiver<Health>;

    /// Counters since the store was opened.
    fn stats(&self) -> StoreStats;

    /// Reads everything there is, beside everything else that goes on, no faster than `pace` says,
    /// and shows it to `inspector`. Blocking, for as long as it takes. Damage is told, and does not
    /// end it.
    ///
    /// # Errors
    /// If the store is closed meanwhile, or an engine that has nothing to be checked but what it
    /// reads cannot read.
    fn check(&self, inspector: &mut dyn Inspector, pace: &Pace) -> Result<CheckTotals, ReadError> {
        crate::check::rows(self, inspector, pace)
    }

    /// What an operator should know though the shard still serves: why records cannot be moved out
    /// of the way, and what will come of it.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// A consistent state of everything committed so far, to be copied: see [`crate::backup`].
    /// Blocking; seals records first, so that they are copied with segments, which are copied once.
    ///
    /// # Errors
    /// If the engine has nothing to copy, the store is closed, or its rows cannot be read.
    fn freeze(&self) -> Result<Box<dyn Frozen>, BackupError> {
        Err(BackupError::Unsupported)
    }

    /// Commits what is queued, closes the file and ends the writer thread. Blocking. Calling it
    /// again does nothing; dropping the store does the same.
    fn close(&self);
}

type CommitResult = Result<Committed, CommitError>;

/// A consistent, read-only view. All reading is blocking.
pub trait Snapshot: Send {
    /// What stands at `key`.
    ///
    /// # Errors
    /// If the value or the way to it is damaged, or the file cannot be read.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError>;

    /// The rows of `range` (start included, end excluded), ascending or descending, up to
    /// `limit`.
    ///
    /// # Errors
    /// If a value or the way to it is damaged, or the file cannot be read.
    fn scan(
        &self,
        space: Space,
        range: Range<&[u8]>,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<ScanPage, ReadError>;

    /// What lies in `range` (start included, end excluded), ascending, up to `limit`, without the
    /// values: of each row its key, its size and the first `head` bytes of its value. An engine
    /// reads as little for it as it can. With a `head` of 0 it may tell of neighbouring rows as one,
    /// where telling them apart would mean to read them.
    ///
    /// `limit` counts what is returned as rows, and the bytes that it stands for.
    ///
    /// # Errors
    /// As [`Snapshot::scan`].
    fn heads(
        &self,
        space: Space,
        range: Range<&[u8]>,
        limit: ScanLimit,
        head: usize,
    ) -> Result<HeadPage, ReadError> {
        heads_by_scan(self, space, range, limit, head)
    }

    /// Up to which key, not included, the rows of `range` can be removed in one batch so that the
    /// engine reads about as much as `limit` says for it, or no more than for one row; `None` if
    /// there are none. It lies behind the start of `range`, and not behind its end. What is removed
    /// may be far more than what is read for it; or nothing, where the engine knows only about where
    /// rows are. Whoever removes the range, again and again, comes to an end.
    ///
    /// # Errors
    /// As [`Snapshot::scan`].
    fn removable(
        &self,
        space: Space,
        range: Range<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Option<Key>, ReadError> {
        removable_by_scan(self, space, range, limit)
    }

    /// The greatest key that is at least `start` and at most `at`; reads no value.
    ///
    /// # Errors
    /// If the way to it is damaged, or the file cannot be read.
    fn floor_key(&self, space: Space, start: &[u8], at: &[u8]) -> Result<Option<Key>, ReadError>;
}

/// [`Snapshot::heads`] for engines and spaces where nothing is cheaper than to read.
pub(crate) fn heads_by_scan<S: Snapshot + ?Sized>(
    snapshot: &S,
    space: Space,
    range: Range<&[u8]>,
    limit: ScanLimit,
    head: usize,
) -> Result<HeadPage, ReadError> {
    let page = snapshot.scan(space, range, Direction::Forward, limit)?;
    let told = |row: Row| Head {
        bytes: (row.key.len() + row.value.len()) as u64,
        rows: 1,
        // A copy: it does not keep the value in memory.
        head: Bytes::copy_from_slice(&row.value[..head.min(row.value.len())]),
        key: row.key,
    };
    Ok(HeadPage {
        heads: page.rows.into_iter().map(told).collect(),
        more: page.more,
    })
}

/// [`Snapshot::removable`] where removing means to read everything.
pub(crate) fn removable_by_scan<S: Snapshot + ?Sized>(
    snapshot: &S,
    space: Space,
    range: Range<&[u8]>,
    limit: ScanLimit,
) -> Result<Option<Key>, ReadError> {
    let limit = limit.at_least_one();
    let page = snapshot.scan(space, range.clone(), Direction::Forward, limit)?;
    Ok(page.rows.last().map(|last| match page.more {
        // Nothing sorts between a key and the same with a 0 behind.
        true => last.key.clone().push_bytes(&[0]),
        false => Key::from(range.end),
    }))
}

/// Which end of the range a scan begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the smallest key up.
    Forward,
    /// From the greatest key down.
    Backward,
}

/// Where a scan stops. The first row is returned whatever its size, unless `rows` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimit {
    /// At most so many rows.
    pub rows: usize,
    /// At most so many bytes of keys and values together, unless the first row alone is larger.
    pub bytes: usize,
}

impl ScanLimit {
    /// The first row only.
    pub const ONE: Self = Self { rows: 1, bytes: 0 };

    /// At most `rows` rows of any size.
    #[must_use]
    pub const fn rows(rows: usize) -> Self {
        Self {
            rows,
            bytes: usize::MAX,
        }
    }

    /// At most `bytes` bytes, but at least one row.
    #[must_use]
    pub const fn bytes(bytes: usize) -> Self {
        Self {
            rows: usize::MAX,
            bytes,
        }
    }

    /// The same, but for one row if it is for none.
    pub(crate) const fn at_least_one(self) -> Self {
        Self {
            rows: if self.rows == 0 { 1 } else { self.rows },
            bytes: self.bytes,
        }
    }

    /// Whether a scan that returned `rows` rows already must not return the next one, with which
    /// it would have returned `bytes` bytes.
    pub(crate) const fn is_reached(self, rows: usize, bytes: usize) -> bool {
        rows >= self.rows || (rows > 0 && bytes > self.bytes)
    }
}

/// One row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: Key,
    /// Its value, a copy that pins neither the snapshot nor a page of the engine.
    pub value: Bytes,
}

/// What one scan returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// The rows, in the order of the scan.
    pub rows: Vec<Row>,
    /// Whether the limit, not the range, ended it; or something that could not be read, and that
    /// whoever asks for what follows is told of.
    pub more: bool,
}

/// What [`Snapshot::heads`] tells of a row, or of several that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The row's key, or that of the first.
    pub key: Key,
    /// How many rows it stands for: one, if bytes of values were asked for.
    pub rows: usize,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// The first bytes of the value, as many as were asked for, or all if there are fewer.
    pub head: Bytes,
}

/// What one call of [`Snapshot::heads`] returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadPage {
    /// In the order of their keys.
    pub heads: Vec<Head>,
    /// As in [`ScanPage::more`].
    pub more: bool,
}

/// What an acknowledged batch is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The number of the group commit that carried it, counted from 1 since the store was opened.
    /// Batches with the same number were committed together.
    pub commit: u64,
    /// What is true now: [`Durability::Interval`] if the batch is still in memory only. A batch
    /// that asked for less may get more, never the reverse.
    pub durability: Durability,
}

/// Whether a shard accepts writes.
#[derive(Clone, Debug)]
pub enum Health {
    /// It does.
    Serving,
    /// It does not, until a restart.
    Stopped(Arc<StopCause>),
}

impl Health {
    /// Why it stopped, if it did.
    #[must_use]
    pub fn cause(&self) -> Option<&Arc<StopCause>> {
        match self {
            Self::Serving => None,
            Self::Stopped(cause) => Some(cause),
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.write_str("serving"),
            Self::Stopped(cause) => write!(f, "stopped: {cause}"),
        }
    }
}

/// Counters of one shard since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Group commits, durable or not.
    pub commits: u64,
    /// Batches acknowledged.
    pub batches: u64,
    /// Bytes of acknowledged batches, as [`WriteBatch::byte_len`] counts them.
    pub bytes: u64,
    /// Bytes waiting for a commit, or in one, now.
    pub queued_bytes: u64,
    /// Appends that wait for room in the queue, or in the engine, now.
    pub appends_waiting: u64,
    /// Size of the file; 0 for an engine without one.
    pub file_bytes: u64,
    /// Bytes of the batches of each group commit, as [`WriteBatch::byte_len`] counts them.
    pub commit_bytes: Histogram,
    /// How long each group commit took, in microseconds.
    pub commit_us: Histogram,
    /// How the storage stands.
    pub storage: StorageFigures,
}
