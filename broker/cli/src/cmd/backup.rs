//! `millstream backup`: copies of a broker's store, and stores made of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use millstream::Client;
use millstream_broker::backup::{
    BackupId, CreateError, CreateOptions, Found, OfflineError, Progress, PruneError, RestoreError,
    Selection, Target, TargetError, Which, create_offline, prune, restore, verify,
};
use millstream_proto::backup::{BackupOutcome, BackupPhase};
use millstream_proto::{Tenant, TopicName};
use serde::Serialize;

use crate::args::Global;
use crate::clock::{now_ms, parse_rfc3339, rfc3339};
use crate::error::{CliError, Exit, Outcome};
use crate::link;
use crate::output::Output;
use crate::quantity::{bytes, show_bytes, show_count};
use crate::table::Table;

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

const TARGETS: &str = "\
A target is a directory, or a URL: file:///DIR, s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH.
Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT; GOOGLE_SERVICE_ACCOUNT; AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY.

Examples:
  millstream backup create                                  ask the broker; it knows its target
  millstream backup list --target s3://backups/broker-1
  millstream backup verify --target s3://backups/broker-1
  millstream backup restore --target s3://backups/broker-1 --backup latest --into data
  millstream backup restore --target /backups --before 2026-11-20T11:00:00Z --tenant acme --into data
  millstream backup prune --target /backups --keep 30";

/// Subcommands of `backup`.
#[derive(Debug, Subcommand)]
#[command(after_help = TARGETS)]
pub(crate) enum BackupCommand {
    /// Make a backup: by the running broker, or of a data directory while it is stopped.
    Create(CreateArgs),
    /// Say how far the running broker's backup is, or how the last one ended. Ends with 1 if it
    /// failed.
    Status,
    /// List the backups.
    List(TargetArgs),
    /// Read backups back, to the last byte. Ends with 1 if something is wrong.
    Verify(VerifyArgs),
    /// Make a data directory of a backup.
    Restore(RestoreArgs),
    /// Remove old backups, and what only they needed.
    Prune(PruneArgs),
}

/// Arguments of `backup create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without options the broker that the context names makes a backup where its configuration says
([backup] target), for an administrator. Segments that are at the target already are not copied
again. Interrupting this command does not interrupt the broker.")]
pub(crate) struct CreateArgs {
    /// Back up this data directory, which no broker has open, instead.
    #[arg(long, value_name = "DIR", requires = "target")]
    data_dir: Option<PathBuf>,
    /// Where to; of a data directory only, since a broker goes by its own configuration.
    #[arg(long, value_name = "TARGET", requires = "data_dir")]
    target: Option<String>,
    /// Most bytes to read, and to send, in a second, such as 50MiB; of a data directory only.
    #[arg(long, value_name = "BYTES", value_parser = bytes, requires = "data_dir")]
    limit: Option<u64>,
}

/// Where the backups are.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// Where the backups are: a directory or a URL.
    #[arg(long, value_name = "TARGET", env = "MILLSTREAM_BACKUP_TARGET")]
    target: String,
}

/// Arguments of `backup verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Only this one, or `latest`; all unless given.
    #[arg(long, value_name = "ID", value_parser = which)]
    backup: Option<Which>,
}

/// Arguments of `backup restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
The directory appears when it is complete, and can then be given to `millstream serve`. It holds
what the store held at one moment: records, offsets, topics, plugins, rules, and how far producers
and pipelines were, so that both go on exactly once.

With --tenant or --topic come the records, the producers' and consumers' state, the settings, the
plugins that are used and the rules that mean it; with --tenant pipelines, too, if all their topics
come.")]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    which: WhichArgs,
    /// The data directory to make; it must be empty or not be there.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Only what belongs to this tenant.
    #[arg(long, value_name = "TENANT", conflicts_with = "topic")]
    tenant: Option<Tenant>,
    /// Only this topic.
    #[arg(long, value_name = "TENANT/NAME")]
    topic: Option<TopicName>,
}

