#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// In these tests the first letter of a plugin's name says what it is.
fn kind(name: &PluginName) -> PluginKind {
    match name.local().as_bytes()[0] {
        b'p' => PluginKind::Partitioner,
        b't' => PluginKind::Transform,
        _ => PluginKind::Filter,
    }
}

fn plugin(name: &str) -> PluginUse {
    PluginUse::new(format!("acme/{name}").parse().unwrap())
}

fn attach(chain: Uses, name: &str) -> Uses {
    let new = plugin(name);
    let is = kind(&new.plugin);
    placed(chain, new, is, |u| Some(kind(&u.plugin)))
}

fn check(attached: &[&str], expected: &[&str]) {
    let chain = attached
        .iter()
        .fold(Vec::new(), |chain, name| attach(chain, name));
    let names: Vec<&str> = chain.iter().map(|u| u.plugin.local()).collect();
    assert_eq!(names, expected);
}

#[test]
fn a_partitioner_comes_last_and_takes_the_place_of_another() {
    check(&["p1", "f1", "t1"], &["f1", "t1", "p1"]);
    check(&["f1", "p1", "p2", "t1"], &["f1", "t1", "p2"]);
}

#[test]
fn a_plugin_that_is_attached_already_is_replaced_where_it_stands() {
    check(&["f1", "t1", "f2", "t1"], &["f1", "t1", "f2"]);
    let chain = vec![plugin("f1"), plugin("f2")];
    let newer = PluginUse {
        version: Some(2),
        ..plugin("f1")
    };
    let chain = placed(chain, newer, PluginKind::Filter, |u| Some(kind(&u.plugin)));
    assert_eq!((chain[0].version, chain.len()), (Some(2), 2));
}

#[test]
fn a_version_of_another_kind_goes_where_its_kind_goes() {
    let chain = vec![plugin("f1"), plugin("f2")];
    let now_partitioner = placed(chain, plugin("f1"), PluginKind::Partitioner, |u| {
        Some(kind(&u.plugin))
    });
    let names: Vec<&str> = now_partitioner.iter().map(|u| u.plugin.local()).collect();
    assert_eq!(names, ["f2", "f1"]);
    let chain = vec![plugin("f1"), plugin("p1")];
    let now_filter = placed(chain, plugin("p1"), PluginKind::Filter, |u| {
        Some(kind(&u.plugin))
    });
    let names: Vec<&str> = now_filter.iter().map(|u| u.plugin.local()).collect();
    assert_eq!(names, ["f1", "p1"]);
}

proptest! {
    #[test]
    fn however_plugins_come_the_chain_holds_together(names in vec("[pft][1-3]", 0..20)) {
        let mut chain = Vec::new();
        for name in &names {
            let before: Vec<_> = chain.iter().map(|u: &PluginUse| u.plugin.clone()).collect();
            chain = attach(chain, name);
            let partitioners: Vec<usize> = (0..chain.len())
                .filter(|&at| kind(&chain[at].plugin) == PluginKind::Partitioner)
                .collect();
            prop_assert!(partitioners.is_empty() || partitioners == [chain.len() - 1]);
            prop_assert!(chain.iter().filter(|u| u.plugin.local() == name).count() == 1);
            // What is no partitioner keeps its order.
            let kept: Vec<_> = before.iter().filter(|n| kind(n) != PluginKind::Partitioner).collect();
            let now: Vec<_> = chain.iter().map(|u| &u.plugin).filter(|n| kept.contains(n)).collect();
            prop_assert_eq!(now, kept);
        }
    }
}
