//! What can be wrong with a guest's result.

use millstream_proto::limits::{MAX_BATCH_HEADERS, MAX_RECORD_BYTES, MAX_RECORD_HEADERS};

/// Why a result is not one that the interface allows: what was wrong and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the fields are the numbers of the message above them
pub enum OutputFault {
    /// A column of the wrong length.
    #[error("{got} {what} for {expected} records; expected one for each")]
    Count {
        what: &'static str,
        got: usize,
        expected: usize,
    },
    /// A column that is no multiple of its width.
    #[error("{what} has {got} integers, which is not a multiple of {width}")]
    Ragged {
        what: &'static str,
        got: usize,
        width: usize,
    },
    /// An unknown verdict.
    #[error("verdict {got} for record {record}; expected 0 (drop), 1 (keep) or 2 (dead-letter)")]
    Verdict { record: usize, got: u8 },
    /// A partition that the target does not have.
    #[error("partition {got} for record {record}, but the target has {partitions} partitions")]
    Partition {
        record: usize,
        got: u32,
        partitions: u32,
    },
    /// An input record that is not in the batch.
    #[error("new record {record} names input record {got}, but the batch has {records} records")]
    Input {
        record: usize,
        got: u32,
        records: usize,
    },
    /// An output that is not declared.
    #[error("new record {record} names output {got}, but {outputs} outputs are declared")]
    UnknownOutput {
        record: usize,
        got: u32,
        outputs: usize,
    },
    /// A key or value outside the data.
    #[error(
        "the {what} of new record {record} is {len} bytes at {offset}, but data has {data} bytes"
    )]
    Piece {
        record: usize,
        what: &'static str,
        offset: u32,
        len: u32,
        data: usize,
    },
    /// Headers outside the header table.
    #[error(
        "new record {record} has {count} headers from header {first}, but there are {headers} \
         (and at most {MAX_RECORD_HEADERS} on one record)"
    )]
    HeaderRange {
        record: usize,
        first: u32,
        count: u32,
        headers: usize,
    },
    /// A header's name or value outside the data.
    #[error("the {what} of header {header} is {len} bytes at {offset}, but data has {data} bytes")]
    HeaderPiece {
        header: usize,
        what: &'static str,
        offset: u32,
        len: u32,
        data: usize,
    },
    /// A header name that is no name.
    #[error("the name of header {header} {problem}")]
    HeaderName {
        header: usize,
        problem: &'static str,
    },
    /// More headers than a batch can have.
    #[error("{got} headers; at most {MAX_BATCH_HEADERS} are allowed")]
    Headers { got: usize },
    /// A record larger than any record may be.
    #[error("new record {record} has {bytes} bytes; at most {MAX_RECORD_BYTES} are allowed")]
    RecordSize { record: usize, bytes: u64 },
    /// `bad-record` with an index outside the batch.
    #[error("bad-record names record {index}, but the batch has {records} records")]
    BadIndex { index: u32, records: usize },
    /// A second instance with another mind.
    #[error("init asked for other columns than it did in an earlier instance")]
    NeedsChanged,
    /// A value that is none of its type: a list outside memory, text that is not UTF-8.
    #[error("{0}")]
    Malformed(String),
}
