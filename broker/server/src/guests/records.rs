//! The records of a batch on their way through a chain.
//!
//! Between two steps records lie as plugins see them: one blob of bytes and columns of integers.
//! A filter removes rows of the columns and moves no bytes; a transform makes a new blob. A batch
//! of which nothing was removed or made is recognised as such, so that it can be passed on as it
//! came. All buffers are used again for the next batch.

mod made;

use bytes::{Bytes, BytesMut};
use millstream_plugin::{Columns, NONE, Needs, SPAN};
use millstream_proto::batch::{self, ABSENT, BatchView, Body, NewHeader, NewRecord, Wanted};
use millstream_proto::{Batch, BatchError, Offset};

use crate::limits::{CALL_BYTES, CALL_RECORDS};
pub(crate) use made::{Made, new_size};

/// Integers per header in the columns.
const HEADER: usize = millstream_plugin::HEADER;

/// Integers of spans for which a buffer is kept from batch to batch: most batches are far smaller.
const KEPT_SPANS: usize = 4 * CALL_RECORDS * SPAN;

/// The timestamps of the records as they came.
#[derive(Debug, Default)]
enum Times {
    /// Nothing was loaded.
    #[default]
    None,
    /// All the same.
    Same(i64),
    /// Not looked at yet: most chains never do.
    Unread(Body),
    /// One for each.
    Each,
}

/// Records between the steps of a chain.
#[derive(Debug, Default)]
pub(crate) struct Records {
    data: Bytes,
    /// As plugins see them, except that an absent key or value has its place in the blob too: a
    /// record always begins at its key's offset.
    columns: batch::Columns,
    /// Where each record came from: an index into the batch as it was loaded. Empty while nothing
    /// was removed or made.
    source: Vec<u32>,
    /// Number of records loaded.
    loaded: usize,
    /// Timestamps of the records as loaded; `columns.timestamps` are those that were made.
    times: Times,
    source_times: Vec<i64>,
    /// Offset of the first record loaded, if it has one.
    base: Option<Offset>,
    /// The output of each record; empty means the first, for all.
    outputs: Vec<u32>,
    /// The partition chosen for each record, or [`NONE`]; empty means that none was chosen.
    partitions: Vec<u32>,
}

impl Records {
    /// Replaces the contents with one batch; `base` is the offset of its first record, if it has
    /// one.
    ///
    /// # Errors
    /// When the batch does not hold together.
    pub(crate) fn load(&mut self, batch: &Batch, base: Option<Offset>) -> Result<(), BatchError> {
        let body = batch.body()?;
        let view = body.view()?;
        self.clear();
        fill(&mut self.columns, &view);
        self.data = body.bytes().slice(..view.blob().len());
        (self.loaded, self.base) = (view.len(), base);
        self.times = match body.header() {
            header if header.flags.timestamps => Times::Unread(body),
            header => Times::Same(header.base_timestamp),
        };
        Ok(())
    }

