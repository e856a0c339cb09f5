//! `millstream pki`: certificates for a broker and its clients.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::args::Global;
use crate::clock;
use crate::error::{CliError, Exit, Outcome};
use crate::pki::{
    self, DEFAULT_DAYS, Entry, InitRequest, IssueRequest, KeyKind, Layout, PkiError, Reason,
    Selection, State, To,
};
use crate::table::Table;

mod details;

/// Longest life of a certificate that is issued here, in days: ten years.
const MAX_DAYS: i64 = 3650;

/// Subcommands of `pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority, the broker's certificate and the first administrator's.
    Init(InitArgs),
    /// Issue a certificate for a client, or a new one for the broker.
    Issue(IssueArgs),
    /// Take certificates back: brokers refuse them, and end their connections.
    Revoke(RevokeArgs),
    /// List what was issued.
    List(ListArgs),
    /// Show certificates.
    Show(ShowArgs),
}

/// The kind of a new key.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
struct KeyArgs {
    /// Make ECDSA keys on P-256.
    #[arg(long)]
    p256: bool,
    /// Make Ed25519 keys.
    #[arg(long)]
    ed25519: bool,
}

impl KeyArgs {
    fn kind(self) -> Option<KeyKind> {
        match (self.p256, self.ed25519) {
            (true, _) => Some(KeyKind::P256),
            (false, true) => Some(KeyKind::Ed25519),
            (false, false) => None,
        }
    }
}

/// Arguments of `pki init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is overwritten; keep ca.key where the broker cannot read it. Keys are ECDSA P-256 unless
told otherwise. The list of revoked certificates is crl.pem: name it in the broker's configuration
(tls.crl), or use `millstream serve --pki`.

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
    #[command(flatten)]
    keys: KeyArgs,
}

/// Arguments of `pki issue`.
#[derive(Debug, Args)]
#[command(after_help = "\
The identity has no rights until they are granted (see `millstream acl`).

With --renew the old certificate and its key move to superseded/ and stay good until they expire or
are revoked. A running broker takes its new certificate by itself.

Examples:
  millstream pki issue pki --tenant acme --name ingest
  millstream pki issue pki --tenant acme --name ingest --renew
  millstream pki issue pki --server --host broker.example.org --renew")]
pub(crate) struct IssueArgs {
    /// Directory that `pki init` made.
    dir: PathBuf,
    /// Tenant that the client belongs to.
    #[arg(long, required_unless_present = "server")]
    tenant: Option<String>,
    /// Name of the client.
    #[arg(long, required_unless_present = "server")]
    name: Option<String>,
    /// For the broker, not for a client.
    #[arg(long, conflicts_with_all = ["tenant", "name"])]
    server: bool,
    /// Further host name or address of the broker, beside localhost; may be repeated. Those of the
    /// present certificate unless given.
    #[arg(long = "host", value_name = "NAME", requires = "server")]
    hosts: Vec<String>,
    /// Take the place of the present certificate.
    #[arg(long)]
    renew: bool,
    /// Days that the certificate is good for.
    #[arg(long, default_value_t = DEFAULT_DAYS, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    days: u32,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Which certificates.
#[derive(Debug, Args)]
struct SelectionArgs {
    /// The one with this serial number (see `pki list`).
    #[arg(long, conflicts_with_all = ["tenant", "name"])]
    serial: Option<String>,
    /// Those of a client of this tenant.
    #[arg(long, requires = "name", required_unless_present = "serial")]
    tenant: Option<String>,
    /// Those of the client of this name.
    #[arg(long, requires = "tenant")]
    name: Option<String>,
}

impl SelectionArgs {
    fn selection(&self) -> Outcome<Selection> {
        match (&self.serial, &self.tenant, &self.name) {
            (Some(serial), ..) => Ok(Selection::Serial(serial.clone())),
            (None, Some(tenant), Some(name)) => Ok(Selection::Client {
                tenant: tenant.clone(),
                name: name.clone(),
            }),
            _ => Err(CliError::usage("give --serial, or --tenant and --name")),
        }
    }
}

/// Arguments of `pki revoke`.
#[derive(Debug, Args)]
#[command(after_help = "\
All certificates of the client that can still be used are revoked, renewed ones included; with
--serial one is, also a broker's. They are put on the list crl.pem, which a broker that has it in
its configuration (tls.crl), or runs with --pki, reads again within a second or two: it refuses the
certificates and ends the connections that were opened with them. Elsewhere, copy crl.pem there.
Certificate and key move to revoked/, so that the client can be issued another one. There is no way
back. Clients do not look at the list: renew a broker's certificate whose key is known, and its
authority too.

Examples:
  millstream pki revoke pki --tenant acme --name ingest
  millstream pki revoke pki --serial 5f3c... --reason key-compromise")]
pub(crate) struct RevokeArgs {
    /// Directory that `pki init` made.
    dir: PathBuf,
    #[command(flatten)]
    which: SelectionArgs,
    /// What the list says why.
    #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
    reason: Reason,
}

/// Arguments of `pki list`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  millstream pki list pki --state valid")]
pub(crate) struct ListArgs {
    /// Directory that `pki init` made.
    dir: PathBuf,
    /// Only those in this state.
    #[arg(long, value_enum)]
    state: Option<State>,
}

/// Arguments of `pki show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream pki show pki --tenant acme --name ingest
  millstream pki show pki --serial 5f3c...")]
pub(crate) struct ShowArgs {
    /// Directory that `pki init` made.
    dir: PathBuf,
    #[command(flatten)]
    which: SelectionArgs,
}

/// What was made, for programs.
#[derive(Serialize)]
struct Made<'a> {
    principal: &'a str,
    serial: Option<&'a str>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    days: u32,
}

