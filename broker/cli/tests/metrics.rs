//! What `serve` listens on over TCP: nothing, unless it is told to let metrics be read.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn millstream(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command
        .env("MILLSTREAM_CONFIG", home.join("contexts.toml"))
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

/// A broker that is killed at the end.
struct Serving {
    child: Child,
    /// What it has told of itself.
    told: Value,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn serve(home: &Path, more: &[&str]) -> Command {
    let mut command = millstream(home);
    command
        .args(["serve", "--json", "--pki", "pki", "--data", "data"])
        .args(["--listen", "127.0.0.1:0"])
        .args(more);
    command
}

impl Serving {
    fn start(home: &Path, more: &[&str]) -> Self {
        let mut child = serve(home, more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let told = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        Self { child, told }
    }

    /// How many TCP sockets it has that wait for connections.
    fn listeners(&self) -> usize {
        let process = Path::new("/proc").join(self.child.id().to_string());
        let descriptors = fs::read_dir(process.join("fd")).unwrap();
        let own: BTreeSet<String> = descriptors
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .map(|target| target.display().to_string())
            .collect();
        let tables = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(process.join(table)));
        let lines: Vec<String> = tables
            .into_iter()
            .flatten()
            .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let listens = |line: &&String| {
            // The fourth word is the state, the tenth the socket's number.
            let words: Vec<&str> = line.split_whitespace().collect();
            words[3] == "0A" && own.contains(&format!("socket:[{}]", words[9]))
        };
        lines.iter().filter(listens).count()
    }
}

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let made = millstream(home.path())
        .args(["pki", "init", "pki"])
        .output();
    assert!(made.unwrap().status.success());
    home
}

#[test]
fn nothing_listens_unless_it_is_told_to() {
    let home = home();
    let serving = Serving::start(home.path(), &[]);
    assert!(serving.told.get("metrics").is_none(), "{}", serving.told);
    assert_eq!(serving.listeners(), 0);
    drop(serving);

    let serving = Serving::start(home.path(), &["--metrics", "127.0.0.1:0"]);
    assert_eq!(serving.listeners(), 1);
    let addr = serving.told["metrics"].as_str().unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: b\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\nmillstream_sessions 0\n"), "{answer}");
}

#[test]
fn an_address_that_is_taken_is_named_and_what_to_do() {
    let home = home();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    let output = serve(home.path(), &["--metrics", &taken]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    let named = format!("cannot listen on {taken} for metrics");
    assert!(
        error.contains(&named) && error.contains("choose another address"),
        "{error}"
    );
}
