//! A batch as a plugin sees it: raw bytes and columns of integers that point into them.
//!
//! The caller fills it from a record batch and leaves out what the plugin does not need. These
//! columns come from the broker, so they are checked for shape only; what comes back from the
//! guest is checked in full, in `output`.

use millstream_proto::batch;
use millstream_proto::limits::MAX_BATCH_RECORDS;

use crate::bindings::millstream::plugin::types::Batch;
use crate::error::EngineFault;

/// As a length in a span: no key, or a tombstone's missing value. As the offset or first header
/// of a result: keep the input record's. As a result's partition: let the output choose.
pub const NONE: u32 = u32::MAX;
/// Integers per record in [`Columns::spans`].
pub const SPAN: usize = 6;
/// Integers per header in [`Columns::headers`].
pub const HEADER: usize = 4;

/// Which columns a plugin looks at; the others are left empty or absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Keys.
    pub keys: bool,
    /// Values.
    pub values: bool,
    /// Record headers.
    pub headers: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// Offsets.
    pub offsets: bool,
}

/// One batch for a plugin. The layout is that of `types.batch` in `wit/plugin.wit`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns<'a> {
    /// Index of the input among the runner's inputs.
    pub input: u32,
    /// Partition of the input; 0 before one is chosen.
    pub partition: u32,
    /// The bytes that spans and headers point into.
    pub data: &'a [u8],
    /// One per record, or empty if not needed or not assigned yet.
    pub offsets: &'a [i64],
    /// One per record, in milliseconds since the Unix epoch, or empty if not needed.
    pub timestamps: &'a [i64],
    /// Six per record, always: key offset, key length, value offset, value length, first header,
    /// header count. A piece that is not needed is absent: length [`NONE`].
    pub spans: &'a [u32],
    /// Four per header: name offset, name length, value offset, value length; or empty if not
    /// needed.
    pub headers: &'a [u32],
    /// The whole size of each record in bytes, for a transform whose needs leave something out:
    /// it may keep pieces that it cannot see, and its output is bounded by what they weigh.
    /// Empty if spans and headers tell everything.
    pub sizes: &'a [u32],
}

impl From<Needs> for batch::Wanted {
    fn from(needs: Needs) -> Self {
        let Needs {
            keys: _,
            values: _,
            headers,
            timestamps,
            offsets,
        } = needs;
        Self {
            headers,
            timestamps,
            offsets,
        }
    }
}

impl<'a> Columns<'a> {
    /// The columns of a record batch whose blob is `data`: input 0, partition 0, no sizes.
    #[must_use]
    pub fn of(data: &'a [u8], columns: &'a batch::Columns) -> Self {
        Self {
            data,
            offsets: &columns.offsets,
            timestamps: &columns.timestamps,
            spans: &columns.spans,
            headers: &columns.headers,
            ..Self::default()
        }
    }

    /// Number of records.
    #[must_use]
    pub fn records(&self) -> usize {
        self.spans.len() / SPAN
    }

    /// The same, as the bindings want it.
    pub(crate) fn batch(&self) -> Batch<'a> {
        Batch {
            input: self.input,
            partition: self.partition,
            data: self.data,
            offsets: self.offsets,
            timestamps: self.timestamps,
            spans: self.spans,
            headers: self.headers,
        }
    }

    /// Catches a caller that filled the columns wrongly, before a guest is blamed for it.
    pub(crate) fn check(&self) -> Result<(), EngineFault> {
        let records = self.records();
        let fits = |len: usize| len == 0 || len == records;
        let problem = if !self.spans.len().is_multiple_of(SPAN) {
            "spans are not six per record"
        } else if records > MAX_BATCH_RECORDS as usize {
            "more records than a batch can have"
        } else if !self.headers.len().is_multiple_of(HEADER) {
            "headers are not four integers each"
        } else if !fits(self.offsets.len()) {
            "offsets are neither empty nor one per record"
        } else if !fits(self.timestamps.len()) {
            "timestamps are neither empty nor one per record"
        } else if !fits(self.sizes.len()) {
            "sizes are neither empty nor one per record"
        } else {
            return Ok(());
        };
        Err(EngineFault::BadColumns(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_disagree_are_ours_to_mend() {
        let check = |columns: Columns<'_>, good: bool| {
            assert_eq!(columns.check().is_ok(), good, "{columns:?}");
        };
        check(Columns::default(), true);
        check(
            Columns {
                spans: &[0; 12],
                timestamps: &[1, 2],
                ..Columns::default()
            },
            true,
        );
        check(
            Columns {
                spans: &[0; 7],
                ..Columns::default()
            },
            false,
        );
        check(
            Columns {
                spans: &[0; 12],
                timestamps: &[1],
                ..Columns::default()
            },
            false,
        );
        check(
            Columns {
                spans: &[0; 12],
                offsets: &[1; 3],
                ..Columns::default()
            },
            false,
        );
        check(
            Columns {
                spans: &[0; 12],
                sizes: &[1; 3],
                ..Columns::default()
            },
            false,
        );
        check(
            Columns {
                headers: &[0; 5],
                ..Columns::default()
            },
            false,
        );
    }
}
