//! The sealer: moves the oldest records out of the hot file into segments, on a thread of its own.
//!
//! ```text
//! 1  read the oldest packs through a view        nothing has changed yet
//! 2  write them, sorted by key, into a new file  a crash leaves a file that nobody knows: removed
//! 3  sync the file, rename it, sync the directory           at the next start
//! 4  one hot commit: segment, extents, floor     the writer does it; this is the move
//! 5  later commits remove the packs below the floor, a little at a time
//! ```
//!
//! Until step 4 is durable the records are in the hot file, from then on they are in the segment.
//! What was removed from the log between steps 1 and 4 is left out of the extents.
//!
//! The same thread rewrites segments of which little is wanted any more, and unlinks files.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use ::redb::{Error as RedbError, StorageError};

use super::Shared;
use super::desk::{Desk, Errand, PATIENCE, SealJob, What};
use super::extent::{Extent, SegmentRow, run_of};
use super::merge;
use super::pack;
use super::read::Fault;
use super::sealed::{Moved, SealedEntry, unlink};
use super::view::View;
use super::write::stop_cause;
use crate::batch::Key;
use crate::error::StopCause;
use crate::figures::StorageFigures;
use crate::limits::{GARBAGE_SHARE, SEAL_RUNS, SEAL_SYNC_BYTES, SEALS_IN_A_ROW, TRAILER_LEN};
use crate::queue::Queue;
use crate::segment::{SegmentError, SegmentWriter, Segments, Summary};
use crate::space::Space;
use crate::store::Direction;
use crate::trailer;
use crate::writer::caught;

/// Why a segment was not written.
#[derive(Debug, thiserror::Error)]
enum SealError {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("segment {number} holds much that is unwanted and cannot be rewritten: {why}")]
    Unreadable { number: u64, why: SegmentError },
    #[error("the hot file cannot be read: {0}")]
    Engine(#[from] RedbError),
    #[error("{0}")]
    Damaged(String),
    #[error("the store is closing")]
    Closing,
}

impl From<Fault> for SealError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Segment(error) => Self::Segment(error),
            Fault::Engine(error) => Self::Engine(error),
            Fault::Value(key, damaged) => Self::Damaged(format!("key \"{key:?}\": {damaged}")),
            Fault::Row(key, damaged) => Self::Damaged(format!("row \"{key:?}\": {damaged}")),
        }
    }
}

impl From<StorageError> for SealError {
    fn from(error: StorageError) -> Self {
        Self::Engine(error.into())
    }
}

pub(super) struct Sealer {
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Arc<Segments>,
    pub(super) desk: Arc<Desk>,
    pub(super) queue: Arc<Queue>,
    pub(super) next_segment: u64,
    /// About how many bytes of packs become one segment.
    pub(super) segment_bytes: u64,
    /// Segments that could not be rewritten, and why: not tried again before a restart.
    pub(super) unreadable: BTreeMap<u64, String>,
}

/// How long the sealer waits after a failure, doubled with each one up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What has failed of late, and how long to wait if it does again.
struct Setbacks {
    seal_pause: Duration,
    rewrite_pause: Duration,
    /// Why the last rewriting has failed.
    rewriting: Option<String>,
}

impl Default for Setbacks {
    fn default() -> Self {
        Self {
            seal_pause: FIRST_PAUSE,
            rewrite_pause: FIRST_PAUSE,
            rewriting: None,
        }
    }
}

/// What has become of a rewriting.
enum Rewritten {
    /// Little is unwanted.
    NothingDue,
    /// There may be more.
    Moved,
    /// All that was copied was cut meanwhile.
    Outrun,
}

/// How many segments may be sealed in a row before others are rewritten.
fn most_seals(figures: &StorageFigures) -> u32 {
    if figures.garbage_bytes > figures.live_bytes {
        1
    } else {
        SEALS_IN_A_ROW
    }
}

/// What a person can do about it.
fn remedy(error: &SealError) -> &'static str {
    match error {
        SealError::Segment(SegmentError::Io { source, .. })
            if matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            ) =>
        {
            "free space on that disk"
        }
        _ => "look after that disk",
    }
}

/// Whether it is no use to read a segment again.
fn is_lasting(why: &SegmentError) -> bool {
    match why {
        SegmentError::Damaged { .. } | SegmentError::Version { .. } => true,
        SegmentError::Io { source, .. } => source.kind() == ErrorKind::NotFound,
        _ => false,
    }
}

