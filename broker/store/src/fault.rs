//! Disks that fail, for tests: of this crate and of those that build on it.
//!
//! A [`FaultDisk`] is a disk in memory. It tells what has been synced from what has not, so that a
//! test can cut the power, decide which of the unsynced writes made it, and open what is left. It
//! can be told to fail, tear or freeze at an exact operation, or to be full.
//!
//! What is absent: a sync that lies. No store survives that.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redb::StorageBackend;

/// What can be counted, and made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A write of bytes.
    Write,
    /// A sync.
    Sync,
    /// A change of the file's length.
    Resize,
    /// A read.
    Read,
}

impl Operation {
    /// Every kind of operation.
    pub const ALL: [Self; 4] = [Self::Write, Self::Sync, Self::Resize, Self::Read];
}

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails and has no effect. Those after it succeed again: whoever goes on regardless will
    /// be found out.
    Fail(ErrorKind),
    /// A write reaches the disk with its first half only, then fails. Any other operation fails.
    Tear,
    /// It fails, and so does everything after it, as if the power had been cut.
    PowerCut,
}

/// A fault that waits for its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of operation it waits for.
    pub operation: Operation,
    /// Which of them it hits, counted from 1 since it was set.
    pub nth: u64,
    /// What it does.
    pub effect: Effect,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Resize(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => {
                let end = offset + data.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[*offset..end].copy_from_slice(data);
            }
            Self::Resize(len) => image.resize(*len, 0),
        }
    }
}

#[derive(Debug)]
struct State {
    /// What a power cut cannot take.
    durable: Vec<u8>,
    /// What has been written since, in order.
    unsynced: Vec<Change>,
    /// What reads see: both together.
    live: Vec<u8>,
    capacity: usize,
    counts: [u64; Operation::ALL.len()],
    fault: Option<Fault>,
    struck: bool,
    powerless: bool,
}

/// A disk in memory that can be made to fail. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct FaultDisk(Arc<Mutex<State>>);

impl Default for FaultDisk {
    fn default() -> Self {
        Self::from_image(Vec::new())
    }
}

impl FaultDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk that holds `image`, all of it synced.
    #[must_use]
    pub fn from_image(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State {
            durable: image.clone(),
            unsynced: Vec::new(),
            live: image,
            capacity: usize::MAX,
            counts: [0; Operation::ALL.len()],
            fault: None,
            struck: false,
            powerless: false,
        })))
    }

    /// What a store is opened on: give it to [`crate::RedbStore::open_with_backend`].
    #[must_use]
    pub fn backend(&self) -> FaultBackend {
        FaultBackend(self.clone())
    }

    /// Sets the fault to come and counts from here.
    pub fn set_fault(&self, fault: Fault) {
        let mut state = self.lock();
        state.counts = Default::default();
        state.fault = Some(fault);
        state.struck = false;
    }

    /// Whether the fault has come.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.lock().struck
    }

    /// How often `operation` was asked for since the disk was made or the last fault was set.
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        self.lock().counts[operation as usize]
    }

    /// Lets the file grow to `bytes` and no further; growing beyond fails as on a full disk.
    pub fn set_capacity(&self, bytes: usize) {
        self.lock().capacity = bytes;
    }

    /// What reads see now.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        self.lock().live.clone()
    }

    /// How many writes and resizes would be in doubt if the power were cut now.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// The disk that is found after a power cut now: everything synced, and of each unsynced
    /// write as many of its first bytes as `kept` says when asked with its place in the order of
    /// writes and its length. A resize asks with length 1. This disk is left as it is.
    #[must_use]
    pub fn after_power_cut(&self, mut kept: impl FnMut(usize, usize) -> usize) -> Self {
        let state = self.lock();
        let mut image = state.durable.clone();
        for (place, change) in state.unsynced.iter().enumerate() {
            match change {
                Change::Write { offset, data } => {
                    let kept = kept(place, data.len()).min(data.len());
                    if kept > 0 {
                        let data = data[..kept].to_vec();
                        Change::Write {
                            offset: *offset,
                            data,
                        }
                        .apply(&mut image);
                    }
                }
                Change::Resize(_) if kept(place, 1) > 0 => change.apply(&mut image),
                Change::Resize(_) => {}
            }
        }
        Self::from_image(image)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is made in one step at the end: a panic leaves the state whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation; if the fault strikes, says how.
    fn begin(state: &mut State, operation: Operation) -> io::Result<Option<Effect>> {
        if state.powerless {
            return Err(io::Error::new(ErrorKind::NotConnected, "the power is cut"));
        }
        state.counts[operation as usize] += 1;
        let now = state.counts[operation as usize];
        let due = state
            .fault
            .filter(|fault| fault.operation == operation && fault.nth == now);
        let Some(fault) = due else { return Ok(None) };
        state.struck = true;
        match fault.effect {
            Effect::Fail(kind) => Err(io::Error::new(kind, "injected fault")),
            Effect::PowerCut => {
                state.powerless = true;
                Err(io::Error::new(ErrorKind::NotConnected, "the power is cut"))
            }
            Effect::Tear => Ok(Some(Effect::Tear)),
        }
    }

    fn change(state: &mut State, change: Change) {
        change.apply(&mut state.live);
        state.unsynced.push(change);
    }
}

