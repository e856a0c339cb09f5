//! What lies in a range of records, and what removing it would cost, without reading them: hot ones
//! by the index in memory, sealed ones by the rows of their extents and the indexes of segments.

use std::ops::Range;

use bytes::Bytes;

use super::extent::successor;
use super::hot::Place;
use super::merge::{extents, hot_places, opened, segment};
use super::read::{Fault, packed};
use super::view::View;
use crate::batch::Key;
use crate::limits::{EXTENT_REMOVAL_BYTES, TRAILER_LEN};
use crate::segment::{How, Segment, Told};
use crate::store::{Direction, Head, HeadPage, Row, ScanLimit};
use crate::trailer;

/// As [`crate::Snapshot::heads`]; `range` is not empty.
pub(super) fn heads(
    view: &View,
    range: Range<&[u8]>,
    limit: ScanLimit,
    head: usize,
) -> Result<HeadPage, Fault> {
    let (hot, hot_more) = hot_places(view, &range, Direction::Forward, limit);
    // Of what lies behind the last hot key that fits, nothing is wanted.
    let last = hot.last().filter(|_| hot_more);
    let range = range.start..last.map_or(range.end, |(key, _)| &key[..]);
    let mut gathered = Gathered {
        view,
        limit,
        head,
        hot: &hot,
        bytes: 0,
        page: HeadPage::default(),
    };
    let outcome = gathered.all(&range);
    let mut page = gathered.page;
    page.more |= hot_more;
    match outcome {
        Ok(Flow::On) => Ok(page),
        Ok(Flow::Full) => {
            page.more = true;
            Ok(page)
        }
        // What comes before what cannot be read is told of: the error is for whoever asks for that.
        Err(Fault::Segment(_)) if !page.heads.is_empty() => {
            page.more = true;
            Ok(page)
        }
        Err(fault) => Err(fault),
    }
}

/// As [`crate::Snapshot::removable`]; `range` is not empty. redb reads what it removes, and of what
/// is sealed it removes the rows of the extents.
pub(super) fn removable(
    view: &View,
    range: Range<&[u8]>,
    limit: ScanLimit,
) -> Result<Option<Key>, Fault> {
    let limit = limit.at_least_one();
    let (hot, more) = hot_places(view, &range, Direction::Forward, limit);
    let mut end = Key::from(range.end);
    if more && let Some((last, _)) = hot.last() {
        end = successor(last);
    }
    let mut any = !hot.is_empty();
    if view.sealed {
        let most = (limit.bytes / EXTENT_REMOVAL_BYTES).clamp(1, limit.rows);
        let found = extents(view, &(range.start..&end), Direction::Forward)?;
        for (count, found) in found.enumerate() {
            let (start, _) = found?;
            if count == most {
                end = start;
                break;
            }
            any = true;
        }
    }
    Ok(any.then_some(end))
}

/// Whether there is room for more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Full,
}

struct Gathered<'a> {
    view: &'a View,
    limit: ScanLimit,
    head: usize,
    /// Hot records that have not been told of yet.
    hot: &'a [(Key, Place)],
    /// Of what was told of.
    bytes: u64,
    page: HeadPage,
}

