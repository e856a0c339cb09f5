//! Compiled plugins on disk: a cache that may be deleted at any time.
//!
//! ```text
//! magic 8 | engine 8 | component's SHA-256 32 | artifact's SHA-256 32 | artifact
//! ```
//! A file is bound to the component it was compiled from and to the engine that compiled it, both
//! in its name and in its header. Whatever does not match is a cache miss, not an error: the
//! component is compiled again. Files are written beside their name and renamed into place.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use millstream_proto::message::Digest;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;

use crate::limits::{MAX_ARTIFACT_BYTES, MAX_CACHE_BYTES};

const MAGIC: [u8; 8] = *b"MSCWASM1";
const HEADER: usize = 8 + 8 + 32 + 32;
const EXTENSION: &str = "cwasm";
const UNFINISHED: &str = "tmp";

/// A directory of compiled artifacts for one engine configuration.
#[derive(Debug)]
pub(crate) struct ArtifactCache {
    directory: PathBuf,
    /// Changes with wasmtime's version, the target CPU and every setting that affects code.
    engine: [u8; 8],
    max_bytes: u64,
}

impl ArtifactCache {
    /// Opens or creates the directory, makes it private, and clears what a crash left unfinished.
    pub(crate) fn open(directory: PathBuf, engine: &Engine) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine = hasher.finish().to_le_bytes();
        let cache = Self {
            directory,
            engine,
            max_bytes: MAX_CACHE_BYTES,
        };
        for (path, _) in cache.files(UNFINISHED)? {
            fs::remove_file(path)?;
        }
        Ok(cache)
    }

    fn path(&self, component: &Digest) -> PathBuf {
        let engine = u64::from_le_bytes(self.engine);
        self.directory
            .join(format!("{component}-{engine:016x}.{EXTENSION}"))
    }

    /// The artifact of a component; none if there is none that can be trusted.
    pub(crate) fn load(&self, component: &Digest) -> Option<Vec<u8>> {
        let path = self.path(component);
        match self.read(&path, component) {
            Ok(artifact) => Some(artifact),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled plugin is not usable; compiling it again");
                None
            }
        }
    }

    fn read(&self, path: &Path, component: &Digest) -> io::Result<Vec<u8>> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut file = File::open(path)?;
        if file.metadata()?.len() > MAX_ARTIFACT_BYTES {
            return Err(wrong("larger than any artifact"));
        }
        let mut header = [0; HEADER];
        file.read_exact(&mut header)?;
        let (magic, rest) = header.split_at(8);
        let (engine, rest) = rest.split_at(8);
        let (of, checksum) = rest.split_at(32);
        if magic != MAGIC || engine != self.engine || of != component.0 {
            return Err(wrong("of another format, engine or component"));
        }
        let mut artifact = Vec::new();
        file.take(MAX_ARTIFACT_BYTES).read_to_end(&mut artifact)?;
        if Sha256::digest(&artifact)[..] != *checksum {
            return Err(wrong(
                "changed since it was written: its checksum does not match",
            ));
        }
        Ok(artifact)
    }

    /// Writes the artifact of a component, and makes room for it.
    pub(crate) fn store(&self, component: &Digest, artifact: &[u8]) -> io::Result<()> {
        let path = self.path(component);
        // One process owns the directory and `registry` stores one artifact at a time.
        let unfinished = path.with_extension(UNFINISHED);
        let written = self.write(&unfinished, component, artifact);
        let written = written.and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            // Best effort: the next start clears it, and the first error is the one to report.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.prune(&path)
    }

    fn write(&self, path: &Path, component: &Digest, artifact: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&MAGIC)?;
        file.write_all(&self.engine)?;
        file.write_all(&component.0)?;
        file.write_all(&Sha256::digest(artifact))?;
        // Not synced: a file torn by a crash fails its checksum and is compiled again.
        file.write_all(artifact)
    }

    fn files(&self, extension: &str) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry
                .path()
                .extension()
                .is_some_and(|found| found == extension)
            {
                files.push((entry.path(), entry.metadata()?));
            }
        }
        Ok(files)
    }

    /// Removes the artifacts that were written longest ago until the rest fits.
    fn prune(&self, keep: &Path) -> io::Result<()> {
        let mut files = self.files(EXTENSION)?;
        let mut total: u64 = files.iter().map(|(_, metadata)| metadata.len()).sum();
        files.sort_by_key(|(_, metadata)| metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        for (path, metadata) in files {
            if total <= self.max_bytes {
                break;
            }
            if path != keep {
                fs::remove_file(&path)?;
                total -= metadata.len();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

    use super::*;

    const ONE: Digest = Digest([1; 32]);
    const TWO: Digest = Digest([2; 32]);

    fn cache(directory: &Path) -> ArtifactCache {
        ArtifactCache::open(directory.join("artifacts"), &Engine::default()).unwrap()
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        assert_eq!(cache.load(&ONE), None);
        cache.store(&ONE, b"code").unwrap();
        cache.store(&ONE, b"more code").unwrap();
        assert_eq!(cache.load(&ONE).unwrap(), b"more code");
        assert_eq!(cache.load(&TWO), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&cache.directory), 0o700);
        assert_eq!(mode(&cache.path(&ONE)), 0o600);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        cache.store(&ONE, b"code").unwrap();
        let good = fs::read(cache.path(&ONE)).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(cache.path(&ONE), bad).unwrap();
            assert_eq!(cache.load(&ONE), None, "bit {bit}");
        }
        for len in 0..good.len() {
            fs::write(cache.path(&ONE), &good[..len]).unwrap();
            assert_eq!(cache.load(&ONE), None, "length {len}");
        }
        fs::write(cache.path(&ONE), &good).unwrap();
        assert_eq!(cache.load(&ONE).unwrap(), b"code");
    }

    #[test]
    fn a_file_under_anothers_name_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        cache.store(&ONE, b"code").unwrap();
        fs::rename(cache.path(&ONE), cache.path(&TWO)).unwrap();
        assert_eq!(cache.load(&TWO), None);
    }

    #[test]
    fn another_engine_configuration_does_not_see_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        cache.store(&ONE, b"code").unwrap();
        let other = Engine::new(wasmtime::Config::new().epoch_interruption(true)).unwrap();
        let other = ArtifactCache::open(dir.path().join("artifacts"), &other).unwrap();
        assert_ne!(other.engine, cache.engine);
        assert_eq!(other.load(&ONE), None);
        fs::rename(cache.path(&ONE), other.path(&ONE)).unwrap();
        assert_eq!(other.load(&ONE), None);
    }

    #[test]
    fn the_oldest_make_room_and_unfinished_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = cache(dir.path());
        cache.max_bytes = 2 * (HEADER as u64 + 100);
        let age = |digest, seconds| {
            let file = OpenOptions::new()
                .write(true)
                .open(cache.path(digest))
                .unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
                .unwrap();
        };
        cache.store(&ONE, &[0; 100]).unwrap();
        age(&ONE, 2);
        cache.store(&TWO, &[0; 100]).unwrap();
        age(&TWO, 1);
        cache.store(&Digest([3; 32]), &[0; 100]).unwrap();
        assert_eq!(
            (cache.load(&ONE).is_some(), cache.load(&TWO).is_some()),
            (true, false)
        );
        fs::write(cache.path(&TWO).with_extension(UNFINISHED), b"half").unwrap();
        let cache = ArtifactCache::open(cache.directory.clone(), &Engine::default()).unwrap();
        assert_eq!(cache.files(UNFINISHED).unwrap().len(), 0);
        assert!(cache.load(&ONE).is_some());
    }
}
