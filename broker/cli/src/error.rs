//! What goes wrong, as the caller sees it: a sentence, a next step and an exit code.
//!
//! Every command returns [`CliError`]; `main` alone prints it. Absent: any retry. The client
//! retries what may be retried, and what arrives here is final.

use std::fmt;
use std::io;
use std::path::Path;

/// The process's exit codes; `--help` documents them and scripts depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something failed that the other codes do not say better.
    Failure = 1,
    /// The command line, a file given to it or the request itself is wrong.
    Usage = 2,
    /// The broker, or TLS on either side, refused who asked.
    Refused = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// The broker could not be reached or asks to try again later.
    Unavailable = 5,
}

/// The end of a command that did not do its work.
#[derive(Debug)]
pub(crate) struct CliError {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// What happened, naming the thing it happened to.
    pub(crate) message: String,
    /// What to do now, where there is something better than reading the message.
    pub(crate) next: Option<String>,
    /// The reader of our output has gone; there is nobody to tell, and nothing failed.
    pub(crate) silent: bool,
    /// The result says it already; only the exit code is left to give.
    pub(crate) told: bool,
}

impl CliError {
    /// An error with its exit code.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
            next: None,
            silent: false,
            told: false,
        }
    }

    /// [`Exit::Failure`].
    pub(crate) fn failure(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failure, message)
    }

    /// [`Exit::Usage`].
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The same with a next step.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// A file or directory that could not be used.
    pub(crate) fn file(action: &str, path: &Path, source: &io::Error) -> Self {
        let exit = match source.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failure,
        };
        Self::new(
            exit,
            format!("cannot {action} {}: {source}", path.display()),
        )
    }

    /// Standard output could not be written. A closed pipe ends the command without a word, as
    /// `| head` expects.
    pub(crate) fn output(source: &io::Error) -> Self {
        let silent = source.kind() == io::ErrorKind::BrokenPipe;
        Self {
            silent,
            ..Self::failure(format!("cannot write to standard output: {source}"))
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What a command comes to.
pub(crate) type Outcome<T = ()> = Result<T, CliError>;
