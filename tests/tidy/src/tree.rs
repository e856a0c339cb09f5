//! The tree of the repository, read once: every text file outside of build output.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Directories that hold no source, wherever they lie.
const SKIPPED: [&str; 3] = [".git", "target", "book"];
/// Endings of files that the rules read.
const READ: [&str; 6] = ["rs", "toml", "md", "wit", "sh", "yml"];

/// A text file.
#[derive(Clone, Debug)]
pub struct File {
    /// From the root of the repository, with `/` between its parts.
    pub path: String,
    /// Its contents.
    pub text: String,
}

impl File {
    /// A file that is not on the disk, for trying a rule.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// Its name without directories.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Whether its name ends in a dot and this.
    #[must_use]
    pub fn is(&self, ending: &str) -> bool {
        self.name()
            .rsplit_once('.')
            .is_some_and(|(_, e)| e == ending)
    }
}

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every file under `root` that the rules read, in the order of their paths.
///
/// # Errors
/// When a directory or a file cannot be read; the error names it.
pub fn read(root: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir)).map_err(|e| named(&dir, &e))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = dir.join(&name);
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                open.push(path);
            } else if kind.is_file() && is_read(&path) {
                let text = fs::read_to_string(entry.path()).map_err(|e| named(&path, &e))?;
                let path = path.to_string_lossy().replace('\\', "/");
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The names at the top level of `root`.
///
/// # Errors
/// When the directory cannot be read.
pub fn top_level(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn is_read(path: &Path) -> bool {
    match path.extension() {
        Some(ending) => ending.to_str().is_some_and(|e| READ.contains(&e)),
        // The gate is a script without an ending.
        None => path.starts_with(".ci"),
    }
}

fn named(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn this_file_is_in_the_tree() {
        let files = read(&root()).unwrap();
        let found = files.iter().any(|f| f.path == "tests/tidy/src/tree.rs");
        assert!(found, "the walk of {} missed it", root().display());
        assert!(
            !files
                .iter()
                .any(|f| f.path.split('/').any(|part| part == "target"))
        );
    }

    #[test]
    fn an_ending_is_the_last_one() {
        assert!(File::new("a/b.tar.rs", "").is("rs"));
        assert!(!File::new("a/rs", "").is("rs"));
    }
}
