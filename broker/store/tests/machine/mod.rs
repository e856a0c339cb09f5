//! A machine with two disks, one for the hot file and one for the segments, and one power cable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every test needs all of it")]

use std::io::{self, ErrorKind};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millstream_store::fault::{FaultBackend, FaultDisk};
use millstream_store::segment::fault::FaultFiles;
use millstream_store::segment::{Files, NewFile, ReadAt, StoredFile};
use millstream_store::{
    CommitError, Committed, OfflineStore, OpenError, RedbConfig, RedbStore, Store, WriteBatch,
};
use redb::StorageBackend;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what a thread of the store does of its own accord.
pub(crate) fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    wait_until_or(is_so, || what.to_owned());
}

/// As [`wait_until`]; `what` tells how things stand when it has not come.
pub(crate) fn wait_until_or(mut is_so: impl FnMut() -> bool, what: impl FnOnce() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= deadline {
            panic!("never came: {}", what());
        }
        std::thread::yield_now();
    }
}

/// Runs a future that must end.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await });
    ended.expect("the future ends")
}

pub(crate) fn commit(store: &RedbStore, batch: WriteBatch) -> Result<Committed, CommitError> {
    block_on(store.commit(batch))
}

/// So little room that nearly everything is sealed soon.
pub(crate) fn tiny() -> RedbConfig {
    RedbConfig {
        cache_bytes: 1 << 20,
        hot_bytes: 128 << 10,
        segment_bytes: 32 << 10,
        ..RedbConfig::default()
    }
}

#[derive(Debug)]
struct Switch {
    on: bool,
    /// Changes until the power is cut, and whether the last of them still happens.
    cut: Option<(u64, bool)>,
    /// Changes so far.
    changes: u64,
}

/// Both disks; every operation on either comes one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) disk: FaultDisk,
    pub(crate) files: FaultFiles,
    power: Arc<Mutex<Switch>>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with(FaultDisk::new(), FaultFiles::new())
    }

    pub(crate) fn with(disk: FaultDisk, files: FaultFiles) -> Self {
        let switch = Switch {
            on: true,
            cut: None,
            changes: 0,
        };
        let power = Arc::new(Mutex::new(switch));
        Self { disk, files, power }
    }

    /// A machine of its own with the same on its disks.
    pub(crate) fn copy(&self) -> Self {
        let disk = FaultDisk::from_image(self.disk.image());
        Self::with(disk, self.files.after_power_cut(|_, len| len))
    }

    pub(crate) fn try_open(&self, config: &RedbConfig) -> Result<RedbStore, OpenError> {
        let files = Arc::new(PoweredFiles(self.clone()));
        let backend = PoweredBackend(self.clone(), self.disk.backend());
        RedbStore::open_with(backend, files, "disk.redb", config)
    }

    /// Opens it as a check does, while nobody serves it.
    pub(crate) fn open_offline(&self) -> Result<OfflineStore, OpenError> {
        let files = Arc::new(PoweredFiles(self.clone()));
        let backend = PoweredBackend(self.clone(), self.disk.backend());
        OfflineStore::open_with(backend, files, "disk.redb")
    }

    pub(crate) fn open(&self, config: &RedbConfig) -> RedbStore {
        self.try_open(config).unwrap()
    }

    /// Cuts the power at the `nth` change from now on, counted from 1; `happens` says whether that
    /// change still takes effect.
    pub(crate) fn cut_at(&self, nth: u64, happens: bool) {
        self.power.lock().unwrap().cut = Some((nth, happens));
    }

    pub(crate) fn cut_now(&self) {
        self.power.lock().unwrap().on = false;
    }

    pub(crate) fn is_off(&self) -> bool {
        !self.power.lock().unwrap().on
    }

    /// How many changes there have been on both disks.
    pub(crate) fn changes(&self) -> u64 {
        self.power.lock().unwrap().changes
    }

    /// What is found when the power is back, see [`FaultDisk::after_power_cut`] and
    /// [`FaultFiles::after_power_cut`].
    pub(crate) fn after_cut(
        &self,
        disk: impl FnMut(usize, usize) -> usize,
        files: impl FnMut(usize, usize) -> usize,
    ) -> Self {
        let disk = self.disk.after_power_cut(disk);
        Self::with(disk, self.files.after_power_cut(files))
    }

    /// The numbers of the finished segment files.
    pub(crate) fn segments(&self) -> Vec<u64> {
        let files = self.files.list().unwrap();
        files.iter().map(|file| file.number).collect()
    }

    /// Bytes of all segment files.
    pub(crate) fn segment_bytes(&self) -> u64 {
        let files = self.files.list().unwrap();
        files.iter().map(|file| file.bytes).sum()
    }

    /// Runs `work`, which changes nothing, if there is power.
    fn look<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let switch = self.power.lock().unwrap();
        if switch.on { work() } else { Err(no_power()) }
    }

    /// Runs `work`, which changes something, if there is power; maybe for the last time.
    fn change<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut switch = self.power.lock().unwrap();
        if !switch.on {
            return Err(no_power());
        }
        switch.changes += 1;
        match &mut switch.cut {
            Some((1, happens)) => {
                if *happens {
                    drop(work());
                }
                switch.on = false;
                Err(no_power())
            }
            Some((left, _)) => {
                *left -= 1;
                work()
            }
            None => work(),
        }
    }
}

