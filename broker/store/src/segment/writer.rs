//! Writing a segment, from first entry to durable name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Refused, SegmentError};
use super::files::{Files, NewFile};
use super::format::{BlockBuilder, FOOTER_LEN, IndexBuilder, Totals, is_alone};
use super::limits::{MAX_ENTRY_VALUE, WRITE_BYTES};
use crate::batch::Key;
use crate::limits::MAX_KEY_LEN;

/// What a finished segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The segment's number.
    pub number: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes of all keys and values.
    pub data_bytes: u64,
    /// How many entries there are.
    pub entries: u64,
    /// The smallest key.
    pub first: Key,
    /// The greatest key.
    pub last: Key,
}

/// Writes one segment. Holds one block, what gathers for one write, and the index in memory,
/// whatever the segment's size.
///
/// Dropping it before [`SegmentWriter::finish`], or a failing write, removes what was written.
pub struct SegmentWriter {
    files: Arc<dyn Files>,
    path: PathBuf,
    /// `None` once a write has failed: what the file holds is not known any more.
    file: Option<Box<dyn NewFile>>,
    /// Blocks that gather for the next write.
    gathered: Vec<u8>,
    block: BlockBuilder,
    index: IndexBuilder,
    totals: Totals,
    first: Option<Key>,
    last: Key,
}

impl SegmentWriter {
    /// Begins segment `number` in `files`.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the file cannot be created, or is there already.
    pub fn new(files: Arc<dyn Files>, number: u64) -> Result<Self, SegmentError> {
        let path = files.path(number);
        let file = files
            .create(number)
            .map_err(SegmentError::io("create", &path))?;
        let totals = Totals {
            number,
            end: 0,
            entries: 0,
            data_bytes: 0,
        };
        Ok(Self {
            files,
            path,
            file: Some(file),
            gathered: Vec::with_capacity(WRITE_BYTES),
            block: BlockBuilder::default(),
            index: IndexBuilder::default(),
            totals,
            first: None,
            last: Key::new(),
        })
    }

