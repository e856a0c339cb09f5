//! Checking a data directory that no broker serves.

use std::path::{Path, PathBuf};

use millstream_proto::Batch;
use millstream_proto::storage::{CheckReport, CheckState, Finding, OffsetRange};
use millstream_store::{Mended, OfflineStore, OpenError, Pace, QuarantineError, Quarantined};
use serde::Serialize;

use super::survey::Survey;
use crate::broker::SHARD_FILE;

/// Why a data directory was not checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// It cannot be opened, for another reason than damage.
    #[error(transparent)]
    Open(OpenError),
    /// It was checked, and damaged segments could not be taken out.
    #[error("the damaged segments stay where they are: {0}")]
    Quarantine(#[from] QuarantineError),
}

impl OfflineError {
    /// Whether a broker has the data open.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Open(OpenError::InUse { .. }))
    }

    /// Whether the data are of an older format, which a broker would bring up to date.
    #[must_use]
    pub fn is_older(&self) -> bool {
        let format = match self {
            Self::Open(OpenError::Format {
                found, expected, ..
            }) => Some((found, expected)),
            _ => None,
        };
        format.is_some_and(|(found, expected)| found < expected)
    }

    /// Whether there is nothing to be read there, or nobody may.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Open(OpenError::Io { .. }))
    }
}

/// What became of a data directory.
#[derive(Clone, Debug, Serialize)]
pub struct OfflineReport {
    /// What was found.
    #[serde(flatten)]
    pub check: CheckReport,
    /// What was taken out of service, if that was asked for and there was something.
    pub quarantined: Option<Quarantine>,
}

/// Segments that were taken out of service.
#[derive(Clone, Debug, Serialize)]
pub struct Quarantine {
    /// Their numbers.
    pub segments: Vec<u64>,
    /// Where their files are now; one that was missing has none.
    pub files: Vec<PathBuf>,
    /// Record batches of them that could be read, and are served on.
    pub saved_batches: u64,
    /// Rows that say where records lie, were damaged, and could be made anew of the segments.
    pub mended_rows: u64,
    /// What is lost: readers pass over it.
    pub lost: Vec<OffsetRange>,
}

/// Checks the store in `data_dir`, as fast as it goes, and takes damaged segments out of service
/// if `quarantine` says so. Blocking; `progress` is called often.
///
/// # Errors
/// See [`OfflineError`]. Damage is no error: it is in the report.
pub fn check(
    data_dir: &Path,
    quarantine: bool,
    progress: impl FnMut(&CheckReport),
) -> Result<OfflineReport, OfflineError> {
    let file = data_dir.join(SHARD_FILE);
    let mut store = match OfflineStore::open(&file) {
        Ok(store) => store,
        Err(error @ (OpenError::Corrupt { .. } | OpenError::NotAStore { .. })) => {
            return Ok(unreadable(&file, &error));
        }
        Err(error) => return Err(OfflineError::Open(error)),
    };
    let mut survey = Survey::new(progress);
    let totals = store.check(&mut survey, &Pace::new(None));
    survey.judge();
    let check = CheckReport {
        state: CheckState::Done,
        ..survey.report(totals)
    };
    let mut taken = None;
    if quarantine {
        let mut mended = Mended::default();
        if survey.has_damaged_rows() {
            mended = store.mend(&mut |runs| survey.lost_rows(runs))?;
        }
        // What the rows name now nobody has looked at yet.
        let mut again = Survey::new(|_| {});
        let survey = if mended.is_nothing() {
            &survey
        } else {
            store.check(&mut again, &Pace::new(None));
            again.judge();
            &again
        };
        taken = take_out(&mut store, survey, mended)?;
    }
    Ok(OfflineReport {
        check,
        quarantined: taken,
    })
}

/// Takes out the segments that `survey` found to be damaged, behind what was mended already.
fn take_out(
    store: &mut OfflineStore,
    survey: &Survey<'_>,
    mended: Mended,
) -> Result<Option<Quarantine>, QuarantineError> {
    let segments = survey.damaged_segments();
    let mut done = Quarantined::default();
    if !segments.is_empty() {
        done = store.quarantine(
            &segments,
            &mut |_, value| Batch::check(value.clone()).is_ok(),
            &mut |runs| survey.lost_rows(runs),
        )?;
    }
    if segments.is_empty() && mended.is_nothing() {
        return Ok(None);
    }
    let lost: Vec<_> = mended.lost.into_iter().chain(done.lost).collect();
    Ok(Some(Quarantine {
        segments,
        files: done.files,
        saved_batches: done.saved,
        mended_rows: mended.extents + mended.segments,
        lost: survey.told(&lost),
    }))
}

/// A store that is too damaged to be opened.
fn unreadable(file: &Path, error: &OpenError) -> OfflineReport {
    let finding = Finding {
        file: file.display().to_string(),
        place: "the file".to_owned(),
        what: error.to_string(),
        segment: None,
        records: Vec::new(),
    };
    OfflineReport {
        check: CheckReport {
            state: CheckState::Done,
            findings: vec![finding],
            ..CheckReport::default()
        },
        quarantined: None,
    }
}
