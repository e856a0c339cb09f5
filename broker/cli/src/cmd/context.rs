//! `millstream context`: which broker, as whom.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use millstream::{Context, Contexts};
use serde::Serialize;

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};
use crate::link::DEFAULT_ADDR;
use crate::pki::Layout;
use crate::table::Table;

/// Subcommands of `context`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Contexts are kept in $MILLSTREAM_CONFIG, else $XDG_CONFIG_HOME/millstream/contexts.toml, else
~/.config/millstream/contexts.toml. The options --addr, --ca, --cert and --key and their variables
(MILLSTREAM_ADDR, ...) override a context.")]
pub(crate) enum ContextCommand {
    /// Add a context, or replace one.
    Add(AddArgs),
    /// Make a context the current one.
    Use {
        /// Its name.
        name: String,
    },
    /// List the contexts.
    List,
    /// Show a context, the current one unless named.
    Show {
        /// Its name.
        name: Option<String>,
    },
    /// Remove a context; its certificates stay.
    Remove {
        /// Its name.
        name: String,
    },
}

/// Arguments of `context add`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream context add local --pki pki --tenant ops --name admin
  millstream context add prod --addr broker.example.org:7440 --ca ca.pem --cert me.pem --key me.key")]
pub(crate) struct AddArgs {
    /// Name of the context.
    context_name: String,
    /// Directory of `millstream pki`: takes the authority and, with --tenant and --name, the
    /// identity from there.
    #[arg(long, value_name = "DIR", requires_all = ["tenant", "name"], conflicts_with_all = ["ca", "cert", "key"])]
    pki: Option<PathBuf>,
    /// Tenant of the identity in --pki.
    #[arg(long, requires = "pki")]
    tenant: Option<String>,
    /// Name of the identity in --pki.
    #[arg(long, requires = "pki")]
    name: Option<String>,
    /// Make it the current context. The first context is always made current.
    #[arg(long = "use")]
    make_current: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    current: bool,
    #[serde(flatten)]
    context: &'a Context,
}

/// Runs a subcommand.
pub(crate) fn run(global: &Global, command: ContextCommand) -> Outcome {
    let file = Contexts::default_path()?;
    let mut contexts = Contexts::load(&file)?;
    let out = global.output();
    match command {
        ContextCommand::Add(args) => add(global, &args, &file, contexts),
        ContextCommand::Use { name } => {
            contexts.choose(Some(&name))?;
            contexts.current = Some(name.clone());
            contexts.save(&file)?;
            let (_, context) = contexts.choose(None)?;
            let shown = Shown {
                name: &name,
                current: true,
                context,
            };
            out.done(&format!("{name} is current now"), &shown)
        }
        ContextCommand::List => {
            let shown: Vec<Shown<'_>> = contexts
                .contexts
                .iter()
                .map(|(name, context)| shown(&contexts, name, context))
                .collect();
            let mut table = Table::new(&["CURRENT", "NAME", "ADDRESS", "CERTIFICATE"]);
            for one in &shown {
                let mark = if one.current { "*" } else { "" };
                let context = one.context;
                table.row([
                    mark,
                    one.name,
                    &context.addr,
                    &context.cert.display().to_string(),
                ]);
            }
            out.table(&table, &shown)
        }
        ContextCommand::Show { name } => {
            let (name, context) = contexts.choose(name.as_deref().or(global.context.as_deref()))?;
            show(global, &shown(&contexts, name, context))
        }
        ContextCommand::Remove { name } => {
            let (_, context) = contexts.choose(Some(&name))?;
            let context = context.clone();
            contexts.contexts.remove(&name);
            if contexts.current.as_deref() == Some(&name) {
                contexts.current = None;
            }
            contexts.save(&file)?;
            let shown = Shown {
                name: &name,
                current: false,
                context: &context,
            };
            out.done(
                &format!("removed the context {name}; its files are where they were"),
                &shown,
            )
        }
    }
}

fn shown<'a>(contexts: &Contexts, name: &'a str, context: &'a Context) -> Shown<'a> {
    Shown {
        name,
        current: contexts.current.as_deref() == Some(name),
        context,
    }
}

fn show(global: &Global, shown: &Shown<'_>) -> Outcome {
    let mut table = Table::new(&["CONTEXT", "VALUE"]);
    let context = shown.context;
    table.row(["name", shown.name]);
    table.row(["current", if shown.current { "yes" } else { "no" }]);
    table.row(["address", &context.addr]);
    if let Some(name) = &context.server_name {
        table.row(["server name", name]);
    }
    for (what, path) in [
        ("ca", &context.ca),
        ("cert", &context.cert),
        ("key", &context.key),
    ] {
        table.row([what, &path.display().to_string()]);
    }
    global.output().table(&table, shown)
}

fn add(global: &Global, args: &AddArgs, file: &Path, mut contexts: Contexts) -> Outcome {
    let (ca, cert, key) = certificates(global, args)?;
    let context = Context {
        addr: global
            .addr
            .clone()
            .unwrap_or_else(|| DEFAULT_ADDR.to_owned()),
        server_name: global.server_name.clone(),
        ca: existing(&ca)?,
        cert: existing(&cert)?,
        key: existing(&key)?,
    };
    let name = &args.context_name;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(CliError::usage(
            "a context needs a name of visible characters",
        ));
    }
    if args.make_current || contexts.current.is_none() {
        contexts.current = Some(name.clone());
    }
    let replaced = contexts.contexts.insert(name.clone(), context).is_some();
    contexts.save(file)?;
    let (name, context) = contexts.choose(Some(name))?;
    let shown = shown(&contexts, name, context);
    let done = if replaced { "replaced" } else { "added" };
    let current = if shown.current {
        ", which is current"
    } else {
        ""
    };
    let sentence = format!("{done} the context {name}{current}\nnext: millstream status");
    global.output().done(&sentence, &shown)
}

/// The three files, from a directory of `pki` or one by one.
fn certificates(global: &Global, args: &AddArgs) -> Outcome<(PathBuf, PathBuf, PathBuf)> {
    if let (Some(dir), Some(tenant), Some(name)) = (&args.pki, &args.tenant, &args.name) {
        let layout = Layout::new(dir);
        let pair = layout.client(tenant, name);
        return Ok((layout.authority().certificate, pair.certificate, pair.key));
    }
    match (&global.ca, &global.cert, &global.key) {
        (Some(ca), Some(cert), Some(key)) => Ok((ca.clone(), cert.clone(), key.clone())),
        _ => Err(CliError::usage("a context needs certificates")
            .next("give --pki, --tenant and --name, or --ca, --cert and --key")),
    }
}

/// Contexts are used from any directory, so their paths are absolute.
fn existing(path: &Path) -> Outcome<PathBuf> {
    path.canonicalize().map_err(|e| {
        CliError {
            exit: Exit::NotFound,
            ..CliError::file("find", path, &e)
        }
        .next("issue certificates with `millstream pki issue`")
    })
}
