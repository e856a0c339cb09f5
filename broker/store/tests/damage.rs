//! Files that were damaged while nobody had them open: cut short, and with bits flipped. Whatever
//! is wrong is reported, at opening or at reading; it is never served, and nothing panics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod workload;

use std::sync::OnceLock;

use millstream_store::fault::FaultDisk;
use millstream_store::{CommitError, OpenError, ReadError, RedbConfig, RedbStore, Space, Store};
use proptest::prelude::*;
use workload::{State, batch, commit, open, try_open};

const BATCHES: u64 = 30;

/// A store with batches 1 to [`BATCHES`] that was closed in good order.
fn closed() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let disk = FaultDisk::new();
        let store = open(&disk);
        (1..=BATCHES).for_each(|number| assert!(commit(&store, batch(number)).is_ok()));
        store.close();
        disk.image()
    })
}

/// The same, but the power was cut after the last acknowledgement.
fn crashed() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let disk = FaultDisk::new();
        let store = open(&disk);
        (1..=BATCHES).for_each(|number| assert!(commit(&store, batch(number)).is_ok()));
        let left = disk.after_power_cut(|_, _| 0).image();
        drop(store);
        left
    })
}

#[derive(Debug, PartialEq)]
enum Found {
    /// An error at opening.
    Refused,
    /// An error at reading.
    Reported,
    /// A state, without an error.
    State(State),
}

fn found(image: &[u8]) -> Found {
    let disk = FaultDisk::from_image(image.to_vec());
    match try_open(&disk) {
        Err(error) => {
            assert!(error.to_string().contains("disk.redb"), "{error}");
            assert!(!matches!(error, OpenError::InUse { .. }), "{error}");
            Found::Refused
        }
        Ok(store) => State::read(&store).map_or(Found::Reported, Found::State),
    }
}

fn flipped(image: &[u8], bits: &[usize]) -> Vec<u8> {
    let mut image = image.to_vec();
    for bit in bits {
        let bit = bit % (image.len() * 8);
        image[bit / 8] ^= 1 << (bit % 8);
    }
    image
}

/// Where in the closed store small rows lie, live or freed, with their keys and trailers.
fn near_small_rows() -> &'static [usize] {
    static PLACES: OnceLock<Vec<usize>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let (_, row) = State::after(BATCHES).row_in(Space::Partitions);
        let starts = (0..closed().len() - 64).filter(|&at| closed()[at..].starts_with(&row));
        starts.flat_map(|at| at - 48..at + row.len() + 8).collect()
    })
}

#[test]
fn an_undamaged_file_is_found_whole() {
    assert_eq!(found(closed()), Found::State(State::after(BATCHES)));
    assert_eq!(found(crashed()), Found::State(State::after(BATCHES)));
}

#[test]
fn a_bit_flipped_in_the_header_is_reported_or_harmless() {
    // redb's header takes 320 bytes. All bits of its first part, which says how the file is laid
    // out, and one bit of each byte of the rest.
    let first = 0..64 * 8;
    for bit in first.chain((64..320).map(|byte| byte * 8 + byte % 8)) {
        let found = found(&flipped(closed(), &[bit]));
        let harmless = found == Found::State(State::after(BATCHES));
        let reported = matches!(found, Found::Refused | Found::Reported);
        assert!(harmless || reported, "bit {bit}: {found:?}");
    }
}

#[test]
fn a_file_cut_short_is_reported() {
    let whole = closed();
    let pages = whole.len() / 4096;
    for page in 1..pages {
        for len in [page * 4096, page * 4096 - 1] {
            let found = found(&whole[..len]);
            let harmless = found == Found::State(State::after(BATCHES));
            let reported = matches!(found, Found::Refused | Found::Reported);
            assert!(
                harmless || reported,
                "cut to {len} of {}: {found:?}",
                whole.len()
            );
        }
    }
    for len in [1, 8, 9, 100, 319, 320, 512] {
        assert_eq!(found(&whole[..len]), Found::Refused, "cut to {len}");
    }
}

