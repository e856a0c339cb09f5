#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::Path;

use millstream_guests as guests;

use super::*;
use crate::engine::EngineConfig;

fn registry(directory: &Path) -> Registry {
    let engine = PluginEngine::new(EngineConfig { instances: 2 }).unwrap();
    Registry::open(engine, directory.join("artifacts")).unwrap()
}

fn artifacts(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(directory.join("artifacts")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_plugin_is_compiled_once_and_shared() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path());
    let one = registry.load(guests::FILTER_FIELD.wasm).unwrap();
    let two = registry.load(guests::FILTER_FIELD.wasm).unwrap();
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(one.kind(), PluginKind::Filter);
    let digest = one.digest();
    assert!(registry.get(&digest).is_some());
    drop((one, two));
    assert!(registry.get(&digest).is_none());
    assert_eq!(artifacts(dir.path()).len(), 1);
}

#[test]
fn an_artifact_is_used_after_a_restart_and_a_bad_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let load = || {
        registry(dir.path())
            .load(guests::FILTER_FIELD.wasm)
            .unwrap()
            .digest()
    };
    let digest = load();
    let (path, good) = artifacts(dir.path()).pop().unwrap();

    // Unchanged after a restart: read, not written again.
    let old = std::time::SystemTime::UNIX_EPOCH;
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(old)
        .unwrap();
    assert_eq!(load(), digest);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), old);

    for damage in [0, 20, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[damage] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        assert_eq!(load(), digest);
        assert_ne!(
            fs::read(&path).unwrap(),
            bad,
            "byte {damage} is written again"
        );
    }
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert_eq!(load(), digest);
    assert_eq!(fs::read(&path).unwrap().len(), good.len());
}

#[test]
fn contents_that_cannot_run_are_refused_when_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path());
    let refused = |text: &str, expected: &str| {
        let component = format!(
            r#"(component {text}
                (instance (export "millstream:plugin/lifecycle@0.1.0"))
                (instance (export "millstream:plugin/filter@0.1.0")))"#
        );
        let refusal = registry
            .load(&wat::parse_str(component).unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            refusal.starts_with("the component cannot run here"),
            "{refusal}"
        );
        assert!(
            refusal.contains(expected),
            "{refusal:?} does not say {expected:?}"
        );
    };
    refused("", "does not have export");
    refused("(core module (func (result i32)))", "type mismatch");
    refused(
        r#"(import "millstream:plugin/config@0.1.0"
            (instance (export "get" (func (param "key" u32)))))"#,
        "millstream:plugin/config@0.1.0",
    );
    let instances = "(core instance (instantiate $m))".repeat(20);
    refused(
        &format!("(core module $m) {instances}"),
        "20 core module instances",
    );
    refused(
        "(core module $m (memory 1)) (core instance (instantiate $m)) (core instance (instantiate $m))",
        "memories",
    );
    refused(
        "(core module $m (memory 5000)) (core instance (instantiate $m))",
        "memory",
    );
}
