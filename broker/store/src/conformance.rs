//! What every engine must do, whatever is behind it. Each engine's tests call [`suite`].

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::batch::{BatchRefused, Durability, Key, WriteBatch};
use crate::error::{CommitError, ReadError, StopCause};
use crate::limits::QUEUE_BYTES;
use crate::space::Space;
use crate::store::{Committed, Direction, Health, Row, ScanLimit, ScanPage, Snapshot, Store};

type Open<'a> = &'a dyn Fn() -> Arc<dyn Store>;

/// Runs the whole suite; `open` gives a new, empty store each time.
pub(crate) fn suite(open: Open<'_>) {
    reads_what_was_written(&*open());
    spaces_are_apart(&*open());
    operations_apply_in_order(&*open());
    a_snapshot_stands_still(&*open());
    scans_end_where_they_are_told(&*open());
    a_range_is_removed_in_steps(&*open());
    callbacks_run_in_order_and_see_their_batch(&open());
    a_callback_never_runs_within_submit(&open());
    a_callback_may_be_the_last_owner(open());
    a_panicking_callback_stops_the_shard(&*open());
    a_refused_batch_harms_nobody(&*open());
    a_full_queue_waits_and_then_goes_on(&*open());
    interval_batches_are_visible_at_once(&*open());
    closing_commits_what_is_queued(&open());
    random_operations_agree_with_a_map(open);
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn commit(store: &dyn Store, fill: impl FnOnce(&mut WriteBatch)) -> Committed {
    let mut batch = WriteBatch::new();
    fill(&mut batch);
    wait(store.commit(batch)).unwrap()
}

fn get(store: &dyn Store, space: Space, key: &str) -> Option<Bytes> {
    store
        .snapshot()
        .unwrap()
        .get(space, key.as_bytes())
        .unwrap()
}

fn scan(store: &dyn Store, range: Range<&str>, direction: Direction, limit: ScanLimit) -> ScanPage {
    let range = range.start.as_bytes()..range.end.as_bytes();
    store
        .snapshot()
        .unwrap()
        .scan(Space::Catalog, range, direction, limit)
        .unwrap()
}

fn keys(page: &ScanPage) -> Vec<&str> {
    page.rows
        .iter()
        .map(|row| str::from_utf8(&row.key).unwrap())
        .collect()
}

fn reads_what_was_written(store: &dyn Store) {
    assert_eq!(get(store, Space::Meta, "a"), None);
    let first = commit(store, |batch| batch.put(Space::Meta, "a", "one"));
    assert_eq!(get(store, Space::Meta, "a").unwrap(), "one");
    let second = commit(store, |batch| {
        batch.put_parts(Space::Meta, "a", ["tw", "", "o"].map(Bytes::from));
        batch.put(Space::Meta, "empty", "");
    });
    assert_eq!(get(store, Space::Meta, "a").unwrap(), "two");
    assert_eq!(get(store, Space::Meta, "empty").unwrap(), "");
    commit(store, |batch| batch.delete(Space::Meta, "a"));
    assert_eq!(get(store, Space::Meta, "a"), None);
    assert!(first.commit < second.commit);
    assert_eq!(first.durability, Durability::Sync);
    assert_eq!(store.stats().batches, 3);
    assert!(matches!(*store.health().borrow(), Health::Serving));
}

fn spaces_are_apart(store: &dyn Store) {
    for space in Space::ALL {
        commit(store, |batch| batch.put(space, "same key", space.name()));
    }
    for space in Space::ALL {
        assert_eq!(get(store, space, "same key").unwrap(), space.name());
    }
}

fn operations_apply_in_order(store: &dyn Store) {
    commit(store, |batch| {
        for key in ["a", "b", "c", "d"] {
            batch.put(Space::Catalog, key, "old");
        }
        batch.delete_range(Space::Catalog, Key::from("b")..Key::from("d"));
        batch.put(Space::Catalog, "c", "new");
        batch.delete(Space::Catalog, "a");
        batch.delete(Space::Catalog, "never there");
        batch.delete_range(Space::Catalog, Key::from("z")..Key::from("a"));
    });
    let page = scan(store, "a".."z", Direction::Forward, ScanLimit::rows(9));
    assert_eq!(keys(&page), ["c", "d"]);
    assert_eq!(page.rows[0].value, "new");
}

fn a_snapshot_stands_still(store: &dyn Store) {
    commit(store, |batch| batch.put(Space::Records, "r", "before"));
    let snapshot = store.snapshot().unwrap();
    commit(store, |batch| batch.delete(Space::Records, "r"));
    assert_eq!(
        snapshot.get(Space::Records, b"r").unwrap().unwrap(),
        "before"
    );
    assert_eq!(get(store, Space::Records, "r"), None);
    drop(snapshot);
    commit(store, |batch| batch.put(Space::Meta, "a", "before"));
    let snapshot = store.snapshot().unwrap();
    commit(store, |batch| batch.put(Space::Meta, "a", "after"));
    commit(store, |batch| batch.put(Space::Catalog, "b", "after"));
    assert_eq!(snapshot.get(Space::Meta, b"a").unwrap().unwrap(), "before");
    assert_eq!(snapshot.get(Space::Catalog, b"b").unwrap(), None);
    assert_eq!(get(store, Space::Meta, "a").unwrap(), "after");
}

fn scans_end_where_they_are_told(store: &dyn Store) {
    commit(store, |batch| {
        for key in ["a", "b", "c", "d"] {
            batch.put(Space::Catalog, key, vec![0; 10_000]);
        }
    });
    let check = |range: Range<&str>, direction, limit, expected: &[&str], more| {
        let page = scan(store, range.clone(), direction, limit);
        assert_eq!(
            (keys(&page), page.more),
            (expected.to_vec(), more),
            "{range:?} {limit:?}"
        );
    };
    use Direction::{Backward, Forward};
    let all = ScanLimit::rows(usize::MAX);
    check("a".."d", Forward, all, &["a", "b", "c"], false);
    check("a".."e", Backward, all, &["d", "c", "b", "a"], false);
    check("b".."b", Forward, all, &[], false);
    check("c".."b", Forward, all, &[], false);
    check("a".."e", Forward, ScanLimit::rows(2), &["a", "b"], true);
    check(
        "a".."e",
        Forward,
        ScanLimit::rows(4),
        &["a", "b", "c", "d"],
        false,
    );
    check("a".."e", Backward, ScanLimit::ONE, &["d"], true);
    check(
        "a".."e",
        Forward,
        ScanLimit::bytes(25_000),
        &["a", "b"],
        true,
    );
    check("a".."e", Forward, ScanLimit::bytes(1), &["a"], true);
    check("a".."e", Forward, ScanLimit::rows(0), &[], true);

    let floor = |start: &str, at: &str| {
        let snapshot = store.snapshot().unwrap();
        snapshot
            .floor_key(Space::Catalog, start.as_bytes(), at.as_bytes())
            .unwrap()
    };
    assert_eq!(floor("a", "cc"), Some(Key::from("c")));
    assert_eq!(floor("a", "c"), Some(Key::from("c")));
    assert_eq!(floor("cc", "cz"), None);
    assert_eq!(floor("d", "a"), None);
}

fn a_range_is_removed_in_steps(store: &dyn Store) {
    for space in [Space::Records, Space::Blobs] {
        let key = |number: u8| Key::from([b'k', number]);
        commit(store, |batch| {
            (0..60).for_each(|number| batch.put(space, key(number), vec![number; 1_000]));
        });
        let (range, mut steps) = (key(10)..key(50), 0);
        let limit = ScanLimit {
            rows: 7,
            bytes: 5 * 1_010,
        };
        let end = || {
            let snapshot = store.snapshot().unwrap();
            let bounds = &range.start[..]..&range.end[..];
            snapshot.removable(space, bounds, limit).unwrap()
        };
        while let Some(end) = end() {
            assert!(range.start < end && end <= range.end, "{end:?}");
            commit(store, |batch| {
                batch.delete_range(space, range.start.clone()..end);
            });
            steps += 1;
            assert!(steps <= 40, "a step removed nothing");
        }
        assert!(steps > 1, "{steps} steps in {space}");
        let snapshot = store.snapshot().unwrap();
        let all = ScanLimit::rows(100);
        let left = snapshot.scan(space, &key(0)..&key(99), Direction::Forward, all);
        assert_eq!(left.unwrap().rows.len(), 20);
        let none = ScanLimit { rows: 0, bytes: 0 };
        let one = snapshot.removable(space, &key(0)..&key(99), none).unwrap();
        let one = one.unwrap();
        assert!(key(0) < one && one <= key(1), "{one:?}");
        let empty = snapshot.removable(space, &key(9)..&key(9), limit).unwrap();
        assert_eq!(empty, None);
    }
}

fn callbacks_run_in_order_and_see_their_batch(store: &Arc<dyn Store>) {
    let (sender, receiver) = mpsc::sync_channel(1024);
    for number in 0..500u32 {
        let mut batch = WriteBatch::new();
        batch.put(Space::Records, number.to_be_bytes(), "");
        let permit = store.try_reserve(batch.byte_len()).unwrap().unwrap();
        let (sender, reader) = (sender.clone(), Arc::clone(store));
        let done = move |result: Result<Committed, CommitError>| {
            let visible = reader
                .snapshot()
                .unwrap()
                .get(Space::Records, &number.to_be_bytes());
            sender
                .send((number, visible.unwrap().is_some(), result.unwrap().commit))
                .unwrap();
        };
        store.submit(permit, batch, Box::new(done));
    }
    drop(sender);
    let seen: Vec<_> = receiver.iter().collect();
    assert_eq!(seen.len(), 500);
    assert!(
        seen.iter().all(|&(_, visible, _)| visible),
        "acknowledged but not visible"
    );
    assert!(seen.is_sorted_by_key(|&(number, _, commit)| (number, commit)));
}

fn a_callback_never_runs_within_submit(store: &Arc<dyn Store>) {
    // A caller may hold the very lock that its callback takes, also when the store is closed.
    let lock = Arc::new(Mutex::new(()));
    let (sender, receiver) = mpsc::sync_channel(1024);
    let (first, second) = (store.try_reserve(100), store.try_reserve(100));
    for (permit, closed) in [(first, false), (second, true)] {
        if closed {
            store.close();
        }
        let held = lock.lock().unwrap();
        let (sender, lock) = (sender.clone(), Arc::clone(&lock));
        let done = move |result: Result<Committed, CommitError>| {
            drop(lock.lock().unwrap());
            sender.send(result).unwrap();
        };
        store.submit(permit.unwrap().unwrap(), WriteBatch::new(), Box::new(done));
        drop(held);
        let result = receiver.recv().unwrap();
        assert_eq!(
            matches!(result, Err(CommitError::Closed)),
            closed,
            "{result:?}"
        );
        assert_eq!(result.is_ok(), !closed);
    }
}

fn a_callback_may_be_the_last_owner(store: Arc<dyn Store>) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let permit = store.try_reserve(100).unwrap().unwrap();
    let (release, released) = mpsc::sync_channel(0);
    let last = Arc::clone(&store);
    let done = move |result: Result<Committed, CommitError>| {
        released.recv().unwrap();
        drop(last);
        sender.send(result.is_ok()).unwrap();
    };
    store.submit(permit, WriteBatch::new(), Box::new(done));
    drop(store);
    release.send(()).unwrap();
    assert!(receiver.recv().unwrap());
}

