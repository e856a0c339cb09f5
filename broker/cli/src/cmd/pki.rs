//! `millstream pki`: certificates for a broker and its clients.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};
use crate::pki::{self, DEFAULT_DAYS, InitRequest, Layout, PkiError};

/// Longest life of a certificate that is issued here, in days: ten years.
const MAX_DAYS: i64 = 3650;

/// Subcommands of `pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority, the broker's certificate and the first administrator's.
    Init(InitArgs),
    /// Issue a certificate for a client.
    Issue(IssueArgs),
}

/// Arguments of `pki init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is overwritten; keep ca.key where the broker cannot read it.

Examples:
  millstream pki init pki
  millstream pki init pki --domain example.org --host broker.example.org --host 10.0.0.7")]
pub(crate) struct InitArgs {
    /// Directory to make.
    dir: PathBuf,
    /// Trust domain: identities are spiffe://DOMAIN/TENANT/NAME.
    #[arg(long, default_value = "millstream.local")]
    domain: String,
    /// Further host name or address of the broker, beside localhost; may be repeated.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Tenant of the first administrator.
    #[arg(long, default_value = pki::ADMIN_TENANT)]
    tenant: String,
    /// Name of the first administrator.
    #[arg(long, default_value = pki::ADMIN_NAME, value_name = "NAME")]
    admin: String,
    /// Days that the broker's and the administrator's certificates are good for.
    #[arg(long, default_value_t = DEFAULT_DAYS, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    days: u32,
}

/// Arguments of `pki issue`.
#[derive(Debug, Args)]
#[command(after_help = "\
The identity has no rights until they are granted (see `millstream acl`).

Example:
  millstream pki issue pki --tenant acme --name ingest")]
pub(crate) struct IssueArgs {
    /// Directory that `pki init` made.
    dir: PathBuf,
    /// Tenant that the client belongs to.
    #[arg(long)]
    tenant: String,
    /// Name of the client.
    #[arg(long)]
    name: String,
    /// Days that the certificate is good for.
    #[arg(long, default_value_t = DEFAULT_DAYS, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    days: u32,
}

/// What was made, for programs.
#[derive(Serialize)]
struct Made<'a> {
    principal: &'a str,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    days: u32,
}

/// Runs a subcommand.
pub(crate) fn run(global: &Global, command: PkiCommand) -> Outcome {
    match command {
        PkiCommand::Init(args) => init(global, args),
        PkiCommand::Issue(args) => issue(global, &args),
    }
}

fn init(global: &Global, args: InitArgs) -> Outcome {
    let (dir, days) = (args.dir, args.days);
    let request = InitRequest {
        domain: args.domain,
        tenant: args.tenant,
        admin: args.admin,
        hosts: args.hosts,
        days,
    };
    let principal = pki::init(&dir, &request).map_err(|e| explain(e, &dir))?;
    let layout = Layout::new(&dir);
    let pair = layout.client(&request.tenant, &request.admin);
    let made = Made {
        principal: principal.as_str(),
        ca: layout.authority().certificate,
        cert: pair.certificate,
        key: pair.key,
        days,
    };
    let shown = dir.display();
    let sentence = format!(
        "made an authority, a broker's certificate and one for {principal} in {shown}\n\
         next:\n  millstream serve --pki {shown} --data data{}\n  \
         millstream context add local --pki {shown} --tenant {} --name {}",
        admin_option(&request, principal.as_str()),
        request.tenant,
        request.admin
    );
    global.output().done(&sentence, &made)
}

/// What `serve` has to be told about an administrator it would not expect.
fn admin_option(request: &InitRequest, principal: &str) -> String {
    let usual = request.tenant == pki::ADMIN_TENANT && request.admin == pki::ADMIN_NAME;
    if usual {
        String::new()
    } else {
        format!(" --admin {principal}")
    }
}

fn issue(global: &Global, args: &IssueArgs) -> Outcome {
    let (principal, pair) = pki::issue(&args.dir, &args.tenant, &args.name, args.days)
        .map_err(|e| explain(e, &args.dir))?;
    let made = Made {
        principal: principal.as_str(),
        ca: Layout::new(&args.dir).authority().certificate,
        cert: pair.certificate.clone(),
        key: pair.key,
        days: args.days,
    };
    let (tenant, name) = (&args.tenant, &args.name);
    let sentence = format!(
        "issued {} for {principal}, good for {} days\n\
         next: give it rights, and use it\n  \
         millstream acl grant {principal} --topic '{tenant}/*' --allow describe,produce,consume\n  \
         millstream context add {tenant}-{name} --pki {} --tenant {tenant} --name {name}",
        pair.certificate.display(),
        args.days,
        args.dir.display(),
    );
    global.output().done(&sentence, &made)
}

fn explain(error: PkiError, dir: &Path) -> CliError {
    let dir = dir.display();
    let (exit, next) = match &error {
        PkiError::Exists(_) => (
            Exit::Failure,
            "choose another directory or name, or move the old files away yourself".to_owned(),
        ),
        PkiError::Writable(path) => (Exit::Failure, format!("chmod go-w {}", path.display())),
        PkiError::NotAuthority { .. } => (
            Exit::Usage,
            format!("make an authority with `millstream pki init {dir}`"),
        ),
        PkiError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => (
            Exit::NotFound,
            format!("make an authority with `millstream pki init {dir}`"),
        ),
        PkiError::File { .. } => (
            Exit::Failure,
            "check the path and its permissions".to_owned(),
        ),
        PkiError::Name(_) => (
            Exit::Usage,
            "use lower-case letters, digits, '.', '_' and '-'".to_owned(),
        ),
        PkiError::Host(_) => (
            Exit::Usage,
            "give a name such as broker.example.org".to_owned(),
        ),
        PkiError::Crypto(_) => (Exit::Failure, "please report this".to_owned()),
    };
    CliError::new(exit, error).next(next)
}
