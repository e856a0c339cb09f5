//! A filter that looks for files, network, environment and clocks.
//!
//! It reports each thing that it got hold of in a log line that begins with `got`, and at the end
//! how many there were. A plugin has no authority, so there must be none. The clock is different:
//! asking for the time works everywhere, but two answers must be the same, or the plugin would
//! not do the same again.

use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Instant, SystemTime};
use std::{env, fs, io};

use millstream_guest::{Filter, Init, Needs, Record, Verdict, info};

struct Peek;

impl Filter for Peek {
    const NEEDS: Needs = Needs::NOTHING;

    fn init(_: &Init) -> Result<Self, String> {
        let found = [
            got("a file", fs::read("/etc/passwd")),
            got("a directory", fs::read_dir("/")),
            got("the directory here", fs::read_dir(".")),
            got("a new file", fs::write("peek.txt", "peek")),
            got("a connection", TcpStream::connect("127.0.0.1:80")),
            got("a listener", TcpListener::bind("127.0.0.1:0")),
            got("a datagram socket", UdpSocket::bind("127.0.0.1:0")),
            got("an address", "localhost:80".to_socket_addrs()),
            got(
                "a variable",
                env::vars().next().ok_or(io::ErrorKind::NotFound.into()),
            ),
            got(
                "an argument",
                env::args().nth(1).ok_or(io::ErrorKind::NotFound.into()),
            ),
            got(
                "input",
                io::read_to_string(io::stdin()).and_then(|text| match text.is_empty() {
                    true => Err(io::ErrorKind::UnexpectedEof.into()),
                    false => Ok(text),
                }),
            ),
        ];
        info!("found {}", found.iter().filter(|&&found| found).count());
        info!("time passes: {}", time_passes());
        Ok(Self)
    }

    fn filter(&mut self, _: &Record<'_>) -> Verdict {
        Verdict::Keep
    }
}

fn got<T>(what: &str, attempt: io::Result<T>) -> bool {
    if attempt.is_ok() {
        info!("got {what}");
    }
    attempt.is_ok()
}

/// Whether a clock moves while the plugin works.
fn time_passes() -> bool {
    let (began, wall) = (Instant::now(), SystemTime::now());
    let work: u64 = (0..10_000_000u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
    let moved = !began.elapsed().is_zero() || SystemTime::now() != wall;
    moved && work != 1
}

millstream_guest::filter!(Peek);
