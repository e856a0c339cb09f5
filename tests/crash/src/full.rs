//! A disk that is full for the files of segments, step by step, while the hot file has room: what a
//! limit on the size of all files cannot play.
//!
//! Which steps find it full stands in a file that the test writes and the broker reads before each
//! step, so it can change while the broker runs, and lasts when it dies.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_store::segment::{DirFiles, Files, NewFile, ReadAt, SegmentError, StoredFile};

/// The file that names the steps, beside the data directory.
const STEPS_FILE: &str = "full";

/// What a segment's file goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is made.
    Create,
    /// Bytes are added to it. Half of them still fit.
    Write,
    /// It is synced: where space is found late, this is where it turns out to be missing.
    Sync,
    /// It gets its own name: directories take space too.
    Rename,
    /// Its directory is synced.
    SyncDirectory,
}

impl Step {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [
        Self::Create,
        Self::Write,
        Self::Sync,
        Self::Rename,
        Self::SyncDirectory,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Rename => "rename",
            Self::SyncDirectory => "sync-directory",
        }
    }
}

/// The switch of a full disk.
#[derive(Clone, Debug)]
pub struct FullDisk {
    steps: PathBuf,
}

impl FullDisk {
    /// That of the broker whose data directory is `data`.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        Self {
            steps: data.with_file_name(STEPS_FILE),
        }
    }

    /// From now on, this step finds no space.
    ///
    /// # Errors
    /// When the test's own directory cannot be written to.
    pub fn fill(&self, step: Step) -> io::Result<()> {
        fs::write(&self.steps, step.name())
    }

    /// There is space again.
    ///
    /// # Errors
    /// As [`FullDisk::fill`].
    pub fn empty(&self) -> io::Result<()> {
        fs::remove_file(&self.steps)
    }

    fn pass(&self, step: Step) -> io::Result<()> {
        match fs::read_to_string(&self.steps) {
            Ok(full) if full == step.name() => {
                let text = "No space left on device (os error 28)";
                Err(io::Error::new(ErrorKind::StorageFull, text))
            }
            _ => Ok(()),
        }
    }
}

/// The files of segments on such a disk.
pub struct FullFiles {
    files: DirFiles,
    disk: FullDisk,
}

impl FullFiles {
    /// Those of the broker whose data directory is `data`, in its directory `segments`.
    ///
    /// # Errors
    /// As [`DirFiles::open`].
    pub fn open(data: &Path, segments: &Path) -> Result<Self, SegmentError> {
        Ok(Self {
            files: DirFiles::open(segments)?,
            disk: FullDisk::of(data),
        })
    }
}

impl Files for FullFiles {
    fn create(&self, number: u64) -> io::Result<Box<dyn NewFile>> {
        self.disk.pass(Step::Create)?;
        Ok(Box::new(FullFile {
            file: self.files.create(number)?,
            disk: self.disk.clone(),
        }))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.disk.pass(Step::SyncDirectory)?;
        self.files.sync_directory()
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn ReadAt>> {
        self.files.open(number)
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        self.files.remove(number)
    }

    fn set_aside(&self, number: u64) -> io::Result<PathBuf> {
        self.files.set_aside(number)
    }

    fn list(&self) -> io::Result<Vec<StoredFile>> {
        self.files.list()
    }

    fn remove_unfinished(&self) -> io::Result<usize> {
        self.files.remove_unfinished()
    }

    fn path(&self, number: u64) -> PathBuf {
        self.files.path(number)
    }
}

struct FullFile {
    file: Box<dyn NewFile>,
    disk: FullDisk,
}

impl NewFile for FullFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(full) = self.disk.pass(Step::Write) {
            self.file.append(&bytes[..bytes.len() / 2])?;
            return Err(full);
        }
        self.file.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.pass(Step::Sync)?;
        self.file.sync()
    }

    fn rename(self: Box<Self>) -> io::Result<()> {
        self.disk.pass(Step::Rename)?;
        self.file.rename()
    }
}
