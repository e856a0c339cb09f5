//! What guests return, checked once: every index, span, count and size.
//!
//! Behind these types nothing can be out of bounds, so the code that builds record batches from
//! them has no errors of its own. A wrong value is the plugin's error and costs it the batch;
//! nothing is clamped. The checks are linear in the columns whatever the guest claims: spans may
//! overlap, so text is checked and sizes are summed per header entry, never per use.

mod fault;

use millstream_proto::limits::{
    MAX_BATCH_HEADERS, MAX_HEADER_NAME_BYTES, MAX_RECORD_BYTES, MAX_RECORD_HEADERS,
};

pub use self::fault::OutputFault;
use crate::bindings::millstream::plugin::outputs::OutBatch;
use crate::columns::{Columns, HEADER, NONE, SPAN};
use crate::error::{Fault, LimitHit};

/// Integers per new record in the spans of a transform's result.
const OUT_SPAN: usize = 9;
/// What one header costs beside its bytes when it is written into a batch.
const HEADER_OVERHEAD: u64 = 16;
/// In a result's timestamps: keep the input record's.
const KEEP_TIMESTAMP: i64 = i64::MIN;

/// What a filter says of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It goes no further.
    Drop = 0,
    /// It goes on.
    Keep = 1,
    /// It goes to the dead letters.
    DeadLetter = 2,
}

/// Checks a filter's verdicts.
pub(crate) fn check_verdicts(raw: Vec<u8>, records: usize) -> Result<Vec<Verdict>, OutputFault> {
    if raw.len() != records {
        return Err(OutputFault::Count {
            what: "verdicts",
            got: raw.len(),
            expected: records,
        });
    }
    if let Some(record) = raw.iter().position(|&v| v > Verdict::DeadLetter as u8) {
        return Err(OutputFault::Verdict {
            record,
            got: raw[record],
        });
    }
    let verdict = |v| match v {
        0 => Verdict::Drop,
        1 => Verdict::Keep,
        _ => Verdict::DeadLetter,
    };
    Ok(raw.into_iter().map(verdict).collect())
}

/// Checks a partitioner's choices.
pub(crate) fn check_partitions(
    raw: Vec<u32>,
    records: usize,
    partitions: u32,
) -> Result<Vec<u32>, OutputFault> {
    if raw.len() != records {
        return Err(OutputFault::Count {
            what: "partitions",
            got: raw.len(),
            expected: records,
        });
    }
    match raw.iter().position(|&p| p >= partitions) {
        Some(record) => Err(OutputFault::Partition {
            record,
            got: raw[record],
            partitions,
        }),
        None => Ok(raw),
    }
}

/// The new records of a transform, all in bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    data: Vec<u8>,
    timestamps: Vec<i64>,
    spans: Vec<u32>,
    headers: Vec<u32>,
    expanded: u64,
}

/// A key or value of a new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The input record's, whether or not the plugin saw it.
    Keep,
    /// None.
    Absent,
    /// These bytes.
    New(&'a [u8]),
}

/// The headers of a new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderPiece<'a> {
    /// All headers of the input record.
    Keep,
    /// These.
    New(NewHeaders<'a>),
}

/// Headers that a transform made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewHeaders<'a> {
    data: &'a [u8],
    entries: &'a [[u32; HEADER]],
}

impl<'a> NewHeaders<'a> {
    /// Names and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let data = self.data;
        self.entries
            .iter()
            .map(move |&[name, name_len, value, value_len]| {
                let name = std::str::from_utf8(slice(data, name, name_len));
                (
                    name.expect("checked when the output was"),
                    slice(data, value, value_len),
                )
            })
    }
}

/// One new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRecord<'a> {
    /// Index of the input record it came from.
    pub input: u32,
    /// Index of the output it goes to.
    pub output: u32,
    /// The partition the plugin chose, or none to let the output choose.
    pub partition: Option<u32>,
    /// Its timestamp in milliseconds since the Unix epoch, or none to keep the input's.
    pub timestamp: Option<i64>,
    /// Its key.
    pub key: Piece<'a>,
    /// Its value.
    pub value: Piece<'a>,
    /// Its headers.
    pub headers: HeaderPiece<'a>,
}

fn slice(data: &[u8], offset: u32, len: u32) -> &[u8] {
    &data[offset as usize..offset as usize + len as usize]
}

