//! Files that only their owner may read, and that are never overwritten.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
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

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(error("read", path))
}
