#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::collections::BTreeSet;

use super::*;
use crate::config::{Config, MetricsConfig};
use crate::serve::control::tests::start;
use crate::tls::tests::good;

const PAGE: &str = include_str!("../../../../docs/operations.md");

/// A family as the documentation has it.
fn row(family: &Family) -> String {
    let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
    let (series, kind) = (family.series(), family.kind.name());
    format!(
        "| `{series}` | {kind} | {} | {} |",
        labels.join(", "),
        family.help
    )
}

#[test]
fn the_table_in_the_documentation_is_the_list() {
    let written: Vec<&str> = PAGE
        .lines()
        .filter(|line| line.starts_with("| `millstream_"))
        .collect();
    let expected: Vec<String> = FAMILIES.iter().map(row).collect();
    assert_eq!(
        written,
        expected,
        "docs/operations.md must have:\n{}",
        expected.join("\n")
    );
}

#[test]
fn names_follow_the_habits() {
    let mut seen = BTreeSet::new();
    for family in FAMILIES {
        let name = family.name();
        assert!(seen.insert(name.clone()), "{name} is there twice");
        assert!(name.starts_with("millstream_"), "{name}");
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(name.chars().all(plain), "{name}");
        for suffix in ["_total", "_info", "_count", "_sum", "_bucket"] {
            assert!(!name.ends_with(suffix), "{name}");
        }
        // It is written into the page as it is.
        assert!(!family.help.contains(['\n', '\\', '|', '"']), "{name}");
        let labels: BTreeSet<_> = family.labels.iter().collect();
        assert_eq!(labels.len(), family.labels.len(), "{name}");
        assert!(!labels.contains(&"le"), "{name}");
    }
}

#[tokio::test]
async fn every_family_is_written_once_and_as_what_it_is() {
    let dir = good();
    let running = start(&dir).await;
    assert_eq!(running.metrics_addr(), None);
    let broker = std::sync::Arc::clone(running.broker());
    let page = gather::page(&broker).unwrap();
    drop(broker);
    let typed: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(str::to_owned)
        .collect();
    let mut expected: Vec<String> = FAMILIES
        .iter()
        .map(|family| format!("{} {}", family.name(), family.kind.name()))
        .collect();
    let mut sorted = typed.clone();
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);
    assert!(page.ends_with("# EOF\n"), "{page}");
    running.shutdown().await;
}

#[test]
fn off_the_machine_somebody_must_be_allowed_to_read() {
    let dir = good();
    let any = "0.0.0.0:0".parse().unwrap();
    let mut config = Config::new(any, dir.dir.path(), dir.files.clone());
    config.metrics = Some(MetricsConfig::new(any));
    let Err(error) = Listener::bind(&config) else {
        panic!("it is bound");
    };
    assert!(error.to_string().contains("`admins`"), "{error}");
}