impl Sealer {
    /// Runs until the store is closed or its shard has stopped.
    pub(super) fn run(mut self) {
        let (desk, gate) = (Arc::clone(&self.desk), Arc::clone(&self.queue.gate));
        // What a crash has left to be swept must not wait for an append that waits for it.
        self.queue.nudge();
        // Nor what is unwanted for more of it.
        desk.cut();
        if let Err(detail) = caught(|| self.work()) {
            gate.stop(StopCause::Panic {
                file: gate.file.clone(),
                detail,
            });
        }
        desk.leave();
    }

    fn work(&mut self) {
        let mut setbacks = Setbacks::default();
        loop {
            let stopped = || self.queue.gate.stopped().is_some();
            let most_seals = || most_seals(&self.shared.meter.read());
            let failed = match self.desk.next(most_seals, stopped) {
                Errand::Close => return,
                Errand::Unlink(numbers) => {
                    self.unreadable
                        .retain(|number, _| !numbers.contains(number));
                    unlink(&self.segments, numbers);
                    self.tell_of_rewriting(&setbacks);
                    None
                }
                Errand::Remind => {
                    self.queue.nudge();
                    None
                }
                Errand::Seal(call) => self.try_to_seal(call, &mut setbacks),
                Errand::Rewrite => self.try_to_rewrite(&mut setbacks),
            };
            if failed.is_some_and(|error| matches!(error, SealError::Closing) || self.is_over()) {
                return;
            }
        }
    }

    /// Seals, or waits a little if it cannot be done. Returns the error.
    fn try_to_seal(&mut self, call: u64, setbacks: &mut Setbacks) -> Option<SealError> {
        let Err(error) = self.seal() else {
            setbacks.seal_pause = FIRST_PAUSE;
            self.desk.sealed(call, None);
            return None;
        };
        if self.is_final(&error) {
            return Some(error);
        }
        let (file, pause) = (self.queue.gate.file.display(), setbacks.seal_pause);
        tracing::error!(
            %file, %error, ?pause,
            "sealing does not get on; appends wait once the hot file is full"
        );
        let trouble = format!(
            "records cannot be sealed: {error}; this is tried again and again, and appends wait \
             once the hot file is full: {}",
            remedy(&error)
        );
        self.desk.sealed(call, Some(trouble));
        self.desk.rest(pause);
        setbacks.seal_pause = (pause * 2).min(LONGEST_PAUSE);
        // Before it is tried again, the writer says which files can be removed: it may be their
        // space that is lacking.
        self.queue.nudge();
        self.desk.want();
        Some(error)
    }

    /// Rewrites, which is put off for a while if it cannot be done. Returns the error.
    fn try_to_rewrite(&mut self, setbacks: &mut Setbacks) -> Option<SealError> {
        let pause = setbacks.rewrite_pause;
        let later = (pause * 2).min(LONGEST_PAUSE);
        let done = self.rewrite();
        setbacks.rewrite_pause = FIRST_PAUSE;
        setbacks.rewriting = None;
        let mut failed = None;
        match done {
            Ok(Rewritten::NothingDue) => {}
            Ok(Rewritten::Moved) => self.desk.cut(),
            Ok(Rewritten::Outrun) => {
                setbacks.rewrite_pause = later;
                self.desk.cut_later(pause);
            }
            Err(error) if self.is_final(&error) => return Some(error),
            Err(error) => {
                let file = self.queue.gate.file.display();
                tracing::error!(%file, %error, ?pause, "segments cannot be rewritten");
                if matches!(error, SealError::Unreadable { .. }) {
                    // There may be others, and this one is not tried again.
                    self.desk.cut();
                } else {
                    setbacks.rewriting = Some(format!(
                        "the space of removed records cannot be given back: {error}; this is \
                         tried again and again: {}",
                        remedy(&error)
                    ));
                    setbacks.rewrite_pause = later;
                    self.desk.cut_later(pause);
                }
                failed = Some(error);
            }
        }
        self.tell_of_rewriting(setbacks);
        failed
    }

    fn tell_of_rewriting(&self, setbacks: &Setbacks) {
        let trouble = setbacks.rewriting.as_ref();
        let trouble = trouble.or(self.unreadable.values().next());
        self.desk.rewritten(trouble.cloned());
    }

    /// Whether nothing can be sealed or rewritten any more. Stops the shard if the error demands it.
    fn is_final(&self, error: &SealError) -> bool {
        if let Some(cause) = self.fatal(error) {
            self.queue.gate.stop(cause);
        }
        matches!(error, SealError::Closing) || self.is_over()
    }

