//! A broker in a process of its own, so that it can be killed for real.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Bytes of the log that are shown when something went wrong.
const LOG_SHOWN: usize = 4000;

/// Bytes of one unit of a shell's file size limit.
const BLOCK: u64 = 512;

/// Ignores the signal that comes with the limit, so that a write beyond it fails with an error, as
/// on a full disk; sets the limit; becomes the broker.
const LIMITED: &str = "trap '' XFSZ && ulimit -f \"$1\" && shift && exec \"$@\"";

/// How a broker stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As brokers do.
    Usual,
    /// With a hot file so small that records are always being sealed.
    Small,
    /// So too, and the disk of the segments is full when the test says so: see [`crate::full`].
    SmallAndFull,
}

impl Storage {
    fn argument(self) -> Option<&'static str> {
        match self {
            Self::Usual => None,
            Self::Small => Some("small"),
            Self::SmallAndFull => Some("full"),
        }
    }
}

/// Where a broker keeps what, and what it may not.
#[derive(Clone, Debug)]
pub struct Place {
    /// The program.
    pub program: PathBuf,
    /// Certificates.
    pub pki: PathBuf,
    /// The store.
    pub data: PathBuf,
    /// How it stores.
    pub storage: Storage,
    /// The log of all its lives.
    pub log: PathBuf,
    /// Most bytes of a file that it may write, if there is a limit.
    pub file_limit: Option<u64>,
}

/// A broker that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    // The broker ends with its input.
    stdin: Option<ChildStdin>,
}

impl Broker {
    /// Starts a broker; says where it can be heard whether it serves.
    ///
    /// # Panics
    /// When the process cannot be started.
    #[must_use]
    pub fn spawn(place: &Place, listen: SocketAddr) -> (Self, ChildStdout) {
        let log = File::options().create(true).append(true).open(&place.log);
        let log = log.expect("the log can be written");
        let listen = listen.to_string();
        let args: [&OsStr; 4] = [
            place.program.as_ref(),
            place.pki.as_ref(),
            place.data.as_ref(),
            listen.as_ref(),
        ];
        let mut command = match place.file_limit {
            None => Command::new(args[0]),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell
                    .args(["-c", LIMITED, "sh"])
                    .arg((limit / BLOCK).to_string())
                    .arg(args[0]);
                shell
            }
        };
        let spawned = command
            .args(&args[1..])
            .args(place.storage.argument())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        let mut child = spawned.expect("the broker's program can be run");
        let stdout = child.stdout.take().expect("the output is a pipe");
        let stdin = child.stdin.take();
        (Self { child, stdin }, stdout)
    }

    /// Starts a broker and waits until it serves. Returns where.
    ///
    /// # Panics
    /// When it does not, with the end of its log.
    pub async fn start(place: &Place, listen: SocketAddr) -> (Self, SocketAddr) {
        let (broker, stdout) = Self::spawn(place, listen);
        let first_line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = first_line
            .await
            .expect("reading does not panic")
            .expect("pipes can be read");
        match line.trim().parse() {
            Ok(addr) => (broker, addr),
            Err(_) => panic!(
                "the broker does not serve; it logged:\n{}",
                log_tail(&place.log)
            ),
        }
    }

    /// SIGKILL, without any warning, and waits for the end.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Panics
    /// When it ends with an error.
    pub async fn stop(mut self) {
        self.stdin = None;
        let ended = tokio::task::spawn_blocking(move || self.child.wait()).await;
        let status = ended
            .expect("waiting does not panic")
            .expect("a child can be waited for");
        assert!(status.success(), "the broker ended with {status}");
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn end(&mut self) {
        // One that has ended cannot be killed; waiting for it is right all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The end of a log.
#[must_use]
pub fn log_tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_SHOWN)..]).into_owned()
}