fn a_panicking_callback_stops_the_shard(store: &dyn Store) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let first = store.try_reserve(100).unwrap().unwrap();
    let second = store.try_reserve(100).unwrap().unwrap();
    store.submit(first, WriteBatch::new(), Box::new(|_| panic!("on purpose")));
    store.submit(
        second,
        WriteBatch::new(),
        Box::new(move |result| sender.send(result).unwrap()),
    );
    // Committed together with the first, or too late: answered either way.
    let answer = receiver.recv().unwrap();
    assert!(
        matches!(answer, Ok(_) | Err(CommitError::Stopped { .. })),
        "{answer:?}"
    );
    let error = wait(store.commit(WriteBatch::new())).unwrap_err();
    assert!(error.to_string().contains("on purpose"), "{error}");
    let health = store.health().borrow().clone();
    assert!(
        matches!(health.cause().unwrap().as_ref(), StopCause::Panic { .. }),
        "{health}"
    );
}

fn a_refused_batch_harms_nobody(store: &dyn Store) {
    let mut bad = WriteBatch::new();
    bad.put(Space::Meta, "half", "must not be stored");
    bad.put(Space::Meta, "", "no key");
    let refused = wait(store.commit(bad)).unwrap_err();
    let expected = BatchRefused::KeyLen {
        space: Space::Meta,
        len: 0,
    };
    assert!(matches!(refused, CommitError::Refused(reason) if reason == expected));
    assert_eq!(get(store, Space::Meta, "half"), None);
    commit(store, |batch| batch.put(Space::Meta, "next", "fine"));
}

