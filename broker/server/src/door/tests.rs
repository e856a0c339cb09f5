#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LIMITS: DoorLimits = DoorLimits {
    connections: 10,
    per_address: 20,
};

fn address(n: u32) -> IpAddr {
    IpAddr::from(n.to_be_bytes())
}

fn begun(answer: Answer) -> Option<Turn> {
    match answer {
        Answer::Begin(turn) => Some(turn),
        Answer::Prove | Answer::Refuse(_) => None,
    }
}

#[test]
fn an_address_gets_its_share_and_no_other_pays_for_it() {
    let (door, start) = (Arc::new(Door::default()), Instant::now());
    let knock = |from, now| door.knock(address(from), true, &LIMITS, now);
    let first = (0..100)
        .filter(|_| begun(knock(1, start)).is_some())
        .count();
    assert_eq!(first, 40);
    assert!(matches!(knock(1, start), Answer::Refuse(Refusal::Address)));
    assert!(begun(knock(2, start)).is_some());
    let later = start + Duration::from_millis(500);
    let more = (0..100)
        .filter(|_| begun(knock(1, later)).is_some())
        .count();
    assert_eq!(more, 10);
}

#[test]
fn who_has_proved_nothing_must_when_it_gets_busy_and_uses_up_nobody_s_share() {
    let (door, start) = (Arc::new(Door::default()), Instant::now());
    let mut turns = Vec::new();
    // Far more than one address's share, all under one name.
    while let Some(turn) = begun(door.knock(address(1), false, &LIMITS, start)) {
        turns.push(turn);
    }
    assert_eq!(turns.len(), MAX_HANDSHAKES / 2);
    assert!(matches!(
        door.knock(address(2), false, &LIMITS, start),
        Answer::Prove
    ));
    // The owner of the address has all of his.
    let knock = || door.knock(address(1), true, &LIMITS, start);
    let own: Vec<Turn> = std::iter::from_fn(|| begun(knock())).collect();
    assert_eq!(own.len(), 40);
    drop((turns, own));
    assert_eq!(door.busy(), 0);
}

#[test]
fn the_unproved_are_few_in_a_second_also_when_they_finish_at_once() {
    let (door, start) = (Arc::new(Door::default()), Instant::now());
    let knock = |n| begun(door.knock(address(n), false, &LIMITS, start));
    let begun = (0..10_000).filter(|n| knock(*n).is_some()).count();
    assert_eq!(begun, 2 * UNPROVED_HANDSHAKES_PER_SECOND as usize);
}

#[test]
fn all_together_are_bounded_too() {
    let (door, start) = (Arc::new(Door::default()), Instant::now());
    let knock = |n| begun(door.knock(address(n), true, &LIMITS, start));
    let begun = (0..10_000).filter(|n| knock(*n).is_some()).count();
    assert_eq!(begun, HANDSHAKES_PER_SECOND as usize);
}

/// Whether somebody else has taken the turn.
fn is_over(turn: &mut Turn) -> bool {
    !matches!(
        turn.over.try_recv(),
        Err(oneshot::error::TryRecvError::Empty)
    )
}

#[test]
fn the_half_open_push_out_each_other_and_nobody_else() {
    let limits = DoorLimits {
        per_address: 10_000,
        ..LIMITS
    };
    let (door, start) = (Arc::new(Door::default()), Instant::now());
    let mut good = begun(door.knock(address(9), true, &limits, start)).unwrap();
    let mut half_open = Vec::new();
    for n in 0..3 * MAX_HANDSHAKES {
        // As fast as all together may.
        let start = start + Duration::from_millis(2 * n as u64);
        let from = address(1 + (n % 2) as u32);
        half_open.extend(begun(door.knock(from, true, &limits, start)));
        assert!(door.busy() <= MAX_HANDSHAKES);
        assert!(!is_over(&mut good), "{n}");
    }
    let over = half_open
        .iter_mut()
        .filter_map(|turn| is_over(turn).then_some(()));
    assert_eq!(over.count(), half_open.len() + 1 - MAX_HANDSHAKES);
    // Those who went were the oldest.
    assert!(is_over(&mut half_open[0]) && !is_over(half_open.last_mut().unwrap()));
}

#[test]
fn a_network_of_ipv6_is_one_address() {
    let of = |text: &str| network(text.parse().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_ne!(of("10.0.0.2"), of("10.0.0.1"));
}

proptest! {
    #[test]
    fn whoever_knocks_the_door_stays_bounded(
        knocks in vec((0u32..20_000, any::<bool>(), 0u64..50, any::<bool>()), 1..3000),
    ) {
        let (door, mut now) = (Arc::new(Door::default()), Instant::now());
        let mut turns = Vec::new();
        for (from, proved, wait, leave) in knocks {
            now += Duration::from_millis(wait);
            turns.extend(begun(door.knock(address(from), proved, &LIMITS, now)));
            if leave && !turns.is_empty() {
                turns.swap_remove(0);
            }
            prop_assert!(door.busy() <= MAX_HANDSHAKES.min(turns.len()));
            prop_assert!(door.lock().addresses.len() <= MAX_DOOR_ADDRESSES);
        }
    }
}
