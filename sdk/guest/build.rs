//! Writes the macros that make the bindings of one world in a plugin's own crate.
//!
//! They cannot be made here, once for all: a component describes exactly one world, and the
//! exported macros of two worlds that share an interface have the same name. A macro that runs in
//! another crate needs the WIT by absolute path, and only a build script knows that.

#![allow(
    clippy::print_stdout,
    reason = "it is how a build script speaks to cargo"
)]

use std::path::PathBuf;
use std::{env, fs};

/// The worlds a plugin can be written for: the name of the macro, and the world.
const WORLDS: [(&str, &str); 3] = [
    ("__generate_filter", "filter-module"),
    ("__generate_transform", "transform-module"),
    ("__generate_partitioner", "partitioner-module"),
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let wit = root.join("../../wit");
    let wit = fs::canonicalize(&wit)
        .unwrap_or_else(|error| panic!("the WIT package {} is missing: {error}", wit.display()));
    println!("cargo:rerun-if-changed={}", wit.display());
    println!("cargo:rerun-if-changed=build.rs");
    let wit = wit.to_str().expect("the checkout's path is UTF-8");
    let macros: String = WORLDS
        .iter()
        .map(|(name, world)| generator(name, world, wit))
        .collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("generate.rs"), macros).expect("OUT_DIR is writable");
}

fn generator(name: &str, world: &str, wit: &str) -> String {
    format!(
        "#[doc(hidden)]\n#[macro_export]\nmacro_rules! {name} {{\n    () => {{\n        \
         $crate::wit_bindgen::generate!({{\n            path: {wit:?},\n            \
         world: {world:?},\n            \
         runtime_path: \"millstream_guest::wit_bindgen::rt\",\n        }});\n    }};\n}}\n"
    )
}