fn a_full_queue_waits_and_then_goes_on(store: &dyn Store) {
    let all = store.try_reserve(QUEUE_BYTES).unwrap().unwrap();
    assert!(store.try_reserve(1).unwrap().is_none());
    let mut batch = WriteBatch::new();
    batch.put(Space::Meta, "late", "but stored");
    let mut waiting = store.commit(batch);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    assert_eq!(get(store, Space::Meta, "late"), None);
    drop(all);
    wait(waiting).unwrap();
    assert_eq!(get(store, Space::Meta, "late").unwrap(), "but stored");
}

fn interval_batches_are_visible_at_once(store: &dyn Store) {
    let mut batch = WriteBatch::with_durability(Durability::Interval);
    batch.put(Space::Meta, "soon", "durable");
    let committed = wait(store.commit(batch)).unwrap();
    assert_eq!(committed.durability, Durability::Interval);
    assert_eq!(get(store, Space::Meta, "soon").unwrap(), "durable");
    let synced = commit(store, |batch| batch.put(Space::Meta, "now", "durable"));
    assert_eq!(synced.durability, Durability::Sync);
}

fn closing_commits_what_is_queued(store: &Arc<dyn Store>) {
    let (sender, receiver) = mpsc::sync_channel(1024);
    for number in 0..100u32 {
        let mut batch = WriteBatch::new();
        batch.put(Space::Records, number.to_be_bytes(), vec![0; 5000]);
        let permit = store.try_reserve(batch.byte_len()).unwrap().unwrap();
        let sender = sender.clone();
        store.submit(
            permit,
            batch,
            Box::new(move |result| sender.send(result).unwrap()),
        );
    }
    store.close();
    drop(sender);
    assert_eq!(receiver.iter().filter(Result::is_ok).count(), 100);
    store.close();
    assert!(matches!(store.try_reserve(1), Err(CommitError::Closed)));
    assert!(matches!(
        wait(store.commit(WriteBatch::new())),
        Err(CommitError::Closed)
    ));
    assert!(matches!(store.snapshot(), Err(ReadError::Closed { .. })));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u16),
    Delete(u8),
    DeleteRange(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        4 => (any::<u8>(), 0..6000u16).prop_map(|(key, len)| Step::Put(key, len)),
        2 => any::<u8>().prop_map(Step::Delete),
        1 => any::<(u8, u8)>().prop_map(|(start, end)| Step::DeleteRange(start, end)),
    ];
    prop::collection::vec(prop::collection::vec(step, 0..12), 1..8)
}

