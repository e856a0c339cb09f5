//! `millstream demo`: a week of real earthquakes through a broker that is killed midway.
//!
//! The broker is a process of its own, the clients are the public ones, and what they get is
//! compared with a plain computation over the file ([`expect`], [`check`]). Nothing here can make
//! the comparison pass but the right records.

mod act;
mod check;
mod expect;
mod screen;
mod setup;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use self::act::{Plan, perform};
use self::check::Verdict;
use self::expect::{EARTHQUAKES, Expected};
use crate::args::Global;
use crate::child::Place;
use crate::clock;
use crate::error::{CliError, Outcome};
use crate::table::Table;

/// How long the file takes at a visible pace.
const VISIBLE: Duration = Duration::from_secs(20);
/// How long the broker stays dead at a visible pace.
const VISIBLE_DEATH: Duration = Duration::from_millis(1500);

const BY_HAND: &str = "\
Each step by hand (docs/quickstart.md has them in full):
  millstream pki init pki
  millstream serve --pki pki --data data                  # in another terminal
  millstream context add local --pki pki --tenant ops --name admin
  millstream topic create acme/quakes --partitions 4
  millstream plugin new my-filter --kind filter           # then: plugin build, plugin upload
  millstream produce acme/quakes --file broker/cli/data/earthquakes.ndjson --ndjson --key-pointer /id
  millstream consume acme/quakes --from earliest --until-end --format full";

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Everything happens in a temporary directory and on a port of its own, and is gone afterwards. Ends
with 1 if the check at the end finds anything wrong.

Examples:
  millstream demo
  millstream demo --fast --json")]
pub(crate) struct DemoArgs {
    /// As fast as it goes instead of at a visible pace.
    #[arg(long)]
    fast: bool,
}

#[derive(Serialize)]
struct Result<'a> {
    passed: bool,
    records: usize,
    seconds: f64,
    checks: &'a [Verdict],
}

/// Runs the demo, cleans up and says what the check found.
pub(crate) async fn run(global: &Global, args: DemoArgs) -> Outcome {
    let out = global.output();
    let expected = Expected::of(EARTHQUAKES).map_err(CliError::failure)?;
    let dir = tempfile::Builder::new()
        .prefix("millstream-demo-")
        .tempdir()
        .map_err(|e| CliError::file("make a directory in", &std::env::temp_dir(), &e))?;
    let at = |name: &str| dir.path().join(name);
    let plan = Plan {
        out,
        expected: Arc::new(expected),
        place: Place {
            pki: at("pki"),
            data: at("data"),
            log: at("broker.log"),
            config: None,
        },
        pace: if args.fast { Duration::ZERO } else { VISIBLE },
        death: if args.fast {
            Duration::ZERO
        } else {
            VISIBLE_DEATH
        },
        broker: Mutex::default(),
    };
    let started = clock::monotonic();
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::failure)?;
    let outcome = tokio::select! {
        performed = perform(&plan) => performed,
        _ = tokio::signal::ctrl_c() => Err(CliError::failure("interrupted")),
        _ = terminate.recv() => Err(CliError::failure("terminated")),
    };
    let ended = plan.end().await;
    let evidence = outcome?;
    ended?;
    let seconds = started.elapsed().as_secs_f64();
    let verdicts = check::check(&plan.expected, &evidence);
    let passed = verdicts.iter().all(|verdict| verdict.passed);
    if out.json {
        let records = plan.expected.quakes.len();
        out.document(&Result {
            passed,
            records,
            seconds,
            checks: &verdicts,
        })?;
    } else {
        let mut table = Table::new(&["RESULT", "CHECK", "DETAIL"]);
        for Verdict {
            check,
            passed,
            detail,
        } in &verdicts
        {
            table.row([if *passed { "PASS" } else { "FAIL" }, check, detail]);
        }
        out.line(&format!("\n{table}\n"))?;
    }
    if !passed {
        return Err(
            CliError::failure("what came out is not what must come out: see FAIL above")
                .next("please report this, with what was printed"),
        );
    }
    if !out.json {
        out.line(&format!("PASS: all checks, in {seconds:.1} s"))?;
        out.note(&format!("\n{BY_HAND}"));
    }
    Ok(())
}
