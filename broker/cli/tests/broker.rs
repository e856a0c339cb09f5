//! The binary against its own broker: both as processes, as in a terminal.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

#[path = "broker/flood.rs"]
mod flood;

/// A directory with certificates and a broker that is killed at the end.
struct World {
    home: tempfile::TempDir,
    broker: Child,
    addr: String,
}

fn millstream(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    for name in ["CONTEXT", "ADDR", "SERVER_NAME", "CA", "CERT", "KEY"] {
        command.env_remove(format!("MILLSTREAM_{name}"));
    }
    command
        .env("MILLSTREAM_CONFIG", home.join("contexts.toml"))
        .current_dir(home);
    command.stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let made = millstream(home.path())
            .args(["pki", "init", "pki"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let mut broker = millstream(home.path())
            .args([
                "serve",
                "--pki",
                "pki",
                "--data",
                "data",
                "--listen",
                "127.0.0.1:0",
            ])
            .args(["--port-file", "port", "--log-format", "json"])
            .args(["--backup-target", "backups"])
            .stdout(Stdio::piped())
            .stderr(fs::File::create(home.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut addr = String::new();
        BufReader::new(broker.stdout.take().unwrap())
            .read_line(&mut addr)
            .unwrap();
        let world = Self {
            home,
            broker,
            addr: addr.trim().to_owned(),
        };
        assert_eq!(
            fs::read_to_string(world.home.path().join("port")).unwrap(),
            addr
        );
        world.add_context("admin", "ops", "admin");
        world
    }

    fn add_context(&self, context: &str, tenant: &str, name: &str) {
        let identity = ["--pki", "pki", "--tenant", tenant, "--name", name];
        self.good(
            &[
                &["context", "add", context, "--addr", &self.addr],
                &identity[..],
            ]
            .concat(),
        );
    }

    fn run(&self, line: &[&str], input: &str) -> Output {
        let mut child = millstream(self.home.path())
            .args(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    }

    fn good(&self, line: &[&str]) -> String {
        self.good_with(line, "")
    }

    fn good_with(&self, line: &[&str], input: &str) -> String {
        let output = self.run(line, input);
        assert!(
            output.status.success(),
            "{line:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn bad(&self, exit: i32, line: &[&str]) -> String {
        let output = self.run(line, "");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{line:?}: {error}");
        error
    }

    fn json(&self, line: &[&str]) -> Value {
        let told = self.good(&[line, &["--json"]].concat());
        serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.broker.kill();
        let _ = self.broker.wait();
    }
}

#[test]
fn records_go_in_and_come_out() {
    let world = World::new();
    world.good(&[
        "topic",
        "create",
        "acme/t",
        "--partitions",
        "3",
        "--retention",
        "7d",
    ]);
    let described = world.json(&["topic", "describe", "acme/t"]);
    assert_eq!(described["config"]["retention_ms"], 7 * 86_400_000);
    let produce = [
        "produce",
        "acme/t",
        "--ndjson",
        "--key-pointer",
        "/id",
        "--header",
        "from=test",
    ];
    let input: String = (0..500).map(|i| format!("{{\"id\":{i}}}\n")).collect();
    let told = world.good_with(&[&produce[..], &["--json"]].concat(), &input);
    let summary: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&summary["records"], &summary["acknowledged"]),
        (&500.into(), &500.into())
    );
    let stored: u64 = summary["stored"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(stored, 500);

    let all = world.good(&["consume", "acme/t", "--until-end", "--json"]);
    let mut ids: Vec<u64> = all
        .lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["headers"][0]["value"], "test");
            record["key"].as_str().unwrap().parse().unwrap()
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..500).collect::<Vec<u64>>());
}

#[test]
fn a_named_consumer_goes_on_where_it_stopped() {
    let world = World::new();
    world.good(&["topic", "create", "acme/t"]);
    world.good_with(&["produce", "acme/t", "--partition", "0"], "a\nb\nc\nd\n");
    let consume = ["consume", "acme/t", "--as", "reader", "--from", "earliest"];
    assert_eq!(
        world.good(&[&consume[..], &["--max", "3"]].concat()),
        "a\nb\nc\n"
    );
    assert_eq!(
        world.good(&[&consume[..], &["--until-end"]].concat()),
        "d\n"
    );
    assert_eq!(world.good(&[&consume[..], &["--until-end"]].concat()), "");
    assert_eq!(
        world.good(&["consume", "acme/t", "--from", "2", "--max", "1"]),
        "c\n"
    );
}

#[test]
fn what_is_stored_before_a_bad_line_is_said_and_there() {
    let world = World::new();
    world.good(&["topic", "create", "acme/t"]);
    let output = world.run(&["produce", "acme/t", "--ndjson"], "1\n2\nnonsense\n3\n");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("line 3") && error.contains("2 are acknowledged"),
        "{error}"
    );
    assert_eq!(world.good(&["consume", "acme/t", "--until-end"]), "1\n2\n");
}

