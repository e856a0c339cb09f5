//! Checking the stored data: what the store reads gets its meaning here, and its names.
//!
//! [`survey`] is shown every row: it decodes each, verifies every record batch, and keeps count of
//! which offsets of which partition there are. What is not there and should be is a finding like
//! any flipped bit. [`offline`] does it on a data directory that no broker serves, and can take
//! damaged segments out of service; this module does it beside a broker's work, one check at a
//! time, no faster than [`CHECK_BYTES_PER_SECOND`].
//!
//! Absent: mending anything while the broker serves.

mod coverage;
pub mod offline;
mod survey;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_proto::message::Response;
use millstream_proto::storage::{CheckAction, CheckReport, CheckState};
use millstream_proto::{ErrorCode, WireError};
use millstream_store::{Pace, ReadError, Store};
use serde::Serialize;

use self::survey::Survey;
use crate::limits::{CHECK_BYTES_PER_SECOND, PAGE_BYTES};
use crate::session::Peer;

/// The check of a broker's data, the one that runs or the last one.
#[derive(Default)]
pub struct Checks {
    current: Mutex<Option<Arc<Check>>>,
}

struct Check {
    report: Mutex<CheckReport>,
    pace: Pace,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checks {
    fn current(&self) -> Option<Arc<Check>> {
        locked(&self.current).clone()
    }

    /// Begins a check, on a thread that may block.
    fn start(&self, store: &Arc<dyn Store>) -> Result<(), WireError> {
        let mut current = locked(&self.current);
        let running = current.as_ref().is_some_and(|check| check.is_running());
        if running {
            let text = "a check is running already: look at it, or stop it first";
            return Err(WireError::new(ErrorCode::Overloaded, text));
        }
        let stats = store.stats();
        let check = Arc::new(Check {
            report: Mutex::new(CheckReport {
                state: CheckState::Running,
                expected_bytes: stats.storage.hot_bytes + stats.storage.sealed_bytes,
                ..CheckReport::default()
            }),
            pace: Pace::new(Some(CHECK_BYTES_PER_SECOND)),
        });
        *current = Some(Arc::clone(&check));
        drop(current);
        let store = Arc::clone(store);
        tokio::task::spawn_blocking(move || check.run(&*store));
        Ok(())
    }

    /// Ends the check that runs, if there is one.
    pub(crate) fn stop(&self) {
        if let Some(check) = self.current() {
            check.pace.stop();
        }
    }

    fn report(&self) -> CheckReport {
        self.current()
            .map(|check| locked(&check.report).clone())
            .unwrap_or_default()
    }
}

impl Check {
    fn is_running(&self) -> bool {
        locked(&self.report).state == CheckState::Running
    }

    fn run(&self, store: &dyn Store) {
        let state = match self.look(store) {
            Ok(complete) if complete => CheckState::Done,
            Ok(_) => CheckState::Stopped,
            Err(error) => CheckState::Failed(error.to_string()),
        };
        let mut report = locked(&self.report);
        let (findings, bytes) = (report.findings.len(), report.bytes);
        tracing::info!(
            ?state,
            findings,
            bytes,
            "the check of the stored data has ended"
        );
        report.state = state;
    }

    fn look(&self, store: &dyn Store) -> Result<bool, ReadError> {
        let mut survey = Survey::new(|now| self.show(now));
        let totals = store.check(&mut survey, &self.pace)?;
        if totals.complete {
            // What was removed meanwhile is not missing.
            survey.confirm(&*store.snapshot()?)?;
            survey.judge();
        }
        let told = survey.report(totals);
        self.show(&told);
        Ok(totals.complete)
    }

    /// Shows how far it is. Whether it has ended is not the survey's to say.
    fn show(&self, now: &CheckReport) {
        let mut report = locked(&self.report);
        let before = std::mem::take(&mut *report);
        *report = CheckReport {
            state: before.state,
            expected_bytes: before.expected_bytes,
            ..now.clone()
        };
        // Between findings only the figures are told.
        if report.findings.is_empty() {
            report.findings = before.findings;
        }
    }
}

/// Answers a request about the check; admins only, since it tells about all tenants.
pub(crate) fn answer(peer: &Peer, action: CheckAction) -> Result<Response, WireError> {
    let broker = &peer.broker;
    broker
        .access
        .check_admin(&peer.principal, "checking the stored data")?;
    match action {
        CheckAction::Start => broker.checks.start(&broker.store)?,
        CheckAction::Look => {}
        CheckAction::Stop => broker.checks.stop(),
    }
    Ok(Response::Check(fitted(broker.checks.report())))
}

/// As much of a report as fits one message; the rest is counted.
fn fitted(mut report: CheckReport) -> CheckReport {
    let findings = fit(&mut report.findings, PAGE_BYTES / 2);
    report.findings_left_out += findings;
    let lost = fit(&mut report.lost, PAGE_BYTES / 4);
    report.lost_left_out += lost;
    fit(&mut report.leftovers, PAGE_BYTES / 8);
    report
}

/// Keeps the first items that fit `bytes`; says how many do not.
fn fit<T: Serialize>(items: &mut Vec<T>, bytes: usize) -> u64 {
    let mut left = bytes;
    let mut fits = |item: &T| {
        let len = postcard::to_allocvec(item).map_or(usize::MAX, |encoded| encoded.len());
        let fits = len <= left;
        left = left.saturating_sub(len);
        fits
    };
    let kept = items.iter().take_while(|item| fits(item)).count();
    let cut = items.len() - kept;
    items.truncate(kept);
    cut as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests;