    /// Whether nothing can be committed any more.
    fn is_over(&self) -> bool {
        self.desk.is_closing() || self.queue.gate.stopped().is_some()
    }

    /// Why the shard must stop, if the error is of the hot file: as whoever reads it would have it.
    fn fatal(&self, error: &SealError) -> Option<StopCause> {
        let file = &self.queue.gate.file;
        match error {
            _ if self.is_over() => None,
            SealError::Engine(error) => Some(stop_cause(file, error)),
            SealError::Damaged(detail) => Some(StopCause::Corrupt {
                detail: format!("{} is damaged: {detail}", file.display()),
            }),
            SealError::Segment(_) | SealError::Unreadable { .. } | SealError::Closing => None,
        }
    }

    fn writer(&mut self) -> Result<SegmentWriter, SealError> {
        // A number is used once, so that a name never stands for two contents: what is copied
        // to a backup needs not be copied again.
        let number = self.next_segment;
        self.next_segment += 1;
        Ok(SegmentWriter::new(
            Arc::clone(self.segments.files()),
            number,
        )?)
    }

    /// Seals the oldest packs, about as many as make a segment.
    fn seal(&mut self) -> Result<(), SealError> {
        let Some(view) = self.shared.view() else {
            return Err(SealError::Closing);
        };
        let Some((through, entries, contents)) = oldest_packs(&view, self.segment_bytes)? else {
            return Ok(());
        };
        let kills = view.kills;
        // From here on the hot file's pages are not needed: let the writer use them again.
        drop(view);
        let mut writer = Paced::new(self.writer()?);
        for (entry, place) in &entries {
            let stored = &contents[place.content][place.range.clone()];
            writer.push(&entry.key, stored)?;
        }
        drop(contents);
        let segment = writer.finish()?;
        let entries = entries.into_iter();
        let entries = entries.map(|(entry, place)| (entry, place.pack)).collect();
        self.submit(What::Packs {
            segment,
            through,
            entries,
            kills,
        })?;
        Ok(())
    }

    /// Copies what is wanted of the emptiest segments into a new one, if much of all is unwanted.
    fn rewrite(&mut self) -> Result<Rewritten, SealError> {
        let Some(view) = self.shared.view() else {
            return Err(SealError::Closing);
        };
        let victims = self.victims(&view)?;
        if victims.is_empty() {
            return Ok(Rewritten::NothingDue);
        }
        let (mut writer, mut moved) = (None, Vec::new());
        for (start, extent) in extents_of(&view, &victims)? {
            let bytes = self.copy(&view, &start, &extent, &mut writer)?;
            moved.push(Moved {
                start,
                extent,
                bytes,
            });
        }
        drop(view);
        let segment = match writer {
            Some(writer) => Some(writer.finish()?),
            None => None,
        };
        let moved = self.submit(What::Extents { segment, moved })?;
        Ok(if moved {
            Rewritten::Moved
        } else {
            Rewritten::Outrun
        })
    }

    /// Copies what an extent holds; says how many bytes of keys and values that is.
    fn copy(
        &mut self,
        view: &View,
        start: &[u8],
        extent: &Extent,
        writer: &mut Option<Paced>,
    ) -> Result<u64, SealError> {
        let number = extent.segment;
        let segment = match merge::segment(view, number) {
            Err(Fault::Segment(why)) => return Err(self.give_up(number, why)),
            other => other?,
        };
        let mut bytes = 0;
        for row in segment.iter_range(start..&extent.end, Direction::Forward) {
            let row = row.map_err(|why| self.give_up(number, why))?;
            let writer = match writer {
                Some(writer) => writer,
                None => writer.insert(Paced::new(self.writer()?)),
            };
            writer.push(&row.key, &row.value)?;
            bytes += (row.key.len() + row.value.len()).saturating_sub(TRAILER_LEN) as u64;
        }
        Ok(bytes)
    }

    /// Leaves segment `number` as it is from now on, unless it may be readable later.
    fn give_up(&mut self, number: u64, why: SegmentError) -> SealError {
        if !is_lasting(&why) {
            return why.into();
        }
        let error = SealError::Unreadable { number, why };
        self.unreadable.insert(number, error.to_string());
        error
    }

