//! The `millstream` binary: the broker, the demo and every client command.
//!
//! `main` parses, runs one command and turns its outcome into an exit code. The commands are under
//! `cmd/`; what they share is in the modules beside them. Absent: anything a program could not
//! do with the `millstream` crate; the commands are written on it.

mod args;
mod bench;
mod child;
mod clock;
mod cmd;
mod demo;
mod error;
mod link;
mod output;
mod pipeline_file;
mod pki;
mod plugin_use;
mod pointer;
mod quantity;
mod scaffold;
mod table;
mod view;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Runtime;

use crate::args::{Cli, Command, Global};
use crate::error::{CliError, Outcome};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = runtime().and_then(|runtime| runtime.block_on(run(&cli.global, cli.command)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.silent => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error);
            ExitCode::from(error.exit as u8)
        }
    }
}

async fn run(global: &Global, command: Command) -> Outcome {
    // Each command's future is boxed: the largest would set the size of all.
    match command {
        Command::Bench(args) => Box::pin(bench::run(global, args)).await,
        Command::BenchSink(args) => Box::pin(bench::sink::run(global, args)).await,
        Command::Demo(args) => Box::pin(demo::run(global, args)).await,
        Command::Serve(args) => Box::pin(cmd::serve::run(global, args)).await,
        Command::Pki(command) => cmd::pki::run(global, command),
        Command::Context(command) => cmd::context::run(global, command),
        Command::Status => Box::pin(cmd::status::run(global)).await,
        Command::Check(args) => Box::pin(cmd::check::run(global, args)).await,
        Command::Topic(command) => Box::pin(cmd::topic::run(global, command)).await,
        Command::Produce(args) => Box::pin(cmd::produce::run(global, args)).await,
        Command::Consume(args) => Box::pin(cmd::consume::run(global, args)).await,
        Command::Plugin(command) => Box::pin(cmd::plugin::run(global, command)).await,
        Command::Pipeline(command) => Box::pin(cmd::pipeline::run(global, command)).await,
        Command::Acl(command) => Box::pin(cmd::acl::run(global, command)).await,
        Command::Backup(command) => Box::pin(cmd::backup::run(global, command)).await,
        Command::Completion(args) => cmd::completion::run(global, &args),
    }
}

/// One thread for the network and everything that waits: the client and the broker are both made
/// for it.
fn runtime() -> Outcome<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failure(format!("cannot start the runtime: {e}")))
}
