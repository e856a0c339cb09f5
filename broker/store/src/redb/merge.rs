//! Reading records, wherever they lie: hot ones from the packs, sealed ones from the segments.
//! Where both have a key, the hot one is newer.

use std::ops::{Bound, Range};
use std::sync::Arc;

use bytes::Bytes;

use super::extent::{Extent, SegmentRow, successor};
use super::hot::Place;
use super::read::{Fault, packed};
use super::view::View;
use crate::batch::Key;
use crate::limits::TRAILER_LEN;
use crate::segment::Segment;
use crate::space::Space;
use crate::store::{Direction, Row, ScanLimit, ScanPage};
use crate::trailer;

/// The record at `key`.
pub(super) fn get(view: &View, key: &[u8]) -> Result<Option<Bytes>, Fault> {
    if let Some(place) = view.indexed(|index, sight| index.find(sight, key)) {
        return packed(view, key, place).map(Some);
    }
    if !view.sealed {
        return Ok(None);
    }
    let end = successor(key);
    match extents(view, &(key..&end), Direction::Forward)?.next() {
        Some(found) => {
            let (_, extent) = found?;
            let value = segment(view, extent.segment)?.get(key)?;
            value.map(|stored| opened(key, stored)).transpose()
        }
        None => Ok(None),
    }
}

/// The greatest key from `start` to `at`, both included.
pub(super) fn floor_key(view: &View, start: &[u8], at: &[u8]) -> Result<Option<Key>, Fault> {
    let mut hot = None;
    let range = (Bound::Included(start), Bound::Included(at));
    view.indexed(|index, sight| {
        index.walk(sight, range, Direction::Backward, |key, _| {
            hot = Some(key.clone());
            false
        });
    });
    if !view.sealed || hot.as_deref() == Some(at) {
        return Ok(hot);
    }
    // What is hot is not worth a read of what lies below it: whoever reads the newest records
    // comes by here.
    let start = hot.as_deref().unwrap_or(start);
    let end = successor(at);
    for found in extents(view, &(start..&end), Direction::Backward)? {
        let (first, extent) = found?;
        let within = start.max(&first)..(&end[..]).min(&extent.end);
        let segment = segment(view, extent.segment)?;
        if let Some(row) = segment.iter_range(within, Direction::Backward).next() {
            return Ok(hot.max(Some(row?.key)));
        }
    }
    Ok(hot)
}

/// The records in `range`.
pub(super) fn scan(
    view: &View,
    range: Range<&[u8]>,
    direction: Direction,
    limit: ScanLimit,
) -> Result<ScanPage, Fault> {
    let (hot, hot_more) = hot_places(view, &range, direction, limit);
    if !view.sealed {
        let rows = hot.into_iter().map(|(key, place)| row(view, key, place));
        return Ok(ScanPage {
            rows: rows.collect::<Result<_, Fault>>()?,
            more: hot_more,
        });
    }
    // Of what lies behind the last hot key that fits, nothing is wanted.
    let last = hot.last().filter(|_| hot_more).map(|(key, _)| &key[..]);
    let range = match (last, direction) {
        (None, _) => range,
        (Some(last), Direction::Forward) => range.start..last,
        (Some(last), Direction::Backward) => last..range.end,
    };
    let (sealed, end) = sealed_rows(view, &range, direction, limit)?;
    // What is hot comes only as far as nothing sealed that is not known can come before it.
    let comes_before = |key: &Key, end: &SealedEnd| match direction {
        Direction::Forward => *key <= end.edge,
        Direction::Backward if end.fault.is_some() => successor(key) >= end.edge,
        Direction::Backward => *key >= end.edge,
    };
    let kept = end.as_ref().map_or(hot.len(), |end| {
        hot.partition_point(|(key, _)| comes_before(key, end))
    });
    let mut page = merged(view, (&hot[..kept], sealed), direction, limit)?;
    let fault = end.as_ref().is_some_and(|end| end.fault.is_some());
    page.more |= hot_more || kept < hot.len() || (end.is_some() && !fault);
    match (end.and_then(|end| end.fault), page.rows.last()) {
        // What comes before what cannot be read is served: the error is for whoever asks for that.
        (Some(fault), None) => Err(fault),
        (Some(_), Some(last)) if !page.more => {
            page.more = anything_behind(view, &range, direction, &last.key);
            Ok(page)
        }
        _ => Ok(page),
    }
}

