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
//! The same thread rewrites segments of which little is wanted any more, or whose extents are many
//! and small, and unlinks files.
//!
//! * [`portion`]: what is sealed at once, put in order a part at a time.
//! * [`rewrite`]: when segments are rewritten, and what becomes of those that cannot be read;
//!   [`round`] and [`groups`]: which extents are moved next; [`copy`]: how.
//! * [`paced`]: writing a segment so that others get to the disk as well.

mod copy;
mod groups;
mod paced;
mod portion;
mod rewrite;
mod round;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use ::redb::{Error as RedbError, StorageError};

use self::paced::Paced;
pub(super) use self::rewrite::Rewriting;
use self::rewrite::Rewritten;
use super::Shared;
use super::desk::{Desk, Errand, PATIENCE, SealJob, What};
use super::read::Fault;
use super::sealed::unlink;
use super::write::stop_cause;
use crate::error::StopCause;
use crate::figures::StorageFigures;
use crate::limits::{SEAL_PARTS, SEALS_IN_A_ROW};
use crate::queue::Queue;
use crate::segment::{SegmentError, SegmentWriter, Segments, Summary};
use crate::writer::caught;

/// Why a segment was not written.
#[derive(Debug, thiserror::Error)]
enum SealError {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("segment {number} cannot be rewritten: {why}")]
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
    pub(super) rewriting: Rewriting,
    /// Where the values of a part are gathered. Kept: one that is made anew each time would leave
    /// as much and more with the allocator.
    pub(super) values: Vec<u8>,
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

/// How many segments may be sealed in a row before others are rewritten.
fn most_seals(figures: &StorageFigures, too_many_extents: bool) -> u32 {
    if too_many_extents || figures.garbage_bytes > figures.live_bytes {
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
            let most_seals = || {
                let meter = &self.shared.meter;
                most_seals(&meter.read(), self.rewriting.is_behind(meter.extents()))
            };
            let failed = match self.desk.next(most_seals, stopped) {
                Errand::Close => return,
                Errand::Unlink(numbers) => {
                    self.rewriting.forget(&numbers);
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
            if self.rewriting.wants_merging(self.shared.meter.extents()) {
                self.desk.cut();
            }
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
            Ok(Rewritten::NothingDue) => {
                if let Some(pause) = self.rewriting.next_excuse() {
                    self.desk.cut_later(pause.max(PATIENCE));
                }
            }
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
                    // There may be others, and this one is left alone for a while.
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
        let trouble = trouble.map(|trouble| &trouble[..]);
        let trouble = trouble.or(self.rewriting.trouble());
        self.desk.rewritten(trouble.map(str::to_owned));
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

    /// Bytes of values that are put in order at a time.
    fn part_bytes(&self) -> usize {
        usize::try_from(self.segment_bytes / SEAL_PARTS).unwrap_or(usize::MAX)
    }

    /// Takes the buffer back that values were gathered in; one that had to be larger shrinks.
    fn keep(&mut self, mut values: Vec<u8>) {
        values.clear();
        values.shrink_to(self.part_bytes());
        self.values = values;
    }

    /// Seals the oldest packs, about as many as make a segment.
    fn seal(&mut self) -> Result<(), SealError> {
        let view = self.shared.view().ok_or(SealError::Closing)?;
        let Some(mut portion) = portion::oldest(&view, self.segment_bytes)? else {
            return Ok(());
        };
        drop(view);
        let mut values = std::mem::take(&mut self.values);
        let segment = self.write_portion(&mut portion, &mut values);
        self.keep(values);
        // All of it may have been removed meanwhile.
        let Some(segment) = segment? else {
            return Ok(());
        };
        let entries = portion.entries.into_iter();
        self.submit(What::Packs {
            segment,
            through: portion.through,
            entries: entries.filter_map(portion::Packed::sealed).collect(),
            kills: portion.kills,
        })?;
        Ok(())
    }

    /// Writes what a portion holds into a new segment, and marks what has been removed since it
    /// was looked at. `None` if that was all.
    fn write_portion(
        &mut self,
        portion: &mut portion::Portion,
        values: &mut Vec<u8>,
    ) -> Result<Option<Summary>, SealError> {
        let mut target: Option<Paced> = None;
        let mut rest = &mut portion.entries[..];
        while !rest.is_empty() {
            let len = portion::part_len(rest, self.part_bytes());
            let (part, later) = rest.split_at_mut(len);
            rest = later;
            // A view of its own: the hot file can use again what is freed between the parts.
            let view = self.shared.view().ok_or(SealError::Closing)?;
            portion::mark_gone(&view, part, portion.kills);
            portion::read_part(&view, part, values)?;
            drop(view);
            portion::each_value(part, values, |key, stored| {
                Ok(self.target(&mut target)?.push(key, stored)?)
            })?;
        }
        let finished = target.map(Paced::finish).transpose()?;
        Ok(finished)
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

#[cfg(test)]
mod tests;
