//! When segments are rewritten, and which are left alone.

use super::*;

fn io(kind: ErrorKind) -> SegmentError {
    SegmentError::Io {
        action: "read",
        file: "a.seg".into(),
        source: kind.into(),
    }
}

#[test]
fn a_segment_is_given_up_only_for_what_lasts() {
    assert!(!is_lasting(&io(ErrorKind::Other)));
    assert!(!is_lasting(&io(ErrorKind::StorageFull)));
    assert!(is_lasting(&io(ErrorKind::NotFound)));
    assert!(is_lasting(&SegmentError::Damaged {
        file: "a.seg".into(),
        offset: 0,
        detail: String::new(),
    }));
}

#[test]
fn a_segment_that_cannot_be_read_is_left_alone_longer_each_time() {
    let mut rewriting = Rewriting::new(512 << 20);
    let mut last = Duration::ZERO;
    for _ in 0..20 {
        rewriting.avoid(7, &io(ErrorKind::Other));
        let pause = rewriting.avoided[&7].pause;
        assert!(
            pause > last || pause == LONGEST_PAUSE,
            "{pause:?} after {last:?}"
        );
        last = pause;
        assert!(rewriting.avoids(7) && !rewriting.avoids(8));
        assert!(rewriting.trouble().unwrap_or_default().contains("a.seg"));
        assert!(rewriting.next_excuse().is_some_and(|left| left <= pause));
        // Its time has come.
        if let Some(avoided) = rewriting.avoided.get_mut(&7) {
            avoided.since = Stopwatch::start();
            avoided.pause = Duration::ZERO;
        }
        rewriting.excuse();
        assert!(!rewriting.avoids(7) && rewriting.trouble().is_none());
        assert_eq!(rewriting.next_excuse(), None);
        if let Some(avoided) = rewriting.avoided.get_mut(&7) {
            avoided.pause = pause;
        }
    }
    assert_eq!(last, LONGEST_PAUSE);
    rewriting.forget(&[7]);
    rewriting.avoid(7, &io(ErrorKind::Other));
    assert_eq!(rewriting.avoided[&7].pause, FIRST_PAUSE);
}

#[test]
fn what_cannot_be_read_for_good_is_never_tried_again() {
    let mut rewriting = Rewriting::new(512 << 20);
    rewriting.avoid(7, &io(ErrorKind::NotFound));
    assert_eq!(rewriting.next_excuse(), None);
    if let Some(avoided) = rewriting.avoided.get_mut(&7) {
        avoided.pause = Duration::ZERO;
    }
    rewriting.excuse();
    assert!(rewriting.avoids(7) && rewriting.trouble().is_some());
}

#[test]
fn extents_are_looked_through_when_there_are_twice_as_many_as_were_left() {
    let mut rewriting = Rewriting::new(512 << 20);
    let most = (512 << 20) / EXTENT_SHARE / EXTENT_SPACE;
    let check = |rewriting: &Rewriting, from: u64| {
        assert!(rewriting.wants_merging(from), "from {from} on");
        assert!(!rewriting.wants_merging(from - 1), "not below {from}");
    };
    check(&rewriting, most / MERGE_SHARE);
    rewriting.merged(0);
    check(&rewriting, most / MERGE_SHARE);
    rewriting.merged(most / 4);
    check(&rewriting, most / 2);
    assert!(rewriting.is_behind(most) && !rewriting.is_behind(most / 2));
    rewriting.merged(most * 9 / 10);
    check(&rewriting, most * 9 / 10 * 5 / 4);
    // More than there may be, and it cannot be helped: there are so many runs.
    rewriting.merged(4 * most);
    check(&rewriting, 5 * most);
    assert!(!rewriting.is_behind(4 * most));
    // A few gone change nothing, most of them do: by what is left, and never below the first bound.
    rewriting.left(5 * most / 4);
    check(&rewriting, 5 * most);
    rewriting.left(most);
    check(&rewriting, 5 * most / 4);
    rewriting.left(most / 4);
    check(&rewriting, most / 2);
    rewriting.left(0);
    check(&rewriting, most / MERGE_SHARE);
    // Not even the smallest hot file has extents looked through all the time.
    assert!(!Rewriting::new(0).wants_merging(0));
}

#[test]
fn larger_extents_are_merged_when_there_would_be_too_many() {
    let rewriting = Rewriting::new(512 << 20);
    let most = (512 << 20) / EXTENT_SHARE / EXTENT_SPACE;
    let check = |extents, live, below, gain| {
        let aim = rewriting.merging(extents, live, 16 << 20);
        let Aim::Merge { below: b, gain: g } = aim else {
            panic!("{aim:?}");
        };
        assert_eq!((b, g), (below, gain), "{extents} extents, {live} bytes");
    };
    check(most, 1 << 30, MERGE_BELOW, MERGE_GAIN);
    check(most, most << 19, 1 << 20, MERGE_GAIN);
    check(most + 1, u64::MAX, (16 << 20) / MERGE_GAIN, MERGE_GAIN_FULL);
}
