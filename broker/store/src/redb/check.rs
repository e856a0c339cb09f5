//! Looks at everything that the engine keeps: rows, packs, what says where sealed records lie, and
//! every block of every segment.
//!
//! It works while the writer goes on: each step has a view of its own, and steps come in an order
//! in which nothing is missed. Packs come before segments, and segments in the order of their
//! numbers, so what is sealed or rewritten meanwhile turns up behind.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ::redb::{Error as RedbError, StorageError};
use bytes::Bytes;

use super::extent::{Extent, SegmentRow, run_of, successor};
use super::pack::{self, Entry};
use super::view::View;
use crate::batch::Key;
use crate::check::{CheckTotals, Finding, Inspector, Place, STEP_BYTES};
use crate::limits::MAX_KEY_LEN;
use crate::pace::{Pace, Stopwatch};
use crate::segment::{Files, Segment, SegmentError, Visit};
use crate::space::Space;
use crate::trailer;
use crate::writer::caught;

/// Why a check did not come to its end.
pub(super) enum Interrupted {
    /// The store was closed.
    Closed,
    /// It was told to stop.
    Stopped,
}

type Step<T = ()> = Result<T, Interrupted>;

/// One check.
pub(super) struct Walk<'a> {
    /// The state as it is now; `None` once the store is closed.
    pub(super) now: &'a dyn Fn() -> Option<Arc<View>>,
    pub(super) file: &'a Path,
    /// Whether others change the store meanwhile.
    pub(super) online: bool,
    pub(super) inspector: &'a mut dyn Inspector,
    pub(super) pace: &'a Pace,
    pub(super) watch: Stopwatch,
    pub(super) totals: CheckTotals,
}

