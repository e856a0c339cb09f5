//! The compiled plugins: that they are there, and what the list of them promises.

use millstream_guests::{ALL, CORE_MODULE, FILTER_JSON, NOT_COMPONENTS, acts, truncated};

/// The first bytes of every component.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
/// The largest a plugin of this size of source may become: more means debug information, or an
/// optimiser that was off.
const SMALL: usize = 256 << 10;

#[test]
fn every_plugin_is_a_small_component() {
    assert!(ALL.is_sorted_by_key(|guest| guest.name) && ALL.len() >= 13);
    for guest in ALL {
        assert!(guest.wasm.starts_with(COMPONENT), "{}", guest.name);
        assert!(
            guest.wasm.len() < SMALL,
            "{} has {} bytes",
            guest.name,
            guest.wasm.len()
        );
        assert_eq!(
            std::fs::read(guest.path).expect("it is where it says"),
            guest.wasm
        );
    }
}

#[test]
fn what_is_no_component_does_not_begin_like_one() {
    for (what, bytes) in NOT_COMPONENTS {
        assert!(!bytes.starts_with(COMPONENT), "{what}");
    }
    assert!(CORE_MODULE.starts_with(b"\0asm\x01\0\0\0"));
    assert!(truncated(FILTER_JSON).len() < FILTER_JSON.wasm.len());
}

#[test]
fn modes_are_listed_once() {
    for nonsense in [&acts::FILTER[..], &acts::PARTITIONER, &acts::TRANSFORM] {
        let lists: [&[&str]; 5] = [
            &acts::ACTS,
            &acts::IN_INIT,
            &acts::ERRORS,
            nonsense,
            &[acts::BEHAVE],
        ];
        let mut modes: Vec<_> = lists.concat();
        modes.sort_unstable();
        assert!(modes.windows(2).all(|pair| pair[0] != pair[1]), "{modes:?}");
        assert!(modes.iter().all(|mode| acts::knows(mode, nonsense)));
    }
    assert!(!acts::knows("be nice", &acts::FILTER));
}
