//! The `millstream` binary: the broker, the demo and every client command.
//!
//! `main` parses, runs one command and turns its outcome into an exit code. The commands are under
//! `cmd/`; what they share is in the modules beside them. Absent: anything a program could not
//! do with the `millstream` crate; the commands are written on it.

mod args;
mod clock;
mod cmd;
mod error;
mod output;
mod pki;
mod pointer;
mod quantity;
mod scaffold;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::error::Outcome;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.silent => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error);
            ExitCode::from(error.exit as u8)
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let global = &cli.global;
    match cli.command {
        Command::Pki(command) => cmd::pki::run(global, command),
        Command::Plugin(command) => cmd::plugin::run(global, command),
        Command::Completion(args) => cmd::completion::run(global, &args),
    }
}
