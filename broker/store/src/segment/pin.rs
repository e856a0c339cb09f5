//! Keeping the files of segments that nothing names any more, because a backup still copies them.

use std::collections::HashMap;
use std::sync::Arc;

use super::cache::{Segments, locked};

/// Who keeps which segment, by number.
#[derive(Default)]
pub(super) struct Pins(HashMap<u64, Pin>);

#[derive(Default)]
struct Pin {
    holders: usize,
    /// To be removed once nobody holds it.
    unwanted: bool,
}

/// Segments whose files stay until this is dropped.
pub struct Pinned {
    segments: Arc<Segments>,
    numbers: Vec<u64>,
}

impl Segments {
    /// Keeps the files of `numbers`, whatever becomes of the segments. Call it while something
    /// else, such as a view, still keeps them.
    #[must_use]
    pub fn pin(self: &Arc<Self>, numbers: Vec<u64>) -> Pinned {
        let mut pins = locked(self.pins());
        for number in &numbers {
            pins.0.entry(*number).or_default().holders += 1;
        }
        drop(pins);
        Pinned {
            segments: Arc::clone(self),
            numbers,
        }
    }

    /// Forgets segment `number` and removes its file: now, or when the last who pinned it lets
    /// go. A file that cannot be removed is removed when the store is opened next.
    pub fn unlink(&self, number: u64) {
        if let Some(pin) = locked(self.pins()).0.get_mut(&number) {
            pin.unwanted = true;
            return;
        }
        self.remove(number);
        if let Err(error) = self.files().remove(number) {
            let file = self.files().path(number);
            tracing::warn!(file = %file.display(), %error, "not removed: it takes space until the next start");
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut unwanted = Vec::new();
        let mut pins = locked(self.segments.pins());
        for number in &self.numbers {
            let Some(pin) = pins.0.get_mut(number) else {
                continue;
            };
            pin.holders -= 1;
            if pin.holders == 0 {
                unwanted.extend(pin.unwanted.then_some(*number));
                pins.0.remove(number);
            }
        }
        drop(pins);
        for number in unwanted {
            self.segments.unlink(number);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::segment::fault::FaultFiles;
    use crate::segment::{Files, OpenLimits, SegmentWriter};

    #[test]
    fn a_pinned_file_stays_until_the_last_holder_lets_go() {
        let files: Arc<dyn Files> = Arc::new(FaultFiles::new());
        for number in 1..=3 {
            let mut writer = SegmentWriter::new(Arc::clone(&files), number).unwrap();
            writer.push(b"k", b"v").unwrap();
            writer.finish().unwrap();
        }
        let segments = Arc::new(Segments::new(Arc::clone(&files), OpenLimits::default()));
        let there = || -> Vec<u64> {
            let listed = files.list().unwrap();
            listed.iter().map(|file| file.number).collect()
        };
        let (one, other) = (segments.pin(vec![1, 2]), segments.pin(vec![2]));
        for number in 1..=3 {
            segments.unlink(number);
        }
        assert_eq!(there(), [1, 2], "nobody holds 3");
        drop(one);
        assert_eq!(there(), [2]);
        drop(other);
        assert_eq!(there(), []);
        // Who is held and still wanted stays for good.
        let mut writer = SegmentWriter::new(Arc::clone(&files), 4).unwrap();
        writer.push(b"k", b"v").unwrap();
        writer.finish().unwrap();
        drop(segments.pin(vec![4]));
        assert_eq!(there(), [4]);
    }
}