impl Walk<'_> {
    /// Looks at everything. What cannot be read is told and passed over.
    pub(super) fn run(mut self) -> (CheckTotals, Step) {
        let done = self.everything();
        self.totals.complete = done.is_ok();
        (self.totals, done)
    }

    fn everything(&mut self) -> Step {
        for space in Space::ALL {
            if space != Space::Records {
                self.table(space)?;
            }
        }
        self.sealed_rows()?;
        self.packs()?;
        self.segments()?;
        self.files()
    }

    fn view(&self) -> Step<Arc<View>> {
        (self.now)().ok_or(Interrupted::Closed)
    }

    fn found(&mut self, place: Place, detail: impl ToString, records: Vec<Range<Key>>) {
        self.inspector.found(Finding {
            file: self.file.to_owned(),
            place,
            detail: detail.to_string(),
            records,
        });
    }

    /// So many more bytes were read.
    fn read(&mut self, bytes: u64) -> Step {
        self.totals.bytes += bytes;
        self.totals.elapsed_ms = self.watch.elapsed().as_millis() as u64;
        self.inspector.progress(self.totals);
        match self.pace.keep(&self.watch, self.totals.bytes) {
            true => Ok(()),
            false => Err(Interrupted::Stopped),
        }
    }

    /// Runs `work` on what may be damaged; a failure is told as one of `table`.
    fn reading<T>(
        &mut self,
        table: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T, RedbError>,
    ) -> Step<Option<T>> {
        match caught(|| work(self)) {
            Ok(Ok(done)) => Ok(Some(done)),
            Ok(Err(RedbError::DatabaseClosed)) => Err(Interrupted::Closed),
            Ok(Err(error)) => {
                self.found(Place::Table(table), error, Vec::new());
                Ok(None)
            }
            Err(panic) => {
                self.found(Place::Table(table), panic, Vec::new());
                Ok(None)
            }
        }
    }

    /// Every row of a space other than the records'.
    fn table(&mut self, space: Space) -> Step {
        let mut from = Key::new();
        loop {
            let view = self.view()?;
            let step = self.reading(space.name(), |walk| {
                let (mut bytes, mut last) = (0usize, None);
                for row in view.table(space)?.range::<&[u8]>(&from[..]..)? {
                    let (key, stored) = row?;
                    let (key, stored) = (key.value(), stored.value());
                    bytes += key.len() + stored.len();
                    walk.totals.rows += 1;
                    let checked = match trailer::open(space, key, stored) {
                        Ok(value) => {
                            let value = Bytes::copy_from_slice(value);
                            walk.inspector.row(space, key, &value)
                        }
                        Err(damaged) => Err(damaged.to_string()),
                    };
                    if let Err(detail) = checked {
                        let key = Key::from(key);
                        walk.found(Place::Row { space, key }, detail, Vec::new());
                    }
                    if bytes >= STEP_BYTES {
                        last = Some(Key::from(key));
                        break;
                    }
                }
                Ok((bytes as u64, last))
            })?;
            let Some((bytes, last)) = step else {
                return Ok(());
            };
            self.read(bytes)?;
            match last {
                Some(last) => from = successor(&last),
                None => return Ok(()),
            }
        }
    }

    /// The rows of segments and extents, and whether they agree.
    fn sealed_rows(&mut self) -> Step {
        let view = self.view()?;
        let rows = self.reading("segments", |walk| {
            let mut rows = HashMap::new();
            for row in view.segment_rows()?.range::<u64>(..)? {
                let (number, row) = row?;
                let number = number.value();
                match SegmentRow::decode(number, row.value()) {
                    Ok(row) => drop(rows.insert(number, row)),
                    Err(why) => walk.found(Place::Segment(number), why, Vec::new()),
                }
            }
            Ok(rows)
        })?;
        let Some(rows) = rows else { return Ok(()) };
        let named = self.reading("extents", |walk| {
            let mut named: HashMap<u64, (u64, u64)> = HashMap::new();
            let mut before: Option<Key> = None;
            for row in view.extents()?.range::<&[u8]>(..)? {
                let (start, row) = row?;
                let start = Key::from(start.value());
                let extent = match Extent::decode(&start, row.value()) {
                    Ok(extent) => extent,
                    Err(why) => {
                        // What it says is lost: at most what lies before the next one.
                        walk.found(Place::Extent(start), why, Vec::new());
                        continue;
                    }
                };
                let records = vec![start.clone()..extent.end.clone()];
                if before.as_ref().is_some_and(|end| *end > start) {
                    let detail = "it overlaps the extent before it";
                    walk.found(Place::Extent(start.clone()), detail, Vec::new());
                }
                if run_of(&start) != run_of(&extent.end) {
                    let detail = "it reaches beyond its partition";
                    walk.found(Place::Extent(start.clone()), detail, Vec::new());
                }
                if !rows.contains_key(&extent.segment) {
                    let detail = format!("it names segment {}, which is not known", extent.segment);
                    walk.found(Place::Extent(start), detail, records);
                }
                let (extents, bytes) = named.entry(extent.segment).or_default();
                *extents += 1;
                *bytes += extent.bytes;
                before = Some(extent.end);
            }
            Ok(named)
        })?;
        for (number, row) in &rows {
            let Some(named) = &named else { break };
            let (extents, bytes) = named.get(number).copied().unwrap_or_default();
            if (extents, bytes) != (row.extents, row.live_bytes) {
                let detail = format!(
                    "its row counts {} extents and {} bytes, and there are {extents} and {bytes}",
                    row.extents, row.live_bytes
                );
                self.found(Place::Segment(*number), detail, Vec::new());
            }
        }
        self.read(0)
    }

    /// Every entry of every pack that is not sealed.
    fn packs(&mut self) -> Step {
        let mut number = 0;
        loop {
            let view = self.view()?;
            let from = view.sight.floor.max(number);
            let step = self.reading("packs", |walk| walk.pack(&view, from))?;
            let Some(Some((found, bytes))) = step else {
                return Ok(());
            };
            number = found + 1;
            drop(view);
            self.read(bytes)?;
        }
    }

    /// The first pack from `from` on: its number and its bytes.
    fn pack(&mut self, view: &View, from: u64) -> Result<Option<(u64, u64)>, RedbError> {
        let directory = view.directories()?.range(from..)?.next().transpose()?;
        let content = view.packs()?.range((from, 0)..)?.next().transpose()?;
        let with_directory = directory.as_ref().map(|(number, _)| number.value());
        let with_content = content.map(|(place, _)| place.value().0);
        let Some(number) = with_directory.into_iter().chain(with_content).min() else {
            return Ok(None);
        };
        let Some((_, row)) = directory.filter(|_| with_directory == Some(number)) else {
            let detail = "its directory is missing";
            self.found(Place::Pack(number), detail, Vec::new());
            return Ok(Some((number, 0)));
        };
        let entries = match pack::decode_directory(number, row.value()) {
            Ok(entries) => entries,
            Err(why) => {
                self.found(Place::Pack(number), why, Vec::new());
                return Ok(Some((number, 0)));
            }
        };
        let (content, gaps) = read_chunks(view, number)?;
        if !gaps.is_empty() {
            let detail = "a chunk is missing";
            self.found(Place::Pack(number), detail, Vec::new());
        }
        let content = Bytes::from(content);
        for entry in entries {
            self.entry(number, &entry, &content, &gaps);
        }
        Ok(Some((
            number,
            content.len() as u64 + row.value().len() as u64,
        )))
    }

    fn entry(&mut self, number: u64, entry: &Entry, content: &Bytes, gaps: &[Range<usize>]) {
        self.totals.records += 1;
        let range = entry.offset as usize..(entry.offset + entry.len) as usize;
        let missing = range.end > content.len()
            || gaps
                .iter()
                .any(|gap| gap.start < range.end && range.start < gap.end);
        let checked = if missing {
            Err(trailer::Damaged::Missing.to_string())
        } else {
            self.record(&entry.key, &content.slice(range))
        };
        if let Err(detail) = checked {
            let records = vec![entry.key.clone()..successor(&entry.key)];
            self.found(Place::Pack(number), detail, records);
        }
    }

    /// A record as it is stored.
    fn record(&mut self, key: &[u8], stored: &Bytes) -> Result<(), String> {
        let value = trailer::open(Space::Records, key, stored);
        let len = value.map_err(|damaged| damaged.to_string())?.len();
        self.inspector
            .row(Space::Records, key, &stored.slice(..len))
    }

    /// Every block of every segment.
    fn segments(&mut self) -> Step {
        let mut from = 0;
        loop {
            let view = self.view()?;
            let next = self.reading("segments", |_| {
                let row = view.segment_rows()?.range(from..)?.next().transpose()?;
                Ok(row.map(|(number, row)| {
                    let number = number.value();
                    (number, SegmentRow::decode(number, row.value()))
                }))
            })?;
            let Some(Some((number, row))) = next else {
                return Ok(());
            };
            // A row that cannot be read has been told of.
            if let Ok(row) = row {
                self.segment(&view, number, &row)?;
            }
            from = number + 1;
        }
    }

    fn segment(&mut self, view: &View, number: u64, row: &SegmentRow) -> Step {
        // Past the cache of open segments: readers need those that it holds.
        let files = view.segments.files();
        let segment = match Segment::open(&**files, number, row.file_bytes) {
            Ok(segment) => segment,
            Err(error) => return self.unreadable(view, number, &error),
        };
        self.totals.segments += 1;
        let file = segment.path().to_owned();
        let mut live = LiveExtents::new(view, number);
        let mut ended = Ok(());
        segment.visit(&mut |visit| {
            ended = match visit {
                Visit::Read(bytes) => self.read(bytes),
                Visit::Entry(key, stored) => self.sealed_entry(&mut live, &file, key, &stored),
                Visit::Damaged(damage) => self.damaged(view, &file, number, damage),
            };
            ended.is_ok()
        });
        ended?;
        if live.seen < row.extents && live.unreadable == 0 {
            let detail = format!(
                "{} of its extents name keys that it does not hold",
                row.extents - live.seen
            );
            self.found(Place::Segment(number), detail, Vec::new());
        }
        Ok(())
    }

    fn sealed_entry(
        &mut self,
        live: &mut LiveExtents<'_>,
        file: &Path,
        key: &[u8],
        stored: &Bytes,
    ) -> Step {
        let wanted = self.reading("extents", |_| Ok(live.holds(key)?))?;
        if wanted != Some(true) {
            return Ok(());
        }
        self.totals.records += 1;
        if let Err(detail) = self.record(key, stored) {
            let key = Key::from(key);
            self.inspector.found(Finding {
                file: file.to_owned(),
                records: vec![key.clone()..successor(&key)],
                place: Place::Sealed {
                    segment: live.segment,
                    key,
                },
                detail,
            });
        }
        Ok(())
    }

    fn damaged(
        &mut self,
        view: &View,
        file: &Path,
        segment: u64,
        damage: crate::segment::Damage,
    ) -> Step {
        let records = self.reading("extents", |_| live_in(view, segment, &damage.keys))?;
        self.inspector.found(Finding {
            file: file.to_owned(),
            place: Place::Block {
                segment,
                offset: damage.offset,
                bytes: damage.bytes,
            },
            detail: damage.detail,
            records: records.unwrap_or_default(),
        });
        Ok(())
    }

    fn unreadable(&mut self, view: &View, number: u64, error: &SegmentError) -> Step {
        let all = Key::new()..Key::from([u8::MAX; MAX_KEY_LEN]);
        let records = self.reading("extents", |_| live_in(view, number, &all))?;
        self.inspector.found(Finding {
            file: view.segments.files().path(number),
            place: Place::Segment(number),
            detail: error.to_string(),
            records: records.unwrap_or_default(),
        });
        self.read(0)
    }

    /// Files that no row names. While the store is open there may be some on their way in or out.
    fn files(&mut self) -> Step {
        if self.online {
            return Ok(());
        }
        let view = self.view()?;
        let files: &Arc<dyn Files> = view.segments.files();
        let listed = match files.list() {
            Ok(listed) => listed,
            Err(error) => {
                self.found(Place::Table("segments"), error, Vec::new());
                return Ok(());
            }
        };
        for stored in listed {
            let known = self.reading("segments", |_| {
                Ok(view.segment_rows()?.get(stored.number)?.is_some())
            })?;
            if known == Some(false) {
                self.inspector.found(Finding {
                    file: files.path(stored.number),
                    place: Place::Leftover,
                    detail: "no row names it: a crash has left it, and the next start removes it"
                        .to_owned(),
                    records: Vec::new(),
                });
            }
        }
        Ok(())
    }
}