    /// Replaces the contents with several batches whose offsets follow one another; their blobs
    /// are copied into one.
    ///
    /// # Errors
    /// When one of the batches does not hold together.
    pub(crate) fn load_all<'a>(
        &mut self,
        batches: impl IntoIterator<Item = &'a Batch>,
        base: Offset,
    ) -> Result<(), BatchError> {
        let mut batches = batches.into_iter();
        let (first, mut rest) = (batches.next(), batches.by_ref().peekable());
        match first {
            None => self.clear(),
            Some(first) => self.load(first, Some(base))?,
        }
        if rest.peek().is_none() {
            return Ok(());
        }
        self.read_times();
        let mut data = BytesMut::from(&self.data[..]);
        let mut more = batch::Columns::default();
        for batch in rest {
            let body = batch.body()?;
            let view = body.view()?;
            fill(&mut more, &view);
            let moved = data.len() as u32;
            let first_header = (self.columns.headers.len() / HEADER) as u32;
            data.extend_from_slice(view.blob());
            for span in more.spans.as_chunks::<SPAN>().0 {
                let &[key, key_len, value, value_len, header, count] = span;
                let header = header + first_header;
                let span = [
                    key + moved,
                    key_len,
                    value + moved,
                    value_len,
                    header,
                    count,
                ];
                self.columns.spans.extend_from_slice(&span);
            }
            for &[name, name_len, value, value_len] in more.headers.as_chunks::<HEADER>().0 {
                let header = [name + moved, name_len, value + moved, value_len];
                self.columns.headers.extend_from_slice(&header);
            }
            self.source_times
                .extend(view.records().map(|record| record.timestamp));
            self.loaded += view.len();
        }
        self.times = Times::Each;
        self.data = data.freeze();
        Ok(())
    }

    fn clear(&mut self) {
        let Self {
            data,
            columns,
            source,
            loaded,
            times,
            source_times,
            base,
            outputs,
            partitions,
        } = self;
        *data = Bytes::new();
        columns.spans.clear();
        columns.headers.clear();
        columns.timestamps.clear();
        columns.offsets.clear();
        source.clear();
        source_times.clear();
        outputs.clear();
        partitions.clear();
        (*loaded, *times, *base) = (0, Times::None, None);
    }

    /// Lets go of the batch and keeps the buffers, unless one has grown out of the ordinary.
    pub(crate) fn release(&mut self) {
        if self.columns.spans.capacity() > KEPT_SPANS {
            *self = Self::default();
        } else {
            self.clear();
        }
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.columns.spans.len() / SPAN
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.columns.spans.is_empty()
    }

    /// Whether these are exactly the records that were loaded, in their order.
    pub(crate) fn is_whole(&self) -> bool {
        self.source.is_empty() && self.len() == self.loaded
    }

    /// How many of the loaded records have nothing left here.
    pub(crate) fn lost(&self) -> u32 {
        if self.source.is_empty() {
            return (self.loaded - self.len()) as u32;
        }
        let mut left = vec![false; self.loaded];
        for &source in &self.source {
            left[source as usize] = true;
        }
        left.iter().filter(|&&left| !left).count() as u32
    }

    /// Whether there is one record of each that was loaded, in their order.
    pub(crate) fn is_one_to_one(&self) -> bool {
        let mut own = self.source.iter().zip(0u32..);
        self.len() == self.loaded && own.all(|(&source, index)| source == index)
    }

    fn span(&self, index: usize) -> &[u32; SPAN] {
        &self.columns.spans.as_chunks::<SPAN>().0[index]
    }

    /// Which of the loaded records this one came from.
    pub(crate) fn source(&self, index: usize) -> u32 {
        self.source.get(index).copied().unwrap_or(index as u32)
    }

    /// The offset of the loaded record that this one came from, if offsets are assigned.
    pub(crate) fn offset(&self, index: usize) -> Option<Offset> {
        self.base
            .map(|base| base.plus(u64::from(self.source(index))))
    }

    /// The output that the record belongs to.
    pub(crate) fn output(&self, index: usize) -> u32 {
        self.outputs.get(index).copied().unwrap_or(0)
    }

    /// The partition that a plugin chose for the record.
    pub(crate) fn partition(&self, index: usize) -> Option<u32> {
        self.partitions
            .get(index)
            .copied()
            .filter(|&partition| partition != NONE)
    }

    /// Whether no plugin chose a partition for any record.
    pub(crate) fn is_unplaced(&self) -> bool {
        self.partitions.iter().all(|&partition| partition == NONE)
    }

    /// Sets the partition of every record.
    pub(crate) fn place(&mut self, partitions: &[u32]) {
        debug_assert_eq!(
            partitions.len(),
            self.len(),
            "one partition for each record"
        );
        self.partitions.clear();
        self.partitions.extend_from_slice(partitions);
    }

    fn read_times(&mut self) {
        let Times::Unread(body) = &self.times else {
            if let Times::Same(time) = self.times {
                self.source_times.clear();
                self.source_times.resize(self.loaded, time);
            }
            return;
        };
        self.source_times.clear();
        // The same bytes were viewed when they were loaded.
        if let Ok(view) = body.view() {
            self.source_times
                .extend(view.records().map(|record| record.timestamp));
        }
        self.times = Times::Each;
    }

    fn time(&self, index: usize) -> i64 {
        match (self.columns.timestamps.get(index), &self.times) {
            (Some(&made), _) => made,
            (None, Times::Same(time)) => *time,
            (None, _) => self
                .source_times
                .get(self.source(index) as usize)
                .copied()
                .unwrap_or(0),
        }
    }

    /// Makes [`Records::record`] tell the timestamps.
    pub(crate) fn want_times(&mut self) {
        if matches!(self.times, Times::Unread(_)) {
            self.read_times();
        }
    }

    /// The record's key.
    pub(crate) fn key(&self, index: usize) -> Option<&[u8]> {
        let &[key, key_len, ..] = self.span(index);
        self.optional(key, key_len)
    }

    /// How many headers the record has.
    pub(crate) fn header_count(&self, index: usize) -> usize {
        self.span(index)[5] as usize
    }

    /// Bytes of key, value and headers.
    pub(crate) fn size(&self, index: usize) -> usize {
        (self.end(index) - self.span(index)[0]) as usize
    }

    /// Where the record's bytes end in the blob.
    fn end(&self, index: usize) -> u32 {
        let &[_, _, value, value_len, first, count] = self.span(index);
        if count == 0 {
            return value + if value_len == ABSENT { 0 } else { value_len };
        }
        let last = (first + count - 1) as usize * HEADER;
        self.columns.headers[last + 2] + self.columns.headers[last + 3]
    }

    fn piece(&self, offset: u32, len: u32) -> &[u8] {
        &self.data[offset as usize..(offset + len) as usize]
    }

    fn optional(&self, offset: u32, len: u32) -> Option<&[u8]> {
        (len != ABSENT).then(|| self.piece(offset, len))
    }

    /// One record, with these headers; call [`Records::want_times`] before the first.
    pub(crate) fn record<'a>(
        &'a self,
        index: usize,
        headers: &'a [NewHeader<'a>],
    ) -> NewRecord<'a> {
        let &[key, key_len, value, value_len, ..] = self.span(index);
        NewRecord {
            key: self.optional(key, key_len),
            value: self.optional(value, value_len),
            headers,
            timestamp: self.time(index),
        }
    }

    /// Appends the headers of a record.
    pub(crate) fn headers<'a>(&'a self, index: usize, headers: &mut Vec<NewHeader<'a>>) {
        let &[.., first, count] = self.span(index);
        let first = first as usize * HEADER;
        let entries = &self.columns.headers[first..first + count as usize * HEADER];
        for &[name, name_len, value, value_len] in entries.as_chunks::<HEADER>().0 {
            let name = str::from_utf8(self.piece(name, name_len));
            // Names are checked when a batch is viewed and when a transform returns.
            headers.push((name.unwrap_or_default(), self.piece(value, value_len)));
        }
    }

    /// The end of the records that one call is given, from `from` on: as many as fit its limits,
    /// and at least one if there is one.
    pub(crate) fn call_end(&self, from: usize) -> usize {
        let most = self.len().min(from + CALL_RECORDS);
        if from >= most {
            return most;
        }
        let start = self.span(from)[0];
        let fits = |end: &usize| (self.end(end - 1) - start) as usize <= CALL_BYTES;
        if fits(&most) {
            return most;
        }
        // Ends rise with the index, so this is where they pass the limit.
        let (mut low, mut high) = (from + 1, most);
        while low < high {
            let middle = usize::midpoint(low, high + 1);
            if fits(&middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// The records `from..to` as a plugin is given them: only what it needs.
    pub(crate) fn columns<'a>(
        &'a mut self,
        from: usize,
        to: usize,
        needs: Needs,
        weigh: bool,
        scratch: &'a mut Scratch,
    ) -> Columns<'a> {
        if needs.timestamps {
            self.want_times();
        }
        let this = &*self;
        scratch.clear();
        if from >= to {
            return Columns::default();
        }
        let (start, end) = (this.span(from)[0], this.end(to - 1));
        let spans = &this.columns.spans[from * SPAN..to * SPAN];
        let first_header = spans[4];
        scratch.spans.resize(spans.len(), 0);
        let out = scratch.spans.as_chunks_mut::<SPAN>().0;
        for (out, span) in out.iter_mut().zip(spans.as_chunks::<SPAN>().0) {
            let &[key, key_len, value, value_len, header, count] = span;
            let seen = |wanted: bool, offset: u32, len: u32| match wanted && len != ABSENT {
                true => [offset - start, len],
                false => [0, NONE],
            };
            let [key, key_len] = seen(needs.keys, key, key_len);
            let [value, value_len] = seen(needs.values, value, value_len);
            let [header, count] = if needs.headers {
                [header - first_header, count]
            } else {
                [0, 0]
            };
            *out = [key, key_len, value, value_len, header, count];
        }
        if needs.headers {
            let last = this.span(to - 1);
            let used = first_header as usize * HEADER..(last[4] + last[5]) as usize * HEADER;
            let moved =
                |&[n, n_len, v, v_len]: &[u32; HEADER]| [n - start, n_len, v - start, v_len];
            let entries = this.columns.headers[used].as_chunks::<HEADER>().0;
            scratch.headers.extend(entries.iter().flat_map(moved));
        }
        if needs.timestamps {
            scratch
                .timestamps
                .extend((from..to).map(|index| this.time(index)));
        }
        if needs.offsets
            && let Some(base) = this.base
        {
            let offset = |index| base.plus(u64::from(this.source(index))).0.cast_signed();
            scratch.offsets.extend((from..to).map(offset));
        }
        if weigh && !(needs.keys && needs.values && needs.headers) {
            scratch
                .sizes
                .extend((from..to).map(|index| this.size(index) as u32));
        }
        Columns {
            input: 0,
            partition: 0,
            data: &this.data[start as usize..end as usize],
            offsets: &scratch.offsets,
            timestamps: &scratch.timestamps,
            spans: &scratch.spans,
            headers: &scratch.headers,
            sizes: &scratch.sizes,
        }
    }

    /// Removes the records `from..to`.
    pub(crate) fn remove(&mut self, from: usize, to: usize) {
        self.retain(|index| !(from..to).contains(&index));
    }

    /// Keeps the records for which `keep` says so, by index.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let count = self.len();
        if self.source.is_empty() {
            self.source.extend(0..count as u32);
        }
        let mut kept = 0;
        for index in 0..count {
            if !keep(index) {
                continue;
            }
            self.columns
                .spans
                .copy_within(index * SPAN..(index + 1) * SPAN, kept * SPAN);
            self.source[kept] = self.source[index];
            for column in [&mut self.outputs, &mut self.partitions] {
                if !column.is_empty() {
                    column[kept] = column[index];
                }
            }
            if !self.columns.timestamps.is_empty() {
                self.columns.timestamps[kept] = self.columns.timestamps[index];
            }
            kept += 1;
        }
        self.columns.spans.truncate(kept * SPAN);
        self.source.truncate(kept);
        self.outputs.truncate(kept);
        self.partitions.truncate(kept);
        self.columns.timestamps.truncate(kept);
    }

    /// Puts the records that a transform made in the place of those it was given.
    pub(crate) fn replace(&mut self, made: &mut Made) {
        self.data = made.data.split().freeze();
        std::mem::swap(&mut self.columns.spans, &mut made.spans);
        std::mem::swap(&mut self.columns.headers, &mut made.headers);
        std::mem::swap(&mut self.columns.timestamps, &mut made.timestamps);
        std::mem::swap(&mut self.source, &mut made.source);
        std::mem::swap(&mut self.outputs, &mut made.outputs);
        std::mem::swap(&mut self.partitions, &mut made.partitions);
        made.clear();
    }
}

