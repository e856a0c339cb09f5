//! Rules about manifests: which crate may know which, and that versions stand in one place.
//!
//! A crate of this workspace exists only to forbid a dependency, so the dependencies are the
//! architecture. They are listed here, and a new one is a decision.

use toml::{Table, Value};

use crate::Finding;
use crate::tree::File;

/// Who may know whom inside the workspace, besides tests. A crate that is not listed may know
/// nobody. Crates under `tests/` may know everybody.
const MAY_KNOW: [(&str, &[&str]); 9] = [
    ("sdk/proto", &[]),
    ("sdk/client", &["millstream-proto"]),
    ("sdk/build", &[]),
    ("sdk/guest", &[]),
    ("broker/core", &["millstream-proto"]),
    ("broker/store", &["millstream-core", "millstream-proto"]),
    ("broker/plugin", &["millstream-proto"]),
    ("broker/guests", &["millstream-guest-build"]),
    (
        "broker/server",
        &[
            "millstream-core",
            "millstream-plugin",
            "millstream-proto",
            "millstream-store",
        ],
    ),
];
/// The one crate that puts server and client together, for the binary.
const CLI: (&str, &[&str]) = (
    "broker/cli",
    &[
        "millstream",
        "millstream-broker",
        "millstream-guest-build",
        "millstream-guests",
        "millstream-proto",
    ],
);
/// What the tests of any crate outside `tests/` may use besides.
const TESTS_MAY_KNOW: [&str; 2] = ["millstream-guest", "millstream-guests"];
/// Foreign crates that stay behind one door: beginning of the crate's name, and who may name it.
const BEHIND_A_DOOR: [(&str, &[&str]); 8] = [
    // Errors are enums with a variant for each cause.
    ("anyhow", &[]),
    ("redb", &["broker/store", "tests/crash"]),
    ("wasmtime", &["broker/plugin"]),
    ("wasmparser", &["broker/plugin"]),
    ("wit-bindgen", &["sdk/guest"]),
    (
        "quinn",
        &[
            "sdk/client",
            "broker/server",
            "broker/cli",
            "tests/e2e",
            "tests/crash",
        ],
    ),
    (
        "rustls",
        &[
            "sdk/client",
            "broker/server",
            "broker/cli",
            "tests/e2e",
            "tests/crash",
        ],
    ),
    (
        "tokio",
        &[
            "sdk/client",
            "broker/store",
            "broker/plugin",
            "broker/server",
            "broker/cli",
            "tests/e2e",
            "tests/crash",
        ],
    ),
];
/// Keys of `[package]` that every crate takes from the workspace.
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

const DIRECTION: &str = "Turn the dependency round, or move the code; docs/architecture.md has \
    the directions, and tests/tidy/src/rules/crates.rs the list.";

/// One dependency of a manifest.
struct Dependency<'a> {
    name: &'a str,
    value: &'a Value,
    for_tests: bool,
}

/// Checks the manifest of a crate of the workspace.
#[must_use]
pub fn manifest(file: &File) -> Vec<Finding> {
    let table: Table = match file.text.parse() {
        Ok(table) => table,
        Err(e) => {
            return vec![finding(
                file,
                "manifest",
                "",
                e.to_string(),
                "Make it valid TOML.",
            )];
        }
    };
    let dir = file.path.trim_end_matches("/Cargo.toml");
    let mut findings = Vec::new();
    let inherits = |value: Option<&Value>| {
        value
            .and_then(|v| v.get("workspace"))
            .and_then(Value::as_bool)
            == Some(true)
    };
    if !inherits(table.get("lints")) {
        let what = "no `[lints] workspace = true`".to_owned();
        findings.push(finding(
            file,
            "lints",
            "",
            what,
            "Add it: the lints are the workspace's.",
        ));
    }
    for key in INHERITED {
        if !inherits(table.get("package").and_then(|p| p.get(key))) {
            let what = format!("package.{key} is not the workspace's");
            let advice = "Write `.workspace = true`; the value stands in the root manifest.";
            findings.push(finding(file, "one-place", key, what, advice));
        }
    }
    for dependency in dependencies(&table) {
        let name = dependency.name;
        if !inherits(Some(dependency.value)) || dependency.value.get("version").is_some() {
            let what = format!("{name} does not come from the workspace's table");
            let advice = "Put the version in the root manifest and write `.workspace = true` here.";
            findings.push(finding(file, "one-place", name, what, advice));
        }
        if !may_know(dir, &dependency) {
            let what = format!("{dir} depends on {name}");
            findings.push(finding(file, "direction", name, what, DIRECTION));
        }
    }
    findings
}

fn may_know(dir: &str, dependency: &Dependency<'_>) -> bool {
    let name = dependency.name;
    if let Some((_, doors)) = BEHIND_A_DOOR.iter().find(|(begin, _)| is_of(name, begin))
        && !doors.contains(&dir)
    {
        return false;
    }
    if !is_of(name, "millstream") || dir.starts_with("tests/") {
        return true;
    }
    let listed = MAY_KNOW.iter().chain([&CLI]).find(|(who, _)| *who == dir);
    listed.is_some_and(|(_, known)| known.contains(&name))
        || dependency.for_tests && TESTS_MAY_KNOW.contains(&name)
}

