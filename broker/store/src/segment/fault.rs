//! Segment files that fail, for tests: of this crate and of those that build on it.
//!
//! [`FaultFiles`] is a directory in memory. It tells what a power cut cannot take from what it
//! can: bytes that were not synced, and names that were given or taken since the directory was
//! last synced. Like [`crate::fault::FaultDisk`], it can be told to fail, tear or freeze at an
//! exact operation, or to be full; and single bytes can be damaged.
//!
//! What is absent: a sync that lies, and reads that fail for some bytes only.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::{Files, NewFile, ReadAt, StoredFile};
use crate::fault::Effect;

/// What can be counted, and made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOperation {
    /// A new file.
    Create,
    /// A write of bytes.
    Write,
    /// A sync of a file.
    Sync,
    /// A file that gets its own name.
    Rename,
    /// A sync of the directory.
    SyncDirectory,
    /// A finished file that is opened.
    Open,
    /// A read.
    Read,
    /// A file that is removed, finished or not.
    Remove,
    /// A listing of the directory.
    List,
    /// A finished file that gets a second name, elsewhere.
    SetAside,
    /// A sync of where those names are.
    SyncAside,
}

impl FileOperation {
    /// Every kind of operation.
    pub const ALL: [Self; 11] = [
        Self::Create,
        Self::Write,
        Self::Sync,
        Self::Rename,
        Self::SyncDirectory,
        Self::Open,
        Self::Read,
        Self::Remove,
        Self::List,
        Self::SetAside,
        Self::SyncAside,
    ];
}

/// A fault that waits for its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFault {
    /// The kind of operation it waits for.
    pub operation: FileOperation,
    /// Which of them it hits, counted from 1 since it was set.
    pub nth: u64,
    /// What it does.
    pub effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    number: u64,
    finished: bool,
}

/// What a directory says: which file has which name.
type Names = BTreeMap<Name, usize>;

#[derive(Clone, Copy, Debug)]
enum Change {
    Create { name: Name, file: usize },
    Rename { number: u64 },
    Remove { name: Name },
}

