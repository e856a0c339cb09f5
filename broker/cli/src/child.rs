//! A broker for the demo and the bench: this same binary as a child process, so that it can be killed for real.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// How long a broker may take until it says where it listens. Starting takes milliseconds; a
/// development build on a busy machine takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of the broker's log is shown when it does not start, in bytes.
const LOG_TAIL: u64 = 2000;

/// Where a broker keeps what.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Certificates.
    pub(crate) pki: PathBuf,
    /// The store.
    pub(crate) data: PathBuf,
    /// The log of all its lives.
    pub(crate) log: PathBuf,
    /// Its configuration, which then says where the others are; none for the defaults.
    pub(crate) config: Option<PathBuf>,
}

/// A broker that runs. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    addr: SocketAddr,
    // Kept open: a broker that writes to a closed pipe would see an error.
    _stdout: BufReader<ChildStdout>,
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    /// The process could not be started or watched.
    #[error("cannot run the broker: {0}")]
    Io(#[from] io::Error),
    /// It ended at once, or said nothing.
    #[error("the broker did not start ({why}); the end of its log:\n{log}")]
    Start {
        /// How it ended.
        why: String,
        /// What it logged last.
        log: String,
    },
}

impl Broker {
    /// Starts a broker and waits until it serves.
    pub(crate) async fn start(place: &Place, listen: SocketAddr) -> Result<Self, ChildError> {
        let log = File::options().create(true).append(true).open(&place.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve");
        match &place.config {
            Some(config) => command.arg("--config").arg(config),
            None => command
                .args(["--listen", &listen.to_string()])
                .arg("--pki")
                .arg(&place.pki)
                .arg("--data")
                .arg(&place.data),
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // What the caller's environment says about a broker is not meant for this one.
            .env_remove("RUST_LOG")
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("it has no output"))?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let why = match timeout(START_TIMEOUT, stdout.read_line(&mut line)).await {
            Ok(read) => {
                read?;
                match line.trim().parse() {
                    Ok(addr) => {
                        return Ok(Self {
                            child,
                            addr,
                            _stdout: stdout,
                        });
                    }
                    Err(_) => child.wait().await?.to_string(),
                }
            }
            Err(_) => format!("it said nothing within {START_TIMEOUT:?}"),
        };
        Err(ChildError::Start {
            why,
            log: tail(&place.log),
        })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL, without any warning, and waits for the end.
    pub(crate) async fn kill(mut self) -> io::Result<ExitStatus> {
        self.child.start_kill()?;
        self.child.wait().await
    }
}

fn tail(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(LOG_TAIL)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_else(|e| format!("(cannot be read: {e})"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_log_is_shown() {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("log");
        std::fs::write(&log, format!("{}the end", "x".repeat(5000))).unwrap();
        let shown = tail(&log);
        assert!(shown.ends_with("the end") && shown.len() as u64 == LOG_TAIL);
        assert!(tail(&home.path().join("none")).contains("cannot be read"));
    }
}
