//! Standard output and error of a guest, as log lines.
//!
//! A Rust panic writes its message to standard error and traps, so the last text there explains
//! most traps. Standard input is closed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::error::{Label, tame};
use crate::limits::{MAX_STREAM_WRITE_BYTES, MAX_TEXT_BYTES};
use crate::logbook::{LogBook, LogLevel};

#[derive(Debug, Default)]
struct Lines {
    /// The line that has not ended yet, at most [`MAX_TEXT_BYTES`].
    open: Vec<u8>,
    /// The latest text, at most [`MAX_TEXT_BYTES`].
    tail: Vec<u8>,
}

/// Turns a guest's output into log lines; clones write to the same line.
#[derive(Clone, Debug)]
pub(crate) struct LineWriter {
    lines: Arc<Mutex<Lines>>,
    log: Arc<LogBook>,
    from: Arc<Label>,
    level: LogLevel,
}

impl LineWriter {
    pub(crate) fn new(log: Arc<LogBook>, from: Arc<Label>, level: LogLevel) -> Self {
        Self {
            lines: Arc::default(),
            log,
            from,
            level,
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Valid after every statement; see LogBook.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_bytes(&self, bytes: &[u8]) {
        let mut lines = self.lines();
        for &byte in bytes {
            if byte == b'\n' || lines.open.len() == MAX_TEXT_BYTES {
                self.end_line(&mut lines);
            }
            if byte != b'\n' {
                lines.open.push(byte);
            }
        }
        let recent = &bytes[bytes.len().saturating_sub(MAX_TEXT_BYTES)..];
        let surplus = (lines.tail.len() + recent.len()).saturating_sub(MAX_TEXT_BYTES);
        lines.tail.drain(..surplus);
        lines.tail.extend_from_slice(recent);
    }

    fn end_line(&self, lines: &mut Lines) {
        let text = String::from_utf8_lossy(&lines.open);
        if !text.trim().is_empty() {
            self.log.write(self.level, &self.from, &text);
        }
        lines.open.clear();
    }

    /// Logs the line that has not ended, if there is one.
    pub(crate) fn flush(&self) {
        let mut lines = self.lines();
        if !lines.open.is_empty() {
            self.end_line(&mut lines);
        }
    }

    /// Forgets the latest text, so that it does not explain a later trap.
    pub(crate) fn forget(&self) {
        self.lines().tail.clear();
    }

    /// The latest text, in one line.
    pub(crate) fn tail(&self) -> Option<String> {
        let lines = self.lines();
        let text = String::from_utf8_lossy(&lines.tail);
        let words: Vec<_> = text.split_whitespace().collect();
        (!words.is_empty()).then(|| tame(&words.join(" ")))
    }
}

impl IsTerminal for LineWriter {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LineWriter {
    /// Only WASI 0.3 asks for this one, and it is not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for LineWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write_bytes(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_STREAM_WRITE_BYTES)
    }
}

#[async_trait]
impl Pollable for LineWriter {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logbook::LogLimits;

    #[test]
    fn output_becomes_lines() {
        let log = Arc::new(LogBook::new(LogLimits::default(), Arc::new(|| 0)));
        let writer = LineWriter::new(
            Arc::clone(&log),
            Arc::new(Label::for_test()),
            LogLevel::Error,
        );
        writer.write_bytes(b"panicked at ");
        writer.write_bytes(b"src/lib.rs:1:\n\nboom\nnote");
        let messages = || {
            log.read(0, 10)
                .0
                .into_iter()
                .map(|line| line.message)
                .collect::<Vec<_>>()
        };
        assert_eq!(messages(), ["panicked at src/lib.rs:1:", "boom"]);
        writer.flush();
        writer.flush();
        assert_eq!(messages()[2..], ["note"]);
        assert_eq!(
            writer.tail().as_deref(),
            Some("panicked at src/lib.rs:1: boom note")
        );
    }

    #[test]
    fn endless_lines_are_cut_into_bounded_ones() {
        let log = Arc::new(LogBook::new(LogLimits::default(), Arc::new(|| 0)));
        let writer = LineWriter::new(
            Arc::clone(&log),
            Arc::new(Label::for_test()),
            LogLevel::Info,
        );
        for _ in 0..5 {
            writer.write_bytes(&[b'x'; 1000]);
        }
        assert!(writer.lines().open.len() <= MAX_TEXT_BYTES);
        assert!(writer.lines().tail.len() <= MAX_TEXT_BYTES);
        assert_eq!(log.read(0, 10).0.len(), 4);
    }
}