/// Which backup: exactly one of the two.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct WhichArgs {
    /// This one, or `latest`.
    #[arg(long, value_name = "ID", value_parser = which)]
    backup: Option<Which>,
    /// The last of those that are not younger than this, such as 2026-11-20T11:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = before)]
    before: Option<Which>,
}

/// Arguments of `backup prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Whatever no backup that stays needs is removed, too: what interrupted backups have left, for one.
Not while a backup is being made there.")]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// How many backups of each store stay, the newest ones.
    #[arg(long, value_name = "N", required_unless_present = "remove")]
    keep: Option<usize>,
    /// Remove this one, whatever else stays; may be repeated.
    #[arg(long, value_name = "ID")]
    remove: Vec<BackupId>,
}

fn which(text: &str) -> Result<Which, String> {
    match text {
        "latest" => Ok(Which::Latest),
        id => Ok(Which::Id(id.parse()?)),
    }
}

fn before(text: &str) -> Result<Which, String> {
    let ms = parse_rfc3339(text);
    ms.map(Which::Before)
        .ok_or_else(|| format!("{text:?} is not a time: write 2026-11-20T11:00:00Z"))
}

/// Runs a subcommand.
pub(crate) async fn run(global: &Global, command: BackupCommand) -> Outcome {
    let out = global.output();
    match command {
        BackupCommand::Create(args) => match (args.data_dir, args.target) {
            (Some(dir), Some(target)) => offline(out, &dir, &target, args.limit).await,
            _ => online(global).await,
        },
        BackupCommand::Status => status(global).await,
        BackupCommand::List(args) => list(out, &args.target).await,
        BackupCommand::Verify(args) => run_verify(out, args).await,
        BackupCommand::Restore(args) => run_restore(out, args).await,
        BackupCommand::Prune(args) => run_prune(out, args).await,
    }
}

/// A backup that was made, for programs.
#[derive(Serialize)]
struct Made<'a> {
    target: &'a str,
    #[serde(flatten)]
    outcome: &'a BackupOutcome,
}

fn show_made(out: Output, target: &str, outcome: &BackupOutcome) -> Outcome {
    let BackupOutcome {
        id,
        bytes,
        copied_bytes,
        segments,
        copied_segments,
        ..
    } = outcome;
    let sentence = format!(
        "backup {id} at {target}: {} ({} segments), of which {} ({} segments) were copied",
        show_bytes(*bytes),
        show_count(*segments),
        show_bytes(*copied_bytes),
        show_count(*copied_segments)
    );
    out.done(&sentence, &Made { target, outcome })
}

async fn online(global: &Global) -> Outcome {
    let out = global.output();
    let (target, outcome) = link::with(global, async |client| follow(out, client).await).await?;
    show_made(out, &target, &outcome)
}

/// Has the broker make a backup and waits for it.
async fn follow(out: Output, client: &Client) -> Outcome<(String, BackupOutcome)> {
    let bar = out.progress("backing up", Some(0));
    let mut state = client.start_backup().await?;
    loop {
        match state.phase {
            BackupPhase::Done(outcome) => {
                bar.finish_and_clear();
                return Ok((state.target, outcome));
            }
            BackupPhase::Failed { error, .. } => {
                return Err(
                    failed(&error).next("mend that and try again; earlier backups are whole")
                );
            }
            BackupPhase::Running { done, total, .. } => show(&bar, (done, total)),
            // It was asked for just now: the broker was restarted.
            BackupPhase::Never => {
                return Err(CliError::new(
                    Exit::Unavailable,
                    "the broker was restarted while it made the backup",
                )
                .next("try again: millstream backup create"));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
        state = client.show_backup().await?;
    }
}

async fn status(global: &Global) -> Outcome {
    let out = global.output();
    let state = link::with(global, async |client| client.show_backup().await).await?;
    let target = &state.target;
    match &state.phase {
        BackupPhase::Never => out.done(
            &format!("no backup to {target} was asked for since the broker started"),
            &state,
        ),
        BackupPhase::Running {
            started_ms,
            done,
            total,
        } => out.done(
            &format!(
                "backing up to {target} since {}: {} of {}",
                rfc3339(*started_ms),
                show_bytes(*done),
                show_bytes(*total)
            ),
            &state,
        ),
        BackupPhase::Done(outcome) => show_made(out, target, outcome),
        BackupPhase::Failed { ended_ms, error } => Err(failed(error).next(format!(
            "that was at {}; mend it and try again: millstream backup create",
            rfc3339(*ended_ms)
        ))),
    }
}

fn failed(error: &str) -> CliError {
    CliError::failure(format!("no backup was made: {error}"))
}

fn show(bar: &ProgressBar, (done, total): (u64, u64)) {
    bar.set_length(total);
    bar.set_position(done);
}

/// Does `work` and shows how far it is.
async fn watched<T>(
    out: Output,
    what: &'static str,
    progress: &Progress,
    work: impl Future<Output = T>,
) -> T {
    let bar = out.progress(what, Some(0));
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = tokio::time::sleep(LOOK_EVERY) => show(&bar, progress.read()),
        }
    };
    bar.finish_and_clear();
    done
}

