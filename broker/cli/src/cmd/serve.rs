//! `millstream serve`: the broker in this process, until a signal.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use millstream_broker::config::{BackupConfig, ConfigError, MetricsConfig, TlsFiles};
use millstream_broker::metrics::MetricsError;
use millstream_broker::tls::{Identity, TlsError};
use millstream_broker::{Broker, Clock, Config, Running, StartError};
use millstream_proto::Principal;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};
use crate::output::complain;
use crate::pki::{self, Layout};

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
The address that was bound is written to standard output as one line when the broker serves, the
log to standard error; the variable RUST_LOG chooses what is logged. SIGTERM or SIGINT let clients
finish and stop; a second signal stops at once, which loses nothing that was acknowledged. SIGHUP
makes it read certificates, keys, revocation lists and the configuration again, which it does by
itself too when one of the files changes; what cannot change while it runs is named in the log.

A configuration file; what it does not say has a default, unknown keys are refused:
  listen = \"0.0.0.0:7440\"
  data_dir = \"/var/lib/millstream\"
  admins = [\"spiffe://example.org/ops/admin\"]
  [tls]
  cert = \"server.pem\"
  key = \"server.key\"
  client_ca = \"ca.pem\"
  crl = \"crl.pem\"
  [identity]
  trust_domain = \"example.org\"
  [backup]
  target = \"s3://backups/broker-1\"
  [metrics]
  listen = \"127.0.0.1:9464\"

Examples:
  millstream serve --pki pki --data data
  millstream serve --config /etc/millstream/millstream.toml --log-format json")]
pub(crate) struct ServeArgs {
    /// The broker's configuration (TOML).
    #[arg(long, value_name = "FILE", required_unless_present = "pki", conflicts_with_all = ["pki", "data", "listen", "admins"])]
    config: Option<PathBuf>,
    /// Without a configuration: take the certificates that `millstream pki init` made here.
    #[arg(long, value_name = "DIR", requires = "data")]
    pki: Option<PathBuf>,
    /// Without a configuration: the directory of the store.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Without a configuration: where to listen; port 0 lets the system choose one.
    #[arg(long, value_name = "ADDRESS", default_value = crate::link::DEFAULT_ADDR)]
    listen: SocketAddr,
    /// Without a configuration: who may do everything; may be repeated. The tenant ops's admin of
    /// the directory's trust domain unless given.
    #[arg(long = "admin", value_name = "PRINCIPAL")]
    admins: Vec<Principal>,
    /// Without a configuration: where backups go that `millstream backup create` asks for.
    #[arg(
        long = "backup-target",
        value_name = "TARGET",
        conflicts_with = "config"
    )]
    backup_target: Option<String>,
    /// Without a configuration: where Prometheus may read figures, at /metrics; nowhere unless
    /// given. Off loopback that takes the certificate of an administrator.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    metrics: Option<SocketAddr>,
    /// Write the address that was bound to this file too.
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Serialize)]
struct Serving {
    addr: SocketAddr,
    /// Only of a broker whose metrics can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<SocketAddr>,
}

/// Serves until a signal.
pub(crate) async fn run(global: &Global, args: ServeArgs) -> Outcome {
    start_log(global, args.log_format);
    let config = configuration(&args)?;
    let mut signals = Signals::listen()?;
    let running = Broker::start(config, Clock::system())
        .await
        .map_err(explain_start)?;
    announce(global, &running, args.port_file.as_deref())?;
    let first = loop {
        match signals.next().await {
            Heard::Stop(signal) => break signal,
            // Its outcome is logged and shown by `status`; whoever signals does not wait for it.
            Heard::Reload => drop(running.reload().await),
        }
    };
    tracing::info!("{first}: finishing what is open; a second signal stops at once");
    tokio::select! {
        () = running.shutdown() => Ok(()),
        second = signals.stop() => stop_at_once(second),
    }
}

/// Whoever signals twice does not want to wait for anything, a disk that hangs included: what is
/// acknowledged is durable already.
#[allow(
    clippy::disallowed_methods,
    reason = "returning would wait for threads to end"
)]
fn stop_at_once(signal: &str) -> ! {
    complain(&format!("{signal}: stopped at once"));
    std::process::exit(Exit::Failure as i32)
}

fn start_log(global: &Global, format: LogFormat) {
    let default = if global.quiet { "warn" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => log
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .init(),
        LogFormat::Json => log.json().init(),
    }
}

fn configuration(args: &ServeArgs) -> Outcome<Config> {
    if let Some(file) = &args.config {
        return Config::load(file).map_err(|error| explain_config(error, file));
    }
    let (Some(dir), Some(data)) = (&args.pki, &args.data) else {
        return Err(CliError::usage("give --config, or --pki and --data"));
    };
    let domain = pki::domain(dir).map_err(|error| {
        CliError::usage(error).next(format!("make it: millstream pki init {}", dir.display()))
    })?;
    let layout = Layout::new(dir);
    let (server, authority) = (layout.server(), layout.authority());
    let mut tls = TlsFiles::new(server.certificate, server.key, authority.certificate);
    tls.identity = Identity::Uri {
        trust_domain: Some(domain.clone()),
    };
    tls.revocation_lists.extend(revocations(&layout)?);
    let mut config = Config::new(args.listen, data, tls);
    config.admins.clone_from(&args.admins);
    config.backup = args.backup_target.clone().map(BackupConfig::new);
    config.metrics = args.metrics.map(MetricsConfig::new);
    if config.admins.is_empty() {
        let (tenant, name) = (pki::ADMIN_TENANT, pki::ADMIN_NAME);
        let admin = format!("spiffe://{domain}/{tenant}/{name}")
            .parse()
            .map_err(CliError::usage)?;
        config.admins.push(admin);
    }
    Ok(config)
}