fn random_operations_agree_with_a_map(open: Open<'_>) {
    let config = Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    };
    let checked = TestRunner::new(config).run(&steps(), |batches| {
        let store = open();
        for space in [Space::Blobs, Space::Records] {
            let mut model = BTreeMap::<Key, Bytes>::new();
            let mut seen = Vec::new();
            for steps in &batches {
                let mut batch = WriteBatch::new();
                for step in steps {
                    apply(&mut batch, space, &mut model, step);
                }
                wait(store.commit(batch)).unwrap();
                // The snapshots taken before must go on showing what they showed.
                seen.push((store.snapshot().unwrap(), model.clone()));
                if seen.len() > 3 {
                    seen.remove(0);
                }
                for (snapshot, model) in &seen {
                    agrees(&**snapshot, space, model)?;
                }
            }
        }
        Ok(())
    });
    checked.unwrap();
}

fn agrees(
    snapshot: &dyn Snapshot,
    space: Space,
    model: &BTreeMap<Key, Bytes>,
) -> Result<(), TestCaseError> {
    for direction in [Direction::Forward, Direction::Backward] {
        let limit = ScanLimit::rows(usize::MAX);
        let page = snapshot
            .scan(space, &[0]..&[0xFF, 0], direction, limit)
            .unwrap();
        let row = |(key, value): (&Key, &Bytes)| Row {
            key: key.clone(),
            value: value.clone(),
        };
        let mut expected: Vec<Row> = model.iter().map(row).collect();
        if direction == Direction::Backward {
            expected.reverse();
        }
        prop_assert_eq!(page.rows, expected);
    }
    heads_agree(snapshot, space, model)?;
    for at in [0, 7, 100, 255] {
        let floor = snapshot.floor_key(space, &[3], &[at]).unwrap();
        let at = Key::from([at]);
        let expected = model.keys().rev().find(|key| **key <= at);
        let expected = expected.filter(|key| **key >= Key::from([3]));
        prop_assert_eq!(floor.as_ref(), expected);
        let value = snapshot.get(space, &at).unwrap();
        prop_assert_eq!(value.as_ref(), model.get(&at));
    }
    Ok(())
}

