//! The context file: named brokers and identities, one of them current.
//!
//! ```toml
//! current = "local"
//!
//! [context.local]
//! addr = "localhost:7440"
//! ca = "pki/ca.pem"
//! cert = "pki/admin.pem"
//! key = "pki/admin.key"
//! ```
//! Paths that are not absolute count from the file's own directory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{ClientConfig, Identity, read_small};

/// Largest context file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why contexts cannot be read, changed or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// Neither of the variables that say where the file lies is set.
    #[error("there is no home directory: set MILLSTREAM_CONFIG to the path of a context file")]
    NoPlace,
    /// The file cannot be read.
    #[error("cannot read the context file {path}: {why}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The file is not what it should be.
    #[error("the context file {path} is not valid: {why}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line and cause.
        why: String,
    },
    /// The file cannot be written.
    #[error("cannot write the context file {path}: {why}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// No context of this name.
    #[error("there is no context {name:?}; known: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// None was chosen.
    #[error("no context is current: choose one of {known}, or give address and certificates")]
    NoCurrent {
        /// Those there are.
        known: String,
    },
}

/// How to reach one broker as one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `host:port`.
    pub addr: String,
    /// The name that the broker's certificate must carry, where it is not the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM file of the authority.
    pub ca: PathBuf,
    /// PEM file of the client's certificate.
    pub cert: PathBuf,
    /// PEM file of the client's private key.
    pub key: PathBuf,
}

/// The contexts of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one that is used where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All of them by name.
    #[serde(default, rename = "context")]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Where the file lies: `MILLSTREAM_CONFIG`, else
    /// `$XDG_CONFIG_HOME/millstream/contexts.toml`, else
    /// `~/.config/millstream/contexts.toml`.
    ///
    /// # Errors
    /// [`ContextError::NoPlace`] when none of the variables is set.
    pub fn default_path() -> Result<PathBuf, ContextError> {
        path_from(|name| std::env::var_os(name))
    }

    /// Reads a context file; one that does not exist counts as empty.
    ///
    /// # Errors
    /// [`ContextError::Read`], or [`ContextError::Parse`] with the line.
    pub fn load(path: &Path) -> Result<Self, ContextError> {
        let text = match read_small(path, MAX_FILE_BYTES) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => {
                return Err(ContextError::Read {
                    path: path.to_owned(),
                    why: e.to_string(),
                });
            }
        };
        toml::from_str(&text).map_err(|e| ContextError::Parse {
            path: path.to_owned(),
            why: e.to_string(),
        })
    }

    /// Writes the file, in one step: a reader sees the old or the new one whole.
    /// Directories are made where they are missing.
    ///
    /// # Errors
    /// [`ContextError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), ContextError> {
        let failed = |why: String| ContextError::Write {
            path: path.to_owned(),
            why,
        };
        let text = toml::to_string_pretty(self).map_err(|e| failed(e.to_string()))?;
        replace(path, text.as_bytes()).map_err(|e| failed(e.to_string()))
    }

    /// The context called `name`, or the current one.
    ///
    /// # Errors
    /// [`ContextError::Unknown`] or [`ContextError::NoCurrent`], with the names there are.
    pub fn choose(&self, name: Option<&str>) -> Result<(&str, &Context), ContextError> {
        let known = || {
            let names: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        let name = name
            .or(self.current.as_deref())
            .ok_or_else(|| ContextError::NoCurrent { known: known() })?;
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok((name, context)),
            None => Err(ContextError::Unknown {
                name: name.to_owned(),
                known: known(),
            }),
        }
    }
}

impl Context {
    /// A client configuration; relative paths count from the directory of the
    /// context file `file`.
    #[must_use]
    pub fn client_config(&self, file: &Path) -> ClientConfig {
        let dir = file.parent().unwrap_or(Path::new(""));
        let identity = Identity::new(
            dir.join(&self.ca),
            dir.join(&self.cert),
            dir.join(&self.key),
        );
        let config = ClientConfig::new(&self.addr, identity);
        match &self.server_name {
            Some(name) => config.server_name(name),
            None => config,
        }
    }
}

fn path_from(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, ContextError> {
    let set = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(file) = set("MILLSTREAM_CONFIG") {
        return Ok(file);
    }
    // The convention says that a relative XDG_CONFIG_HOME is to be ignored.
    let base = set("XDG_CONFIG_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .ok_or(ContextError::NoPlace)?;
    Ok(base.join("millstream").join("contexts.toml"))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut name = path
        .file_name()
        .ok_or_else(|| io::Error::other("the path has no file name"))?
        .to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let done = written.and_then(|()| std::fs::rename(&beside, path));
    if done.is_err() {
        // Best effort: the error that matters is the one that led here.
        let _ = std::fs::remove_file(&beside);
    }
    done
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    fn sample() -> Contexts {
        let context = Context {
            addr: "localhost:7440".into(),
            server_name: None,
            ca: "ca.pem".into(),
            cert: "/abs/me.pem".into(),
            key: "me.key".into(),
        };
        Contexts {
            current: Some("local".into()),
            contexts: BTreeMap::from([("local".into(), context)]),
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/contexts.toml");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        sample().save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), sample());
        let files = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "nothing is left beside it");
    }

    #[test]
    fn unknown_keys_and_their_line_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "current = \"a\"\ncolour = 1\n").unwrap();
        let e = Contexts::load(&path).unwrap_err().to_string();
        assert!(e.contains("colour") && e.contains("line 2"), "{e}");
    }

    #[test]
    fn a_context_is_chosen_by_name_or_by_being_current() {
        let mut contexts = sample();
        assert_eq!(contexts.choose(None).unwrap().0, "local");
        let e = contexts.choose(Some("far")).unwrap_err().to_string();
        assert!(e.contains("far") && e.contains("local"), "{e}");
        contexts.current = None;
        assert!(matches!(
            contexts.choose(None),
            Err(ContextError::NoCurrent { .. })
        ));
    }

    #[test]
    fn relative_paths_count_from_the_file() {
        let config = sample().contexts["local"].client_config(Path::new("/etc/ms/c.toml"));
        let expected = Identity::new(
            Path::new("/etc/ms/ca.pem"),
            Path::new("/abs/me.pem"),
            Path::new("/etc/ms/me.key"),
        );
        assert_eq!(config.identity, expected);
    }

    #[test]
    fn the_place_follows_the_environment() {
        let check = |vars: &[(&str, &str)], expected: Option<&str>| {
            let var = |name: &str| {
                let found = vars.iter().find(|(n, _)| *n == name);
                found.map(|(_, v)| OsString::from(v))
            };
            assert_eq!(path_from(var).ok(), expected.map(PathBuf::from), "{vars:?}");
        };
        check(&[], None);
        check(
            &[("HOME", "/h")],
            Some("/h/.config/millstream/contexts.toml"),
        );
        let xdg = ("XDG_CONFIG_HOME", "/x");
        check(&[("HOME", "/h"), xdg], Some("/x/millstream/contexts.toml"));
        check(&[xdg, ("MILLSTREAM_CONFIG", "f.toml")], Some("f.toml"));
        check(
            &[("XDG_CONFIG_HOME", "rel"), ("HOME", "/h")],
            Some("/h/.config/millstream/contexts.toml"),
        );
    }
}
