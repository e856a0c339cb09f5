//! Compiles Millstream plugins for wasm32-wasip2.
//!
//! One function, [`build`], runs cargo in a directory of the caller's choosing and says where the
//! components are. It is what the build script of the example plugins calls, and what
//! `millstream plugin build` calls, so a plugin is the same bytes in both.
//!
//! A build script runs inside another cargo, whose environment would leak into this one: flags
//! for the host's CPU, a wrapper around rustc, another target directory. So the environment is
//! cleaned first. A missing target is added by rustup, and said.
//!
//! Absent: any look inside the components; the broker validates them.

mod cargo;
mod environment;
mod message;
mod target;

use std::path::{Path, PathBuf};

pub use target::INSTALL_RUSTUP;

/// The target that plugins are compiled for.
pub const TARGET: &str = "wasm32-wasip2";

/// What may be said about a build beyond where it is.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only these packages; all members of the workspace if empty.
    pub packages: Vec<String>,
}

/// A line about the progress of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The target is being added, or was: the machine changes, so a person should see it.
    Target(&'a str),
    /// What cargo says of its own work.
    Cargo(&'a str),
}

/// One component that was built.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Artifact {
    /// The name of the package.
    pub name: String,
    /// The component, under the target directory.
    pub path: PathBuf,
}

/// Why there are no components.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no package or workspace here.
    #[error("{} has no Cargo.toml: name the directory of a plugin's crate", .0.display())]
    NoManifest(PathBuf),
    /// A tool could not be started.
    #[error("cannot run {tool}: {source}; install Rust with: {INSTALL_RUSTUP}")]
    Start {
        /// Which one.
        tool: String,
        /// Why.
        source: std::io::Error,
    },
    /// The target is missing and there is no rustup to add it.
    #[error(
        "the Rust target {TARGET} is not installed and rustup is not there to add it; run: {INSTALL_RUSTUP}"
    )]
    NoRustup,
    /// The target is missing and the network must not be used.
    #[error(
        "the Rust target {TARGET} is not installed and CARGO_NET_OFFLINE forbids fetching it; run: {command}"
    )]
    Offline {
        /// What to run.
        command: String,
    },
    /// Rustup could not add the target.
    #[error("{command} failed:\n{output}")]
    AddTarget {
        /// What was run.
        command: String,
        /// What it said.
        output: String,
    },
    /// Rustup added the target, but not to the toolchain that is used.
    #[error(
        "{command} succeeded, but rustc still lacks the target {TARGET}: the rustc found first is \
         not rustup's; put rustup's directory first in PATH, or run: {INSTALL_RUSTUP}"
    )]
    OtherToolchain {
        /// What was run.
        command: String,
    },
    /// Cargo could not build the plugins.
    #[error("cargo could not build the plugins in {} ({status}):\n{output}", directory.display())]
    Cargo {
        /// Where it ran.
        directory: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// Cargo succeeded, but nothing in it is a plugin.
    #[error("{} builds no component: a plugin's Cargo.toml needs [lib] crate-type = [\"cdylib\"]", .0.display())]
    NoComponent(PathBuf),
}

/// Compiles the plugins of the crate or workspace in `directory` for [`TARGET`], in its release
/// profile with SIMD, and returns them sorted by name.
///
/// Everything that is written goes to `target`, a directory of this build's own. A `Cargo.lock`
/// in `directory` is used as it is. Lines of progress go to `say` as they come.
///
/// # Errors
/// Each of [`BuildError`] says what to do.
pub fn build(
    directory: &Path,
    target: &Path,
    options: &Options,
    say: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Artifact>, BuildError> {
    if !directory.join("Cargo.toml").is_file() {
        return Err(BuildError::NoManifest(directory.to_owned()));
    }
    target::Tools::from_environment().ensure(directory, say)?;
    let mut artifacts = cargo::run(directory, target, options, say)?;
    if artifacts.is_empty() {
        return Err(BuildError::NoComponent(directory.to_owned()));
    }
    artifacts.sort();
    Ok(artifacts)
}