fn no_power() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "the power is cut")
}

#[derive(Debug)]
struct PoweredBackend(Machine, FaultBackend);

impl StorageBackend for PoweredBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.look(|| self.1.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.look(|| self.1.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.change(|| self.1.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.change(|| self.1.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.change(|| self.1.write(offset, data))
    }
}

struct PoweredFiles(Machine);

impl Files for PoweredFiles {
    fn create(&self, number: u64) -> io::Result<Box<dyn NewFile>> {
        let file = self.0.change(|| self.0.files.create(number))?;
        Ok(Box::new(PoweredFile {
            machine: self.0.clone(),
            file: Some(file),
        }))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.change(|| self.0.files.sync_directory())
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn ReadAt>> {
        let file = self.0.look(|| self.0.files.open(number))?;
        Ok(Arc::new(PoweredRead(self.0.clone(), file)))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        self.0.change(|| self.0.files.remove(number))
    }

    fn set_aside(&self, number: u64) -> io::Result<PathBuf> {
        self.0.change(|| self.0.files.set_aside(number))
    }

    fn list(&self) -> io::Result<Vec<StoredFile>> {
        self.0.look(|| self.0.files.list())
    }

    fn remove_unfinished(&self) -> io::Result<usize> {
        self.0.change(|| self.0.files.remove_unfinished())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.files.path(number)
    }
}

struct PoweredFile {
    machine: Machine,
    /// `None` once it has its own name.
    file: Option<Box<dyn NewFile>>,
}

impl PoweredFile {
    /// Does the last thing with the file. Without power nothing happens to it, not even that it
    /// is dropped, which would remove it.
    fn end(&mut self, work: impl FnOnce(Box<dyn NewFile>) -> io::Result<()>) -> io::Result<()> {
        let mut file = self.file.take();
        let done = self.machine.change(|| file.take().map_or(Ok(()), work));
        let _ = ManuallyDrop::new(file);
        done
    }
}

impl NewFile for PoweredFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().unwrap();
        self.machine.change(|| file.append(bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        let file = self.file.as_mut().unwrap();
        self.machine.change(|| file.sync())
    }

    fn rename(mut self: Box<Self>) -> io::Result<()> {
        self.end(|file| file.rename())
    }
}

impl Drop for PoweredFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            let removed = self.end(|file| {
                drop(file);
                Ok(())
            });
            assert!(removed.is_ok() || self.machine.is_off());
        }
    }
}

struct PoweredRead(Machine, Arc<dyn ReadAt>);

impl ReadAt for PoweredRead {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.look(|| self.1.read_exact_at(bytes, offset))
    }

    fn byte_len(&self) -> u64 {
        self.1.byte_len()
    }
}