impl Gathered<'_> {
    fn all(&mut self, range: &Range<&[u8]>) -> Result<Flow, Fault> {
        let view = self.view;
        if view.sealed {
            for found in extents(view, range, Direction::Forward)? {
                let (start, extent) = found?;
                let within = range.start.max(&start)..range.end.min(&extent.end);
                if self.hot_through(within.start)? == Flow::Full {
                    return Ok(Flow::Full);
                }
                let segment = segment(view, extent.segment)?;
                if self.extent(&segment, within)? == Flow::Full {
                    return Ok(Flow::Full);
                }
            }
        }
        self.hot_while(|_| true)
    }

    /// What segment has within `range`, and the hot records in between.
    fn extent(&mut self, segment: &Segment, range: Range<&[u8]>) -> Result<Flow, Fault> {
        let how = match self.head {
            // Hot records in between would not be in order otherwise.
            0 if self.hot.first().is_some_and(|(key, _)| **key < *range.end) => How::Keys,
            // Nor one that has been told of already be told apart from the old one in its place.
            0 if self.has_told_of(range.start) => How::Keys,
            0 => How::Together,
            head => How::Values(head),
        };
        let wanted = self.limit.bytes.saturating_sub(self.bytes as usize);
        let mut heads = segment.heads(range, how, wanted);
        loop {
            let Some(from) = heads.next_from().map(Key::from) else {
                return Ok(Flow::On);
            };
            // Before anything is read: what cannot be must not hide what lies before it.
            if self.hot_through(&from)? == Flow::Full {
                return Ok(Flow::Full);
            }
            let Some(told) = heads.next() else {
                return Ok(Flow::On);
            };
            if self.sealed(segment, told?)? == Flow::Full {
                return Ok(Flow::Full);
            }
        }
    }

    fn has_told_of(&self, key: &[u8]) -> bool {
        self.page.heads.last().is_some_and(|last| *last.key == *key)
    }

    fn sealed(&mut self, segment: &Segment, told: Told) -> Result<Flow, Fault> {
        let (key, rows, stored) = match &told {
            Told::Block {
                first,
                entries,
                bytes,
            } => (first, *entries, *bytes),
            Told::Entry(Row { key, value }) => (key, 1, (key.len() + value.len()) as u64),
            Told::Ends { key, len, .. } => (key, 1, (key.len() + len) as u64),
        };
        if self.hot_through(key)? == Flow::Full {
            return Ok(Flow::Full);
        }
        // The hot one is newer.
        if self.has_told_of(key) {
            return Ok(Flow::On);
        }
        let bytes = stored.saturating_sub((rows * TRAILER_LEN) as u64);
        if !self.fits(bytes) {
            return Ok(Flow::Full);
        }
        let head = match &told {
            _ if self.head == 0 => Bytes::new(),
            Told::Block { .. } => Bytes::new(),
            Told::Entry(row) => self.beginning(&opened(&row.key, row.value.clone())?),
            Told::Ends {
                key,
                len,
                first,
                last,
            } => {
                let len = len.saturating_sub(TRAILER_LEN);
                if trailer::fits_beginning(key, len, first, *last) {
                    self.beginning(first)
                } else {
                    self.read_whole(segment, key)?
                }
            }
        };
        let key = key.clone();
        self.push(Head {
            key,
            rows,
            bytes,
            head,
        });
        Ok(Flow::On)
    }

    /// What is wrong with a value whose ends do not fit is for its block's checksum to say.
    fn read_whole(&self, segment: &Segment, key: &[u8]) -> Result<Bytes, Fault> {
        let stored = segment.get(key)?.unwrap_or_default();
        Ok(self.beginning(&opened(key, stored)?))
    }

    /// A copy: it keeps no buffer in memory.
    fn beginning(&self, value: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&value[..self.head.min(value.len())])
    }

    /// Takes the hot records up to `key`, and with it.
    fn hot_through(&mut self, key: &[u8]) -> Result<Flow, Fault> {
        self.hot_while(|hot| **hot <= *key)
    }

    fn hot_while(&mut self, comes: impl Fn(&Key) -> bool) -> Result<Flow, Fault> {
        while let Some(((key, place), rest)) = self.hot.split_first()
            && comes(key)
        {
            let bytes = (key.len() + place.len as usize - TRAILER_LEN) as u64;
            if !self.fits(bytes) {
                return Ok(Flow::Full);
            }
            let head = match self.head {
                0 => Bytes::new(),
                _ => self.beginning(&packed(self.view, key, *place)?),
            };
            self.push(Head {
                key: key.clone(),
                rows: 1,
                bytes,
                head,
            });
            self.hot = rest;
        }
        Ok(Flow::On)
    }

    fn fits(&self, bytes: u64) -> bool {
        let bytes = self.bytes.saturating_add(bytes);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        !self.limit.is_reached(self.page.heads.len(), bytes)
    }

    fn push(&mut self, head: Head) {
        self.bytes = self.bytes.saturating_add(head.bytes);
        self.page.heads.push(head);
    }
}

#[cfg(test)]
mod tests;