#[test]
fn a_store_with_its_tail_zeroed_is_reported() {
    let whole = closed();
    for kept in (4096..whole.len()).step_by(whole.len() / 40) {
        let mut image = whole.to_vec();
        image[kept..].fill(0);
        let found = found(&image);
        let harmless = found == Found::State(State::after(BATCHES));
        assert!(
            harmless || matches!(found, Found::Refused | Found::Reported),
            "{kept}: {found:?}"
        );
    }
}

#[test]
fn a_damaged_value_names_file_space_and_key_and_stops_the_shard() {
    let (key, row) = State::after(BATCHES).row_in(Space::Partitions);
    // Pages that were freed hold older copies; which one is read only the engine knows.
    let mut image = closed().to_vec();
    let places = 0..image.len() - row.len();
    let copies: Vec<_> = places.filter(|&at| image[at..].starts_with(&row)).collect();
    copies.iter().for_each(|at| image[at + 5] ^= 1);
    let disk = FaultDisk::from_image(image);
    assert!(
        matches!(try_open(&disk), Err(OpenError::Corrupt { .. })),
        "verified at opening"
    );

    let config = RedbConfig {
        verify_up_to: 0,
        ..RedbConfig::default()
    };
    let store = RedbStore::open_with_backend(disk.backend(), "disk.redb", &config).unwrap();
    let error = store
        .snapshot()
        .unwrap()
        .get(Space::Partitions, &key)
        .unwrap_err();
    assert!(
        matches!(
            &error,
            ReadError::Corrupt {
                space: Space::Partitions,
                ..
            }
        ),
        "{error}"
    );
    let text = error.to_string();
    let expected = [
        "disk.redb",
        "partitions",
        &key.escape_ascii().to_string(),
        "checksum",
    ];
    assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    let refused = commit(&store, batch(BATCHES + 1)).unwrap_err();
    assert!(matches!(refused, CommitError::Stopped { .. }), "{refused}");
    assert!(refused.to_string().contains("partitions"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..Default::default() })]

    /// With verification at opening, the default, damage never hides a row.
    #[test]
    fn flipped_bits_are_reported_or_harmless(bits in prop::collection::vec(any::<usize>(), 1..4)) {
        let found = found(&flipped(closed(), &bits));
        if let Found::State(state) = found {
            prop_assert_eq!(state, State::after(BATCHES));
        }
    }

    /// Without it, damage may hide rows, but what is served is what was stored. Most of the file
    /// is free or the body of a record batch, so these flips aim at the small rows.
    #[test]
    fn flipped_bits_never_change_what_is_served(
        bits in prop::collection::vec(any::<usize>(), 0..3),
        aimed in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let mut image = flipped(closed(), &bits);
        for aimed in aimed {
            let bit = aimed.index(near_small_rows().len() * 8);
            image[near_small_rows()[bit / 8]] ^= 1 << (bit % 8);
        }
        let disk = FaultDisk::from_image(image);
        let config = RedbConfig { verify_up_to: 0, ..RedbConfig::default() };
        if let Ok(store) = RedbStore::open_with_backend(disk.backend(), "disk.redb", &config)
            && let Ok(state) = State::read(&store)
        {
            prop_assert!(state.is_within(BATCHES), "{:?}", state);
        }
    }

    /// After a crash, with one-phase commit, nothing tells a last commit that was torn from one
    /// that was whole and damaged before the restart: that one commit may be rolled back. Nothing
    /// older, and nothing in part.
    #[test]
    fn flipped_bits_after_a_crash_cost_at_most_the_last_commit(
        bits in prop::collection::vec(any::<usize>(), 1..4),
    ) {
        if let Found::State(state) = found(&flipped(crashed(), &bits)) {
            prop_assert!(state.applied >= BATCHES - 1, "{} found", state.applied);
            prop_assert_eq!(&state, &State::after(state.applied));
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>) {
        prop_assume!(!bytes.is_empty());
        prop_assert_eq!(found(&bytes), Found::Refused);
    }
}
