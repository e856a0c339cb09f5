//! The binary as a person or a script meets it, as far as no broker is needed.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The binary with an environment of its own: no context, no variables of the caller's.
fn millstream(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    for name in [
        "CONTEXT",
        "ADDR",
        "SERVER_NAME",
        "CA",
        "CERT",
        "KEY",
        "CONFIG",
    ] {
        command.env_remove(format!("MILLSTREAM_{name}"));
    }
    command
        .env("MILLSTREAM_CONFIG", home.join("contexts.toml"))
        .current_dir(home);
    command.stdin(Stdio::null());
    command
}

fn run(home: &Path, line: &[&str]) -> Output {
    millstream(home).args(line).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// It must succeed; gives standard output.
fn good(home: &Path, line: &[&str]) -> String {
    let output = run(home, line);
    assert!(
        output.status.success(),
        "{line:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// It must fail with this exit code; gives standard error.
fn bad(home: &Path, exit: i32, line: &[&str]) -> String {
    let output = run(home, line);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{line:?}: {error}");
    error
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn certificates_are_made_issued_and_never_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let made = good(
        home.path(),
        &["pki", "init", "pki", "--domain", "example.org"],
    );
    assert!(
        made.contains("spiffe://example.org/ops/admin") && made.contains("next:"),
        "{made}"
    );
    let again = bad(home.path(), 1, &["pki", "init", "pki"]);
    assert!(
        again.starts_with("error: ") && again.contains("\nnext: "),
        "{again}"
    );
    let issue = [
        "pki", "issue", "pki", "--tenant", "acme", "--name", "ingest", "--json",
    ];
    let issued = json(&good(home.path(), &issue));
    assert_eq!(issued["principal"], "spiffe://example.org/acme/ingest");
    let key = home.path().join(issued["key"].as_str().unwrap());
    assert_eq!(
        fs::metadata(key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    bad(home.path(), 1, &issue);
    bad(
        home.path(),
        2,
        &["pki", "issue", "pki", "--tenant", "..", "--name", "x"],
    );
    bad(
        home.path(),
        4,
        &["pki", "issue", "nowhere", "--tenant", "acme", "--name", "x"],
    );
}

#[test]
fn certificates_are_listed_shown_renewed_and_revoked() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    good(at, &["pki", "init", "pki", "--ed25519"]);
    let ingest = ["--tenant", "acme", "--name", "ingest"];
    let with = |line: &[&'static str]| [line, &ingest[..]].concat();
    good(at, &with(&["pki", "issue", "pki", "--p256"]));
    let shown = json(&good(at, &with(&["pki", "show", "pki", "--json"])));
    assert_eq!(shown[0]["key"], "ECDSA P-256");
    assert_eq!(shown[0]["uses"], serde_json::json!(["clientAuth"]));
    let serial = shown[0]["serial"].as_str().unwrap().to_owned();
    let admin = ["pki", "show", "pki", "--tenant", "ops", "--name", "admin"];
    assert!(good(at, &admin).contains("Ed25519"));
    good(at, &with(&["pki", "issue", "pki", "--renew"]));
    good(at, &["pki", "issue", "pki", "--server", "--renew"]);
    let table = good(at, &["pki", "list", "pki"]);
    assert_eq!(table.lines().count(), 1 + 5, "{table}");
    good(at, &["pki", "revoke", "pki", "--serial", &serial]);
    let revoked = ["pki", "list", "pki", "--state", "revoked", "--json"];
    let revoked = json(&good(at, &revoked));
    assert_eq!(revoked.as_array().unwrap().len(), 1);
    assert_eq!(revoked[0]["serial"].as_str(), Some(&serial[..]));
    let told = good(
        at,
        &with(&["pki", "revoke", "pki", "--reason", "superseded"]),
    );
    assert!(
        told.contains("revoked ") && told.contains("crl.pem"),
        "{told}"
    );
    let again = bad(at, 4, &with(&["pki", "revoke", "pki"]));
    assert!(again.contains("pki list"), "{again}");
    bad(at, 2, &["pki", "revoke", "pki", "--tenant", "acme"]);
    bad(
        at,
        2,
        &with(&["pki", "issue", "pki", "--p256", "--ed25519"]),
    );
    // Without the list a broker would let in who was cut off.
    let list = at.join("pki/crl.pem");
    fs::remove_file(&list).unwrap();
    let serve = ["serve", "--pki", "pki", "--data", "data"];
    let missing = bad(at, 4, &[&serve[..], &["--listen", "127.0.0.1:0"]].concat());
    let again = format!("pki revoke pki --serial {serial}");
    assert!(
        missing.contains("crl.pem") && missing.contains(&again),
        "{missing}"
    );
    good(at, &["pki", "revoke", "pki", "--serial", &serial]);
    assert!(list.exists());
    // A key that others can read makes nothing more.
    let key = at.join("pki/ca.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = bad(at, 1, &with(&["pki", "issue", "pki"]));
    assert!(open.contains("chmod 600"), "{open}");
}

#[test]
fn contexts_are_added_chosen_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    good(at, &["pki", "init", "pki"]);
    let admin = ["--pki", "pki", "--tenant", "ops", "--name", "admin"];
    good(at, &[&["context", "add", "one"], &admin[..]].concat());
    good(
        at,
        &[&["context", "add", "two", "--addr", "h:1"], &admin[..]].concat(),
    );
    let shown = json(&good(at, &["context", "show", "--json"]));
    assert_eq!(
        (&shown["name"], &shown["addr"]),
        (&"one".into(), &"127.0.0.1:7440".into())
    );
    assert!(Path::new(shown["key"].as_str().unwrap()).is_absolute());
    good(at, &["context", "use", "two"]);
    let listed = json(&good(at, &["context", "list", "--json"]));
    assert_eq!(
        (&listed[0]["current"], &listed[1]["current"]),
        (&false.into(), &true.into())
    );
    assert!(good(at, &["context", "list"]).contains("*"));
    good(at, &["context", "remove", "two"]);
    bad(at, 4, &["context", "show", "two"]);
    let none = bad(at, 2, &["context", "show"]);
    assert!(none.contains("context use"), "{none}");
    let missing = [
        "context", "add", "x", "--pki", "pki", "--tenant", "acme", "--name", "nobody",
    ];
    assert!(bad(at, 4, &missing).contains("pki issue"));
}

#[test]
fn without_a_context_the_next_step_is_said() {
    let home = tempfile::tempdir().unwrap();
    let error = bad(home.path(), 2, &["status"]);
    assert!(error.contains("context add"), "{error}");
}

#[test]
fn a_broker_that_is_not_there_is_unavailable() {
    let home = tempfile::tempdir().unwrap();
    good(home.path(), &["pki", "init", "pki"]);
    let line = [
        "context", "add", "x", "--pki", "pki", "--tenant", "ops", "--name", "admin",
    ];
    // A name that cannot exist (RFC 2606) is answered at once, where an address has to be waited for.
    good(
        home.path(),
        &[&line[..], &["--addr", "broker.invalid:1"]].concat(),
    );
    let error = bad(home.path(), 5, &["status"]);
    assert!(error.contains("broker.invalid"), "{error}");
    // A key that others can read is refused before anybody is called.
    let key = home.path().join("pki/clients/ops/admin.key");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(bad(home.path(), 2, &["status"]).contains("chmod 600"));
}

#[test]
fn a_plugin_crate_is_written_once() {
    let home = tempfile::tempdir().unwrap();
    for kind in ["filter", "transform", "partitioner"] {
        let made = json(&good(
            home.path(),
            &["plugin", "new", kind, "--kind", kind, "--json"],
        ));
        assert_eq!((&made["name"], &made["kind"]), (&kind.into(), &kind.into()));
        let source = fs::read_to_string(home.path().join(kind).join("src/lib.rs")).unwrap();
        assert!(source.contains(&format!("millstream_guest::{kind}!(Plugin)")));
    }
    bad(home.path(), 1, &["plugin", "new", "filter"]);
    bad(home.path(), 2, &["plugin", "new", "Not-A-Name"]);
    bad(home.path(), 4, &["plugin", "build", "nowhere"]);
}

#[test]
fn completion_knows_the_commands() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = good(home.path(), &["completion", shell]);
        assert!(
            script.contains("millstream") && script.contains("pipeline"),
            "{shell}"
        );
    }
    bad(home.path(), 2, &["completion", "csh"]);
}

#[test]
fn help_tells_exit_codes_and_examples() {
    let home = tempfile::tempdir().unwrap();
    let help = good(home.path(), &["--help"]);
    for expected in [
        "Exit codes:",
        "not authorized",
        "Examples:",
        "millstream demo",
    ] {
        assert!(help.contains(expected), "{expected} in {help}");
    }
    for command in [
        "demo", "serve", "topic", "produce", "consume", "plugin", "pipeline", "acl",
    ] {
        let help = good(home.path(), &[command, "--help"]);
        assert!(help.contains("Usage:"), "{command}: {help}");
    }
}

#[test]
fn wrong_command_lines_end_with_2_before_anybody_is_called() {
    let home = tempfile::tempdir().unwrap();
    for line in [
        &["nonsense"][..],
        &["topic", "create", "no-tenant"],
        &["topic", "create", "acme/t", "--partitions", "0"],
        &["topic", "create", "acme/t", "--retention", "7"],
        &["topic", "delete", "acme/t"],
        &["topic", "alter", "acme/t"],
        &["produce", "acme/t", "--key-pointer", "id"],
        &["consume", "acme/t", "--from", "yesterday"],
        &["consume", "acme/t", "--config", "a=b"],
        &["plugin", "attach", "acme/t", "acme/p@latest"],
        &["plugin", "delete", "acme/p"],
        &["acl", "grant", "spiffe://d/a/b", "--topic", "a/*"],
        &["serve"],
        &["serve", "--config", "x", "--pki", "y"],
    ] {
        bad(home.path(), 2, line);
    }
}

#[test]
fn a_pipeline_file_is_read_before_anybody_is_called() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("p.toml");
    fs::write(
        &file,
        "name = \"acme/p\"\ninput = \"acme/in\"\nouput = []\n",
    )
    .unwrap();
    let error = bad(home.path(), 2, &["pipeline", "apply", "p.toml"]);
    assert!(
        error.contains("p.toml") && error.contains("ouput") && error.contains("line 3"),
        "{error}"
    );
    bad(home.path(), 4, &["pipeline", "apply", "none.toml"]);
}

#[test]
fn a_configuration_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("m.toml"), "listen = 5\n").unwrap();
    let error = bad(home.path(), 2, &["serve", "--config", "m.toml"]);
    assert!(error.contains("m.toml"), "{error}");
    bad(home.path(), 4, &["serve", "--config", "none.toml"]);
    bad(
        home.path(),
        2,
        &["serve", "--pki", "nowhere", "--data", "data"],
    );
}

#[test]
fn a_closed_pipe_is_no_error() {
    let home = tempfile::tempdir().unwrap();
    let mut child = millstream(home.path())
        .args(["completion", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        text(&output.stderr)
    );
}