async fn offline(out: Output, dir: &Path, target: &str, limit: Option<u64>) -> Outcome {
    let target = Target::open_or_create(target)?;
    let options = CreateOptions {
        now_ms: now_ms(),
        bytes_per_second: limit,
        spool_dir: dir.to_owned(),
    };
    let progress = Progress::default();
    let work = create_offline(&target, dir, &options, &progress);
    let made = watched(out, "backing up", &progress, work).await?;
    let outcome = BackupOutcome {
        id: made.id.to_string(),
        ended_ms: now_ms(),
        bytes: made.bytes,
        copied_bytes: made.copied_bytes,
        segments: made.segments,
        copied_segments: made.copied_segments,
    };
    show_made(out, target.name(), &outcome)
}

/// A backup in a listing.
#[derive(Serialize)]
struct Listed {
    id: BackupId,
    created_ms: Option<i64>,
    store: Option<String>,
    bytes: Option<u64>,
    segments: Option<usize>,
    parts: Option<usize>,
    error: Option<String>,
}

impl From<Found> for Listed {
    fn from(found: Found) -> Self {
        let error = found.manifest.as_ref().err().map(ToString::to_string);
        let manifest = found.manifest.ok();
        let manifest = manifest.as_ref();
        Self {
            id: found.id,
            created_ms: manifest.map(|manifest| manifest.created_ms),
            store: manifest.map(|manifest| manifest.store.clone()),
            bytes: manifest.map(|manifest| manifest.bytes()),
            segments: manifest.map(|manifest| manifest.segments.len()),
            parts: manifest.map(|manifest| manifest.parts.len()),
            error,
        }
    }
}

async fn list(out: Output, target: &str) -> Outcome {
    let target = Target::open(target)?;
    let found = target.backups().await?.into_iter();
    let listed: Vec<Listed> = found.map(Listed::from).collect();
    let mut table = Table::new(&["BACKUP", "MADE", "SIZE#", "SEGMENTS#", "STORE", "STATE"]);
    for backup in &listed {
        table.row([
            backup.id.to_string(),
            backup.created_ms.map(rfc3339).unwrap_or_default(),
            backup.bytes.map(show_bytes).unwrap_or_default(),
            backup
                .segments
                .map(|segments| show_count(segments as u64))
                .unwrap_or_default(),
            backup
                .store
                .as_deref()
                .map(|store| store.chars().take(8).collect())
                .unwrap_or_default(),
            backup.error.clone().unwrap_or_else(|| "listed".to_owned()),
        ]);
    }
    out.table(&table, &listed)
}

