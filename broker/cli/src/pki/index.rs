//! What the authority has issued and what it has taken back: one document beside it.
//!
//! The list of revoked certificates is made from it, so it is written first: a crash in between
//! leaves a list that the next revocation completes, never one that forgets.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authority::{self, PkiError};
use super::{Layout, files};

/// Version of the document.
const VERSION: u32 = 1;

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A broker.
    Server,
    /// A principal.
    Client,
}

/// Why a certificate is not to be accepted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    /// No reason is given.
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// There is another certificate in its place.
    Superseded,
    /// It is not needed any more.
    Cessation,
}

/// A revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revoked {
    /// When, in milliseconds since the Unix epoch.
    pub(crate) at_ms: i64,
    /// Why.
    pub(crate) reason: Reason,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Its serial number in hexadecimal digits.
    pub(crate) serial: String,
    /// Whom it is for.
    pub(crate) kind: Kind,
    /// The principal, or the broker's names.
    pub(crate) subject: String,
    /// From when, in milliseconds since the Unix epoch.
    pub(crate) not_before_ms: i64,
    /// Until when, in milliseconds since the Unix epoch.
    pub(crate) not_after_ms: i64,
    /// Where it is, from the directory on.
    pub(crate) file: PathBuf,
    /// That it was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked: Option<Revoked>,
}

/// What can be said of a certificate at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// It can be used.
    Valid,
    /// Its time has not come, or is over.
    Expired,
    /// It was taken back.
    Revoked,
}

impl State {
    /// In a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl Entry {
    /// Whether it can be used.
    pub(crate) fn state(&self, now_ms: i64) -> State {
        match &self.revoked {
            Some(_) => State::Revoked,
            None if (self.not_before_ms..self.not_after_ms).contains(&now_ms) => State::Valid,
            None => State::Expired,
        }
    }
}

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    version: u32,
    /// Number of the last list of revoked certificates, which only grows.
    pub(crate) list_number: u64,
    /// In the order in which they were issued.
    pub(crate) certificates: Vec<Entry>,
}

impl Index {
    /// One of an authority that has issued nothing.
    pub(crate) fn new() -> Self {
        Self {
            version: VERSION,
            list_number: 0,
            certificates: Vec::new(),
        }
    }

    /// The index of a directory. One that was made before there were indexes gets one from the
    /// certificates in it.
    pub(crate) fn read(layout: &Layout) -> Result<Self, PkiError> {
        let path = layout.index();
        if !path.exists() {
            return Self::from_files(layout);
        }
        let text = files::read(&path)?;
        let unusable = |why: String| PkiError::Index {
            path: path.clone(),
            why,
        };
        let index: Self = serde_json::from_str(&text).map_err(|e| unusable(e.to_string()))?;
        if index.version != VERSION {
            return Err(unusable(format!("it is of version {}", index.version)));
        }
        Ok(index)
    }

    fn from_files(layout: &Layout) -> Result<Self, PkiError> {
        let mut index = Self::new();
        let root = layout.root();
        let mut add = |path: &Path| {
            let pem = files::read(path)?;
            let entry = authority::describe(&pem).map_err(|why| PkiError::Index {
                path: path.to_owned(),
                why,
            })?;
            let file = path.strip_prefix(root).unwrap_or(path).to_owned();
            index.certificates.push(Entry { file, ..entry });
            Ok::<_, PkiError>(())
        };
        let server = layout.server().certificate;
        if server.exists() {
            add(&server)?;
        }
        let clients = layout.clients();
        for tenant in children(&clients)? {
            for file in children(&tenant)? {
                if file.extension().is_some_and(|e| e == "pem") {
                    add(&file)?;
                }
            }
        }
        Ok(index)
    }

    /// Writes it in one step.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), PkiError> {
        let text = serde_json::to_string_pretty(self).map_err(|e| PkiError::Index {
            path: layout.index(),
            why: e.to_string(),
        })?;
        files::replace(&layout.index(), &(text + "\n"), files::PRIVATE)
    }

    /// What a serial number means, in any case and with or without colons.
    pub(crate) fn of_serial(&mut self, serial: &str) -> Option<&mut Entry> {
        let wanted = serial.replace(':', "").to_ascii_lowercase();
        self.certificates.iter_mut().find(|e| e.serial == wanted)
    }
}

/// What is in a directory, in order; nothing when it is not one.
fn children(dir: &Path) -> Result<Vec<PathBuf>, PkiError> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |source| PkiError::File {
        action: "read",
        path: dir.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}
