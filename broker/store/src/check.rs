//! Checking everything that a store holds: what is looked at, what is found, and who is told.
//!
//! The engine looks at its files and at every value's checksum; what a value means is known to an
//! [`Inspector`] above the seam, which is shown each row once. What is absent: repair. A damaged
//! segment can be taken out of service, see [`crate::OfflineStore`]; everything else is a backup's
//! business.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;

use crate::batch::Key;
use crate::error::ReadError;
use crate::pace::{Pace, Stopwatch};
use crate::space::Space;
use crate::store::{Direction, ScanLimit, Store};

/// Bytes of rows that are read through one view of the store: a view that lives for long keeps
/// pages that were freed since from being used again.
pub(crate) const STEP_BYTES: usize = 4 << 20;

/// Who is shown what a check reads.
pub trait Inspector {
    /// A row whose checksum is right. Rows of [`Space::Records`] come after all others, those of
    /// one pack or segment in the order of their keys; a row that moves meanwhile may come twice.
    ///
    /// # Errors
    /// What is wrong with it: it becomes a [`Finding`].
    fn row(&mut self, space: Space, key: &[u8], value: &Bytes) -> Result<(), String>;

    /// Something is wrong.
    fn found(&mut self, finding: Finding);

    /// So much is done. Called often.
    fn progress(&mut self, totals: CheckTotals);
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckTotals {
    /// Bytes read.
    pub bytes: u64,
    /// Rows of all spaces but the records'.
    pub rows: u64,
    /// Records.
    pub records: u64,
    /// Segments.
    pub segments: u64,
    /// Time, in milliseconds.
    pub elapsed_ms: u64,
    /// Whether that was all; if not, it was told to stop.
    pub complete: bool,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong.
    pub detail: String,
    /// Keys of records that cannot be read for it. There are no others in these ranges that can.
    pub records: Vec<Range<Key>>,
}

impl Finding {
    /// Whether nothing is lost or wrong: something has been left that the next start removes.
    #[must_use]
    pub fn is_leftover(&self) -> bool {
        matches!(self.place, Place::Leftover)
    }
}

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A table of the file, or a part of it.
    Table(&'static str),
    /// A row.
    Row {
        /// Its space.
        space: Space,
        /// Its key.
        key: Key,
    },
    /// A pack of records that are not sealed.
    Pack(u64),
    /// A row that says where sealed records lie, by the first of their keys.
    Extent(Key),
    /// A row that says what a segment holds, or the segment as a whole.
    Segment(u64),
    /// A part of a segment.
    Block {
        /// The segment.
        segment: u64,
        /// The part's first byte.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
    /// A record in a segment.
    Sealed {
        /// The segment.
        segment: u64,
        /// Its key.
        key: Key,
    },
    /// A file that belongs to nothing.
    Leftover,
}

impl Place {
    /// The segment whose file is at fault.
    #[must_use]
    pub fn segment(&self) -> Option<u64> {
        match self {
            Self::Segment(segment) | Self::Block { segment, .. } | Self::Sealed { segment, .. } => {
                Some(*segment)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::Leftover => f.write_str("the file, which belongs to nothing"),
            Self::Table(name) => write!(f, "table {name}"),
            Self::Row { space, key } => write!(f, "{space}, key \"{}\"", key.escape_ascii()),
            Self::Pack(pack) => write!(f, "pack {pack}"),
            Self::Extent(start) => write!(f, "extent \"{}\"", start.escape_ascii()),
            Self::Segment(segment) => write!(f, "segment {segment}"),
            Self::Block {
                segment,
                offset,
                bytes,
            } => write!(f, "segment {segment}, {bytes} bytes from byte {offset}"),
            Self::Sealed { segment, key } => {
                write!(f, "segment {segment}, key \"{}\"", key.escape_ascii())
            }
        }
    }
}

/// Checks what the seam shows: every row of every space. For engines without more to look at.
pub(crate) fn rows<S: Store + ?Sized>(
    store: &S,
    inspector: &mut dyn Inspector,
    pace: &Pace,
) -> Result<CheckTotals, ReadError> {
    let (watch, mut totals) = (Stopwatch::start(), CheckTotals::default());
    let spaces = Space::ALL.into_iter();
    let spaces = spaces.filter(|space| *space != Space::Records);
    let end = Key::from([u8::MAX; crate::limits::MAX_KEY_LEN]);
    for space in spaces.chain([Space::Records]) {
        let mut from = Key::new();
        loop {
            let limit = ScanLimit::bytes(STEP_BYTES);
            let range = &from[..]..&end[..];
            let page = store
                .snapshot()?
                .scan(space, range, Direction::Forward, limit)?;
            for row in &page.rows {
                totals.bytes += (row.key.len() + row.value.len()) as u64;
                match space {
                    Space::Records => totals.records += 1,
                    _ => totals.rows += 1,
                }
                if let Err(detail) = inspector.row(space, &row.key, &row.value) {
                    inspector.found(Finding {
                        file: "memory".into(),
                        place: Place::Row {
                            space,
                            key: row.key.clone(),
                        },
                        detail,
                        records: Vec::new(),
                    });
                }
            }
            totals.elapsed_ms = watch.elapsed().as_millis() as u64;
            inspector.progress(totals);
            if !pace.keep(&watch, totals.bytes) {
                return Ok(totals);
            }
            match page.rows.last() {
                Some(last) if page.more => from = last.key.clone().push_bytes(&[0]),
                _ => break,
            }
        }
    }
    totals.complete = true;
    Ok(totals)
}