/// The bytes of a pack, and the ranges that no chunk covers.
fn read_chunks(view: &View, number: u64) -> Result<(Vec<u8>, Vec<Range<usize>>), RedbError> {
    let (mut content, mut gaps) = (Vec::new(), Vec::new());
    for chunk in view.packs()?.range((number, 0)..=(number, u32::MAX))? {
        let (at, chunk) = chunk?;
        let at = at.value().1 as usize;
        // No pack is larger than that, so a place beyond is not one.
        if at > content.len() && at <= crate::limits::PACK_BYTES + crate::limits::MAX_VALUE_LEN {
            gaps.push(content.len()..at);
            content.resize(at, 0);
        }
        content.extend_from_slice(chunk.value());
    }
    Ok((content, gaps))
}

/// The parts of `keys` whose records are wanted of segment `number`.
pub(super) fn live_in(
    view: &View,
    number: u64,
    keys: &Range<Key>,
) -> Result<Vec<Range<Key>>, RedbError> {
    let mut found = Vec::new();
    let before = view
        .extents()?
        .range::<&[u8]>(..&keys.start[..])?
        .next_back();
    let within = view
        .extents()?
        .range::<&[u8]>(&keys.start[..]..&keys.end[..])?;
    for row in before.into_iter().chain(within) {
        let (start, row) = row?;
        let start = Key::from(start.value());
        let Ok(extent) = Extent::decode(&start, row.value()) else {
            continue;
        };
        let range = start.max(keys.start.clone())..extent.end.min(keys.end.clone());
        if extent.segment == number && range.start < range.end {
            found.push(range);
        }
    }
    Ok(found)
}

