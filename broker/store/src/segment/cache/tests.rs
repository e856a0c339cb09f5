//! What is open, and what is closed to make room.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Barrier;

use super::*;
use crate::fault::Effect;
use crate::segment::fault::{FaultFiles, FileFault, FileOperation};
use crate::segment::tests::{Rows, write};

const COUNT: u64 = 6;

/// Segments 0 to 5, of which each has one entry, and the length of their files.
fn stored() -> (FaultFiles, u64) {
    let files = FaultFiles::new();
    let rows = Rows::from([(b"key".to_vec(), b"value".to_vec())]);
    let lens = (0..COUNT).map(|number| write(&files, number, &rows).unwrap().file_bytes);
    let len = lens.max().unwrap();
    (files, len)
}

fn segments(files: &FaultFiles, segments: usize, index_bytes: usize) -> Segments {
    let limits = OpenLimits {
        segments,
        index_bytes,
    };
    Segments::new(Arc::new(files.clone()), limits)
}

/// Which of the segments are open: asking for one that is does not open it.
fn check_open(open: &Segments, files: &FaultFiles, len: u64, expected: &[u64]) {
    assert_eq!(open.open_now().0, expected.len());
    for number in expected {
        let before = files.count(FileOperation::Open);
        open.get(*number, len).unwrap();
        assert_eq!(files.count(FileOperation::Open), before, "{number}");
    }
}

#[test]
fn closes_what_was_not_asked_for_longest() {
    let (files, len) = stored();
    let open = segments(&files, 3, usize::MAX);
    for number in [0, 1, 2, 0, 3] {
        assert_eq!(open.get(number, len).unwrap().number(), number);
    }
    check_open(&open, &files, len, &[0, 2, 3]);
    open.get(4, len).unwrap();
    check_open(&open, &files, len, &[2, 3, 4]);
}

#[test]
fn closes_what_takes_too_much_memory_but_never_the_last() {
    let (files, len) = stored();
    let each = segments(&files, 9, 0).get(0, len).unwrap().index_bytes();
    let open = segments(&files, 9, 2 * each + each / 2);
    for number in 0..COUNT {
        open.get(number, len).unwrap();
    }
    check_open(&open, &files, len, &[4, 5]);
    assert_eq!(open.open_now(), (2, 2 * each));

    let tight = segments(&files, 9, 0);
    for number in 0..COUNT {
        tight.get(number, len).unwrap();
        assert_eq!(tight.open_now(), (1, each));
    }
}

#[test]
fn one_that_is_read_outlives_its_place() {
    let (files, len) = stored();
    let open = segments(&files, 1, usize::MAX);
    let held = open.get(0, len).unwrap();
    open.get(1, len).unwrap();
    open.remove(0);
    files.remove(0).unwrap();
    assert_eq!(held.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    assert!(open.get(0, len).is_err());
    check_open(&open, &files, len, &[1]);
}

#[test]
fn a_removed_segment_is_forgotten() {
    let (files, len) = stored();
    let open = segments(&files, 9, usize::MAX);
    for number in 0..COUNT {
        open.get(number, len).unwrap();
    }
    for number in 0..COUNT {
        open.remove(number);
        open.remove(number);
    }
    assert_eq!(open.open_now(), (0, 0));
    // Another one took its number.
    let rows = Rows::from([(b"other".to_vec(), b"value of another length".to_vec())]);
    files.remove(0).unwrap();
    let summary = write(&files, 0, &rows).unwrap();
    let segment = open.get(0, summary.file_bytes).unwrap();
    assert_eq!(segment.first_key(), b"other");
    assert!(matches!(
        open.get(0, len),
        Err(SegmentError::Damaged { .. })
    ));
}

#[test]
fn a_failure_is_not_remembered() {
    let (files, len) = stored();
    let open = segments(&files, 9, usize::MAX);
    files.set_fault(FileFault {
        operation: FileOperation::Read,
        nth: 1,
        effect: Effect::Fail(std::io::ErrorKind::Other),
    });
    assert!(open.get(0, len).is_err());
    assert_eq!(open.open_now(), (0, 0));
    open.get(0, len).unwrap();
    assert_eq!(open.open_now().0, 1);
}

#[test]
fn who_asks_at_once_opens_once() {
    let (files, len) = stored();
    let open = segments(&files, 9, usize::MAX);
    for number in 0..COUNT {
        let before = files.count(FileOperation::Open);
        let start = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    open.get(number, len).unwrap()
                });
            }
        });
        assert_eq!(files.count(FileOperation::Open) - before, 1);
    }
    assert_eq!(open.open_now().0, COUNT as usize);
}
