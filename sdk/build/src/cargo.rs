//! Running the inner cargo and reading what it says.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::{Artifact, BuildError, Options, Progress, TARGET, environment, message};

/// Lines of cargo's that an error repeats: enough for a compiler's error, not for a whole build.
const ERROR_LINES: usize = 200;

/// Builds and returns the components, in the order in which cargo finished them.
pub(crate) fn run(
    directory: &Path,
    target: &Path,
    options: &Options,
    say: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Artifact>, BuildError> {
    let mut command = arguments(environment::cargo(), directory, target, options);
    let tool = command.get_program().to_string_lossy().into_owned();
    let start = |source| BuildError::Start {
        tool: tool.clone(),
        source,
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    let stdout = child.stdout.take().expect("it is piped");
    let stderr = child.stderr.take().expect("it is piped");
    let mut tail = VecDeque::new();
    // Both pipes are read at once: cargo would wait for whichever is not.
    let artifacts = thread::scope(|scope| {
        let messages = scope.spawn(|| {
            lines(stdout)
                .filter_map(|l| message::component(&l))
                .collect()
        });
        for line in lines(stderr) {
            say(Progress::Cargo(&line));
            tail.push_back(line);
            if tail.len() > ERROR_LINES {
                tail.pop_front();
            }
        }
        messages.join().expect("reading messages does not panic")
    });
    let status = child.wait().map_err(start)?;
    if !status.success() {
        let output = Vec::from(tail).join("\n");
        return Err(BuildError::Cargo {
            directory: directory.to_owned(),
            status,
            output,
        });
    }
    Ok(artifacts)
}

/// The lines of a pipe, as far as it can be read. Bytes that are not UTF-8 are replaced.
fn lines(pipe: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(pipe)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| {
            String::from_utf8_lossy(&line)
                .trim_end_matches('\r')
                .to_owned()
        })
}

fn arguments(mut cargo: Command, directory: &Path, target: &Path, options: &Options) -> Command {
    cargo
        .current_dir(directory)
        .args(["build", "--release", "--lib", "--target", TARGET]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    cargo.arg("--target-dir").arg(target);
    if directory.join("Cargo.lock").is_file() {
        cargo.arg("--locked");
    }
    if options.packages.is_empty() {
        cargo.arg("--workspace");
    }
    for package in &options.packages {
        cargo.args(["--package", package]);
    }
    cargo
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn spelled(directory: &Path, options: &Options) -> Vec<String> {
        let command = arguments(Command::new("cargo"), directory, Path::new("/t"), options);
        command
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_lock_file_is_kept_and_packages_are_chosen() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let all = spelled(directory.path(), &Options::default());
        assert!(all.contains(&"--workspace".to_owned()) && !all.contains(&"--locked".to_owned()));
        fs::write(directory.path().join("Cargo.lock"), "").expect("writable");
        let one = spelled(
            directory.path(),
            &Options {
                packages: vec!["p".to_owned()],
            },
        );
        assert!(one.contains(&"--locked".to_owned()) && !one.contains(&"--workspace".to_owned()));
        assert_eq!(one[one.len() - 2..], ["--package", "p"]);
    }

    #[test]
    fn a_crate_that_does_not_compile_is_an_error_with_the_compilers_words() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let manifest = "[package]\nname = \"broken\"\nedition = \"2024\"\n[workspace]\n";
        fs::write(directory.path().join("Cargo.toml"), manifest).expect("writable");
        fs::create_dir(directory.path().join("src")).expect("writable");
        fs::write(
            directory.path().join("src/lib.rs"),
            "compile_error!(\"no such luck\");",
        )
        .expect("writable");
        let mut said = Vec::new();
        let target = directory.path().join("target");
        let result = crate::build(
            directory.path(),
            &target,
            &Options::default(),
            &mut |line| {
                said.push(format!("{line:?}"));
            },
        );
        let error = result.expect_err("it does not compile").to_string();
        assert!(error.contains("no such luck"), "{error}");
        assert!(
            said.iter().any(|line| line.contains("no such luck")),
            "{said:?}"
        );
    }

    #[test]
    fn a_directory_without_a_manifest_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let result = crate::build(
            directory.path(),
            Path::new("/t"),
            &Options::default(),
            &mut |_| {},
        );
        assert!(matches!(result, Err(BuildError::NoManifest(path)) if path == directory.path()));
    }
}
