//! Runs every house rule over the tree of the repository.

use std::path::PathBuf;

use millstream_tidy::Finding;
use millstream_tidy::rules::{crates, docs, limits, shape, words};
use millstream_tidy::source::{Source, parse_all};
use millstream_tidy::tree::{self, File};

fn files() -> Vec<File> {
    let files = tree::read(&tree::root()).expect("the repository can be read");
    assert!(files.len() > 50, "only {} files were found", files.len());
    files
}

fn sources(files: &[File]) -> Vec<Source> {
    parse_all(files).expect("what ends in .rs is Rust")
}

/// Fails with every finding, each with its place and what to do.
fn expect_none(findings: impl IntoIterator<Item = Finding>) {
    let list: Vec<String> = findings.into_iter().map(|f| f.to_string()).collect();
    assert!(
        list.is_empty(),
        "{} findings:\n{}",
        list.len(),
        list.join("\n")
    );
}

fn is_manifest(file: &File) -> bool {
    file.name() == "Cargo.toml"
        && ["sdk/", "broker/", "tests/"]
            .iter()
            .any(|top| file.path.starts_with(top))
}

#[test]
fn files_are_short_clean_and_well_named() {
    expect_none(
        files()
            .iter()
            .flat_map(|f| shape::lines(f).into_iter().chain(shape::name(f))),
    );
}

#[test]
fn modules_say_what_they_are_for_and_functions_are_short() {
    expect_none(sources(&files()).iter().flat_map(shape::rust));
}

#[test]
fn the_top_level_is_as_it_was_laid_out() {
    let names = tree::top_level(&tree::root()).expect("the repository can be read");
    expect_none(shape::top_level(&names));
}

#[test]
fn banned_words_stay_in_their_homes() {
    expect_none(sources(&files()).iter().flat_map(words::banned));
}

#[test]
fn exceptions_are_used() {
    assert_eq!(words::stale_homes(&sources(&files())), Vec::<String>::new());
}

#[test]
fn nothing_is_left_for_later() {
    expect_none(files().iter().flat_map(|f| words::notes(&f.path, &f.text)));
}

#[test]
fn crates_know_only_whom_they_may() {
    let files = files();
    expect_none(
        files
            .iter()
            .filter(|f| is_manifest(f))
            .flat_map(crates::manifest),
    );
}

#[test]
fn the_workspace_has_every_crate() {
    let files = files();
    let root = files
        .iter()
        .find(|f| f.path == "Cargo.toml")
        .expect("the root has a manifest");
    let found: Vec<String> = files
        .iter()
        .filter(|f| is_manifest(f))
        .map(|f| f.path.trim_end_matches("/Cargo.toml").to_owned())
        .collect();
    expect_none(crates::members(root, &found));
}

#[test]
fn links_lead_somewhere() {
    let pages: Vec<File> = files().into_iter().filter(|f| f.is("md")).collect();
    let root = tree::root();
    let exists = |path: &str| root.join(PathBuf::from(path)).exists();
    expect_none(pages.iter().flat_map(|p| docs::links(p, &pages, &exists)));
}

#[test]
fn every_page_is_in_the_book() {
    let pages: Vec<File> = files().into_iter().filter(|f| f.is("md")).collect();
    expect_none(docs::summary(&pages));
}

#[test]
fn the_table_of_error_codes_is_the_code() {
    let files = files();
    let find = |path: &str| {
        files
            .iter()
            .find(|f| f.path == path)
            .expect("the file is there")
    };
    let rows = docs::code_rows(&find("sdk/proto/src/code.rs").text);
    assert!(
        rows.len() > 20,
        "only {} codes were found: is the reader still right?",
        rows.len()
    );
    expect_none(docs::code_table(find("docs/protocol.md"), &rows));
}

#[test]
fn the_table_of_limits_is_the_code() {
    let files = files();
    let find = |path: &str| {
        files
            .iter()
            .find(|f| f.path == path)
            .expect("the file is there")
    };
    let rows = limits::rows(&limits::limits(find("sdk/proto/src/limits.rs")));
    assert!(
        rows.len() > 20,
        "only {} limits were found: is the reader still right?",
        rows.len()
    );
    expect_none(limits::table(find("docs/protocol.md"), &rows));
}

#[test]
fn the_gate_runs_what_the_readme_says() {
    let files = files();
    let find = |path: &str| {
        files
            .iter()
            .find(|f| f.path == path)
            .expect("the file is there")
    };
    let commands = docs::commands(find("README.md"));
    assert_eq!(
        commands,
        ["cargo run --release -- demo", "cargo test --workspace"]
    );
    let last = find(".ci/run").text.trim_end().lines().last();
    assert_eq!(
        last,
        Some("cargo test --workspace"),
        "the gate ends with the tests"
    );
}

#[test]
fn decisions_are_numbered_and_listed() {
    let files = files();
    let pages = files
        .iter()
        .filter_map(|f| f.path.strip_prefix("docs/decisions/0"));
    let pages: Vec<String> = pages.map(|page| format!("0{page}")).collect();
    assert!(!pages.is_empty());
    let index = files
        .iter()
        .find(|f| f.path == "docs/decisions/README.md")
        .expect("an index");
    for (i, page) in pages.iter().enumerate() {
        let number = format!("{:04}", i + 1);
        assert!(
            page.starts_with(&number),
            "{page} should be number {number}"
        );
        assert!(
            index.text.contains(&format!("[{number}]({page})")),
            "the index lacks {page}"
        );
    }
}
