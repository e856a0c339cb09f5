//! The directory that segments lie in, behind a seam narrow enough for a test to break each step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SegmentError;

/// A place for segment files, each known by its number.
pub trait Files: Send + Sync + 'static {
    /// Begins a file under a temporary name.
    ///
    /// # Errors
    /// If there is a finished file of that number already, or the system refuses.
    fn create(&self, number: u64) -> io::Result<Box<dyn NewFile>>;

    /// Makes durable which files there are and what they are called.
    ///
    /// # Errors
    /// If the system refuses. Then nobody knows which of the recent names survive a crash.
    fn sync_directory(&self) -> io::Result<()>;

    /// Opens a finished file.
    ///
    /// # Errors
    /// If there is none, or the system refuses.
    fn open(&self, number: u64) -> io::Result<Arc<dyn ReadAt>>;

    /// Removes a finished file. Whoever has it open can go on reading. Not synced: a file that is
    /// back after a crash is one that nobody knows, to be removed again.
    ///
    /// # Errors
    /// If there is none, or the system refuses.
    fn remove(&self, number: u64) -> io::Result<()>;

    /// Gives a finished file a second name, where nobody looks for segments, and makes that
    /// durable. Says what it is called there; one that is there already stays.
    ///
    /// # Errors
    /// If there is none, or the system refuses. It may have the second name all the same.
    fn set_aside(&self, number: u64) -> io::Result<PathBuf>;

    /// The finished files, by number.
    ///
    /// # Errors
    /// If the system refuses.
    fn list(&self) -> io::Result<Vec<StoredFile>>;

    /// Removes what crashes have left under temporary names, and says how many there were. Not to
    /// be called while a file is being written.
    ///
    /// # Errors
    /// If the system refuses.
    fn remove_unfinished(&self) -> io::Result<usize>;

    /// What to call the file of that number when speaking to people.
    fn path(&self, number: u64) -> PathBuf;
}

/// A file that is being written under a temporary name. Dropping it removes it.
pub trait NewFile: Send {
    /// Writes all of `bytes` at the end.
    ///
    /// # Errors
    /// If the system refuses; then an unknown part of the bytes has been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what has been written.
    ///
    /// # Errors
    /// If the system refuses. Trying again proves nothing: drop the file.
    fn sync(&mut self) -> io::Result<()>;

    /// Gives the file its own name; [`Files::sync_directory`] makes that durable.
    ///
    /// # Errors
    /// If the system refuses; then the file is removed.
    fn rename(self: Box<Self>) -> io::Result<()>;
}

/// A finished file.
pub trait ReadAt: Send + Sync {
    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] if the file ends before, or what the system says.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// The length of the file when it was opened.
    fn byte_len(&self) -> u64;
}

/// A finished file, as a directory knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its number.
    pub number: u64,
    /// Its length.
    pub bytes: u64,
}

const SUFFIX: &str = ".seg";
const UNFINISHED_SUFFIX: &str = ".seg.new";
const DIGITS: usize = 16;

/// Where files go that were set aside, within the directory.
const QUARANTINE: &str = "quarantine";

