//! `plugin new`: a crate that compiles, tests itself and does something useful.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The directory of this source when the binary was built. A person who built Millstream from a
/// checkout has the plugin SDK there.
const BUILT_FROM: &str = env!("CARGO_MANIFEST_DIR");
/// Where the SDK is in a checkout.
const SDK: &str = "sdk/guest";
/// Longest name of a plugin's crate, in bytes.
const MAX_NAME: usize = 64;

/// What a plugin does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Keeps or drops records.
    Filter,
    /// Turns a record into none, one or many.
    Transform,
    /// Chooses a partition for each record.
    Partitioner,
}

impl Kind {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Filter => "filter",
            Kind::Transform => "transform",
            Kind::Partitioner => "partitioner",
        }
    }

    fn source(self) -> &'static str {
        match self {
            Kind::Filter => include_str!("scaffold/templates/filter.rs"),
            Kind::Transform => include_str!("scaffold/templates/transform.rs"),
            Kind::Partitioner => include_str!("scaffold/templates/partitioner.rs"),
        }
    }

    /// How the README tries it out.
    fn attach(self) -> &'static str {
        match self {
            Kind::Filter => "--config contains=error",
            Kind::Transform => "--config prefix=seen:",
            Kind::Partitioner => "--config separator=:",
        }
    }
}

/// Where a plugin's crate gets the SDK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sdk {
    /// This directory.
    Path(PathBuf),
    /// The registry, in this version.
    Version(&'static str),
}

/// Why there is no new crate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScaffoldError {
    /// The name cannot be a crate's and a plugin's.
    #[error("{0:?} cannot be a plugin's name: use a-z, 0-9 and '-', beginning with a letter")]
    Name(String),
    /// Nothing is overwritten.
    #[error("{} exists already and is not overwritten", .0.display())]
    Exists(PathBuf),
    /// The SDK is not where it was said to be.
    #[error("{} is not the plugin SDK (a crate called millstream-guest)", .0.display())]
    NotSdk(PathBuf),
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn is_sdk(dir: &Path) -> bool {
    fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|manifest| {
        manifest
            .lines()
            .any(|line| line == "name = \"millstream-guest\"")
    })
}

/// Finds the SDK: where the caller says, else in the checkout around `near`, else in the checkout
/// that this binary was built from, else in the registry.
///
/// # Errors
/// [`ScaffoldError::NotSdk`] when the caller names a directory that is something else.
pub(crate) fn find_sdk(said: Option<&Path>, near: &Path) -> Result<Sdk, ScaffoldError> {
    if let Some(dir) = said {
        return match dir.canonicalize() {
            Ok(dir) if is_sdk(&dir) => Ok(Sdk::Path(dir)),
            _ => Err(ScaffoldError::NotSdk(dir.to_owned())),
        };
    }
    let start = near.canonicalize().unwrap_or_else(|_| near.to_owned());
    let checkout = [start.as_path(), Path::new(BUILT_FROM)]
        .into_iter()
        .flat_map(Path::ancestors)
        .map(|dir| dir.join(SDK))
        .find(|dir| is_sdk(dir));
    Ok(checkout.map_or(Sdk::Version(env!("CARGO_PKG_VERSION")), Sdk::Path))
}

/// Writes a crate called `name` into `dir`, which must not exist.
///
/// # Errors
/// [`ScaffoldError`]; a directory begun is left for the person to look at.
pub(crate) fn create(dir: &Path, name: &str, kind: Kind, sdk: &Sdk) -> Result<(), ScaffoldError> {
    check_name(name)?;
    let written = |path: &Path| {
        let path = path.to_owned();
        move |source| ScaffoldError::Write { path, source }
    };
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(ScaffoldError::Exists(dir.to_owned()));
        }
        Err(e) => return Err(written(dir)(e)),
    }
    let source = dir.join("src");
    fs::create_dir(&source).map_err(written(&source))?;
    let readme = include_str!("scaffold/README.md.txt")
        .replace("{name}", name)
        .replace("{file}", &name.replace('-', "_"))
        .replace("{kind}", kind.as_str())
        .replace("{config}", kind.attach());
    for (file, text) in [
        ("Cargo.toml", manifest(name, sdk)),
        ("src/lib.rs", kind.source().to_owned()),
        ("README.md", readme),
        (".gitignore", "/target\n".to_owned()),
    ] {
        let path = dir.join(file);
        fs::write(&path, text).map_err(written(&path))?;
    }
    Ok(())
}

