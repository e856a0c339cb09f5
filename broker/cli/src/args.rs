//! The command line: what is the same for every command, and the list of commands.
//!
//! The arguments of a command stand beside the command, under `cmd/`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bench;
use crate::cmd;
use crate::demo;
use crate::output::Output;

/// Shown below every command's help.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line, a file given to it or the request is wrong
  3  refused: not authorized, or an identity or certificate that is not accepted
  4  what was named does not exist
  5  the broker cannot be reached or asks to try again later";

const EXAMPLES: &str = "\
Examples:
  millstream demo                                    the whole of it, in half a minute
  millstream pki init pki                            certificates for a first broker
  millstream serve --pki pki --data data             a broker on 127.0.0.1:7440
  millstream context add local --pki pki --tenant ops --name admin
  millstream topic create acme/quakes --partitions 4
  millstream produce acme/quakes --file quakes.ndjson --ndjson --key-pointer /id
  millstream consume acme/quakes --from earliest --until-end

Records and answers go to standard output, all else to standard error.";

/// A stream broker that runs your WebAssembly.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, propagate_version = true)]
#[command(after_help = EXIT_CODES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// How to reach the broker, and how to answer.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Use this context instead of the current one (see `millstream context`).
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_CONTEXT",
        value_name = "NAME",
        help_heading = "Connection"
    )]
    pub(crate) context: Option<String>,
    /// Address of the broker, host:port; overrides the context.
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_ADDR",
        value_name = "HOST:PORT",
        help_heading = "Connection"
    )]
    pub(crate) addr: Option<String>,
    /// Name that the broker's certificate must carry, where it is not the address's.
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_SERVER_NAME",
        value_name = "HOST",
        help_heading = "Connection"
    )]
    pub(crate) server_name: Option<String>,
    /// Certificate of the authority that the broker's certificate comes from (PEM).
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_CA",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub(crate) ca: Option<PathBuf>,
    /// Your certificate (PEM).
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_CERT",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub(crate) cert: Option<PathBuf>,
    /// Your private key (PEM), readable by you alone.
    #[arg(
        long,
        global = true,
        env = "MILLSTREAM_KEY",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub(crate) key: Option<PathBuf>,
    /// Answer for programs: one JSON document, or one object per line for records and logs.
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// No notes and no progress; results and errors only.
    #[arg(long, short, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
}

impl Global {
    /// Where and how results are shown.
    pub(crate) fn output(&self) -> Output {
        Output {
            json: self.json,
            quiet: self.quiet,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole of it at work, in half a minute, and check it.
    Demo(demo::DemoArgs),
    /// Measure this broker on this machine, beside the floors.
    Bench(bench::BenchArgs),
    /// The far end of a floor of `bench`.
    #[command(hide = true)]
    BenchSink(bench::sink::SinkArgs),
    /// Run a broker.
    Serve(cmd::serve::ServeArgs),
    /// Make certificates for a broker and its clients.
    #[command(subcommand)]
    Pki(cmd::pki::PkiCommand),
    /// Remember which broker to talk to, and as whom.
    #[command(subcommand)]
    Context(cmd::context::ContextCommand),
    /// Show the broker's state.
    Status,
    /// Check the stored data, and take damaged segments out of service.
    Check(cmd::check::CheckArgs),
    /// Create, list, describe, alter and delete topics.
    #[command(subcommand)]
    Topic(cmd::topic::TopicCommand),
    /// Write records, one for each line.
    Produce(cmd::produce::ProduceArgs),
    /// Read records.
    Consume(cmd::consume::ConsumeArgs),
    /// Write, build, upload and use plugins.
    #[command(subcommand)]
    Plugin(cmd::plugin::PluginCommand),
    /// Run plugins between topics, exactly once.
    #[command(subcommand)]
    Pipeline(cmd::pipeline::PipelineCommand),
    /// Say who may do what.
    #[command(subcommand)]
    Acl(cmd::acl::AclCommand),
    /// Back up a broker's store, and restore it.
    #[command(subcommand)]
    Backup(cmd::backup::BackupCommand),
    /// Print the completion script of a shell.
    Completion(cmd::completion::CompletionArgs),
}