/// Which keys of a segment are wanted, asked in their order: one search for each extent.
pub(super) struct LiveExtents<'v> {
    view: &'v View,
    pub(super) segment: u64,
    /// What is known of the keys below this: whether they are wanted.
    until: Key,
    wanted: bool,
    /// The extent that the last wanted key lies in.
    pub(super) current: Option<(Key, Extent)>,
    /// Extents of this segment that hold a key that was asked for.
    seen: u64,
    /// Extents that could not be read.
    unreadable: u64,
}

impl<'v> LiveExtents<'v> {
    pub(super) fn new(view: &'v View, segment: u64) -> Self {
        Self {
            view,
            segment,
            until: Key::new(),
            wanted: false,
            current: None,
            seen: 0,
            unreadable: 0,
        }
    }

    /// Whether the record at `key`, which is greater than those asked for before, is wanted.
    pub(super) fn holds(&mut self, key: &[u8]) -> Result<bool, StorageError> {
        if *key < *self.until {
            return Ok(self.wanted);
        }
        let table = self.view.extents().map_err(|error| match error {
            RedbError::Io(error) => StorageError::Io(error),
            RedbError::DatabaseClosed => StorageError::DatabaseClosed,
            other => StorageError::Corrupted(other.to_string()),
        })?;
        if let Some(row) = table.range::<&[u8]>(..=key)?.next_back() {
            let (start, row) = row?;
            match Extent::decode(start.value(), row.value()) {
                Ok(extent) if *extent.end > *key => {
                    self.until = extent.end.clone();
                    self.wanted = extent.segment == self.segment;
                    if self.wanted {
                        self.seen += 1;
                        self.current = Some((Key::from(start.value()), extent));
                    }
                    return Ok(self.wanted);
                }
                Ok(_) => {}
                Err(_) => self.unreadable += 1,
            }
        }
        let above = table.range::<&[u8]>(key..)?.next().transpose()?;
        self.until = above.map_or_else(
            || Key::from([u8::MAX; MAX_KEY_LEN]),
            |(start, _)| Key::from(start.value()),
        );
        self.wanted = false;
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
