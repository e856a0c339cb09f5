//! Backups at an object store: the binary against a small S3 of this test's own.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// As much of S3 as backups need: objects, listings, uploads in pieces, removal of several.
#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    /// Uploads under way, each with its pieces by number.
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    /// Uploads that were completed.
    completed: usize,
}

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    only_new: bool,
    body: Vec<u8>,
}

type Reply = (u16, Vec<u8>);

fn unescaped(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let hex = str::from_utf8(&tail[..2]).unwrap();
            out.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &tail[2..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(out).unwrap()
}

/// The next request of a connection, if there is one.
fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut len, mut only_new) = (0, false);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => len = value.trim().parse().unwrap(),
            "if-none-match" => only_new = true,
            "authorization" => assert!(value.contains("AWS4-HMAC-SHA256"), "signed: {value}"),
            _ => {}
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.strip_prefix("/bucket").unwrap();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    Some(Request {
        method,
        key: unescaped(path.trim_start_matches('/')),
        query: pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), unescaped(value)))
            .collect(),
        only_new,
        body,
    })
}

impl Bucket {
    fn answer(&mut self, request: Request) -> Reply {
        let Request {
            method,
            key,
            query,
            only_new,
            body,
        } = request;
        let upload = query.get("uploadId").cloned();
        match (method.as_str(), upload) {
            ("GET", _) if query.contains_key("list-type") => self.list(&query["prefix"]),
            ("GET", _) => match self.objects.get(&key) {
                Some(bytes) => (200, bytes.clone()),
                None => (404, b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
            },
            ("PUT", Some(upload)) => {
                let number = query["partNumber"].parse().unwrap();
                let pieces = self.uploads.get_mut(&upload).unwrap();
                pieces.insert(number, body);
                (200, Vec::new())
            }
            ("PUT", None) if only_new && self.objects.contains_key(&key) => (412, Vec::new()),
            ("PUT", None) => {
                self.objects.insert(key, body);
                (200, Vec::new())
            }
            ("POST", Some(upload)) => {
                let pieces = self.uploads.remove(&upload).unwrap();
                let whole = pieces.into_values().collect::<Vec<_>>().concat();
                self.objects.insert(key, whole);
                self.completed += 1;
                let done = "<CompleteMultipartUploadResult><ETag>e</ETag>\
                            </CompleteMultipartUploadResult>";
                (200, done.into())
            }
            ("POST", None) if query.contains_key("uploads") => {
                let id = format!("upload-{}", self.uploads.len() + self.completed);
                self.uploads.insert(id.clone(), BTreeMap::new());
                let begun = format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                     </InitiateMultipartUploadResult>"
                );
                (200, begun.into())
            }
            ("POST", None) if query.contains_key("delete") => self.delete(&body),
            (other, _) => panic!("{other} {key} {query:?}"),
        }
    }

    fn list(&self, prefix: &str) -> Reply {
        let objects = self
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix));
        let contents: String = objects
            .map(|(key, bytes)| {
                format!(
                    "<Contents><Key>{key}</Key><Size>{}</Size><ETag>e</ETag>\
                     <LastModified>2026-11-20T11:00:00.000Z</LastModified></Contents>",
                    bytes.len()
                )
            })
            .collect();
        let head = "<ListBucketResult><IsTruncated>false</IsTruncated>";
        (200, format!("{head}{contents}</ListBucketResult>").into())
    }

    fn delete(&mut self, body: &[u8]) -> Reply {
        let text = str::from_utf8(body).unwrap();
        let mut done = String::from("<DeleteResult>");
        for part in text.split("<Key>").skip(1) {
            let key = part.split("</Key>").next().unwrap();
            self.objects.remove(key);
            done += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        (200, (done + "</DeleteResult>").into())
    }
}

fn serve(bucket: &Mutex<Bucket>, stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream) {
        let (code, body) = bucket.lock().unwrap().answer(request);
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Length: {}\r\nETag: \"e\"\r\n\
             Last-Modified: Fri, 20 Nov 2026 11:00:00 GMT\r\n\r\n",
            body.len()
        );
        let out = stream.get_mut();
        if out
            .write_all(head.as_bytes())
            .and(out.write_all(&body))
            .is_err()
        {
            return;
        }
    }
}

