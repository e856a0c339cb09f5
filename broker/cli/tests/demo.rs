//! The demo, run as a person runs it: it must pass its own check, and leave nothing behind however
//! it ends.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

fn demo(temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command
        .args(["demo", "--fast", "--json"])
        .env("TMPDIR", temporary)
        .stdin(Stdio::null());
    command
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// The broker's process, out of the line that tells about it.
fn process_in(line: &str) -> Option<&str> {
    line.strip_prefix("broker        process ")?
        .split(' ')
        .next()
}

#[test]
fn it_passes_its_own_check_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(temporary.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["passed"], true, "{result}");
    assert_eq!(
        (&result["records"], &result["checks"][0]["passed"]),
        (&1707.into(), &true.into())
    );
    assert!(
        told.contains("killed with SIGKILL") && told.contains("restarted"),
        "{told}"
    );
    assert!(is_empty(temporary.path()));
}

#[test]
fn an_interrupted_demo_takes_its_broker_along() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = demo(temporary.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let broker = loop {
        line.clear();
        assert_ne!(
            told.read_line(&mut line).unwrap(),
            0,
            "it ended before it had a broker"
        );
        if let Some(process) = process_in(&line) {
            break process.to_owned();
        }
    };
    let kill = |signal: &str, process: &str| {
        Command::new("kill")
            .args([signal, process])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    assert!(kill("-INT", &child.id().to_string()));
    let mut rest = String::new();
    // To the end: the broker does not hold this pipe, so its end is the demo's.
    told.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("error: interrupted"), "{rest}");
    assert!(!kill("-0", &broker), "the broker {broker} still runs");
    assert!(is_empty(temporary.path()));
}