/// Fills the columns with everything, absent pieces in their places.
fn fill(columns: &mut batch::Columns, view: &BatchView<'_>) {
    columns.fill(
        view,
        Wanted {
            headers: true,
            ..Wanted::default()
        },
    );
    if columns.headers.is_empty() {
        return;
    }
    let mut at = 0;
    let (spans, headers) = (&mut columns.spans, &columns.headers);
    for span in spans.as_chunks_mut::<SPAN>().0 {
        let present = |len| if len == ABSENT { 0 } else { len };
        span[0] = at;
        span[2] = at + present(span[1]);
        at = span[2] + present(span[3]);
        let first = span[4] as usize * HEADER;
        let entries = headers[first..first + span[5] as usize * HEADER]
            .as_chunks::<HEADER>()
            .0;
        at += entries
            .iter()
            .map(|header| header[1] + header[3])
            .sum::<u32>();
    }
}

/// The columns of one call, used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    spans: Vec<u32>,
    headers: Vec<u32>,
    timestamps: Vec<i64>,
    offsets: Vec<i64>,
    sizes: Vec<u32>,
}

impl Scratch {
    fn clear(&mut self) {
        let Self {
            spans,
            headers,
            timestamps,
            offsets,
            sizes,
        } = self;
        spans.clear();
        headers.clear();
        timestamps.clear();
        offsets.clear();
        sizes.clear();
    }
}

#[cfg(test)]
mod tests;
