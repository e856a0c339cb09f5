//! The quickstart, word for word: its shell blocks in order, in one shell.
//!
//! Only what a test must do otherwise is replaced: the binary is there already, the broker runs in
//! the background and listens on a port that the system chose.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::path::Path;
use std::process::{Command, Stdio};

/// The page's shell blocks.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in page.lines() {
        match &mut open {
            None if line.trim() == "```sh" => open = Some(String::new()),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

/// A port nobody listens on now. The broker's default is fixed, and a test must not use it.
fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[test]
fn the_quickstart_works_as_it_stands() {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap();
    let page = std::fs::read_to_string(repo.join("docs/quickstart.md")).unwrap();
    let blocks = blocks(&page);
    assert!(blocks.len() > 8, "the page has lost its blocks");
    // The page works two directories below the clone.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let home = tempfile::tempdir_in(target).unwrap();
    let depth = home
        .path()
        .strip_prefix(&repo)
        .map(|p| p.components().count());
    let up = depth.map_or_else(|_| repo.display().to_string(), |n| vec![".."; n].join("/"));
    let port = free_port();
    let mut script = String::from("set -euo pipefail\n");
    for block in &blocks {
        for line in block.lines() {
            let line = line.replace("../../broker/", &format!("{up}/broker/"));
            let line = match line.trim() {
                "cargo build --release" | "mkdir -p target/quickstart" | "cd target/quickstart" => {
                    continue;
                }
                l if l.starts_with("export PATH=") => continue,
                "millstream serve --pki pki --data data" => {
                    format!(
                        "{line} --listen 127.0.0.1:{port} --port-file port 2>log & broker=$!; trap 'kill $broker' EXIT; until [ -s port ]; do kill -0 $broker; done"
                    )
                }
                l if l.starts_with("millstream context add") => {
                    format!("{line} --addr 127.0.0.1:{port}")
                }
                _ => line,
            };
            script.push_str(&line);
            script.push('\n');
        }
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_millstream"))
        .parent()
        .unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    for name in ["CONTEXT", "ADDR", "SERVER_NAME", "CA", "CERT", "KEY"] {
        shell.env_remove(format!("MILLSTREAM_{name}"));
    }
    let done = shell
        .arg("-c")
        .arg(&script)
        .env("PATH", path)
        // The outer cargo's target directory is not the plugin's.
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(
        done.status.success(),
        "{script}\n--- output\n{out}\n--- errors\n{err}"
    );
    assert!(
        out.contains("1679"),
        "the pipeline's earthquakes are not there:\n{out}"
    );
}
