//! What needs no broker: `plugin new` and `plugin build`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use millstream_guest_build::{Artifact, BuildError, Options, Progress};
use serde::Serialize;

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};
use crate::quantity::show_bytes;
use crate::scaffold::{self, Kind, ScaffoldError, Sdk};
use crate::table::Table;

/// Arguments of `plugin new`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream plugin new drop-debug --kind filter
  millstream plugin new by-customer --kind partitioner --path plugins/by-customer")]
pub(crate) struct NewArgs {
    /// Name of the crate and, after the tenant, of the plugin.
    name: String,
    /// What it does.
    #[arg(long, value_enum, default_value_t = Kind::Filter)]
    kind: Kind,
    /// Directory to make; the name in the current directory unless given.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Directory of the plugin SDK, where it is not found by itself.
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

/// Arguments of `plugin build`.
#[derive(Debug, Args)]
#[command(after_help = "\
A missing Rust target is added by rustup. The component is below target/wasm32-wasip2/release.

Examples:
  millstream plugin build drop-debug
  millstream plugin build drop-debug --out .")]
pub(crate) struct BuildArgs {
    /// Directory of the crate, or of a workspace of plugins.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Copy the components to this directory too.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Created<'a> {
    name: &'a str,
    kind: &'static str,
    path: &'a Path,
}

#[derive(Serialize)]
struct Built {
    name: String,
    path: PathBuf,
    bytes: u64,
}

/// Writes a new crate.
pub(super) fn new(global: &Global, args: &NewArgs) -> Outcome {
    let dir = args
        .path
        .clone()
        .unwrap_or_else(|| PathBuf::from(&args.name));
    let parent = dir
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let sdk = scaffold::find_sdk(args.sdk.as_deref(), parent).map_err(explain_new)?;
    scaffold::create(&dir, &args.name, args.kind, &sdk).map_err(explain_new)?;
    let out = global.output();
    match &sdk {
        Sdk::Path(path) => out.note(&format!("the plugin SDK is taken from {}", path.display())),
        Sdk::Version(version) => out.note(&format!(
            "the plugin SDK is version {version} of the registry"
        )),
    }
    let shown = dir.display();
    let sentence = format!(
        "wrote a {} in {shown}\nnext:\n  cargo test --manifest-path {shown}/Cargo.toml\n  millstream plugin build {shown}",
        args.kind.as_str()
    );
    out.done(
        &sentence,
        &Created {
            name: &args.name,
            kind: args.kind.as_str(),
            path: &dir,
        },
    )
}

fn explain_new(error: ScaffoldError) -> CliError {
    let (exit, next) = match &error {
        ScaffoldError::Name(_) => (Exit::Usage, "for example: millstream plugin new drop-debug"),
        ScaffoldError::Exists(_) => (
            Exit::Failure,
            "choose another name, or another place with --path",
        ),
        ScaffoldError::NotSdk(_) => (
            Exit::Usage,
            "give the directory sdk/guest of a checkout of Millstream",
        ),
        ScaffoldError::Write { .. } => (Exit::Failure, "check the path and its permissions"),
    };
    CliError::new(exit, error).next(next)
}

/// Compiles a crate.
pub(super) fn build(global: &Global, args: &BuildArgs) -> Outcome {
    let out = global.output();
    // Cargo runs in the crate's directory: a relative path would count from there.
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|e| CliError::file("find", path, &e));
    let target = absolute(&args.dir.join("target"))?;
    let mut say = |progress: Progress<'_>| match progress {
        Progress::Cargo(line) | Progress::Target(line) => out.note(line),
    };
    let artifacts =
        millstream_guest_build::build(&args.dir, &target, &Options::default(), &mut say)
            .map_err(explain_build)?;
    let built = artifacts
        .into_iter()
        .map(|artifact| place(artifact, args.out.as_deref()))
        .collect::<Outcome<Vec<Built>>>()?;
    let mut table = Table::new(&["PLUGIN", "SIZE#", "COMPONENT"]);
    for one in &built {
        table.row([
            one.name.clone(),
            show_bytes(one.bytes),
            one.path.display().to_string(),
        ]);
    }
    out.table(&table, &built)?;
    if let (false, Some(one)) = (out.json, built.first()) {
        out.note(&format!(
            "next: millstream plugin upload <tenant>/{} {}",
            one.name,
            one.path.display()
        ));
    }
    Ok(())
}

fn place(artifact: Artifact, out: Option<&Path>) -> Outcome<Built> {
    let Artifact { name, path } = artifact;
    let path = match out {
        None => from_here(path),
        Some(dir) => {
            let to = dir.join(format!("{name}.wasm"));
            fs::create_dir_all(dir).map_err(|e| CliError::file("create", dir, &e))?;
            fs::copy(&path, &to).map_err(|e| CliError::file("write", &to, &e))?;
            to
        }
    };
    let bytes = fs::metadata(&path)
        .map_err(|e| CliError::file("read", &path, &e))?
        .len();
    Ok(Built { name, path, bytes })
}

/// The path as it is shorter to type, where it lies below the current directory.
fn from_here(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).map(Path::to_owned).ok());
    below.unwrap_or(path)
}

fn explain_build(error: BuildError) -> CliError {
    match &error {
        BuildError::NoManifest(_) => CliError::new(Exit::NotFound, error)
            .next("make a plugin with `millstream plugin new <name> --kind filter`"),
        BuildError::NoComponent(_) => CliError::usage(error),
        _ => CliError::failure(error),
    }
}