/// One opening of a [`FaultDisk`].
#[derive(Debug)]
pub struct FaultBackend(FaultDisk);

impl StorageBackend for FaultBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        if FaultDisk::begin(&mut state, Operation::Read)?.is_some() {
            return Err(io::Error::other("injected fault"));
        }
        let stored = usize::try_from(offset)
            .ok()
            .and_then(|start| state.live.get(start..start.checked_add(out.len())?))
            .ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "read past the end"))?;
        out.copy_from_slice(stored);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        if FaultDisk::begin(&mut state, Operation::Resize)?.is_some() {
            return Err(io::Error::other("injected fault"));
        }
        match usize::try_from(len) {
            Ok(len) if len <= state.capacity.max(state.live.len()) => {
                FaultDisk::change(&mut state, Change::Resize(len));
                Ok(())
            }
            _ => Err(io::Error::new(
                ErrorKind::StorageFull,
                "no space left on device",
            )),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if FaultDisk::begin(&mut state, Operation::Sync)?.is_some() {
            return Err(io::Error::other("injected fault"));
        }
        for change in std::mem::take(&mut state.unsynced) {
            change.apply(&mut state.durable);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        let torn = FaultDisk::begin(&mut state, Operation::Write)?.is_some();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let kept = if torn { data.len() / 2 } else { data.len() };
        FaultDisk::change(
            &mut state,
            Change::Write {
                offset,
                data: data[..kept].to_vec(),
            },
        );
        if torn {
            Err(io::Error::new(ErrorKind::WriteZero, "short write"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_takes_what_was_not_synced() {
        let disk = FaultDisk::new();
        let backend = disk.backend();
        backend.set_len(4).unwrap();
        backend.write(0, b"abcd").unwrap();
        backend.sync_data().unwrap();
        backend.write(0, b"XY").unwrap();
        backend.write(2, b"ZW").unwrap();
        assert_eq!(disk.image(), b"XYZW");
        assert_eq!(disk.unsynced(), 2);
        assert_eq!(disk.after_power_cut(|_, _| 0).image(), b"abcd");
        assert_eq!(disk.after_power_cut(|_, len| len).image(), b"XYZW");
        assert_eq!(disk.after_power_cut(|place, _| place).image(), b"abZd");
    }

    #[test]
    fn faults_strike_once_or_for_good() {
        let disk = FaultDisk::new();
        let backend = disk.backend();
        let fault = |nth, effect| Fault {
            operation: Operation::Write,
            nth,
            effect,
        };
        disk.set_fault(fault(2, Effect::Tear));
        backend.write(0, b"abcd").unwrap();
        assert!(!disk.has_struck());
        assert_eq!(
            backend.write(0, b"EFGH").unwrap_err().kind(),
            ErrorKind::WriteZero
        );
        backend.write(3, b"!").unwrap();
        assert_eq!((disk.has_struck(), disk.image()), (true, b"EFc!".to_vec()));

        disk.set_fault(fault(1, Effect::PowerCut));
        backend.sync_data().unwrap();
        assert!(backend.write(0, b"no").is_err());
        assert!(backend.write(0, b"no").is_err() && backend.sync_data().is_err());
        assert_eq!(disk.image(), b"EFc!");
    }

    #[test]
    fn a_full_disk_says_so() {
        let disk = FaultDisk::new();
        disk.set_capacity(10);
        let backend = disk.backend();
        backend.set_len(10).unwrap();
        assert_eq!(
            backend.set_len(11).unwrap_err().kind(),
            ErrorKind::StorageFull
        );
    }
}
