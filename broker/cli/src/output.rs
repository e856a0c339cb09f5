//! The one place that writes to the terminal.
//!
//! Results go to standard output, for people as lines and tables, for programs (`--json`) as one
//! document or one object per line. Everything else (notes, progress, errors) goes to standard
//! error, so that a pipe carries results only. `println!` is not used: it panics when the reader
//! of a pipe has gone, which is not an error of ours.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::{CliError, Outcome};
use crate::table::Table;

/// Bytes gathered before a write to standard output where records are streamed.
const STREAM_BUFFER: usize = 64 << 10;

/// How results are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// For programs.
    pub(crate) json: bool,
    /// Without notes and progress.
    pub(crate) quiet: bool,
}

impl Output {
    /// One line of a result.
    pub(crate) fn line(&self, line: &str) -> Outcome {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(|e| CliError::output(&e))
    }

    /// A result for programs: one JSON document on one line.
    pub(crate) fn document(&self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string(value)
            .map_err(|e| CliError::failure(format!("cannot write the result as JSON: {e}")))?;
        self.line(&text)
    }

    /// A table, or the same as a document.
    pub(crate) fn table(&self, table: &Table, document: &impl Serialize) -> Outcome {
        if self.json {
            self.document(document)
        } else {
            self.line(&table.to_string())
        }
    }

    /// Something done: a sentence for people, a document for programs.
    pub(crate) fn done(&self, sentence: &str, document: &impl Serialize) -> Outcome {
        match (self.json, self.quiet) {
            (true, _) => self.document(document),
            (false, true) => Ok(()),
            (false, false) => self.line(sentence),
        }
    }

    /// A remark for people, beside the result.
    pub(crate) fn note(&self, line: &str) {
        if !self.quiet {
            complain(line);
        }
    }

    /// Standard output for many records, gathered.
    pub(crate) fn stream(&self) -> BufWriter<StdoutLock<'static>> {
        BufWriter::with_capacity(STREAM_BUFFER, io::stdout().lock())
    }

    /// Whether moving progress can be shown: a person looks on.
    pub(crate) fn is_live(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Progress towards a known number of bytes, or (`None`) of unknown length. Draws only on a
    /// terminal.
    pub(crate) fn progress(&self, what: &'static str, bytes: Option<u64>) -> ProgressBar {
        if !self.is_live() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
        let template = match bytes {
            Some(_) => "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}

/// Writes a line to standard error. If even that fails there is nobody left to tell.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Tells how the process ends badly.
pub(crate) fn report(error: &CliError) {
    if error.silent || error.told {
        return;
    }
    complain(&format!("error: {}", error.message));
    if let Some(next) = &error.next {
        complain(&format!("next: {next}"));
    }
}
