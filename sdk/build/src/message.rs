//! Cargo's messages: one JSON object for each line, of which the artifacts matter.

use std::path::PathBuf;

use serde_json::Value;

use crate::Artifact;

/// The component that a line of cargo's output announces, if it does. Lines of other kinds, and
/// what is not JSON at all (a build script's own output), are passed over.
pub(crate) fn component(line: &str) -> Option<Artifact> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let kinds = message["target"]["kind"].as_array()?;
    if !kinds.iter().any(|kind| kind == "cdylib") {
        return None;
    }
    let files = message["filenames"].as_array()?;
    let wasm = files
        .iter()
        .filter_map(Value::as_str)
        .find(|name| name.ends_with(".wasm"))?;
    let name = package_name(message["package_id"].as_str()?)?;
    Some(Artifact {
        name: name.to_owned(),
        path: PathBuf::from(wasm),
    })
}

/// The package's name in a package id, which leaves it out of the fragment where it is the last
/// part of the URL.
fn package_name(id: &str) -> Option<&str> {
    let (url, fragment) = id.split_once('#')?;
    if let Some((name, _version)) = fragment.split_once('@') {
        return Some(name);
    }
    url.rsplit('/').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<(&str, &str)>) {
        let expected = expected.map(|(name, path)| Artifact {
            name: name.to_owned(),
            path: PathBuf::from(path),
        });
        assert_eq!(component(line), expected, "{line}");
    }

    #[test]
    fn a_component_has_the_name_of_its_package() {
        check(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///g/filter-json#0.1.0",
            "target":{"kind":["cdylib"],"name":"filter_json"},
            "filenames":["/t/filter_json.d","/t/filter_json.wasm"]}"#,
            Some(("filter-json", "/t/filter_json.wasm")),
        );
        check(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///g/x#my-plugin@0.2.0",
            "target":{"kind":["rlib","cdylib"]},"filenames":["/t/my.rlib","/t/my.wasm"]}"#,
            Some(("my-plugin", "/t/my.wasm")),
        );
    }

    #[test]
    fn other_lines_are_passed_over() {
        check(r#"{"reason":"build-finished","success":true}"#, None);
        check("not json", None);
        check("", None);
        check(
            r#"{"reason":"compiler-artifact","package_id":"registry+x#libc@0.2.0",
            "target":{"kind":["lib"]},"filenames":["/t/liblibc.rlib"]}"#,
            None,
        );
        check(
            r#"{"reason":"compiler-artifact","package_id":"nonsense",
            "target":{"kind":["cdylib"]},"filenames":["/t/x.wasm"]}"#,
            None,
        );
    }
}