impl Output {
    /// Number of new records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len() / OUT_SPAN
    }

    /// Whether nothing was made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes of all new records, kept pieces counted as often as they are kept: an upper bound
    /// for what writing them takes.
    #[must_use]
    pub fn expanded_bytes(&self) -> u64 {
        self.expanded
    }

    /// The new records in the order in which they are to be written.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = NewRecord<'_>> {
        let spans = self.spans.as_chunks::<OUT_SPAN>().0.iter();
        spans
            .enumerate()
            .map(|(index, span)| self.record(index, span))
    }

    fn record(&self, index: usize, span: &[u32; OUT_SPAN]) -> NewRecord<'_> {
        let &[
            input,
            output,
            partition,
            key,
            key_len,
            value,
            value_len,
            first,
            count,
        ] = span;
        let piece = |offset, len| match (offset, len) {
            (NONE, _) => Piece::Keep,
            (_, NONE) => Piece::Absent,
            _ => Piece::New(slice(&self.data, offset, len)),
        };
        let headers = match first {
            NONE => HeaderPiece::Keep,
            _ => HeaderPiece::New(NewHeaders {
                data: &self.data,
                entries: &self.headers.as_chunks().0[first as usize..][..count as usize],
            }),
        };
        NewRecord {
            input,
            output,
            partition: (partition != NONE).then_some(partition),
            timestamp: self
                .timestamps
                .get(index)
                .copied()
                .filter(|&t| t != KEEP_TIMESTAMP),
            key: piece(key, key_len),
            value: piece(value, value_len),
            headers,
        }
    }
}

/// What a transform may make.
pub(crate) struct Bounds<'a> {
    /// Number of partitions of each declared output.
    pub(crate) outputs: &'a [u32],
    /// Most bytes of all new records.
    pub(crate) bytes: usize,
    /// Most new records.
    pub(crate) records: usize,
}

/// Checks a transform's result against the batch it was made from.
pub(crate) fn check_output(
    raw: OutBatch,
    input: &Columns<'_>,
    bounds: &Bounds<'_>,
) -> Result<Output, Fault> {
    let ragged =
        |what, got, width| Fault::from(GuestOutput(OutputFault::Ragged { what, got, width }));
    let (spans, rest) = raw.spans.as_chunks::<OUT_SPAN>();
    if !rest.is_empty() {
        return Err(ragged("spans", raw.spans.len(), OUT_SPAN));
    }
    let (headers, rest) = raw.headers.as_chunks::<HEADER>();
    if !rest.is_empty() {
        return Err(ragged("headers", raw.headers.len(), HEADER));
    }
    if spans.len() > bounds.records {
        return Err(LimitHit::OutputRecords {
            made: spans.len(),
            limit: bounds.records,
        }
        .into());
    }
    if !raw.timestamps.is_empty() && raw.timestamps.len() != spans.len() {
        let got = raw.timestamps.len();
        let fault = OutputFault::Count {
            what: "timestamps",
            got,
            expected: spans.len(),
        };
        return Err(GuestOutput(fault).into());
    }
    let check = Check {
        input,
        bounds,
        data: &raw.data,
        header_ends: check_headers(headers, &raw.data, bounds)?,
        input_header_ends: input_header_ends(input),
    };
    let mut expanded = 0u64;
    for (record, span) in spans.iter().enumerate() {
        expanded += check.record(record, span).map_err(GuestOutput)?;
        if expanded > bounds.bytes as u64 {
            return Err(LimitHit::OutputBytes(bounds.bytes).into());
        }
    }
    let OutBatch {
        data,
        timestamps,
        spans,
        headers,
    } = raw;
    Ok(Output {
        data,
        timestamps,
        spans,
        headers,
        expanded,
    })
}

/// Shortens the way from an [`OutputFault`] to a [`Fault`].
struct GuestOutput(OutputFault);

impl From<GuestOutput> for Fault {
    fn from(GuestOutput(fault): GuestOutput) -> Self {
        Self::Guest(fault.into())
    }
}

/// Checks every header once; returns where each ends in the sum of their weights, so that the
/// weight of any range of them is one subtraction.
fn check_headers(
    headers: &[[u32; HEADER]],
    data: &[u8],
    bounds: &Bounds<'_>,
) -> Result<Vec<u64>, Fault> {
    if headers.len() > MAX_BATCH_HEADERS as usize {
        return Err(GuestOutput(OutputFault::Headers { got: headers.len() }).into());
    }
    let mut ends = Vec::with_capacity(headers.len() + 1);
    let mut sum = 0u64;
    ends.push(sum);
    for (header, &[name, name_len, value, value_len]) in headers.iter().enumerate() {
        let outside = |what, offset, len| {
            let data = data.len();
            GuestOutput(OutputFault::HeaderPiece {
                header,
                what,
                offset,
                len,
                data,
            })
        };
        let bad_name = |problem| GuestOutput(OutputFault::HeaderName { header, problem });
        let name_bytes = piece(data, name, name_len).ok_or(outside("name", name, name_len))?;
        piece(data, value, value_len).ok_or(outside("value", value, value_len))?;
        if name_bytes.is_empty() {
            return Err(bad_name("is empty").into());
        }
        if name_bytes.len() > MAX_HEADER_NAME_BYTES {
            return Err(bad_name("is longer than a header name may be").into());
        }
        if std::str::from_utf8(name_bytes).is_err() {
            return Err(bad_name("is not UTF-8").into());
        }
        sum += u64::from(name_len) + u64::from(value_len) + HEADER_OVERHEAD;
        if sum > bounds.bytes as u64 {
            return Err(LimitHit::OutputBytes(bounds.bytes).into());
        }
        ends.push(sum);
    }
    Ok(ends)
}