async fn run_verify(out: Output, args: VerifyArgs) -> Outcome {
    let target = Target::open(&args.target.target)?;
    let id = match &args.backup {
        None => None,
        Some(which) => Some(target.find(which).await?.id),
    };
    let progress = Progress::default();
    let work = verify(&target, id.as_ref(), &progress);
    let verified = watched(out, "verifying", &progress, work).await?;
    if out.json {
        out.document(&verified)?;
    } else {
        for finding in &verified.findings {
            out.line(&format!("{}: {}", finding.object, finding.detail))?;
            let backups: Vec<&str> = finding.backups.iter().map(BackupId::as_str).collect();
            out.line(&format!("  needed by {}", backups.join(", ")))?;
        }
    }
    let read = format!(
        "{} backups, {} objects, {}",
        show_count(verified.backups),
        show_count(verified.objects),
        show_bytes(verified.bytes)
    );
    match verified.findings.len() {
        0 if out.json => Ok(()),
        0 => out.done(&format!("{read}: all as it was written"), &verified),
        wrong => Err(CliError::failure(format!("{read}: {wrong} damaged")).next(
            "make a new backup while the store is whole, then `millstream backup prune --remove` \
             those that are not",
        )),
    }
}

async fn run_restore(out: Output, args: RestoreArgs) -> Outcome {
    let target = Target::open(&args.target.target)?;
    let which = args.which.backup.or(args.which.before);
    let which = which.ok_or_else(|| CliError::usage("give --backup or --before"))?;
    let manifest = target.find(&which).await?;
    if let Which::Before(_) = which
        && let Some(ahead) = target.ahead_of(&manifest.id).await?
    {
        out.note(&format!(
            "note: backup {ahead} was made before {}, and says a later time: the clock was set \
             back in between. If the time that you gave is one from before that, name the backup",
            manifest.id
        ));
    }
    let selection = match (args.tenant, args.topic) {
        (Some(tenant), _) => Selection::Tenant(tenant),
        (None, Some(topic)) => Selection::Topic(topic),
        (None, None) => Selection::All,
    };
    let progress = Progress::default();
    let work = restore(&target, &manifest, &args.into, &selection, &progress);
    let restored = watched(out, "restoring", &progress, work).await?;
    for note in &restored.notes {
        out.note(&format!("note: {note}"));
    }
    let sentence = format!(
        "{} is backup {} of {}: {} segments, {} rows; start it: millstream serve",
        restored.dir.display(),
        restored.id,
        rfc3339(restored.created_ms),
        show_count(restored.segments),
        show_count(restored.rows)
    );
    out.done(&sentence, &restored)
}

async fn run_prune(out: Output, args: PruneArgs) -> Outcome {
    let target = Target::open(&args.target.target)?;
    let pruned = prune(&target, args.keep.unwrap_or(usize::MAX), &args.remove).await?;
    let sentence = format!(
        "{} backups removed, {} stay; {} objects ({}) that none of them needs removed",
        show_count(pruned.removed.len() as u64),
        show_count(pruned.kept.len() as u64),
        show_count(pruned.objects),
        show_bytes(pruned.bytes)
    );
    out.done(&sentence, &pruned)
}

impl From<TargetError> for CliError {
    fn from(error: TargetError) -> Self {
        let exit = match &error {
            TargetError::Url { .. } => Exit::Usage,
            TargetError::NoBackup { .. } => Exit::NotFound,
            TargetError::Busy { .. } => Exit::Unavailable,
            TargetError::Object { .. }
            | TargetError::Missing { .. }
            | TargetError::Damaged { .. } => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl From<OfflineError> for CliError {
    fn from(error: OfflineError) -> Self {
        match error {
            OfflineError::Create(CreateError::Target(error)) => error.into(),
            OfflineError::NoStore { .. } => Self::new(Exit::NotFound, error),
            OfflineError::Open(_) => Self::failure(error)
                .next("a running broker makes its own backups: millstream backup create"),
            OfflineError::Create(_) => Self::failure(error),
        }
    }
}

impl From<RestoreError> for CliError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Target(error) => error.into(),
            RestoreError::NotEmpty { .. } => Self::usage(error),
            RestoreError::Nothing { .. } => Self::new(Exit::NotFound, error),
            RestoreError::Io { .. } | RestoreError::Store(_) | RestoreError::Row { .. } => {
                Self::failure(error)
            }
        }
    }
}

impl From<PruneError> for CliError {
    fn from(error: PruneError) -> Self {
        match error {
            PruneError::Target(error) => error.into(),
            PruneError::Unreadable(_) => Self::failure(error),
        }
    }
}