/// Whether something comes behind `last`, the last record before what cannot be read, or the error
/// does. Neither does if `last` is a hot record in the place of all that cannot be.
fn anything_behind(view: &View, range: &Range<&[u8]>, direction: Direction, last: &[u8]) -> bool {
    let behind = successor(last);
    let rest = match direction {
        Direction::Forward => &behind[..]..range.end,
        Direction::Backward => range.start..last,
    };
    // No hot record is left in there: this asks itself once more at most.
    rest.start < rest.end
        && scan(view, rest, direction, ScanLimit::ONE).map_or(true, |page| !page.rows.is_empty())
}

/// Why sealed records end before their range does.
struct SealedEnd {
    /// At the limit, the last that fits. Otherwise what cannot be read lies from here on; backward,
    /// before here. A hot record in its place is newer than it.
    edge: Key,
    /// What is wrong with the next one, if it is not the limit.
    fault: Option<Fault>,
}

/// The first hot records of `range`, as many as the limit takes, and whether there are more. No
/// lock is held while they are read.
pub(super) fn hot_places(
    view: &View,
    range: &Range<&[u8]>,
    direction: Direction,
    limit: ScanLimit,
) -> (Vec<(Key, Place)>, bool) {
    let mut places: Vec<(Key, Place)> = Vec::new();
    let (mut bytes, mut more) = (0usize, false);
    let bounds = (Bound::Included(range.start), Bound::Excluded(range.end));
    view.indexed(|index, sight| {
        index.walk(sight, bounds, direction, |key, place| {
            bytes = bytes.saturating_add(key.len() + place.len as usize);
            more = limit.is_reached(places.len(), bytes);
            if !more {
                places.push((key.clone(), place));
            }
            !more
        });
    });
    (places, more)
}

/// The first sealed records of `range`: as many as the limit takes, and up to the first that cannot
/// be read.
fn sealed_rows(
    view: &View,
    range: &Range<&[u8]>,
    direction: Direction,
    limit: ScanLimit,
) -> Result<(Vec<Row>, Option<SealedEnd>), Fault> {
    let (mut rows, mut edge) = (Vec::new(), Key::default());
    let gathered = gather_sealed(view, range, direction, limit, (&mut rows, &mut edge));
    let last = rows.last().map(|row: &Row| row.key.clone());
    let (edge, fault) = match (gathered, last) {
        (Ok(false), _) => return Ok((rows, None)),
        (Ok(true), last) => (last.unwrap_or_default(), None),
        (Err(fault @ Fault::Segment(_)), last) => {
            let edge = match (last, direction) {
                (None, _) => edge,
                (Some(last), Direction::Forward) => edge.max(last),
                (Some(last), Direction::Backward) => edge.min(last),
            };
            (edge, Some(fault))
        }
        (Err(fault), _) => return Err(fault),
    };
    Ok((rows, Some(SealedEnd { edge, fault })))
}

/// Adds them to `rows`; says whether there are more. `edge` is where the last extent that was
/// looked into begins, in the direction's order.
fn gather_sealed(
    view: &View,
    range: &Range<&[u8]>,
    direction: Direction,
    limit: ScanLimit,
    (rows, edge): (&mut Vec<Row>, &mut Key),
) -> Result<bool, Fault> {
    let mut bytes = 0usize;
    for found in extents(view, range, direction)? {
        let (start, extent) = found?;
        let within = range.start.max(&start)..range.end.min(&extent.end);
        *edge = Key::from(match direction {
            Direction::Forward => within.start,
            Direction::Backward => within.end,
        });
        let segment = segment(view, extent.segment)?;
        let wanted = limit.bytes.saturating_sub(bytes);
        let mut sealed = segment.iter_range(within, direction).wanting(wanted);
        loop {
            // A large record that does not fit is not read only to be thrown away.
            let next = sealed.next_alone();
            if next.is_some_and(|len| limit.is_reached(rows.len(), bytes.saturating_add(len))) {
                return Ok(true);
            }
            let Some(row) = sealed.next() else { break };
            let Row { key, value } = row?;
            bytes = bytes.saturating_add(key.len() + value.len());
            if limit.is_reached(rows.len(), bytes) {
                return Ok(true);
            }
            let value = opened(&key, value)?;
            rows.push(Row { key, value });
        }
    }
    Ok(false)
}