#[test]
fn exit_codes_tell_refused_from_not_found() {
    let world = World::new();
    world.good(&["topic", "create", "acme/t"]);
    world.bad(1, &["topic", "create", "acme/t"]);
    world.good(&["topic", "create", "acme/t", "--if-not-exists"]);
    world.bad(4, &["topic", "describe", "acme/none"]);
    world.bad(4, &["consume", "acme/none"]);
    world.bad(4, &["pipeline", "show", "acme/none"]);
    world.bad(2, &["plugin", "upload", "acme/p", "pki/ca.pem"]);
    world.good(&[
        "pki", "issue", "pki", "--tenant", "acme", "--name", "ingest",
    ]);
    world.add_context("ingest", "acme", "ingest");
    let who = "spiffe://millstream.local/acme/ingest";
    let line = ["--context", "ingest", "topic", "describe", "acme/t"];
    let refused = world.bad(3, &line);
    assert!(
        refused.contains(who) && refused.contains("next: "),
        "{refused}"
    );
    world.good(&[
        "acl", "grant", who, "--topic", "acme/*", "--allow", "describe",
    ]);
    world.good(&line);
    world.good(&["acl", "check", who, "describe", "--topic", "acme/t"]);
    world.bad(3, &["acl", "check", who, "produce", "--topic", "acme/t"]);
    // An authority of its own is not the broker's.
    world.good(&["pki", "init", "other"]);
    let mine = [
        "--cert",
        "other/clients/ops/admin.pem",
        "--key",
        "other/clients/ops/admin.key",
    ];
    world.bad(3, &[&mine[..], &["status"]].concat());
    world.bad(3, &["--ca", "other/ca.pem", "status"]);
}

#[test]
fn a_broker_that_is_asked_to_stop_stops_in_good_order() {
    let mut world = World::new();
    world.good(&["topic", "create", "acme/t"]);
    let process = world.broker.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &process])
            .status()
            .unwrap()
            .success()
    );
    assert!(world.broker.wait().unwrap().success());
    let log = fs::read_to_string(world.home.path().join("log")).unwrap();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(lines.count() > 0, "the log is JSON");
}

