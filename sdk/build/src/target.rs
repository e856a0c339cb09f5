//! Whether the target is installed, and adding it if not.
//!
//! Rustup may be set not to install what a toolchain file lists, so it is asked by name; a clean
//! clone must build with one command.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::{BuildError, Progress, TARGET, environment};

/// The one command that gives a machine without rustup what plugins need.
pub const INSTALL_RUSTUP: &str =
    "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -t wasm32-wasip2";

/// The tools that know about targets, and what they may do.
pub(crate) struct Tools {
    rustc: PathBuf,
    rustup: PathBuf,
    /// The toolchain that the environment chooses over the directory's own. A build script runs
    /// under one that is named to it.
    toolchain: Option<String>,
    offline: bool,
}

impl Tools {
    /// Those of this process's environment.
    pub(crate) fn from_environment() -> Self {
        Self {
            rustc: PathBuf::from("rustc"),
            rustup: PathBuf::from("rustup"),
            toolchain: std::env::var("RUSTUP_TOOLCHAIN").ok(),
            offline: environment::is_offline(),
        }
    }

    /// Makes sure that the toolchain which is active in `directory` has the target.
    pub(crate) fn ensure(
        &self,
        directory: &Path,
        say: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        if self.is_installed(directory)? {
            return Ok(());
        }
        let arguments = self.arguments();
        let command = format!("rustup {}", arguments.join(" "));
        if self.offline {
            return Err(BuildError::Offline { command });
        }
        say(Progress::Target(&format!(
            "the Rust target {TARGET} is missing; running: {command}"
        )));
        let output = run(&self.rustup, &arguments, directory).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                return BuildError::NoRustup;
            }
            BuildError::Start {
                tool: "rustup".to_owned(),
                source: error,
            }
        })?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(BuildError::AddTarget { command, output });
        }
        if !self.is_installed(directory)? {
            return Err(BuildError::OtherToolchain { command });
        }
        say(Progress::Target(&format!(
            "the Rust target {TARGET} is installed"
        )));
        Ok(())
    }

    /// A target is installed if rustc has libraries for it: that is what a build needs, and it
    /// holds for toolchains that do not come from rustup.
    fn is_installed(&self, directory: &Path) -> Result<bool, BuildError> {
        let arguments = ["--print", "target-libdir", "--target", TARGET].map(str::to_owned);
        let output =
            run(&self.rustc, &arguments, directory).map_err(|source| BuildError::Start {
                tool: "rustc".to_owned(),
                source,
            })?;
        let libraries = String::from_utf8_lossy(&output.stdout);
        Ok(output.status.success() && has_standard_library(Path::new(libraries.trim())))
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["target".to_owned(), "add".to_owned(), TARGET.to_owned()];
        if let Some(toolchain) = &self.toolchain {
            arguments.extend(["--toolchain".to_owned(), toolchain.clone()]);
        }
        arguments
    }
}

/// Whether a directory holds a compiled standard library. One without is what an interrupted
/// installation leaves.
fn has_standard_library(directory: &Path) -> bool {
    let mut entries = directory.read_dir().into_iter().flatten().flatten();
    entries.any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    })
}

fn run(tool: &Path, arguments: &[String], directory: &Path) -> io::Result<Output> {
    environment::command(tool)
        .args(arguments)
        .current_dir(directory)
        .output()
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;

    use super::*;

    /// Runs with the tools of `tests/tools`, in a directory of its own, and returns what was said.
    fn ensure(
        directory: &Path,
        rustup: &str,
        change: impl FnOnce(&mut Tools),
    ) -> (Result<(), BuildError>, Vec<String>) {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools");
        let (rustc, rustup) = (tools.join("rustc"), tools.join(rustup));
        let mut tools = Tools {
            rustc,
            rustup,
            toolchain: None,
            offline: false,
        };
        change(&mut tools);
        let mut said = Vec::new();
        let result = tools.ensure(directory, &mut |line| match line {
            Progress::Target(line) | Progress::Cargo(line) => said.push(line.to_owned()),
        });
        (result, said)
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn a_missing_target_is_added_once_and_said() {
        let directory = directory();
        let named = |tools: &mut Tools| tools.toolchain = Some("1.95.0".to_owned());
        let (result, said) = ensure(directory.path(), "rustup", named);
        assert!(result.is_ok(), "{result:?}");
        let command = format!("target add {TARGET} --toolchain 1.95.0");
        assert_eq!(said.len(), 2);
        assert!(said[0].contains(&format!("rustup {command}")), "{said:?}");
        let asked = fs::read_to_string(directory.path().join("asked")).expect("it was asked");
        assert_eq!(asked.trim(), command);
        let (result, said) = ensure(directory.path(), "no-rustup-needed", |_| {});
        assert!(result.is_ok() && said.is_empty(), "{result:?} {said:?}");
    }

    #[test]
    fn an_interrupted_installation_does_not_count() {
        let directory = directory();
        fs::create_dir(directory.path().join("lib")).expect("writable");
        let (result, said) = ensure(directory.path(), "rustup", |_| {});
        assert!(result.is_ok() && said.len() == 2, "{result:?} {said:?}");
    }

    #[test]
    fn without_rustup_the_one_command_is_named() {
        let (result, _) = ensure(directory().path(), "no-such-rustup", |_| {});
        let error = result.expect_err("there is no rustup");
        assert!(matches!(error, BuildError::NoRustup));
        assert!(error.to_string().ends_with(INSTALL_RUSTUP) && INSTALL_RUSTUP.ends_with(TARGET));
    }

    #[test]
    fn offline_nothing_is_fetched() {
        let directory = directory();
        let (result, said) = ensure(directory.path(), "rustup", |tools| tools.offline = true);
        let error = result.expect_err("it may not").to_string();
        assert!(
            error.ends_with("rustup target add wasm32-wasip2"),
            "{error}"
        );
        assert!(said.is_empty() && !directory.path().join("asked").exists());
    }

    #[test]
    fn what_rustup_says_is_passed_on() {
        let (result, _) = ensure(directory().path(), "rustup-without-network", |_| {});
        let error = result.expect_err("it fails").to_string();
        assert!(
            error.contains("could not download the component"),
            "{error}"
        );
        let (result, _) = ensure(directory().path(), "rustup-of-another-toolchain", |_| {});
        assert!(
            matches!(result, Err(BuildError::OtherToolchain { .. })),
            "{result:?}"
        );
    }
}