impl Change {
    fn apply(self, names: &mut Names) {
        let name = |number, finished| Name { number, finished };
        match self {
            Self::Create { name, file } => drop(names.insert(name, file)),
            Self::Rename { number } => {
                if let Some(file) = names.remove(&name(number, false)) {
                    names.insert(name(number, true), file);
                }
            }
            Self::Remove { name } => drop(names.remove(&name)),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// How many of its first bytes a power cut cannot take.
    durable: usize,
}

#[derive(Debug)]
struct State {
    /// Every file there ever was: one without a name may still be open.
    files: Vec<Content>,
    names: Names,
    durable_names: Names,
    /// What changed the names since, in order.
    unsynced: Vec<Change>,
    /// Second names, and whether a power cut cannot take them.
    aside: BTreeMap<u64, (usize, bool)>,
    capacity: usize,
    counts: [u64; FileOperation::ALL.len()],
    fault: Option<FileFault>,
    struck: bool,
    powerless: bool,
}

impl State {
    fn new(files: Vec<Content>, names: Names) -> Self {
        Self {
            files,
            durable_names: names.clone(),
            names,
            unsynced: Vec::new(),
            aside: BTreeMap::new(),
            capacity: usize::MAX,
            counts: Default::default(),
            fault: None,
            struck: false,
            powerless: false,
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn find(&self, name: Name) -> io::Result<usize> {
        let file = self.names.get(&name).copied();
        file.ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn used(&self) -> usize {
        let lens = self
            .names
            .values()
            .map(|&file| self.files[file].bytes.len());
        lens.sum()
    }

    /// Counts an operation; if the fault strikes, says how.
    fn begin(&mut self, operation: FileOperation) -> io::Result<Option<Effect>> {
        if self.powerless {
            return Err(no_power());
        }
        self.counts[operation as usize] += 1;
        let now = self.counts[operation as usize];
        let due = self
            .fault
            .filter(|fault| fault.operation == operation && fault.nth == now);
        let Some(fault) = due else { return Ok(None) };
        self.struck = true;
        match fault.effect {
            Effect::Fail(kind) => Err(io::Error::new(kind, "injected fault")),
            Effect::PowerCut => {
                self.powerless = true;
                Err(no_power())
            }
            Effect::Tear => Ok(Some(Effect::Tear)),
        }
    }

    /// As [`State::begin`], for operations that have no halves.
    fn begin_whole(&mut self, operation: FileOperation) -> io::Result<()> {
        match self.begin(operation)? {
            None => Ok(()),
            Some(_) => Err(io::Error::other("injected fault")),
        }
    }
}

fn no_power() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "the power is cut")
}

/// A directory in memory that can be made to fail. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct FaultFiles(Arc<Mutex<State>>);

impl Default for FaultFiles {
    fn default() -> Self {
        Self::with(State::new(Vec::new(), Names::new()))
    }
}

impl FaultFiles {
    /// An empty directory without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is made in one step at the end: a panic leaves the state whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the fault to come and counts from here.
    pub fn set_fault(&self, fault: FileFault) {
        let mut state = self.lock();
        state.counts = Default::default();
        state.fault = Some(fault);
        state.struck = false;
    }

    /// Takes back a fault that has not come. A power cut stays one.
    pub fn clear_fault(&self) {
        self.lock().fault = None;
    }

    /// Whether the fault has come.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.lock().struck
    }

    /// How often `operation` was asked for since the directory was made or the last fault was
    /// set.
    #[must_use]
    pub fn count(&self, operation: FileOperation) -> u64 {
        self.lock().counts[operation as usize]
    }

    /// Lets all files together grow to `bytes` and no further; growing beyond fails as on a full
    /// disk.
    pub fn set_capacity(&self, bytes: usize) {
        self.lock().capacity = bytes;
    }

    /// What a finished file holds now.
    #[must_use]
    pub fn content(&self, number: u64) -> Option<Vec<u8>> {
        let state = self.lock();
        let finished = Name {
            number,
            finished: true,
        };
        let file = state.names.get(&finished)?;
        Some(state.files[*file].bytes.clone())
    }

    /// What a file that was set aside holds now.
    #[must_use]
    pub fn content_aside(&self, number: u64) -> Option<Vec<u8>> {
        let state = self.lock();
        let (file, _) = state.aside.get(&number)?;
        Some(state.files[*file].bytes.clone())
    }

    /// Puts a finished and durable file there, or replaces it for those who open it from now on.
    pub fn put(&self, number: u64, bytes: Vec<u8>) {
        let mut state = self.lock();
        let durable = bytes.len();
        state.files.push(Content { bytes, durable });
        let file = state.files.len() - 1;
        let name = Name {
            number,
            finished: true,
        };
        state.names.insert(name, file);
        state.durable_names.insert(name, file);
    }

    /// Changes the bits of `mask` in one byte of a finished file, also for those who have it
    /// open. Does nothing if there is no such byte.
    pub fn flip(&self, number: u64, offset: usize, mask: u8) {
        let mut state = self.lock();
        let finished = Name {
            number,
            finished: true,
        };
        if let Ok(file) = state.find(finished)
            && let Some(byte) = state.files[file].bytes.get_mut(offset)
        {
            *byte ^= mask;
        }
    }

    /// Cuts a finished file off after `len` bytes, also for those who have it open.
    pub fn truncate(&self, number: u64, len: usize) {
        let mut state = self.lock();
        let finished = Name {
            number,
            finished: true,
        };
        if let Ok(file) = state.find(finished) {
            let content = &mut state.files[file];
            content.bytes.truncate(len);
            content.durable = content.durable.min(len);
        }
    }

    /// Lets go of everything that has been written so far, as a disk would on which it does not
    /// matter: for tests of what is large.
    pub fn forget_content(&self) {
        for file in &mut self.lock().files {
            *file = Content::default();
        }
    }

    /// How many files there are under temporary names.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        let state = self.lock();
        state.names.keys().filter(|name| !name.finished).count()
    }

    /// The directory that is found after a power cut now: everything synced; each unsynced change
    /// of a name for which `kept` says at least 1 when asked with its place in their order and
    /// length 1; no second name that was not synced; and of each file's unsynced bytes as many of the first as `kept` says when asked
    /// with the file's place and the number of those bytes. This directory is left as it is.
    #[must_use]
    pub fn after_power_cut(&self, mut kept: impl FnMut(usize, usize) -> usize) -> Self {
        let state = self.lock();
        let mut names = state.durable_names.clone();
        for (place, change) in state.unsynced.iter().enumerate() {
            if kept(place, 1) > 0 {
                change.apply(&mut names);
            }
        }
        let survive = |(place, file): (usize, &Content)| {
            let unsynced = file.bytes.len() - file.durable;
            let durable = file.durable + kept(place, unsynced).min(unsynced);
            let bytes = file.bytes[..durable].to_vec();
            Content { bytes, durable }
        };
        let files = state.files.iter().enumerate().map(survive).collect();
        let mut left = State::new(files, names);
        let durable = state.aside.iter().filter(|(_, (_, durable))| *durable);
        left.aside = durable.map(|(number, aside)| (*number, *aside)).collect();
        Self::with(left)
    }
}

impl Files for FaultFiles {
    fn create(&self, number: u64) -> io::Result<Box<dyn NewFile>> {
        let mut state = self.lock();
        state.begin_whole(FileOperation::Create)?;
        let name = |finished| Name { number, finished };
        if state.names.contains_key(&name(true)) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.files.push(Content::default());
        let file = state.files.len() - 1;
        let name = name(false);
        state.change(Change::Create { name, file });
        Ok(Box::new(NewFaultFile {
            disk: self.clone(),
            file,
            name: Some(name),
        }))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.begin_whole(FileOperation::SyncDirectory)?;
        state.unsynced.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn ReadAt>> {
        let mut state = self.lock();
        state.begin_whole(FileOperation::Open)?;
        let finished = true;
        let file = state.find(Name { number, finished })?;
        let len = state.files[file].bytes.len() as u64;
        let disk = self.clone();
        Ok(Arc::new(OpenFaultFile { disk, file, len }))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.begin_whole(FileOperation::Remove)?;
        let finished = true;
        let name = Name { number, finished };
        state.find(name)?;
        state.change(Change::Remove { name });
        Ok(())
    }

    fn set_aside(&self, number: u64) -> io::Result<PathBuf> {
        let mut state = self.lock();
        state.begin_whole(FileOperation::SetAside)?;
        let finished = true;
        let file = state.find(Name { number, finished })?;
        let (file, _) = *state.aside.entry(number).or_insert((file, false));
        state.begin_whole(FileOperation::SyncAside)?;
        state.aside.insert(number, (file, true));
        Ok(format!("memory/aside/{number:016x}.seg").into())
    }

    fn list(&self) -> io::Result<Vec<StoredFile>> {
        let mut state = self.lock();
        state.begin_whole(FileOperation::List)?;
        let finished = state.names.iter().filter(|(name, _)| name.finished);
        let stored = finished.map(|(name, file)| StoredFile {
            number: name.number,
            bytes: state.files[*file].bytes.len() as u64,
        });
        Ok(stored.collect())
    }

    fn remove_unfinished(&self) -> io::Result<usize> {
        let mut state = self.lock();
        state.begin_whole(FileOperation::List)?;
        let names: Vec<Name> = state.names.keys().copied().collect();
        let mut removed = 0;
        for name in names.into_iter().filter(|name| !name.finished) {
            state.begin_whole(FileOperation::Remove)?;
            state.change(Change::Remove { name });
            removed += 1;
        }
        Ok(removed)
    }

    fn path(&self, number: u64) -> PathBuf {
        format!("memory/{number:016x}.seg").into()
    }
}

struct NewFaultFile {
    disk: FaultFiles,
    file: usize,
    /// The temporary name, until the file has its own.
    name: Option<Name>,
}

impl NewFile for NewFaultFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let torn = state.begin(FileOperation::Write)?.is_some();
        let room = state.capacity.saturating_sub(state.used());
        let kept = if torn { bytes.len() / 2 } else { bytes.len() };
        // A disk that fills up takes what fits.
        let kept = kept.min(room);
        let file = &mut state.files[self.file];
        file.bytes.extend_from_slice(&bytes[..kept]);
        if torn {
            Err(io::Error::new(ErrorKind::WriteZero, "short write"))
        } else if kept < bytes.len() {
            let message = "no space left on device";
            Err(io::Error::new(ErrorKind::StorageFull, message))
        } else {
            Ok(())
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.begin_whole(FileOperation::Sync)?;
        let file = &mut state.files[self.file];
        file.durable = file.bytes.len();
        Ok(())
    }

    fn rename(mut self: Box<Self>) -> io::Result<()> {
        let disk = self.disk.clone();
        let mut state = disk.lock();
        // If it fails, the state is unlocked before this file is dropped and locks it again.
        state.begin_whole(FileOperation::Rename)?;
        if let Some(Name { number, .. }) = self.name.take() {
            state.change(Change::Rename { number });
        }
        Ok(())
    }
}

impl Drop for NewFaultFile {
    fn drop(&mut self) {
        let Some(name) = self.name else { return };
        let mut state = self.disk.lock();
        if state.begin_whole(FileOperation::Remove).is_ok() {
            state.change(Change::Remove { name });
        }
    }
}

struct OpenFaultFile {
    disk: FaultFiles,
    file: usize,
    len: u64,
}

impl ReadAt for OpenFaultFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.begin_whole(FileOperation::Read)?;
        let stored = usize::try_from(offset)
            .ok()
            .and_then(|start| {
                let end = start.checked_add(bytes.len())?;
                state.files[self.file].bytes.get(start..end)
            })
            .ok_or(ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(stored);
        Ok(())
    }

    fn byte_len(&self) -> u64 {
        self.len
    }
}
