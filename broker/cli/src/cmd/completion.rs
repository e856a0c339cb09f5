//! `millstream completion`: completion scripts.

use std::io;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::{Cli, Global};
use crate::error::{CliError, Outcome};

/// Arguments of `completion`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream completion bash > ~/.local/share/bash-completion/completions/millstream
  millstream completion zsh > \"${fpath[1]}/_millstream\"
  millstream completion fish > ~/.config/fish/completions/millstream.fish")]
pub(crate) struct CompletionArgs {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(global: &Global, args: &CompletionArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "millstream", &mut script);
    let mut out = global.output().stream();
    io::Write::write_all(&mut out, &script)
        .and_then(|()| io::Write::flush(&mut out))
        .map_err(|e| CliError::output(&e))
}