    /// The segments to rewrite: those with the least that is wanted, as many as fit one segment.
    fn victims(&self, view: &View) -> Result<HashSet<u64>, SealError> {
        let (mut rows, mut data, mut live) = (Vec::new(), 0u64, 0u64);
        for found in view.segment_rows()?.range::<u64>(..)? {
            let (number, row) = found?;
            let number = number.value();
            let row = SegmentRow::decode(number, row.value())
                .map_err(|why| SealError::Damaged(format!("segment {number}: {why}")))?;
            if self.unreadable.contains_key(&number) {
                continue;
            }
            data += row.data_bytes;
            live += row.live_bytes;
            if row.live_bytes < row.data_bytes {
                rows.push((number, row));
            }
        }
        let garbage = data.saturating_sub(live);
        if garbage < self.segment_bytes || garbage < data / GARBAGE_SHARE {
            return Ok(HashSet::new());
        }
        let share = |row: &SegmentRow| row.live_bytes as f64 / row.data_bytes.max(1) as f64;
        rows.sort_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)));
        let (mut victims, mut bytes) = (HashSet::new(), 0);
        for (number, row) in rows {
            bytes += row.live_bytes;
            if !victims.is_empty() && bytes > self.segment_bytes {
                break;
            }
            victims.insert(number);
        }
        Ok(victims)
    }

    /// Has the writer commit a finished segment; removes the file if that does not come to pass.
    /// Says whether it did.
    fn submit(&self, what: What) -> Result<bool, SealError> {
        let number = what.number();
        if let What::Packs { segment, .. }
        | What::Extents {
            segment: Some(segment),
            ..
        } = &what
        {
            self.shared.meter.wrote_segment(segment.file_bytes);
        }
        let (reply, answer) = mpsc::sync_channel(1);
        self.desk.put_job(SealJob { what, reply });
        self.queue.nudge();
        let committed = loop {
            match answer.recv_timeout(PATIENCE) {
                Ok(committed) => break committed,
                // The commit has failed. Nobody knows whether it is in the file: so the segment
                // stays, and the next start will see.
                Err(RecvTimeoutError::Disconnected) => return Err(SealError::Closing),
                Err(RecvTimeoutError::Timeout) => {
                    if self.is_over() && self.desk.take_job().is_some() {
                        unlink(&self.segments, number);
                        return Err(SealError::Closing);
                    }
                }
            }
        };
        if !committed {
            unlink(&self.segments, number);
        }
        Ok(committed)
    }
}

/// Where an entry's value lies among the packs that were read.
struct Content {
    pack: u64,
    content: usize,
    range: std::ops::Range<usize>,
}

type Oldest = (u64, Vec<(SealedEntry, Content)>, Vec<Vec<u8>>);

