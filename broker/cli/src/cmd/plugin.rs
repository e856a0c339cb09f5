//! `millstream plugin`: write, build, upload and use plugins.

mod local;
mod remote;

use clap::Subcommand;
use millstream_proto::{PluginName, Tenant, TopicName};

use crate::args::Global;
use crate::error::Outcome;
use crate::plugin_use::PluginRef;

/// Subcommands of `plugin`.
#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Write a new plugin's crate, which compiles and tests itself.
    New(local::NewArgs),
    /// Compile a plugin's crate to a component.
    Build(local::BuildArgs),
    /// Upload a component as the next version of a plugin.
    Upload(remote::UploadArgs),
    /// List the versions of the plugins that you may describe.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Put a plugin on a topic: every record produced to it passes the plugin before it is stored.
    Attach(remote::AttachArgs),
    /// Take a plugin off a topic.
    Detach {
        /// tenant/topic.
        topic: TopicName,
        /// tenant/plugin.
        plugin: PluginName,
    },
    /// Show what a plugin wrote.
    Logs(remote::LogsArgs),
    /// Delete a version of a plugin that is not in use.
    Delete {
        /// tenant/plugin@version.
        plugin: PluginRef,
        /// All versions.
        #[arg(long)]
        all: bool,
    },
}

/// Runs a subcommand.
pub(crate) async fn run(global: &Global, command: PluginCommand) -> Outcome {
    match command {
        PluginCommand::New(args) => local::new(global, &args),
        PluginCommand::Build(args) => local::build(global, &args),
        PluginCommand::Upload(args) => remote::upload(global, args).await,
        PluginCommand::List { tenant } => remote::list(global, tenant).await,
        PluginCommand::Attach(args) => remote::attach(global, args).await,
        PluginCommand::Detach { topic, plugin } => remote::detach(global, topic, plugin).await,
        PluginCommand::Logs(args) => remote::logs(global, args).await,
        PluginCommand::Delete { plugin, all } => remote::delete(global, plugin, all).await,
    }
}
