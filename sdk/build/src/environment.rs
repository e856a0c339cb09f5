//! What of this process's environment the inner tools may see.
//!
//! Cargo tells a build script about the build it runs in by some hundred variables, and reads
//! nearly all of its settings from variables too. The inner cargo is another build, for another
//! target: it gets what says where Rust and the network are, and nothing about the outer build.

use std::env;
use std::ffi::OsStr;
use std::process::Command;

/// Variables of cargo's that describe the machine and not the outer build.
const MACHINE: [&str; 2] = ["CARGO_HOME", "CARGO_MAKEFLAGS"];
/// Beginnings of such variables: proxies, registries, offline mode, colours.
const MACHINE_PREFIXES: [&str; 6] = [
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTRY_",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
];
/// Variables without a prefix of their own that change what rustc makes, or describe the outer
/// build.
const OUTER: [&str; 14] = [
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "TARGET",
];
/// The flags of the inner rustc, encoded as cargo wants them.
const FLAGS: &str = "-Ctarget-feature=+simd128";

/// A command that sees a clean environment.
pub(crate) fn command(tool: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(tool);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_foreign) {
            command.env_remove(&name);
        }
    }
    command
}

/// The cargo to run. A build script is told which one runs it; that is the same toolchain without
/// asking rustup again.
pub(crate) fn cargo() -> Command {
    let tool = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = command(&tool);
    // SIMD matters more to a plugin's speed than anything its author does. This variable
    // overrules flags from configuration files too, which are meant for the host.
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS);
    command
}

/// Whether cargo has been told to keep off the network.
pub(crate) fn is_offline() -> bool {
    env::var("CARGO_NET_OFFLINE").is_ok_and(|value| value == "true" || value == "1")
}

/// Whether a variable belongs to the outer build.
fn is_foreign(name: &str) -> bool {
    let machine = MACHINE.contains(&name)
        || MACHINE_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let cargo = name.starts_with("CARGO_") || name == "CARGO" || name.starts_with("DEP_");
    (cargo && !machine) || OUTER.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_build_is_not_seen() {
        let outer = [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_FEATURE_X",
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_NAME",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "DEP_Z_ROOT",
            "OUT_DIR",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "TARGET",
        ];
        for name in outer {
            assert!(is_foreign(name), "{name}");
        }
    }

    #[test]
    fn the_machine_is_seen() {
        let machine = [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_X_TOKEN",
            "HOME",
            "HTTPS_PROXY",
            "PATH",
            "RUSTUP_HOME",
            "RUSTUP_TOOLCHAIN",
        ];
        for name in machine {
            assert!(!is_foreign(name), "{name}");
        }
    }

    #[test]
    fn the_inner_cargo_gets_simd_and_no_flags_of_the_host() {
        let command = cargo();
        let set: Vec<_> = command
            .get_envs()
            .filter(|(_, value)| value.is_some())
            .collect();
        let expected = (
            OsStr::new("CARGO_ENCODED_RUSTFLAGS"),
            Some(OsStr::new(FLAGS)),
        );
        assert_eq!(set, [expected]);
    }
}