#[test]
fn a_store_is_backed_up_listed_verified_and_restored() {
    let world = World::new();
    world.good(&["topic", "create", "acme/t"]);
    world.good_with(&["produce", "acme/t"], "one\ntwo\n");
    let made = world.json(&["backup", "create"]);
    let id = made["id"].as_str().unwrap();
    assert!(made["copied_bytes"].as_u64().unwrap() > 0);
    let place = ["--target", "backups"];
    let listed = world.json(&[&["backup", "list"], &place[..]].concat());
    assert_eq!(
        (&listed[0]["id"], listed.as_array().unwrap().len()),
        (&made["id"], 1)
    );
    let said = world.good(&[&["backup", "verify"], &place[..]].concat());
    assert!(said.contains("all as it was written"), "{said}");

    // A broker that runs has its data directory to itself.
    let offline = [
        "backup",
        "create",
        "--data-dir",
        "data",
        "--target",
        "others",
    ];
    let refused = world.bad(1, &offline);
    assert!(
        refused.contains("in use") && refused.contains("backup create"),
        "{refused}"
    );
    world.good_with(&["produce", "acme/t"], "three\n");
    world.good(&["backup", "create", "-q"]);
    let first = [&["backup", "restore", "--backup", id], &place[..]].concat();
    let restored = world.good(&[&first[..], &["--into", "copy"]].concat());
    assert!(restored.contains(id), "{restored}");
    let refused = world.bad(2, &[&first[..], &["--into", "copy"]].concat());
    assert!(refused.contains("not empty"), "{refused}");
    let none = [
        &["backup", "restore", "--before", "2020-01-01T00:00:00Z"],
        &place[..],
    ]
    .concat();
    world.bad(4, &[&none[..], &["--into", "never"]].concat());
    let none = [&first[..], &["--topic", "acme/none", "--into", "never"]].concat();
    world.bad(4, &none);

    // So is a topic alone.
    world.good(&[&first[..], &["--topic", "acme/t", "--into", "part"]].concat());
    world.good(&["check", "--data-dir", "part"]);

    // The copy is a sound data directory: backed up without a broker, it is the same again.
    let offline = [
        "backup",
        "create",
        "--data-dir",
        "copy",
        "--target",
        "others",
        "--limit",
        "64MiB",
    ];
    world.good(&offline);
    world.good(&["check", "--data-dir", "copy"]);
    world.bad(
        4,
        &[
            "backup",
            "create",
            "--data-dir",
            "nowhere",
            "--target",
            "others",
        ],
    );
    let listed = world.json(&["backup", "list", "--target", "others"]);
    assert_ne!(
        listed[0]["store"],
        world.json(&[&["backup", "list"], &place[..]].concat())[0]["store"]
    );

    // What is flipped is named.
    let parts = world.home.path().join("backups/parts");
    let part = fs::read_dir(parts).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&part).unwrap();
    bytes[40] ^= 1;
    fs::write(&part, bytes).unwrap();
    let output = world.run(&[&["backup", "verify"], &place[..]].concat(), "");
    assert_eq!(output.status.code(), Some(1));
    let name = part.file_name().unwrap().to_str().unwrap();
    assert!(
        text(&output.stdout).contains(name),
        "{}",
        text(&output.stdout)
    );

    let pruned = world.json(&[&["backup", "prune", "--keep", "1"], &place[..]].concat());
    assert_eq!(pruned["removed"][0], made["id"]);
    assert_eq!(pruned["kept"].as_array().unwrap().len(), 1);
    world.bad(2, &["backup", "list", "--target", "http://host/x"]);
}

/// What `status` says of the door, once it is as wanted.
fn door(world: &World, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..500 {
        let door = world.json(&["status", "--context", "admin"])["door"].take();
        if is(&door) {
            return door;
        }
    }
    panic!("waited too long for {what}");
}

#[test]
fn a_revoked_client_is_cut_and_a_signal_has_files_read_again() {
    let world = World::new();
    let ingest = ["--tenant", "acme", "--name", "ingest"];
    world.good(&[&["pki", "issue", "pki"], &ingest[..]].concat());
    world.add_context("ingest", "acme", "ingest");
    world.good(&["topic", "create", "acme/t", "--context", "admin"]);
    let who = "spiffe://millstream.local/acme/ingest";
    world.good(&[
        "acl",
        "grant",
        who,
        "--topic",
        "acme/*",
        "--allow",
        "consume",
        "--context",
        "admin",
    ]);
    let consumer = millstream(world.home.path())
        .args(["consume", "acme/t", "--context", "ingest"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The administrator's own connection, and the consumer's.
    for _ in 0..500 {
        let status = world.json(&["status", "--context", "admin"]);
        if status["connections"].as_u64() >= Some(2) {
            break;
        }
    }
    let revoke = [&["pki", "revoke", "pki"], &ingest[..]].concat();
    assert!(world.good(&revoke).contains("revoked "));
    let ended = consumer.wait_with_output().unwrap();
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(said.contains("revoked"), "{said}");
    let told = door(&world, "the list to be read", |d| d["ended"] == 1);
    assert_eq!(told["trouble"], Value::Null);

    let hangup = || {
        let id = world.broker.id().to_string();
        let sent = Command::new("kill").args(["-HUP", &id]).status().unwrap();
        assert!(sent.success());
    };
    let before = told["reloads"].as_u64();
    hangup();
    door(&world, "a signal", |d| d["reloads"].as_u64() > before);
    fs::write(world.home.path().join("pki/crl.pem"), "broken").unwrap();
    hangup();
    let broken = door(&world, "the broken file", |d| d["trouble"] != Value::Null);
    assert!(broken["trouble"].as_str().unwrap().contains("crl.pem"));
    let shown = world.good(&["status", "--context", "admin"]);
    assert!(shown.contains("not in force"), "{shown}");
}
