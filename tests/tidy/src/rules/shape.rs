//! Rules about files as such: their length, their names, how they begin and how their lines end.

use crate::Finding;
use crate::source::Source;
use crate::tree::File;

/// Most lines of a file. At 500 it is time to look for the seam.
const MAX_FILE_LINES: usize = 800;
/// Most lines of a function. At 70 it wants a second name.
const MAX_FUNCTION_LINES: usize = 100;
/// What may lie at the top of the repository.
const TOP_LEVEL: [&str; 19] = [
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "broker",
    "clippy.toml",
    "deny.toml",
    "docs",
    "guest-examples",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "sdk",
    "tests",
    "wit",
];
/// Words that say nothing about what a file holds.
const EMPTY_NAMES: [&str; 9] = [
    "common",
    "helper",
    "helpers",
    "manager",
    "managers",
    "misc",
    "util",
    "utilities",
    "utils",
];

/// A file that grew too long, and lines with space or a carriage return at their end.
#[must_use]
pub fn lines(file: &File) -> Vec<Finding> {
    let finding = |rule, line, what, advice| {
        let path = file.path.clone();
        Finding {
            rule,
            path,
            line,
            what,
            advice,
        }
    };
    let mut findings = Vec::new();
    let count = file.text.lines().count();
    if count > MAX_FILE_LINES {
        let what = format!("{count} lines; at most {MAX_FILE_LINES} are allowed");
        findings.push(finding(
            "file-length",
            count,
            what,
            "Find the seam and make two files of it.",
        ));
    }
    for (i, line) in file.text.split('\n').enumerate() {
        if line.ends_with([' ', '\t', '\r']) {
            let what = "space at the end of the line".to_owned();
            findings.push(finding(
                "line-end",
                i + 1,
                what,
                "Remove it; lines end in a bare newline.",
            ));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        let what = "no newline at the end of the file".to_owned();
        findings.push(finding("line-end", count, what, "Add one."));
    }
    findings
}

/// A file or directory whose name says nothing.
#[must_use]
pub fn name(file: &File) -> Vec<Finding> {
    let stems = file
        .path
        .split('/')
        .map(|part| part.split('.').next().unwrap_or(part));
    let empty = |stem: &str| {
        stem.split(['_', '-'])
            .any(|word| EMPTY_NAMES.contains(&word))
    };
    stems
        .filter(|stem| empty(stem))
        .map(|stem| Finding {
            rule: "name",
            path: file.path.clone(),
            line: 1,
            what: format!("{stem:?} does not say what is in it"),
            advice: "Name the noun: what is made, decided or stored there?",
        })
        .collect()
}

/// A Rust file without a header, and functions that grew too long.
#[must_use]
pub fn rust(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    // A file called `tests.rs` has said it.
    if !source.has_header && !source.path.ends_with("/tests.rs") {
        findings.push(Finding {
            rule: "header",
            path: source.path.clone(),
            line: 1,
            what: "no `//!` at the beginning".to_owned(),
            advice: "Say what the module is for and what is deliberately absent.",
        });
    }
    for f in source
        .functions
        .iter()
        .filter(|f| f.lines > MAX_FUNCTION_LINES)
    {
        findings.push(Finding {
            rule: "function-length",
            path: source.path.clone(),
            line: f.line,
            what: format!(
                "{} has {} lines; at most {MAX_FUNCTION_LINES} are allowed",
                f.name, f.lines
            ),
            advice: "Give a part of it a name of its own; aim at 70 lines.",
        });
    }
    findings
}

/// Names at the top level that have no place there. Build output and databases, which git
/// ignores, do not count.
#[must_use]
pub fn top_level(names: &[String]) -> Vec<Finding> {
    let ignored = |name: &str| name == "target" || name.ends_with(".redb");
    names
        .iter()
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()) && !ignored(name))
        .map(|name| Finding {
            rule: "top-level",
            path: name.clone(),
            line: 1,
            what: "the top level has a fixed list of names, and this is not one of them".to_owned(),
            advice: "Put it where its kind of thing lives; docs/architecture.md says where that is.",
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    fn rules(findings: &[Finding]) -> Vec<(&'static str, usize)> {
        findings.iter().map(|f| (f.rule, f.line)).collect()
    }

    #[test]
    fn a_file_may_have_800_lines_and_no_more() {
        let text = |n| "x\n".repeat(n);
        assert_eq!(lines(&File::new("a.rs", &text(MAX_FILE_LINES))), []);
        let long = lines(&File::new("a.rs", &text(MAX_FILE_LINES + 1)));
        assert_eq!(rules(&long), [("file-length", MAX_FILE_LINES + 1)]);
    }

    #[test]
    fn space_at_the_end_of_a_line_is_found() {
        let found = lines(&File::new("a.md", "one \ntwo\n\tthree\t\nfour\r\nfive"));
        let at = [
            ("line-end", 1),
            ("line-end", 3),
            ("line-end", 4),
            ("line-end", 5),
        ];
        assert_eq!(rules(&found), at);
    }

    #[test]
    fn empty_names_are_found_in_every_part_of_a_path() {
        for bad in [
            "a/util.rs",
            "a/helpers/b.rs",
            "a/topic_manager.rs",
            "a/common.tests.rs",
        ] {
            assert_eq!(name(&File::new(bad, "")).len(), 1, "{bad}");
        }
        for good in ["a/utility_bill.rs", "a/commons.rs", "a/partition.rs"] {
            assert_eq!(name(&File::new(good, "")), [], "{good}");
        }
    }

    #[test]
    fn a_module_needs_a_header_and_short_functions() {
        let parse = |text: &str| Source::parse(&File::new("a.rs", text)).unwrap();
        assert_eq!(rust(&parse("//! For this.\nfn f() {}")), []);
        assert_eq!(rules(&rust(&parse("fn f() {}"))), [("header", 1)]);
        let tests = Source::parse(&File::new("a/tests.rs", "fn f() {}")).unwrap();
        assert_eq!(rust(&tests), []);
        let long = format!(
            "//! For this.\nfn f() {{\n{}}}",
            "g();\n".repeat(MAX_FUNCTION_LINES)
        );
        assert_eq!(rules(&rust(&parse(&long))), [("function-length", 2)]);
    }

    #[test]
    fn the_top_level_is_closed() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            top_level(&names(&["docs", "target", "Cargo.toml", "a.redb"])),
            []
        );
        assert_eq!(
            rules(&top_level(&names(&["docs", "scripts"]))),
            [("top-level", 1)]
        );
    }
}