/// What the index says of a certificate, and whether it can be used now.
#[derive(Serialize)]
struct Known {
    #[serde(flatten)]
    entry: Entry,
    state: State,
}

impl Known {
    fn of(entry: Entry) -> Self {
        let state = entry.state(clock::now_ms());
        Self { entry, state }
    }
}

/// Runs a subcommand.
pub(crate) fn run(global: &Global, command: PkiCommand) -> Outcome {
    match command {
        PkiCommand::Init(args) => init(global, args),
        PkiCommand::Issue(args) => issue(global, args),
        PkiCommand::Revoke(args) => revoke(global, &args),
        PkiCommand::List(args) => list(global, &args),
        PkiCommand::Show(args) => show(global, &args),
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
        keys: args.keys.kind().unwrap_or_default(),
    };
    let principal = pki::init(&dir, &request).map_err(|e| explain(e, &dir))?;
    let layout = Layout::new(&dir);
    let pair = layout.client(&request.tenant, &request.admin);
    let made = Made {
        principal: principal.as_str(),
        serial: None,
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

fn issue(global: &Global, args: IssueArgs) -> Outcome {
    let to = match (args.server, args.tenant, args.name) {
        (true, ..) => To::Server(args.hosts),
        (false, Some(tenant), Some(name)) => To::Client { tenant, name },
        _ => return Err(CliError::usage("give --tenant and --name, or --server")),
    };
    let (dir, days) = (args.dir, args.days);
    let request = IssueRequest {
        to,
        days,
        keys: args.keys.kind(),
        renew: args.renew,
    };
    let (entry, pair) = pki::issue(&dir, &request).map_err(|e| explain(e, &dir))?;
    let who = &entry.subject;
    let issued = format!(
        "issued {} for {who}, good for {days} days",
        pair.certificate.display()
    );
    let sentence = match &request.to {
        To::Client { tenant, name } if !request.renew => format!(
            "{issued}\n\
             next: give it rights, and use it\n  \
             millstream acl grant {who} --topic '{tenant}/*' --allow describe,produce,consume\n  \
             millstream context add {tenant}-{name} --pki {} --tenant {tenant} --name {name}",
            dir.display(),
        ),
        To::Client { .. } | To::Server(_) => issued,
    };
    let made = Made {
        principal: who,
        serial: Some(&entry.serial),
        ca: Layout::new(&dir).authority().certificate,
        cert: pair.certificate,
        key: pair.key,
        days,
    };
    global.output().done(&sentence, &made)
}

fn revoke(global: &Global, args: &RevokeArgs) -> Outcome {
    let selection = args.which.selection()?;
    let revoked =
        pki::revoke(&args.dir, &selection, args.reason).map_err(|e| explain(e, &args.dir))?;
    let list = Layout::new(&args.dir).revocations();
    let lines = revoked
        .iter()
        .map(|entry| format!("revoked {} of {}", entry.serial, entry.subject));
    let mut lines: Vec<String> = lines.collect();
    lines.push(format!(
        "brokers that read {} refuse it and end its connections within seconds; copy it to the others",
        list.display()
    ));
    let known: Vec<Known> = revoked.into_iter().map(Known::of).collect();
    global.output().done(&lines.join("\n"), &known)
}

fn list(global: &Global, args: &ListArgs) -> Outcome {
    let entries = pki::list(&args.dir).map_err(|e| explain(e, &args.dir))?;
    let known: Vec<Known> = entries
        .into_iter()
        .map(Known::of)
        .filter(|known| args.state.is_none_or(|state| state == known.state))
        .collect();
    let mut table = Table::new(&["SERIAL", "STATE", "UNTIL", "FOR"]);
    for Known { entry, state } in &known {
        table.row([
            entry.serial.as_str(),
            state.name(),
            &clock::rfc3339(entry.not_after_ms),
            &entry.subject,
        ]);
    }
    global.output().table(&table, &known)
}

fn show(global: &Global, args: &ShowArgs) -> Outcome {
    let found = pki::show(&args.dir, &args.which.selection()?);
    let found = found.map_err(|e| explain(e, &args.dir))?;
    let details = found
        .iter()
        .map(|(entry, pem)| details::Details::of(entry.clone(), pem));
    let details = details
        .collect::<Result<Vec<_>, _>>()
        .map_err(CliError::failure)?;
    let out = global.output();
    if out.json {
        return out.document(&details);
    }
    let tables: Vec<String> = details.iter().map(|d| d.table().to_string()).collect();
    out.line(&tables.join("\n\n"))
}

fn explain(error: PkiError, dir: &Path) -> CliError {
    let dir = dir.display();
    let (exit, next) = match &error {
        PkiError::Exists(_) => (
            Exit::Failure,
            "choose another directory or name, use --renew, or move the old files away yourself"
                .to_owned(),
        ),
        PkiError::Writable(path) => (Exit::Failure, format!("chmod go-w {}", path.display())),
        PkiError::OpenKey { path, .. } => (Exit::Failure, format!("chmod 600 {}", path.display())),
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
        PkiError::Index { .. } => (
            Exit::Failure,
            "restore it from a copy; without it nobody knows what was revoked".to_owned(),
        ),
        PkiError::NotIssued { .. } => (Exit::NotFound, format!("see `millstream pki list {dir}`")),
        PkiError::Name(_) => (
            Exit::Usage,
            "use lower-case letters, digits, '.', '_' and '-'".to_owned(),
        ),
        PkiError::Host(_) => (
            Exit::Usage,
            "give a name such as broker.example.org".to_owned(),
        ),
        PkiError::Crypto(_) | PkiError::Unexpected(_) => {
            (Exit::Failure, "please report this".to_owned())
        }
    };
    CliError::new(exit, error).next(next)
}
