//! `millstream plugin`: write, build, upload and use plugins.

mod local;

use clap::Subcommand;

use crate::args::Global;
use crate::error::Outcome;

/// Subcommands of `plugin`.
#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Write a new plugin's crate, which compiles and tests itself.
    New(local::NewArgs),
    /// Compile a plugin's crate to a component.
    Build(local::BuildArgs),
}

/// Runs a subcommand.
pub(crate) fn run(global: &Global, command: PluginCommand) -> Outcome {
    match command {
        PluginCommand::New(args) => local::new(global, &args),
        PluginCommand::Build(args) => local::build(global, &args),
    }
}