fn piece(data: &[u8], offset: u32, len: u32) -> Option<&[u8]> {
    let start = offset as usize;
    data.get(start..start.checked_add(len as usize)?)
}

/// As [`check_headers`] for the broker's own headers.
fn input_header_ends(input: &Columns<'_>) -> Vec<u64> {
    let mut sum = 0u64;
    let weights = input
        .headers
        .as_chunks::<HEADER>()
        .0
        .iter()
        .map(|&[_, name, _, value]| {
            sum += u64::from(name) + u64::from(value) + HEADER_OVERHEAD;
            sum
        });
    std::iter::once(0).chain(weights).collect()
}

struct Check<'a> {
    input: &'a Columns<'a>,
    bounds: &'a Bounds<'a>,
    data: &'a [u8],
    header_ends: Vec<u64>,
    input_header_ends: Vec<u64>,
}

impl Check<'_> {
    /// Checks one new record and returns its weight in bytes.
    fn record(&self, record: usize, span: &[u32; OUT_SPAN]) -> Result<u64, OutputFault> {
        let &[
            input,
            output,
            partition,
            key,
            key_len,
            value,
            value_len,
            first,
            count,
        ] = span;
        let Some(from) = self.input.spans.as_chunks::<SPAN>().0.get(input as usize) else {
            let records = self.input.records();
            return Err(OutputFault::Input {
                record,
                got: input,
                records,
            });
        };
        let Some(&partitions) = self.bounds.outputs.get(output as usize) else {
            let outputs = self.bounds.outputs.len();
            return Err(OutputFault::UnknownOutput {
                record,
                got: output,
                outputs,
            });
        };
        if partition != NONE && partition >= partitions {
            return Err(OutputFault::Partition {
                record,
                got: partition,
                partitions,
            });
        }
        let new = self.new_piece(record, "key", key, key_len)?
            + self.new_piece(record, "value", value, value_len)?
            + self.new_headers(record, first, count)?;
        if new > MAX_RECORD_BYTES as u64 {
            return Err(OutputFault::RecordSize { record, bytes: new });
        }
        Ok(new + self.kept(input as usize, from, [key, value, first].map(|o| o == NONE)))
    }

    fn new_piece(
        &self,
        record: usize,
        what: &'static str,
        offset: u32,
        len: u32,
    ) -> Result<u64, OutputFault> {
        if offset == NONE || len == NONE {
            return Ok(0);
        }
        match piece(self.data, offset, len) {
            Some(bytes) => Ok(bytes.len() as u64),
            None => {
                let data = self.data.len();
                Err(OutputFault::Piece {
                    record,
                    what,
                    offset,
                    len,
                    data,
                })
            }
        }
    }

    fn new_headers(&self, record: usize, first: u32, count: u32) -> Result<u64, OutputFault> {
        if first == NONE {
            return Ok(0);
        }
        let range = (first as usize).checked_add(count as usize);
        let start = self.header_ends.get(first as usize);
        let end = range.and_then(|end| self.header_ends.get(end));
        match (start, end) {
            (Some(start), Some(end)) if count as usize <= MAX_RECORD_HEADERS => Ok(end - start),
            _ => {
                let headers = self.header_ends.len() - 1;
                Err(OutputFault::HeaderRange {
                    record,
                    first,
                    count,
                    headers,
                })
            }
        }
    }

    /// Weight of what a new record keeps of its input record. What the plugin cannot see of it is
    /// counted whole if anything is kept: an upper bound, and one that a plugin which replaces
    /// what it sees does not feel.
    fn kept(&self, input: usize, from: &[u32; SPAN], kept: [bool; 3]) -> u64 {
        if kept == [false; 3] {
            return 0;
        }
        let len = |len: u32| if len == NONE { 0 } else { u64::from(len) };
        let &[_, key_len, _, value_len, first, count] = from;
        let end = |index: u32| self.input_header_ends.get(index as usize).copied();
        let headers = end(first).zip(first.checked_add(count).and_then(end));
        let headers = headers.map_or(0, |(start, end)| end.saturating_sub(start));
        let seen = [len(key_len), len(value_len), headers];
        let weight: u64 = seen
            .iter()
            .zip(kept)
            .map(|(weight, kept)| if kept { *weight } else { 0 })
            .sum();
        let Some(&size) = self.input.sizes.get(input) else {
            return weight;
        };
        let [key, value, headers] = seen;
        let bytes = key + value + headers.saturating_sub(HEADER_OVERHEAD * u64::from(count));
        weight + u64::from(size).saturating_sub(bytes)
    }
}

#[cfg(test)]
mod tests;