    /// Adds an entry. Its key is greater than all before.
    ///
    /// # Errors
    /// [`SegmentError::Refused`] if the entry is not one to add (the segment is as it was), or
    /// [`SegmentError::Io`] if a write fails (it is gone).
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), SegmentError> {
        self.push_parts(key, &[value])
    }

    /// As [`SegmentWriter::push`], for a value that lies in several pieces.
    ///
    /// # Errors
    /// As [`SegmentWriter::push`].
    pub fn push_parts(&mut self, key: &[u8], value: &[&[u8]]) -> Result<(), SegmentError> {
        let value_len = value.iter().map(|part| part.len()).sum();
        self.check(key, value_len)
            .map_err(|refused| self.refused(refused))?;
        if self.block.is_full_for(key.len(), value_len) {
            self.write_block(&[])?;
        }
        if is_alone(key.len(), value_len) {
            self.block.push_key(key, value_len);
            self.write_block(value)?;
        } else {
            self.block.push(key, value);
        }
        self.totals.entries += 1;
        self.totals.data_bytes += (key.len() + value_len) as u64;
        self.last = Key::from(key);
        if self.first.is_none() {
            self.first = Some(self.last.clone());
        }
        Ok(())
    }

    /// Length of the blocks that are complete; what is pushed gathers until one is.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.totals.end
    }

    /// Waits until what is written so far has reached the disk, so that the sync at the end, and
    /// whoever shares the disk with it, need not wait for all of it at once.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if it did not; then the segment is gone.
    pub fn sync(&mut self) -> Result<(), SegmentError> {
        with_file(&mut self.file, &self.path, "sync", |file| file.sync())
    }

    /// Writes the rest, makes the file durable, gives it its name, makes that durable.
    ///
    /// # Errors
    /// [`SegmentError::Refused`] if there are no entries, [`SegmentError::Io`] if a step fails.
    /// Either way there is no segment of that number, unless the disk refuses even to remove it:
    /// then there is a whole one that nobody knows of.
    pub fn finish(mut self) -> Result<Summary, SegmentError> {
        if self.file.is_none() {
            return Err(self.refused(Refused::GivenUp));
        }
        if !self.block.is_empty() {
            self.write_block(&[])?;
        }
        let Some(first) = self.first.take() else {
            return Err(self.refused(Refused::Empty));
        };
        let (index, footer) = std::mem::take(&mut self.index).finish(self.totals, &self.last);
        let footer = footer.encode();
        self.append(&index)?;
        self.append(&footer)?;
        self.flush()?;
        self.sync()?;
        self.publish()?;
        let totals = self.totals;
        Ok(Summary {
            number: totals.number,
            file_bytes: totals.end + (index.len() + FOOTER_LEN) as u64,
            data_bytes: totals.data_bytes,
            entries: totals.entries,
            first,
            last: self.last,
        })
    }

    /// Gives the synced file its name.
    fn publish(&mut self) -> Result<(), SegmentError> {
        if let Some(file) = self.file.take() {
            file.rename()
                .map_err(SegmentError::io("rename", &self.path))?;
        }
        let Err(source) = self.files.sync_directory() else {
            return Ok(());
        };
        // Nobody will refer to it: a retry must find its name free.
        if let Err(error) = self.files.remove(self.totals.number) {
            tracing::warn!(file = %self.path.display(), %error, "could not remove a segment");
        }
        Err(SegmentError::io("sync the directory of", &self.path)(
            source,
        ))
    }

    fn check(&self, key: &[u8], value_len: usize) -> Result<(), Refused> {
        if self.file.is_none() {
            return Err(Refused::GivenUp);
        }
        if key.is_empty() || key.len() > MAX_KEY_LEN {
            return Err(Refused::KeyLength { len: key.len() });
        }
        // No key is empty, so the first is greater than the empty one.
        if *key <= *self.last {
            return Err(Refused::Order {
                key: Key::from(key),
                after: self.last.clone(),
            });
        }
        if value_len > MAX_ENTRY_VALUE {
            return Err(Refused::ValueLength {
                key: Key::from(key),
                len: value_len,
            });
        }
        self.index.has_room().then_some(()).ok_or(Refused::Full)
    }

    fn refused(&self, refused: Refused) -> SegmentError {
        SegmentError::Refused {
            file: self.path.clone(),
            refused,
        }
    }

    /// Completes the block; `beyond` are its last values, as far as it did not copy them.
    fn write_block(&mut self, beyond: &[&[u8]]) -> Result<(), SegmentError> {
        let block = std::mem::take(&mut self.block);
        let head = block.head(self.totals.number, self.totals.end, beyond);
        self.append(&head)?;
        for part in block.parts(beyond) {
            self.append(part)?;
        }
        self.index
            .push(block.first_key(), block.len() as u32, block.entries());
        self.totals.end += block.len() as u64;
        // Its buffers serve the next one.
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), SegmentError> {
        while !bytes.is_empty() {
            let room = WRITE_BYTES - self.gathered.len();
            let (taken, rest) = bytes.split_at(room.min(bytes.len()));
            self.gathered.extend_from_slice(taken);
            bytes = rest;
            if self.gathered.len() == WRITE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SegmentError> {
        let gathered = &self.gathered;
        with_file(&mut self.file, &self.path, "write", |file| {
            file.append(gathered)
        })?;
        self.gathered.clear();
        Ok(())
    }
}

/// Does one thing to the file, and gives it up if that fails.
fn with_file(
    file: &mut Option<Box<dyn NewFile>>,
    path: &Path,
    action: &'static str,
    work: impl FnOnce(&mut dyn NewFile) -> std::io::Result<()>,
) -> Result<(), SegmentError> {
    let Some(open) = file else {
        return Err(SegmentError::Refused {
            file: path.to_owned(),
            refused: Refused::GivenUp,
        });
    };
    work(&mut **open).map_err(|source| {
        *file = None;
        SegmentError::io(action, path)(source)
    })
}