fn merged(
    view: &View,
    (hot, sealed): (&[(Key, Place)], Vec<Row>),
    direction: Direction,
    limit: ScanLimit,
) -> Result<ScanPage, Fault> {
    let mut page = ScanPage::default();
    let mut bytes = 0usize;
    let (mut hot, mut sealed) = (hot.iter().peekable(), sealed.into_iter().peekable());
    loop {
        let order = match (hot.peek(), sealed.peek()) {
            (None, None) => return Ok(page),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((key, _)), Some(row)) => match direction {
                Direction::Forward => key.cmp(&row.key),
                Direction::Backward => row.key.cmp(key),
            },
        };
        if order.is_eq() {
            sealed.next();
        }
        let next = if order.is_le() {
            let len = hot
                .peek()
                .map_or(0, |(key, at)| key.len() + at.len as usize);
            bytes = bytes.saturating_add(len);
            hot.next().map(Ok)
        } else {
            let len = sealed
                .peek()
                .map_or(0, |row| row.key.len() + row.value.len());
            bytes = bytes.saturating_add(len + TRAILER_LEN);
            sealed.next().map(Err)
        };
        if limit.is_reached(page.rows.len(), bytes) {
            page.more = true;
            return Ok(page);
        }
        match next {
            Some(Ok((key, place))) => page.rows.push(row(view, key.clone(), *place)?),
            Some(Err(row)) => page.rows.push(row),
            None => return Ok(page),
        }
    }
}

fn row(view: &View, key: Key, place: Place) -> Result<Row, Fault> {
    packed(view, &key, place).map(|value| Row { key, value })
}

/// The value within what a segment holds at `key`, shared with the buffer it was read into.
pub(super) fn opened(key: &[u8], stored: Bytes) -> Result<Bytes, Fault> {
    let len = trailer::open(Space::Records, key, &stored)
        .map_err(|damaged| Fault::Value(Key::from(key), damaged))?
        .len();
    Ok(stored.slice(..len))
}

/// The extents that reach into `range`, in the direction's order, each with where it begins.
pub(super) fn extents<'v>(
    view: &'v View,
    range: &Range<&[u8]>,
    direction: Direction,
) -> Result<impl Iterator<Item = Result<(Key, Extent), Fault>> + use<'v>, Fault> {
    let table = view.extents()?;
    // Only the last that begins at the range's start or before can reach into it.
    let start = match table.range::<&[u8]>(..=range.start)?.next_back() {
        Some(row) => {
            let (start, row) = row?;
            let extent = decoded(start.value(), row.value())?;
            let reaches = &extent.end[..] > range.start;
            Key::from(if reaches { start.value() } else { range.start })
        }
        None => Key::from(range.start),
    };
    let mut rows = table.range::<&[u8]>(&start[..]..range.end)?;
    let range_start = Key::from(range.start);
    Ok(std::iter::from_fn(move || {
        loop {
            let row = match direction {
                Direction::Forward => rows.next(),
                Direction::Backward => rows.next_back(),
            }?;
            let found = row.map_err(Fault::from).and_then(|(start, row)| {
                let extent = decoded(start.value(), row.value())?;
                Ok((Key::from(start.value()), extent))
            });
            // One that begins exactly where the range does not reach is passed over.
            if found
                .as_ref()
                .is_ok_and(|(_, extent)| extent.end <= range_start)
            {
                continue;
            }
            return Some(found);
        }
    }))
}

fn decoded(start: &[u8], row: &[u8]) -> Result<Extent, Fault> {
    Extent::decode(start, row).map_err(|why| Fault::Row(Key::from(start), why))
}

/// An open segment, by the number that an extent names.
pub(super) fn segment(view: &View, number: u64) -> Result<Arc<Segment>, Fault> {
    let key = number.to_be_bytes();
    let damaged = |why| Fault::Row(Key::from(key), why);
    let row = view.segment_rows()?.get(number)?;
    let row = row.ok_or_else(|| damaged(super::extent::RowDamaged))?;
    let row = SegmentRow::decode(number, row.value()).map_err(damaged)?;
    Ok(view.segments.get(number, row.file_bytes)?)
}