/// The number in a file's name, if the name is one that [`DirFiles`] gives.
fn number_of(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != DIGITS || !digits.bytes().all(is_digit) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// A directory of the file system. Files with other names than its own are left alone.
#[derive(Clone, Debug)]
pub struct DirFiles {
    directory: Arc<Path>,
}

impl DirFiles {
    /// The directory at `path`, which is created if it is not there. Its parent must be there.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the system refuses.
    pub fn open(path: &Path) -> Result<Self, SegmentError> {
        match fs::create_dir(path) {
            Ok(()) => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new("."));
                sync_directory(parent).map_err(SegmentError::io("sync", parent))?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(SegmentError::io("create", path)(error)),
        }
        Ok(Self {
            directory: path.into(),
        })
    }

    fn named(&self, number: u64, suffix: &str) -> PathBuf {
        self.directory.join(format!("{number:016x}{suffix}"))
    }

    /// Calls `each` with every file whose name ends in `suffix` after a number.
    fn each(
        &self,
        suffix: &str,
        mut each: impl FnMut(u64, fs::DirEntry) -> io::Result<()>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(number) = name.to_str().and_then(|name| number_of(name, suffix)) {
                each(number, entry)?;
            }
        }
        Ok(())
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Files for DirFiles {
    fn create(&self, number: u64) -> io::Result<Box<dyn NewFile>> {
        // A rename replaces what has the name already, and sealed data is never replaced.
        if self.path(number).try_exists()? {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let path = self.named(number, UNFINISHED_SUFFIX);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        Ok(Box::new(NewDirFile {
            file,
            finished: self.path(number),
            unfinished: Some(path),
        }))
    }

    fn sync_directory(&self) -> io::Result<()> {
        sync_directory(&self.directory)
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn ReadAt>> {
        let file = File::open(self.path(number))?;
        let len = file.metadata()?.len();
        Ok(Arc::new(OpenFile { file, len }))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        fs::remove_file(self.path(number))
    }

    fn set_aside(&self, number: u64) -> io::Result<PathBuf> {
        let unless_there = |done: io::Result<()>| match done {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            done => done,
        };
        let directory = self.directory.join(QUARANTINE);
        unless_there(fs::create_dir(&directory))?;
        // Also if it was there: whoever made it may have come to an end before this.
        sync_directory(&self.directory)?;
        let file = self.path(number);
        let aside = directory.join(file.file_name().unwrap_or_default());
        unless_there(fs::hard_link(&file, &aside))?;
        sync_directory(&directory)?;
        Ok(aside)
    }

    fn list(&self) -> io::Result<Vec<StoredFile>> {
        let mut files = Vec::new();
        self.each(SUFFIX, |number, entry| {
            let bytes = entry.metadata()?.len();
            files.push(StoredFile { number, bytes });
            Ok(())
        })?;
        files.sort_unstable_by_key(|file| file.number);
        Ok(files)
    }

    fn remove_unfinished(&self) -> io::Result<usize> {
        let mut removed = 0;
        self.each(UNFINISHED_SUFFIX, |_, entry| {
            removed += 1;
            fs::remove_file(entry.path())
        })?;
        Ok(removed)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.named(number, SUFFIX)
    }
}

struct NewDirFile {
    file: File,
    finished: PathBuf,
    /// The temporary name, until the file has its own.
    unfinished: Option<PathBuf>,
}

impl NewFile for NewDirFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn rename(mut self: Box<Self>) -> io::Result<()> {
        if let Some(path) = &self.unfinished {
            fs::rename(path, &self.finished)?;
        }
        self.unfinished = None;
        Ok(())
    }
}

impl Drop for NewDirFile {
    fn drop(&mut self) {
        let Some(path) = self.unfinished.take() else {
            return;
        };
        if let Err(error) = fs::remove_file(&path) {
            // It takes space until the next start, which removes it.
            tracing::warn!(file = %path.display(), %error, "could not remove an unfinished segment");
        }
    }
}

struct OpenFile {
    file: File,
    len: u64,
}

impl ReadAt for OpenFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn byte_len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn write(files: &DirFiles, number: u64, parts: &[&[u8]]) -> Box<dyn NewFile> {
        let mut file = files.create(number).unwrap();
        for part in parts {
            file.append(part).unwrap();
        }
        file.sync().unwrap();
        file
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let files = DirFiles::open(&directory.path().join("segments")).unwrap();
        let unfinished = write(&files, 7, &[b"", b"abc", b"", b"def", b""]);
        assert_eq!(files.list().unwrap(), []);
        assert_eq!(
            files.open(7).err().map(|e| e.kind()),
            Some(ErrorKind::NotFound)
        );

        unfinished.rename().unwrap();
        files.sync_directory().unwrap();
        let listed = StoredFile {
            number: 7,
            bytes: 6,
        };
        assert_eq!(files.list().unwrap(), [listed]);
        let file = files.open(7).unwrap();
        let mut read = [0; 4];
        file.read_exact_at(&mut read, 1).unwrap();
        assert_eq!((&read, file.byte_len()), (b"bcde", 6));
        assert!(files.path(7).ends_with("0000000000000007.seg"));
        let refused = files.create(7).err().map(|e| e.kind());
        assert_eq!(refused, Some(ErrorKind::AlreadyExists));

        let aside = files.set_aside(7).unwrap();
        assert_eq!(files.set_aside(7).unwrap(), aside);
        files.remove(7).unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"abcdef");
        assert_eq!(
            files.set_aside(8).map_err(|e| e.kind()),
            Err(ErrorKind::NotFound)
        );
        file.read_exact_at(&mut read, 2).unwrap();
        assert_eq!(&read, b"cdef");
        assert_eq!(files.list().unwrap(), []);
    }

    #[test]
    fn what_was_not_finished_goes_and_strangers_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let files = DirFiles::open(path).unwrap();
        drop(write(&files, 1, &[b"abc"]));
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);

        let strangers = [
            "1.seg",
            "000000000000000A.seg",
            "notes.seg.new",
            "+000000000000001.seg",
        ];
        for name in strangers {
            fs::write(path.join(name), b"x").unwrap();
        }
        fs::write(path.join("00000000000000ff.seg.new"), b"x").unwrap();
        assert_eq!(files.list().unwrap(), []);
        assert_eq!(files.remove_unfinished().unwrap(), 1);
        assert_eq!(fs::read_dir(path).unwrap().count(), strangers.len());
    }
}