/// Stricter than a plugin's name: cargo has to accept it too.
fn check_name(name: &str) -> Result<(), ScaffoldError> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= MAX_NAME
        && name.chars().all(inner)
        && !matches!(
            name,
            "test" | "core" | "std" | "alloc" | "proc-macro" | "millstream-guest"
        );
    if good {
        Ok(())
    } else {
        Err(ScaffoldError::Name(name.to_owned()))
    }
}

fn manifest(name: &str, sdk: &Sdk) -> String {
    let dependency = match sdk {
        Sdk::Path(path) => {
            // TOML's basic strings escape as JSON's do.
            let quoted = serde_json::Value::from(path.display().to_string());
            format!("{{ path = {quoted} }}")
        }
        Sdk::Version(version) => format!("\"{version}\""),
    };
    include_str!("scaffold/Cargo.toml.txt")
        .replace("{name}", name)
        .replace("{dependency}", &dependency)
}

/// The templates are compiled and their own tests run with ours, so that what a person gets works.
#[cfg(test)]
#[allow(unreachable_pub, reason = "they are written to be crates of their own")]
mod templates {
    mod filter;
    mod partitioner;
    mod transform;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_is_found_in_the_checkout() {
        let Sdk::Path(path) = find_sdk(None, Path::new(".")).unwrap() else {
            panic!("no checkout")
        };
        assert!(path.ends_with(SDK), "{path:?}");
        let nowhere = tempfile::tempdir().unwrap();
        let said = find_sdk(Some(nowhere.path()), Path::new("."));
        assert!(matches!(said, Err(ScaffoldError::NotSdk(_))));
    }

    #[test]
    fn a_manifest_is_a_workspace_of_its_own() {
        for sdk in [
            Sdk::Version("0.1.0"),
            Sdk::Path(PathBuf::from("/a \"quoted\" path")),
        ] {
            let parsed: toml::Table = manifest("drop-debug", &sdk).parse().unwrap();
            assert!(parsed.contains_key("workspace"));
            assert_eq!(parsed["package"]["name"].as_str(), Some("drop-debug"));
            assert_eq!(parsed["lib"]["crate-type"][0].as_str(), Some("cdylib"));
            let dependency = &parsed["dependencies"]["millstream-guest"];
            match sdk {
                Sdk::Version(version) => assert_eq!(dependency.as_str(), Some(version)),
                Sdk::Path(path) => assert_eq!(dependency["path"].as_str(), path.to_str()),
            }
        }
    }

    #[test]
    fn names_that_cargo_or_the_broker_refuse_are_refused_first() {
        let home = tempfile::tempdir().unwrap();
        for bad in ["", "1x", "Upper", "a_b", "a b", "../x", "test"] {
            let made = create(
                &home.path().join("x"),
                bad,
                Kind::Filter,
                &Sdk::Version("1"),
            );
            assert!(matches!(made, Err(ScaffoldError::Name(_))), "{bad}");
        }
        create(
            &home.path().join("x"),
            "x",
            Kind::Filter,
            &Sdk::Version("1"),
        )
        .unwrap();
        let again = create(
            &home.path().join("x"),
            "x",
            Kind::Filter,
            &Sdk::Version("1"),
        );
        assert!(matches!(again, Err(ScaffoldError::Exists(_))));
    }
}