/// `tokio` and `tokio-stream` are of `tokio`; `tokionize` is not.
fn is_of(name: &str, begin: &str) -> bool {
    name.strip_prefix(begin)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn dependencies(table: &Table) -> Vec<Dependency<'_>> {
    let targets = table
        .get("target")
        .and_then(Value::as_table)
        .into_iter()
        .flatten();
    let tables = targets.filter_map(|(_, t)| t.as_table()).chain([table]);
    let mut found = Vec::new();
    for table in tables {
        for key in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let list = table
                .get(key)
                .and_then(Value::as_table)
                .into_iter()
                .flatten();
            found.extend(list.map(|(name, value)| Dependency {
                name,
                value,
                for_tests: key == "dev-dependencies",
            }));
        }
    }
    found
}

/// Compares the members of the root manifest with the crates that are there.
#[must_use]
pub fn members(root: &File, crates: &[String]) -> Vec<Finding> {
    let table: Table = root.text.parse().unwrap_or_default();
    let listed: Vec<&str> = table
        .get("workspace")
        .and_then(|w| w.get("members"))
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let advice = "Make the workspace's members and the directories agree.";
    let missing = crates
        .iter()
        .filter(|c| !listed.contains(&c.as_str()))
        .map(|c| {
            finding(
                root,
                "members",
                "members",
                format!("{c} is not a member"),
                advice,
            )
        });
    let gone = listed
        .iter()
        .filter(|l| !crates.iter().any(|c| c == *l))
        .map(|l| {
            finding(
                root,
                "members",
                l,
                format!("{l} is a member but has no manifest"),
                advice,
            )
        });
    missing.chain(gone).collect()
}

/// A finding at the first line that has `near` in it.
fn finding(
    file: &File,
    rule: &'static str,
    near: &str,
    what: String,
    advice: &'static str,
) -> Finding {
    let line = file
        .text
        .lines()
        .position(|l| l.contains(near))
        .map_or(1, |i| i + 1);
    Finding {
        rule,
        path: file.path.clone(),
        line,
        what,
        advice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGE: &str = "[package]\nname = \"x\"\nversion.workspace = true\n\
        edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n\
        publish.workspace = true\n";

    /// Checks a good manifest in `dir` with `more` at its end.
    fn check(dir: &str, more: &str, expected: &[&str]) {
        let text = format!("{PACKAGE}[lints]\nworkspace = true\n{more}");
        let found = manifest(&File::new(&format!("{dir}/Cargo.toml"), &text));
        let rules: Vec<&str> = found.iter().map(|f| f.rule).collect();
        assert_eq!(rules, expected, "{dir}: {more}");
    }

    #[test]
    fn crates_know_only_whom_they_may() {
        let on = |name: &str| format!("[dependencies]\n{name}.workspace = true\n");
        check("sdk/client", &on("millstream-proto"), &[]);
        check("sdk/client", &on("millstream-broker"), &["direction"]);
        check("sdk/proto", &on("tokio"), &["direction"]);
        check("broker/core", &on("tokio-stream"), &["direction"]);
        check("broker/core", &on("tokionize"), &[]);
        check("broker/server", &on("redb"), &["direction"]);
        check("broker/server", &on("anyhow"), &["direction"]);
        check("broker/server", &on("wasmtime-wasi"), &["direction"]);
        check("broker/new", &on("millstream-proto"), &["direction"]);
        check("broker/cli", &on("millstream-e2e"), &["direction"]);
        check("tests/crash", &on("millstream-e2e"), &[]);
    }

    #[test]
    fn every_table_of_dependencies_is_looked_at() {
        let bad = "quinn.workspace = true\n";
        for table in [
            "dependencies",
            "dev-dependencies",
            "build-dependencies",
            "target.'cfg(unix)'.dependencies",
        ] {
            check("sdk/proto", &format!("[{table}]\n{bad}"), &["direction"]);
        }
        check(
            "broker/plugin",
            "[dev-dependencies]\nmillstream-guests.workspace = true",
            &[],
        );
        check(
            "broker/plugin",
            "[dependencies]\nmillstream-guests.workspace = true",
            &["direction"],
        );
    }

    #[test]
    fn versions_stand_in_the_root_manifest() {
        check("sdk/proto", "[dependencies]\nbytes = \"1\"", &["one-place"]);
        check(
            "sdk/proto",
            "[dependencies]\nbytes = { path = \"../bytes\" }",
            &["one-place"],
        );
        check(
            "sdk/proto",
            "[dependencies]\nbytes = { workspace = true, features = [] }",
            &[],
        );
    }

    #[test]
    fn lints_and_package_keys_come_from_the_workspace() {
        let found = manifest(&File::new("sdk/proto/Cargo.toml", PACKAGE));
        assert_eq!(found.iter().map(|f| f.rule).collect::<Vec<_>>(), ["lints"]);
        let text = PACKAGE.replace("license.workspace = true", "license = \"MIT\"");
        let text = format!("{text}[lints]\nworkspace = true\n");
        let found = manifest(&File::new("sdk/proto/Cargo.toml", &text));
        assert_eq!(
            found.iter().map(|f| (f.rule, f.line)).collect::<Vec<_>>(),
            [("one-place", 6)]
        );
    }

    #[test]
    fn what_is_not_toml_is_a_finding() {
        assert_eq!(manifest(&File::new("sdk/proto/Cargo.toml", "[[")).len(), 1);
    }

    #[test]
    fn members_and_directories_agree() {
        let root = File::new("Cargo.toml", "[workspace]\nmembers = [\"a\", \"b\"]\n");
        let crates = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(members(&root, &crates(&["a", "b"])), []);
        assert_eq!(members(&root, &crates(&["a"])).len(), 1);
        assert_eq!(members(&root, &crates(&["a", "b", "c"])).len(), 1);
    }
}
