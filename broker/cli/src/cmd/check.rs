//! `millstream check`: whether the stored data are what was stored.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use millstream::Client;
use millstream_broker::check::offline::{self, OfflineReport, Quarantine};
use millstream_proto::storage::{CheckAction, CheckReport, CheckState};

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};
use crate::link;
use crate::output::Output;
use crate::quantity::{show_bytes, show_count, show_ms};

/// How often the broker is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every byte is read: rows, packs, segments, and each record batch with its own checksum; and no
offset may be missing between a partition's start and its end. What is wrong is told with its file,
topic, partition and offsets.

Offline (--data-dir), no broker may have the directory open. --quarantine then takes damaged
segments out of service: what can be read of them stays, their files go to
shard-0.segments/quarantine/, and readers pass over the offsets that are lost. There is no way back
but a backup.

Online, the broker checks its own data beside its work, at 64 MiB a second at most. It is for admins.

Exit codes of this command:
  0  nothing is wrong
  1  something is; it is in the answer
  2  the check could not run, or not to its end

Examples:
  millstream check --data-dir data
  millstream check --data-dir data --quarantine
  millstream check --online --json")]
pub(crate) struct CheckArgs {
    /// Check this data directory, which no broker serves.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "online",
        conflicts_with = "online"
    )]
    data_dir: Option<PathBuf>,
    /// Take damaged segments out of service, so that the rest can be served.
    #[arg(long, requires = "data_dir")]
    quarantine: bool,
    /// Have the broker check what it serves.
    #[arg(long)]
    online: bool,
}

/// Checks.
pub(crate) async fn run(global: &Global, args: CheckArgs) -> Outcome {
    let out = global.output();
    let report = match args.data_dir {
        Some(dir) => offline(out, dir, args.quarantine).await,
        None => online(global, out).await.map(|check| OfflineReport {
            check,
            quarantined: None,
        }),
    };
    // Scripts tell damage from a check that did not happen by the exit code alone.
    let report = report.map_err(|error| CliError {
        exit: Exit::Usage,
        ..error
    })?;
    if out.json {
        out.document(&report)?;
    } else {
        tell(out, &report)?;
    }
    match &report.check.state {
        CheckState::Done if report.check.findings.is_empty() => Ok(()),
        CheckState::Done => Err(CliError {
            told: true,
            ..CliError::failure("the stored data are damaged")
        }),
        CheckState::Failed(why) => Err(CliError::usage(format!(
            "the check did not come to its end: {why}"
        ))),
        _ => Err(CliError::usage("the check was stopped")),
    }
}

async fn offline(out: Output, dir: PathBuf, quarantine: bool) -> Outcome<OfflineReport> {
    let bar = out.progress("checking", None);
    let shown = bar.clone();
    let name = dir.display().to_string();
    let work = move || offline::check(&dir, quarantine, |now| shown.set_position(now.bytes));
    let done = tokio::task::spawn_blocking(work).await;
    bar.finish_and_clear();
    let done = done.map_err(|e| CliError::failure(format!("the check broke off: {e}")))?;
    done.map_err(|error| {
        let failure = CliError::failure(&error);
        if error.is_in_use() {
            failure.next("stop the broker, or have it check itself: millstream check --online")
        } else if error.is_older() {
            failure.next("start the broker on it once, which brings it up to date")
        } else if error.is_elsewhere() {
            failure.next(format!("see whether {name} is a broker's data directory"))
        } else {
            failure
        }
    })
}

async fn online(global: &Global, out: Output) -> Outcome<CheckReport> {
    let bar = out.progress("checking", None);
    let done = link::with(global, async |client| watch(client, &bar).await).await;
    bar.finish_and_clear();
    done
}

/// Starts a check and follows it to its end.
async fn watch(
    client: &Client,
    bar: &ProgressBar,
) -> Result<CheckReport, millstream::RequestError> {
    let mut report = client.check(CheckAction::Start).await?;
    while report.state == CheckState::Running {
        bar.set_length(report.expected_bytes.max(report.bytes));
        bar.set_position(report.bytes);
        tokio::time::sleep(LOOK_EVERY).await;
        report = client.check(CheckAction::Look).await?;
    }
    Ok(report)
}

fn tell(out: Output, report: &OfflineReport) -> Outcome {
    let check = &report.check;
    for finding in &check.findings {
        out.line(&format!(
            "damaged: {}, {}: {}",
            finding.file, finding.place, finding.what
        ))?;
        for range in &finding.records {
            out.line(&format!("  cannot be read: {range}"))?;
        }
    }
    if check.findings_left_out > 0 {
        let more = show_count(check.findings_left_out);
        out.line(&format!("and {more} more places"))?;
    }
    if let Some(quarantined) = &report.quarantined {
        tell_quarantine(out, quarantined)?;
    }
    for range in &check.lost {
        out.line(&format!("lost and given up before: {range}"))?;
    }
    if check.lost_left_out > 0 {
        let more = show_count(check.lost_left_out);
        out.line(&format!("and {more} more ranges"))?;
    }
    for file in &check.leftovers {
        out.note(&format!(
            "left by a crash, removed at the next start: {file}"
        ));
    }
    let found = match check.findings.len() as u64 + check.findings_left_out {
        0 => "nothing is wrong".to_owned(),
        1 => "1 place is damaged".to_owned(),
        more => format!("{} places are damaged", show_count(more)),
    };
    out.line(&format!(
        "{found}: {} read in {}, {} record batches, {} segments, {} other rows",
        show_bytes(check.bytes),
        show_ms(check.elapsed_ms),
        show_count(check.batches),
        show_count(check.segments),
        show_count(check.rows),
    ))
}

fn tell_quarantine(out: Output, done: &Quarantine) -> Outcome {
    for file in &done.files {
        out.line(&format!("taken out of service: {}", file.display()))?;
    }
    if done.mended_rows > 0 {
        out.line(&format!(
            "{} rows that say where records lie were damaged, and made anew of the segments",
            show_count(done.mended_rows)
        ))?;
    }
    let saved = show_count(done.saved_batches);
    out.line(&format!(
        "{} segments taken out; {saved} batches of them could be read, and stay",
        done.segments.len()
    ))?;
    for range in &done.lost {
        out.line(&format!("lost: {range}"))?;
    }
    Ok(())
}
