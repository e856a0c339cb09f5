//! Files that only their owner may write, keys that only their owner may read, and no key that is
//! ever overwritten.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::PkiError;

/// Mode of keys.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of certificates.
pub(crate) const PUBLIC: u32 = 0o644;
/// Mode of directories.
const DIRECTORY: u32 = 0o700;

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File {
        action,
        path,
        source,
    }
}

/// Makes a directory for its owner alone. One that is there is used if others may not write to
/// it, which would let them put their own authority in place of this one.
pub(crate) fn create_directory(path: &Path) -> Result<(), PkiError> {
    match DirBuilder::new()
        .recursive(false)
        .mode(DIRECTORY)
        .create(path)
    {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::metadata(path).map_err(error("read", path))?;
            if !metadata.is_dir() {
                return Err(PkiError::Exists(path.to_owned()));
            }
            if metadata.permissions().mode() & 0o022 != 0 {
                return Err(PkiError::Writable(path.to_owned()));
            }
            Ok(())
        }
        Err(e) => Err(error("create", path)(e)),
    }
}

/// Writes a file that must not exist yet.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    match opened {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(error("write", path)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Err(PkiError::Exists(path.to_owned()))
        }
        Err(e) => Err(error("create", path)(e)),
    }
}

/// Writes a file that may exist, in one step: whoever reads it sees the old text or the new one.
pub(crate) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    // What a crash has left.
    match fs::remove_file(beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error("replace", beside)(e)),
        _ => {}
    }
    write_new(beside, text, mode)?;
    fs::rename(beside, path).map_err(error("replace", path))?;
    sync_directory_of(path)
}

/// Moves a file to where none is.
pub(crate) fn set_aside(from: &Path, to: &Path) -> Result<(), PkiError> {
    if to.exists() {
        return Err(PkiError::Exists(to.to_owned()));
    }
    fs::rename(from, to).map_err(error("move", from))?;
    sync_directory_of(to)
}

fn sync_directory_of(path: &Path) -> Result<(), PkiError> {
    let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Ok(());
    };
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(error("write", dir))
}

/// Waits until nobody else changes the directory; held until it is dropped.
pub(crate) fn lock(path: &Path) -> Result<File, PkiError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(path)
        .map_err(error("create", path))?;
    file.lock().map_err(error("lock", path))?;
    Ok(file)
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(error("read", path))
}

/// The text of a key, unless others than its owner may read it.
pub(crate) fn read_key(path: &Path) -> Result<String, PkiError> {
    let mut file = File::open(path).map_err(error("read", path))?;
    // Of the open file, not of the path: what is checked is what is read.
    let metadata = file.metadata().map_err(error("read", path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PkiError::OpenKey {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    file.read_to_string(&mut text)
        .map_err(error("read", path))?;
    Ok(text)
}
