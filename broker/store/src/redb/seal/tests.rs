//! What the sealer decides by itself. What it does to a store is tested from outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::batch::WriteBatch;
use crate::fault::FaultDisk;
use crate::key::record::RecordKey;
use crate::limits::SEAL_RUNS;
use crate::redb::{RedbConfig, RedbStore};
use crate::space::Space;
use crate::store::Store;

fn io(kind: ErrorKind) -> SegmentError {
    SegmentError::Io {
        action: "read",
        file: "a.seg".into(),
        source: kind.into(),
    }
}

#[test]
fn the_remedy_for_a_full_disk_is_space() {
    let full = remedy(&io(ErrorKind::StorageFull).into());
    assert_eq!(full, "free space on that disk");
    assert_ne!(full, remedy(&io(ErrorKind::PermissionDenied).into()));
}

#[test]
fn fewer_are_sealed_in_a_row_when_others_are_to_be_rewritten() {
    let figures = |live_bytes, garbage_bytes| StorageFigures {
        live_bytes,
        garbage_bytes,
        ..StorageFigures::default()
    };
    assert_eq!(most_seals(&figures(50, 50), false), SEALS_IN_A_ROW);
    assert_eq!(most_seals(&figures(49, 51), false), 1);
    assert_eq!(most_seals(&figures(50, 50), true), 1);
}

#[test]
fn one_segment_holds_a_bounded_number_of_runs() {
    let disk = FaultDisk::new();
    let store =
        RedbStore::open_with_backend(disk.backend(), "test", &RedbConfig::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    // Each a pack of its own.
    let per_pack = u32::try_from(SEAL_RUNS / 2).unwrap();
    for pack in 0..3 {
        let mut batch = WriteBatch::new();
        for partition in 0..per_pack {
            let key = RecordKey {
                topic: 1,
                partition: pack * per_pack + partition,
                base_offset: 0,
            };
            batch.put(Space::Records, key.encode(), vec![7; 80]);
        }
        runtime.block_on(store.commit(batch)).unwrap();
    }
    let all = store.stats().storage.unsealed_bytes;
    store.seal_now();
    let left = store.stats().storage.unsealed_bytes;
    assert!(left > 0 && left <= all / 3, "{left} of {all}");
    store.seal_now();
    assert_eq!(store.stats().storage.unsealed_bytes, 0);
}