/// What is told without values is true of the rows that are there.
fn heads_agree(
    snapshot: &dyn Snapshot,
    space: Space,
    model: &BTreeMap<Key, Bytes>,
) -> Result<(), TestCaseError> {
    let few = ScanLimit {
        rows: 5,
        bytes: 9_000,
    };
    for (limit, head) in [
        (ScanLimit::rows(1_000), 0),
        (few, 0),
        (few, 64),
        (few, 5_000),
    ] {
        let (from, to) = (Key::from([2]), Key::from([0xF0]));
        let page = snapshot.heads(space, &from..&to, limit, head).unwrap();
        let mut rows = model.range(from.clone()..to.clone());
        let mut bytes = 0;
        for told in &page.heads {
            let several: Vec<_> = rows.by_ref().take(told.rows).collect();
            prop_assert_eq!(several.len(), told.rows);
            prop_assert_eq!(several[0].0, &told.key);
            let of = |(key, value): &(&Key, &Bytes)| (key.len() + value.len()) as u64;
            prop_assert_eq!(several.iter().map(of).sum::<u64>(), told.bytes);
            let value = several[0].1;
            prop_assert_eq!(&told.head[..], &value[..head.min(value.len())]);
            prop_assert!(head == 0 || told.rows == 1);
            bytes += told.bytes as usize;
        }
        prop_assert!(page.heads.len() <= limit.rows);
        prop_assert!(page.heads.len() < 2 || bytes <= limit.bytes);
        prop_assert_eq!(page.more, rows.next().is_some());
        let end = snapshot.removable(space, &from..&to, few).unwrap();
        let any = model.range(from.clone()..to.clone()).next().is_some();
        prop_assert!(end.is_some() || !any);
        prop_assert!(end.is_none_or(|end| from < end && end <= to));
    }
    Ok(())
}

fn apply(batch: &mut WriteBatch, space: Space, model: &mut BTreeMap<Key, Bytes>, step: &Step) {
    match *step {
        Step::Put(key, len) => {
            let value = Bytes::from(vec![key; usize::from(len)]);
            batch.put(space, [key], value.clone());
            model.insert([key].into(), value);
        }
        Step::Delete(key) => {
            batch.delete(space, [key]);
            model.remove(&Key::from([key]));
        }
        Step::DeleteRange(start, end) => {
            let range = Key::from([start])..Key::from([end]);
            model.retain(|key, _| !range.contains(key));
            batch.delete_range(space, range);
        }
    }
}
