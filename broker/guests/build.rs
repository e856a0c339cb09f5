//! Compiles every plugin of `guest-examples` once and writes a constant for each.

#![allow(
    clippy::print_stdout,
    reason = "it is how a build script speaks to cargo"
)]
#![allow(clippy::print_stderr, reason = "cargo shows it when the build fails")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use millstream_guest_build::{Artifact, Options, Progress};

/// What the plugins are made of, beside the examples themselves.
const SOURCES: [&str; 4] = [
    "../../wit",
    "../../sdk/guest/src",
    "../../sdk/guest/build.rs",
    "../../sdk/guest/Cargo.toml",
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let examples = root.join("../../guest-examples");
    watch(&root, &examples);
    let say = &mut |progress: Progress<'_>| match progress {
        Progress::Target(line) => println!("cargo:warning={line}"),
        Progress::Cargo(line) => eprintln!("{line}"),
    };
    let target = out.join("target");
    let artifacts = millstream_guest_build::build(&examples, &target, &Options::default(), say)
        .unwrap_or_else(|error| panic!("{error}"));
    fs::write(out.join("guests.rs"), constants(&artifacts)).expect("OUT_DIR is writable");
}

/// A change of any source builds again. The examples' own target directory is left out: who
/// builds there by hand does not change the plugins.
fn watch(root: &Path, examples: &Path) {
    let entries = fs::read_dir(examples).expect("the examples are part of the repository");
    let examples = entries.map(|entry| entry.expect("it can be listed").path());
    let watched = examples.filter(|path| !path.ends_with("target"));
    for path in watched.chain(SOURCES.iter().map(|source| root.join(source))) {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

fn constants(artifacts: &[Artifact]) -> String {
    let mut code = String::new();
    let mut all = String::new();
    let mut each = String::new();
    for Artifact { name, path } in artifacts {
        let path = path.to_str().expect("the target directory's path is UTF-8");
        let ident = name.replace('-', "_");
        let constant = ident.to_uppercase();
        write!(
            code,
            "/// The plugin `{name}`.\npub const {constant}: Guest = Guest {{\n    \
             name: {name:?},\n    path: {path:?},\n    wasm: include_bytes!({path:?}),\n}};\n\n"
        )
        .expect("writing to a string");
        write!(all, "{constant}, ").expect("writing to a string");
        write!(each, "$each!({ident}); ").expect("writing to a string");
    }
    format!(
        "{code}/// Every plugin, sorted by name.\npub const ALL: &[Guest] = &[{all}];\n\n\
         /// Calls the macro `$each` with the name of every plugin as an identifier (`filter_json`),\n\
         /// so that a test file which forgets one does not compile.\n\
         #[macro_export]\nmacro_rules! for_each_guest {{\n    ($each:ident) => {{ {each}}};\n}}\n"
    )
}
