//! `millstream check` on a data directory of a broker that ran: found, told, taken out, served on.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// Records of the topic, enough for the sealer to begin on its own, and the bytes of each.
const RECORDS: usize = 1_500;
const BYTES: usize = 30_000;

fn millstream(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    for name in ["CONTEXT", "ADDR", "SERVER_NAME", "CA", "CERT", "KEY"] {
        command.env_remove(format!("MILLSTREAM_{name}"));
    }
    command
        .env("MILLSTREAM_CONFIG", home.join("contexts.toml"))
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory with certificates and a configuration with a small hot file.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        home.good(&["pki", "init", "pki"]);
        let config = "\
            listen = \"127.0.0.1:0\"\n\
            data_dir = \"data\"\n\
            admins = [\"spiffe://millstream.local/ops/admin\"]\n\
            [tls]\n\
            cert = \"pki/server.pem\"\n\
            key = \"pki/server.key\"\n\
            client_ca = \"pki/ca.pem\"\n\
            [storage]\n\
            hot_mib = 128\n";
        fs::write(home.path().join("millstream.toml"), config).unwrap();
        home
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, line: &[&str], input: &[u8]) -> Output {
        let mut child = millstream(self.path())
            .args(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    fn ends(&self, exit: i32, line: &[&str]) -> Output {
        let output = self.run(line, b"");
        let (told, error) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(exit), "{line:?}: {told}{error}");
        output
    }

    fn good(&self, line: &[&str]) -> String {
        text(&self.ends(0, line).stdout)
    }

    fn json(&self, exit: i32, line: &[&str]) -> Value {
        let told = self.ends(exit, &[line, &["--json"]].concat()).stdout;
        serde_json::from_slice(&told).unwrap_or_else(|e| panic!("{e}: {}", text(&told)))
    }

    fn serve(&self) -> Serving {
        let mut child = millstream(self.path())
            .args(["serve", "--config", "millstream.toml"])
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut addr = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut addr).unwrap();
        let serving = Serving(child);
        let line = [
            "context",
            "add",
            "admin",
            "--addr",
            addr.trim(),
            "--pki",
            "pki",
        ];
        self.good(&[&line[..], &["--tenant", "ops", "--name", "admin"]].concat());
        serving
    }

    /// The files of segments, in order.
    fn segments(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.path().join("data/shard-0.segments")).unwrap();
        let mut files: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|suffix| suffix == "seg"));
        files.sort();
        files
    }
}

/// A broker, killed at the end.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was consumed: the numbers of the one partition, and how many records of the other.
fn read(output: &Output) -> (Vec<u64>, usize) {
    let read = text(&output.stdout);
    let (others, numbered): (Vec<&str>, Vec<&str>) = read.lines().partition(|l| *l == "other");
    let number = |line: &str| line.split(' ').next().unwrap().parse().unwrap();
    (numbered.into_iter().map(number).collect(), others.len())
}

/// A broker with a topic of two partitions, some of which is sealed.
fn filled(home: &Home) -> Serving {
    let serving = home.serve();
    home.good(&["topic", "create", "acme/t", "--partitions", "2"]);
    let lines: String = (0..RECORDS)
        .map(|n| format!("{n} {}\n", "x".repeat(BYTES)))
        .collect();
    let produce = ["produce", "acme/t", "--partition", "0"];
    let produced = home.run(&produce, lines.as_bytes());
    assert!(produced.status.success(), "{}", text(&produced.stderr));
    let elsewhere = ["produce", "acme/t", "--partition", "1"];
    assert!(home.run(&elsewhere, b"other\n").status.success());
    let online = home.json(0, &["check", "--online"]);
    assert_eq!(
        (&online["state"], &online["findings"]),
        (&"Done".into(), &Value::Array(vec![]))
    );
    let status = home.json(0, &["status"]);
    let storage = &status["storage"][0];
    assert!(storage["appended_bytes"].as_u64().unwrap() > (RECORDS * BYTES) as u64);
    assert!(home.good(&["status"]).contains("write amplification"));
    // The sealer has begun, but nobody waited for it.
    let asked = || {
        home.json(0, &["status"])["storage"][0]["segments"]
            .as_u64()
            .unwrap()
    };
    while asked() == 0 {
        std::thread::yield_now();
    }
    serving
}

/// Flips a bit in the middle of a file.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_segment_is_found_taken_out_and_passed_over() {
    let home = Home::new();
    let nothing = home.ends(2, &["check", "--data-dir", "data"]);
    assert!(text(&nothing.stderr).contains("data directory"));
    assert!(!home.path().join("data").exists(), "a check makes nothing");
    home.ends(2, &["check"]);
    home.ends(2, &["check", "--online", "--quarantine"]);
    home.ends(2, &["check", "--online"]);

    let serving = filled(&home);
    let in_use = home.ends(2, &["check", "--data-dir", "data"]);
    assert!(
        text(&in_use.stderr).contains("--online"),
        "{}",
        text(&in_use.stderr)
    );
    drop(serving);

    let whole = home.json(0, &["check", "--data-dir", "data"]);
    assert_eq!(whole["findings"], Value::Array(vec![]));
    assert_eq!(whole["segments"], home.segments().len());

    let victim = home.segments().remove(0);
    flip(&victim);
    let told = text(&home.ends(1, &["check", "--data-dir", "data"]).stdout);
    assert!(
        told.contains("cannot be read: acme/t, partition 0, offsets"),
        "{told}"
    );
    let found = home.json(1, &["check", "--data-dir", "data"]);
    let range = &found["findings"][0]["records"][0];
    let (start, end) = (
        range["start"].as_u64().unwrap(),
        range["end"].as_u64().unwrap(),
    );
    assert!(0 < start && start < end && end < RECORDS as u64, "{range}");

    // Until somebody gives it up, the partition stands still and the other is served.
    let consume = ["consume", "acme/t", "--until-end", "--from", "earliest"];
    let serving = home.serve();
    let output = home.ends(1, &consume);
    drop(serving);
    let before: Vec<u64> = (0..start).collect();
    assert_eq!(read(&output), (before, 1));
    let warned = text(&output.stderr);
    let at = format!("partition 0 of topic acme/t cannot be read from offset {start} on");
    assert!(
        warned.contains(&at) && warned.contains("--quarantine"),
        "{warned}"
    );

    let told = text(
        &home
            .ends(1, &["check", "--data-dir", "data", "--quarantine"])
            .stdout,
    );
    let lost = format!("lost: acme/t, partition 0, offsets {start} to {}", end - 1);
    assert!(
        told.contains(&lost) && told.contains("quarantine"),
        "{told}"
    );
    let name = victim.file_name().unwrap();
    let aside = home
        .path()
        .join("data/shard-0.segments/quarantine")
        .join(name);
    assert!(aside.exists() && !victim.exists());
    let again = home.json(0, &["check", "--data-dir", "data"]);
    assert_eq!(again["findings"], Value::Array(vec![]));
    assert_eq!(again["lost"][0]["start"], start);

    let _serving = home.serve();
    let output = home.ends(0, &consume);
    let kept: Vec<u64> = (0..start).chain(end..RECORDS as u64).collect();
    assert_eq!(read(&output), (kept, 1));
    let warned = text(&output.stderr);
    let gap = format!("acme/t, partition 0: offsets {start} to {end} were lost");
    assert!(warned.contains(&gap), "{warned}");
    assert!(
        home.good(&["check", "--online"])
            .contains("nothing is wrong")
    );
}