/// An S3 with one bucket, for as long as the test's process runs; and where it listens.
fn s3() -> (Arc<Mutex<Bucket>>, String) {
    let bucket = Arc::<Mutex<Bucket>>::default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let shared = Arc::clone(&bucket);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let bucket = Arc::clone(&shared);
            std::thread::spawn(move || serve(&bucket, stream.unwrap()));
        }
    });
    (bucket, endpoint)
}

fn millstream(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    for name in ["CONTEXT", "ADDR", "SERVER_NAME", "CA", "CERT", "KEY"] {
        command.env_remove(format!("MILLSTREAM_{name}"));
    }
    command
        .env("MILLSTREAM_CONFIG", home.join("contexts.toml"))
        .env("MILLSTREAM_BACKUP_TARGET", "s3://bucket/some/where")
        .env("AWS_ENDPOINT", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_REGION", "here")
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

fn good(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A data directory with this text in a topic, made by a broker that is killed.
fn fill(home: &Path, endpoint: &str, text: &str) {
    let run = |line: &[&str]| good(&millstream(home, endpoint).args(line).output().unwrap());
    run(&["pki", "init", "pki"]);
    let serve = [
        "serve",
        "--pki",
        "pki",
        "--data",
        "data",
        "--listen",
        "127.0.0.1:0",
    ];
    let mut broker = millstream(home, endpoint)
        .args(serve)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(home.join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut addr = String::new();
    let mut output = BufReader::new(broker.stdout.take().unwrap());
    output.read_line(&mut addr).unwrap();
    let context = [
        "context",
        "add",
        "admin",
        "--addr",
        addr.trim(),
        "--pki",
        "pki",
    ];
    run(&[&context[..], &["--tenant", "ops", "--name", "admin"]].concat());
    run(&["topic", "create", "acme/t"]);
    fs::write(home.join("lines"), text).unwrap();
    run(&["produce", "acme/t", "--file", "lines"]);
    broker.kill().unwrap();
    broker.wait().unwrap();
}

#[test]
fn a_store_goes_to_an_object_store_and_comes_back() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (bucket, endpoint) = s3();
    // More than goes into one piece of an upload.
    let lines: Vec<String> = (0..200)
        .map(|n| format!("{n}{}", "x".repeat(60_000)))
        .collect();
    fill(home, &endpoint, &lines.join("\n"));
    let run = |line: &[&str]| millstream(home, &endpoint).args(line).output().unwrap();
    let json = |line: &[&str]| -> Value {
        serde_json::from_str(&good(&run(&[line, &["--json"]].concat()))).unwrap()
    };
    let offline = [
        "backup",
        "create",
        "--data-dir",
        "data",
        "--target",
        "s3://bucket/some/where",
    ];
    let made = json(&offline);
    assert!(
        bucket.lock().unwrap().completed > 0,
        "nothing went in pieces"
    );
    let again = json(&offline);
    assert_eq!(again["copied_bytes"], 0);
    let listed = json(&["backup", "list"]);
    assert_eq!(listed[0]["id"], made["id"]);
    assert_eq!(
        json(&["backup", "verify"])["findings"],
        Value::Array(Vec::new())
    );
    good(&run(&[
        "backup", "restore", "--backup", "latest", "--into", "copy",
    ]));
    good(&run(&["check", "--data-dir", "copy"]));
    let elsewhere = [
        "backup",
        "create",
        "--data-dir",
        "copy",
        "--target",
        "others",
    ];
    assert_eq!(json(&elsewhere)["bytes"], made["bytes"]);
    let pruned = json(&["backup", "prune", "--keep", "1"]);
    assert_eq!(pruned["removed"][0], made["id"]);
    let keys: Vec<String> = bucket.lock().unwrap().objects.keys().cloned().collect();
    assert!(
        keys.iter().all(|key| key.starts_with("some/where/")),
        "{keys:?}"
    );
    assert!(!keys.iter().any(|key| key.contains("/locks/")), "{keys:?}");

    // A byte that is flipped over there.
    let mut objects = bucket.lock().unwrap();
    let (key, bytes) = objects
        .objects
        .iter_mut()
        .find(|(key, _)| key.contains("/parts/"))
        .unwrap();
    bytes[9_000_000] ^= 1;
    let name = key.rsplit('/').next().unwrap().to_owned();
    drop(objects);
    let output = run(&["backup", "verify"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&name));
}
