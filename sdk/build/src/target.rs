//! Whether the target is installed, and adding it if not.
//!
//! Rustup may be set not to install what a toolchain file lists, so it is asked by name; a clean
//! clone must build with one command.

use std::io;
use std::path::Path;
use std::process::Output;

use crate::{BuildError, Progress, TARGET, environment};

/// The one command that gives a machine without rustup what plugins need.
pub const INSTALL_RUSTUP: &str =
    "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -t wasm32-wasip2";

/// Makes sure that the toolchain which is active in `directory` has the target.
pub(crate) fn ensure(
    directory: &Path,
    say: &mut dyn FnMut(Progress<'_>),
) -> Result<(), BuildError> {
    if is_installed(directory)? {
        return Ok(());
    }
    let command = add_command(std::env::var("RUSTUP_TOOLCHAIN").ok().as_deref());
    let spelled = format!("rustup {}", command.join(" "));
    if environment::is_offline() {
        return Err(BuildError::Offline { command: spelled });
    }
    say(Progress::Target(&format!(
        "the Rust target {TARGET} is missing; running: {spelled}"
    )));
    let output = run("rustup", &command, directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BuildError::NoRustup,
        _ => BuildError::Start {
            tool: "rustup".to_owned(),
            source: error,
        },
    })?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BuildError::AddTarget {
            command: spelled,
            output,
        });
    }
    say(Progress::Target(&format!(
        "the Rust target {TARGET} is installed"
    )));
    Ok(())
}

/// A target is installed if rustc has libraries for it: that is what a build needs, and it holds
/// for toolchains that do not come from rustup.
fn is_installed(directory: &Path) -> Result<bool, BuildError> {
    let arguments = ["--print", "target-libdir", "--target", TARGET].map(str::to_owned);
    let output = run("rustc", &arguments, directory).map_err(|source| BuildError::Start {
        tool: "rustc".to_owned(),
        source,
    })?;
    let libraries = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && has_libraries(Path::new(libraries.trim())))
}

/// Whether a directory holds a compiled standard library. An empty one is what an interrupted
/// installation leaves.
fn has_libraries(directory: &Path) -> bool {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with("libstd-") && name.ends_with(".rlib"))
    })
}

/// The arguments of rustup. A build script runs under a toolchain that is named to it, which need
/// not be the one that the directory would choose.
fn add_command(toolchain: Option<&str>) -> Vec<String> {
    let mut arguments = vec!["target".to_owned(), "add".to_owned(), TARGET.to_owned()];
    if let Some(toolchain) = toolchain {
        arguments.extend(["--toolchain".to_owned(), toolchain.to_owned()]);
    }
    arguments
}

fn run(tool: &str, arguments: &[String], directory: &Path) -> io::Result<Output> {
    environment::command(tool)
        .args(arguments)
        .current_dir(directory)
        .output()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_target_is_added_to_the_toolchain_in_use() {
        assert_eq!(add_command(None), ["target", "add", TARGET]);
        let named = add_command(Some("1.95.0"));
        assert_eq!(named, ["target", "add", TARGET, "--toolchain", "1.95.0"]);
    }

    #[test]
    fn only_a_standard_library_counts_as_installed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert!(!has_libraries(&directory.path().join("missing")));
        assert!(!has_libraries(directory.path()));
        fs::write(directory.path().join("self-contained"), "").expect("writable");
        assert!(!has_libraries(directory.path()));
        fs::write(directory.path().join("libstd-0123.rlib"), "").expect("writable");
        assert!(has_libraries(directory.path()));
    }

    #[test]
    fn the_command_for_a_machine_without_rustup_names_the_target() {
        assert!(INSTALL_RUSTUP.ends_with(TARGET));
    }
}