/// The oldest packs that are not sealed: where they end, their entries by key, their bytes.
fn oldest_packs(view: &View, wanted: u64) -> Result<Option<Oldest>, SealError> {
    let (mut entries, mut contents, mut bytes, mut through) = (Vec::new(), Vec::new(), 0, 0);
    let mut runs: HashSet<Box<[u8]>> = HashSet::new();
    for row in view.directories()?.range(view.sight.floor..)? {
        let (number, row) = row?;
        let number = number.value();
        let directory = pack::decode_directory(number, row.value())
            .map_err(|why| SealError::Damaged(format!("pack {number}: {why}")))?;
        let ends = directory
            .iter()
            .map(|entry| entry.offset as usize + entry.len as usize);
        let content = read_pack(view, number, ends.max().unwrap_or_default())?;
        for entry in directory {
            let range = entry.offset as usize..(entry.offset + entry.len) as usize;
            let stored = content.get(range.clone());
            let stored = stored.ok_or_else(|| {
                SealError::Damaged(format!("pack {number} ends before key \"{:?}\"", entry.key))
            })?;
            trailer::open(Space::Records, &entry.key, stored)
                .map_err(|damaged| Fault::Value(entry.key.clone(), damaged))?;
            let place = Content {
                pack: number,
                content: contents.len(),
                range,
            };
            let bytes = entry.bytes();
            let key = entry.key;
            if !runs.contains(run_of(&key)) {
                runs.insert(run_of(&key).into());
            }
            entries.push((SealedEntry { key, bytes }, place));
        }
        bytes += content.len() as u64;
        contents.push(content);
        through = number + 1;
        if bytes >= wanted || runs.len() >= SEAL_RUNS {
            break;
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.key.cmp(&b.key));
    Ok((!entries.is_empty()).then_some((through, entries, contents)))
}

/// The bytes of a pack, of which at least `len` are expected: growing bit by bit would leave the
/// allocator with as much again.
fn read_pack(view: &View, number: u64, len: usize) -> Result<Vec<u8>, SealError> {
    let mut content = Vec::with_capacity(len);
    for chunk in view.packs()?.range((number, 0)..=(number, u32::MAX))? {
        let (at, chunk) = chunk?;
        if at.value().1 as usize != content.len() {
            return Err(SealError::Damaged(format!("pack {number} lacks a chunk")));
        }
        content.extend_from_slice(chunk.value());
    }
    Ok(content)
}

/// All extents that lie in `segments`, by where they begin.
fn extents_of(view: &View, segments: &HashSet<u64>) -> Result<Vec<(Key, Extent)>, SealError> {
    let mut extents = Vec::new();
    for row in view.extents()?.range::<&[u8]>(..)? {
        let (start, row) = row?;
        let extent = Extent::decode(start.value(), row.value())
            .map_err(|why| Fault::Row(Key::from(start.value()), why))?;
        if segments.contains(&extent.segment) {
            extents.push((Key::from(start.value()), extent));
        }
    }
    Ok(extents)
}

/// Writes a segment with a sync every few megabytes, so that the syncs of hot commits, which the
/// file system may make wait for it, never wait for long.
struct Paced {
    writer: SegmentWriter,
    unsynced: u64,
}

impl Paced {
    fn new(writer: SegmentWriter) -> Self {
        Self {
            writer,
            unsynced: 0,
        }
    }

    fn push(&mut self, key: &[u8], stored: &[u8]) -> Result<(), SegmentError> {
        self.writer.push(key, stored)?;
        self.unsynced += (key.len() + stored.len()) as u64;
        if self.unsynced >= SEAL_SYNC_BYTES {
            self.writer.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn finish(self) -> Result<Summary, SegmentError> {
        self.writer.finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::batch::WriteBatch;
    use crate::fault::FaultDisk;
    use crate::key::record::RecordKey;
    use crate::redb::{RedbConfig, RedbStore};
    use crate::store::Store;

    fn io(kind: ErrorKind) -> SegmentError {
        SegmentError::Io {
            action: "read",
            file: "a.seg".into(),
            source: kind.into(),
        }
    }

    #[test]
    fn a_segment_is_given_up_only_for_what_lasts() {
        assert!(!is_lasting(&io(ErrorKind::Other)));
        assert!(!is_lasting(&io(ErrorKind::StorageFull)));
        assert!(is_lasting(&io(ErrorKind::NotFound)));
        assert!(is_lasting(&SegmentError::Damaged {
            file: "a.seg".into(),
            offset: 0,
            detail: String::new(),
        }));
    }

    #[test]
    fn the_remedy_for_a_full_disk_is_space() {
        let full = remedy(&io(ErrorKind::StorageFull).into());
        assert_eq!(full, "free space on that disk");
        assert_ne!(full, remedy(&io(ErrorKind::PermissionDenied).into()));
    }

    #[test]
    fn fewer_are_sealed_in_a_row_when_most_is_unwanted() {
        let figures = |live_bytes, garbage_bytes| StorageFigures {
            live_bytes,
            garbage_bytes,
            ..StorageFigures::default()
        };
        assert_eq!(most_seals(&figures(50, 50)), SEALS_IN_A_ROW);
        assert_eq!(most_seals(&figures(49, 51)), 1);
    }

    #[test]
    fn one_segment_holds_a_bounded_number_of_runs() {
        let disk = FaultDisk::new();
        let store =
            RedbStore::open_with_backend(disk.backend(), "test", &RedbConfig::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        // Each a pack of its own.
        let per_pack = u32::try_from(SEAL_RUNS / 2).unwrap();
        for pack in 0..3 {
            let mut batch = WriteBatch::new();
            for partition in 0..per_pack {
                let key = RecordKey {
                    topic: 1,
                    partition: pack * per_pack + partition,
                    base_offset: 0,
                };
                batch.put(Space::Records, key.encode(), vec![7; 80]);
            }
            runtime.block_on(store.commit(batch)).unwrap();
        }
        let all = store.stats().storage.unsealed_bytes;
        store.seal_now();
        let left = store.stats().storage.unsealed_bytes;
        assert!(left > 0 && left <= all / 3, "{left} of {all}");
        store.seal_now();
        assert_eq!(store.stats().storage.unsealed_bytes, 0);
    }
}