/// The list of what the authority has revoked. Directories that were made before there were lists
/// have none until something is; without it later on, those who were cut off would be let in.
fn revocations(layout: &Layout) -> Outcome<Option<PathBuf>> {
    let list = layout.revocations();
    if list.exists() {
        return Ok(Some(list));
    }
    let issued = pki::list(layout.root()).map_err(CliError::failure)?;
    let Some(revoked) = issued.iter().find(|entry| entry.revoked.is_some()) else {
        return Ok(None);
    };
    let missing = format!(
        "{} is missing, and certificates were revoked: without it they would be accepted",
        list.display()
    );
    // Who is on the list already can be revoked again, which writes all of it.
    let again = format!(
        "write it anew: millstream pki revoke {} --serial {}",
        layout.root().display(),
        revoked.serial
    );
    Err(CliError::new(Exit::NotFound, missing).next(again))
}

fn explain_config(error: ConfigError, file: &Path) -> CliError {
    match &error {
        ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            CliError::new(Exit::NotFound, error)
        }
        _ => CliError::usage(error).next(format!("mend {}", file.display())),
    }
}

fn explain_start(error: StartError) -> CliError {
    let (exit, next) = match &error {
        StartError::DataDir { .. } => (Exit::Failure, "check the directory and its permissions"),
        StartError::Listen { .. } => (
            Exit::Failure,
            "another broker may be running there; choose another --listen",
        ),
        StartError::Metrics(MetricsError::Listen { .. }) => (
            Exit::Failure,
            "something else may listen there; choose another address for the metrics",
        ),
        StartError::Metrics(MetricsError::NoReader { .. }) => {
            (Exit::Usage, "see `millstream serve --help`")
        }
        StartError::Metrics(MetricsError::Tls(tls)) | StartError::Tls(tls) => {
            return explain_tls(tls);
        }
        _ => return CliError::failure(error),
    };
    CliError::new(exit, error).next(next)
}

fn explain_tls(error: &TlsError) -> CliError {
    let next = match error {
        TlsError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "name the file that is meant; `millstream pki init` makes an authority, certificates and \
             a revocation list"
        }
        TlsError::Read { .. } => "let the user that runs the broker read it",
        TlsError::Content { .. } => "put the right PEM file in its place",
        TlsError::Pair { .. } => {
            "name a certificate and the key that it was issued for; `millstream pki issue --server` \
             makes both"
        }
        // They say it themselves, for the files that they name.
        TlsError::OpenKey { .. }
        | TlsError::ListOfNobody { .. }
        | TlsError::ListNotSigned { .. } => return CliError::usage(error),
    };
    CliError::usage(error).next(next)
}

/// The port file comes first: who waits for the line may read it.
fn announce(global: &Global, running: &Running, port_file: Option<&Path>) -> Outcome {
    let addr = running.local_addr();
    if let Some(path) = port_file {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".tmp");
        let beside = PathBuf::from(beside);
        // In one step: a reader sees the whole address or no file.
        fs::write(&beside, format!("{addr}\n"))
            .and_then(|()| fs::rename(&beside, path))
            .map_err(|e| CliError::file("write", path, &e))?;
    }
    let out = global.output();
    if out.json {
        let metrics = running.metrics_addr();
        out.document(&Serving { addr, metrics })
    } else {
        out.line(&addr.to_string())
    }
}

/// What a signal wants.
enum Heard {
    /// The end, by the signal of this name.
    Stop(&'static str),
    /// That files are read again.
    Reload,
}

/// SIGTERM, SIGINT and SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Outcome<Self> {
        let on = |kind| {
            signal(kind).map_err(|e| CliError::failure(format!("cannot listen for signals: {e}")))
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Heard::Stop("SIGINT"),
            _ = self.hangup.recv() => Heard::Reload,
        }
    }

    /// The name of the next signal to stop.
    async fn stop(&mut self) -> &'static str {
        loop {
            if let Heard::Stop(signal) = self.next().await {
                return signal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What to do next about each way in which certificates cannot be used.
    #[test]
    fn only_who_has_no_files_is_told_to_make_some() {
        let next = |error: TlsError| explain_start(StartError::Tls(error)).next;
        let read = |kind: io::ErrorKind| TlsError::Read {
            what: "private key",
            file: "server.key".into(),
            source: kind.into(),
        };
        let init = |next: &str| next.contains("pki init");
        assert!(next(read(io::ErrorKind::NotFound)).is_some_and(|next| init(&next)));
        let content = TlsError::Content {
            what: "certificate revocation list",
            file: "crl.pem".into(),
            why: String::new(),
        };
        let pair = TlsError::Pair {
            cert: "server.pem".into(),
            key: "server.key".into(),
            why: String::new(),
        };
        for error in [read(io::ErrorKind::PermissionDenied), content, pair] {
            let text = error.to_string();
            assert!(next(error).is_some_and(|next| !init(&next)), "{text}");
        }
        // The remedy stands in the error, with the names of the files.
        let open = TlsError::OpenKey {
            file: "server.key".into(),
            mode: 0o644,
        };
        let explained = explain_start(StartError::Tls(open));
        assert_eq!((explained.exit, explained.next), (Exit::Usage, None));
        assert!(explained.message.contains("chmod 600 server.key"));
        let list = TlsError::ListOfNobody {
            file: "crl.pem".into(),
            issuer: "CN=a".into(),
            client_ca: "ca.pem".into(),
        };
        assert_eq!(next(list), None);
    }
}
