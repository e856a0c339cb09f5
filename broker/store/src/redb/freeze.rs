//! A state of the store that stands still while it is copied: see [`crate::backup`].

use std::ops::Bound;
use std::sync::Arc;

use super::extent::{Extent, RowDamaged, SegmentRow};
use super::hot::Place;
use super::pack;
use super::read::{Fault, RedbSnapshot, packed};
use super::view::View;
use crate::backup::{
    BackupError, ExtentInfo, Frozen, FrozenSegment, Part, PartWriter, SegmentInfo, StoreId,
};
use crate::batch::Key;
use crate::error::ReadError;
use crate::queue::Gate;
use crate::segment::{Pinned, Segments};
use crate::space::Space;
use crate::store::{Direction, ScanLimit, Snapshot};

/// The spaces in the order they are copied. The catalogue comes first, so that whoever wants a
/// part of a store knows which before the rows come.
const ORDER: [Space; Space::COUNT - 1] = [
    Space::Catalog,
    Space::Pipelines,
    Space::Meta,
    Space::Partitions,
    Space::Producers,
    Space::Offsets,
    Space::Blobs,
];

/// No key is longer than the longest, so none is behind this one.
const BEHIND_ALL: [u8; crate::limits::MAX_KEY_LEN + 1] = [u8::MAX; crate::limits::MAX_KEY_LEN + 1];

/// What is copied next.
enum Next {
    /// Rows of a space, by its place in [`ORDER`], from this key on.
    Rows(usize, Key),
    /// Extents behind this key.
    Extents(Key),
    /// Entries of the packs from this one on, from this entry on.
    Packs(u64, usize),
    Nothing,
}

pub(super) struct FrozenShard {
    store: StoreId,
    /// Gone once all rows are copied, so that the hot file can use its pages again.
    snapshot: Option<RedbSnapshot>,
    next: Next,
    infos: Vec<SegmentInfo>,
    segments: Arc<Segments>,
    _pinned: Pinned,
}

impl FrozenShard {
    pub(super) fn new(
        store: StoreId,
        view: Arc<View>,
        gate: Arc<Gate>,
    ) -> Result<Self, BackupError> {
        let segments = Arc::clone(&view.segments);
        let snapshot = RedbSnapshot::new(view, gate);
        let infos = snapshot.read(Space::Records, &[], segment_infos)?;
        let numbers = infos.iter().map(|info| info.number).collect();
        // The view, which keeps these files so far, is still there.
        let pinned = segments.pin(numbers);
        Ok(Self {
            store,
            snapshot: Some(snapshot),
            next: Next::Rows(0, Key::from([0])),
            infos,
            segments,
            _pinned: pinned,
        })
    }
}

impl Frozen for FrozenShard {
    fn store(&self) -> StoreId {
        self.store
    }

    fn segments(&self) -> &[SegmentInfo] {
        &self.infos
    }

    fn next_part(&mut self) -> Result<Option<Part>, BackupError> {
        let mut part = PartWriter::new();
        while let Some(snapshot) = &self.snapshot
            && !part.is_full()
        {
            self.next = match &self.next {
                Next::Rows(place, from) => rows(snapshot, &mut part, *place, from)?,
                Next::Extents(behind) => snapshot.read(Space::Records, behind, |view| {
                    extents(view, &mut part, behind)
                })?,
                Next::Packs(number, entry) => snapshot.read(Space::Records, &[], |view| {
                    packs(view, &mut part, *number, *entry)
                })?,
                Next::Nothing => {
                    self.snapshot = None;
                    break;
                }
            };
        }
        Ok(part.finish())
    }

    fn open_segment(&self, info: SegmentInfo) -> Result<FrozenSegment, BackupError> {
        FrozenSegment::open(self.segments.files(), info)
    }
}

fn segment_infos(view: &View) -> Result<Vec<SegmentInfo>, Fault> {
    let mut infos = Vec::new();
    for row in view.segment_rows()?.range::<u64>(..)? {
        let (number, row) = row?;
        let number = number.value();
        let row = SegmentRow::decode(number, row.value())
            .map_err(|why| Fault::Row(Key::new().push_u64(number), why))?;
        infos.push(SegmentInfo {
            number,
            file_bytes: row.file_bytes,
            data_bytes: row.data_bytes,
        });
    }
    Ok(infos)
}

fn rows(
    snapshot: &RedbSnapshot,
    part: &mut PartWriter,
    place: usize,
    from: &Key,
) -> Result<Next, ReadError> {
    let Some(&space) = ORDER.get(place) else {
        return Ok(Next::Extents(Key::new()));
    };
    let limit = ScanLimit {
        rows: ROWS_AT_ONCE,
        bytes: part.room(),
    };
    let page = snapshot.scan(space, &from[..]..&BEHIND_ALL, Direction::Forward, limit)?;
    for row in &page.rows {
        part.row(space, &row.key, &row.value);
    }
    Ok(match page.rows.last() {
        Some(last) if page.more => Next::Rows(place, last.key.clone().push_bytes(&[0])),
        _ => Next::Rows(place + 1, Key::from([0])),
    })
}

/// Rows that are read from a space in one go.
const ROWS_AT_ONCE: usize = 4096;

fn extents(view: &View, part: &mut PartWriter, behind: &Key) -> Result<Next, Fault> {
    let mut last = behind.clone();
    let range = (Bound::Excluded(&behind[..]), Bound::Unbounded);
    for row in view.extents()?.range::<&[u8]>(range)? {
        let (start, row) = row?;
        let start = Key::from(start.value());
        if part.is_full() {
            return Ok(Next::Extents(last));
        }
        last = start.clone();
        let extent =
            Extent::decode(&start, row.value()).map_err(|why| Fault::Row(start.clone(), why))?;
        part.extent(&ExtentInfo {
            start,
            end: extent.end,
            segment: extent.segment,
            bytes: extent.bytes,
        });
    }
    Ok(Next::Packs(view.sight.floor, 0))
}

fn packs(view: &View, part: &mut PartWriter, from: u64, skip: usize) -> Result<Next, Fault> {
    let mut skip = skip;
    for row in view.directories()?.range(from..)? {
        let (number, row) = row?;
        let number = number.value();
        let entries = pack::decode_directory(number, row.value())
            .map_err(|_| Fault::Row(Key::new().push_u64(number), RowDamaged))?;
        for (at, entry) in entries.iter().enumerate().skip(skip) {
            if part.is_full() {
                return Ok(Next::Packs(number, at));
            }
            let place = Place {
                pack: number,
                offset: entry.offset,
                len: entry.len,
            };
            part.row(
                Space::Records,
                &entry.key,
                &packed(view, &entry.key, place)?,
            );
        }
        skip = 0;
    }
    Ok(Next::Nothing)
}
