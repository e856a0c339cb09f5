#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use millstream_guests as guests;
use proptest::prelude::*;

use super::*;

fn refused(wasm: &[u8], expected: &[&str]) {
    let refusal = inspect(wasm).unwrap_err().to_string();
    for text in expected {
        assert!(refusal.contains(text), "{refusal:?} does not say {text:?}");
    }
}

/// A component with these imports and exports, all of them empty instances.
fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
    let imports = imports
        .iter()
        .map(|name| format!("(import {name:?} (instance))"));
    let exports = exports
        .iter()
        .map(|name| format!("(instance $i (export {name:?}))"));
    let text: String = imports.chain(exports).collect();
    wat::parse_str(format!(
        "(component {})",
        text.replace("(instance $i", "(instance")
    ))
    .unwrap()
}

#[test]
fn plugins_are_told_by_what_they_export() {
    let check = |guest: guests::Guest, kind| {
        let inspection = inspect(guest.wasm).unwrap();
        assert_eq!(inspection.kind, kind, "{}", guest.name);
        let imports = &inspection.imports;
        assert!(imports.iter().all(|name| is_allowed(name)), "{imports:?}");
    };
    check(guests::ROUTE_BY_REGION, PluginKind::Partitioner);
    check(guests::FILTER_JSON, PluginKind::Filter);
    check(guests::FILTER_FIELD, PluginKind::Filter);
    check(guests::REDACT, PluginKind::Transform);
    check(guests::SPLIT_ALERTS, PluginKind::Transform);
    check(guests::ENRICH_HEADER, PluginKind::Transform);
    let [one, two] = [guests::REDACT, guests::FILTER_JSON].map(|g| inspect(g.wasm).unwrap().digest);
    assert_ne!(one, two);
}

#[test]
fn the_digest_is_sha_256() {
    // `sha256sum` of the same bytes; a component without a kind has no inspection.
    let digest = Digest(Sha256::digest(b"abc").into());
    assert_eq!(
        digest.to_string(),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn what_is_no_component_is_described() {
    refused(b"", &["it is empty", "expected a component"]);
    refused(b"\x7fELF\x02\x01\x01", &["an ELF program"]);
    refused(b"PK\x03\x04abc", &["a zip archive"]);
    refused(b"(module)", &["WebAssembly text"]);
    refused(b"fn main() {}", &["it is text"]);
    refused(&[0xde, 0xad, 0xbe, 0xef], &["begins with [de, ad, be, ef]"]);
    refused(
        guests::CORE_MODULE,
        &["a core WebAssembly module", "wasm32-wasip2"],
    );
    refused(
        guests::truncated(guests::FILTER_JSON),
        &["damaged", "at byte"],
    );
    for (name, bytes) in guests::NOT_COMPONENTS {
        assert!(inspect(bytes).is_err(), "{name}");
    }
    refused(
        &vec![0; MAX_PLUGIN_BYTES + 1],
        &["has 16777217 bytes; at most 16777216"],
    );
}

#[test]
fn foreign_imports_are_named_with_what_is_allowed() {
    let foreign = guests::FOREIGN_IMPORTS.wasm;
    refused(
        foreign,
        &[
            "acme:vault/secrets@1.0.0",
            "allowed are millstream:plugin/{config,",
        ],
    );
    let filter = [
        "millstream:plugin/lifecycle@0.1.0",
        "millstream:plugin/filter@0.1.0",
    ];
    for name in [
        "wasi:http/outgoing-handler@0.2.0",
        "wasi:cli/environment@0.3.0",
        "wasi:keyvalue/store@0.2.0",
        "millstream:plugin/state@0.1.0",
        "millstream:plugin/config@0.2.0",
        "wasi:cli/surprise@0.2.0",
    ] {
        refused(&component(&[name], &filter), &["the plugin imports", name]);
    }
    let allowed = [
        "wasi:cli/environment@0.2.9",
        "millstream:plugin/config@0.1.7",
    ];
    assert_eq!(
        inspect(&component(&allowed, &filter)).unwrap().imports,
        allowed
    );
    let function = r#"(component (import "run" (func)) (instance (export "millstream:plugin/lifecycle@0.1.0")) (instance (export "millstream:plugin/filter@0.1.0")))"#;
    refused(
        &wat::parse_str(function).unwrap(),
        &["the plugin imports run,"],
    );
}

#[test]
fn exports_decide() {
    let lifecycle = "millstream:plugin/lifecycle@0.1.0";
    let of = |names: &[&str]| component(&[], names);
    refused(
        guests::NO_EXPORTS.wasm,
        &["not a plugin", "expected millstream:plugin/lifecycle"],
    );
    refused(&of(&[]), &["it exports nothing"]);
    refused(
        &of(&[lifecycle, "wasi:cli/run@0.2.0"]),
        &["it exports millstream:plugin/lifecycle"],
    );
    refused(
        guests::EARLY_PROCESSOR.wasm,
        &["does not run processors yet"],
    );
    refused(
        &of(&["millstream:plugin/filter@0.1.0"]),
        &["does not export", "lifecycle"],
    );
    refused(
        &of(&[
            lifecycle,
            "millstream:plugin/filter@0.1.0",
            "millstream:plugin/transform@0.1.0",
        ]),
        &["a filter and a transform at once"],
    );
    refused(
        &of(&[
            "millstream:plugin/lifecycle@0.2.0",
            "millstream:plugin/filter@0.2.0",
        ]),
        &[
            "built for millstream:plugin/lifecycle@0.2.0",
            "speaks millstream:plugin 0.1.x",
        ],
    );
}

#[test]
fn what_would_keep_the_compiler_busy_is_refused() {
    let nested = "(component)".repeat(MAX_NESTED as usize + 1);
    let nested = wat::parse_str(format!("(component {nested})")).unwrap();
    refused(&nested, &["65 nested modules and components; at most 64"]);
    let body = "nop ".repeat(MAX_FUNCTION_BYTES + 1);
    let long = wat::parse_str(format!("(component (core module (func {body})))")).unwrap();
    refused(&long, &["bytes in one function; at most 1048576"]);
}

proptest! {
    #[test]
    fn a_damaged_component_never_panics(at in 0usize..200_000, byte in any::<u8>(), cut in any::<bool>()) {
        let mut wasm = guests::FILTER_FIELD.wasm.to_vec();
        let at = at % wasm.len();
        wasm[at] = byte;
        if cut { wasm.truncate(at); }
        let _ = inspect(&wasm);
    }

    #[test]
    fn bytes_after_the_magic_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let wasm = [b"\0asm\x0d\0\x01\0".as_slice(), &tail].concat();
        prop_assert!(inspect(&wasm).is_err());
    }
}
