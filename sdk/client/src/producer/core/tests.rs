#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use futures_util::FutureExt;
use millstream_proto::Offset;
use millstream_proto::message::Placement;
use millstream_proto::topic::Spread;
use proptest::prelude::*;

use super::*;
use crate::ambient::Stopped;
use crate::producer::gather::Rules;
use crate::producer::slot::Delivery;
use crate::retry::Backoff;

fn at(instant: Instant) -> Stopped {
    Stopped { instant, millis: 0 }
}

const LINGER: Duration = Duration::from_millis(10);
const DEADLINE: Duration = Duration::from_secs(10);

fn core(linger: Duration, in_flight: usize, id: u64) -> Core {
    let topic: TopicName = "acme/t".parse().unwrap();
    let settings = Settings {
        linger,
        batch_bytes: 1000,
        in_flight,
        codec: Codec::None,
        id: ProducerId(id),
    };
    let rules = Rules {
        partitions: 2,
        broker_routes: false,
        spread: Spread::KeyHash,
        batch_bytes: 1000,
        max_record_bytes: 5000,
    };
    let attempts = Attempts::new(Backoff::default(), DEADLINE);
    Core::new(topic, settings, Gather::new(rules, 0), attempts)
}

/// Offers a record of 400 bytes to partition 0: two fill a batch.
fn offer(core: &mut Core, now: Instant) -> Option<Delivery> {
    let value = [7; 400];
    let record = Record::value(&value).partition(PartitionId(0));
    match core.offer(&record, &at(now)).unwrap() {
        Offer::Taken(lane) => {
            let (slot, index) = core.gather().last(lane);
            Some(Delivery::new(Arc::clone(slot), index))
        }
        Offer::NoRoom => None,
    }
}

fn sent(step: Step) -> (u64, u32) {
    match step {
        Step::Send {
            sequence, batch, ..
        } => (sequence, batch.count()),
        other => panic!("{other:?} instead of a batch"),
    }
}

fn ack(base: u64, count: u32) -> Ack {
    Ack {
        placements: vec![Placement {
            partition: PartitionId(0),
            base: Offset(base),
            count,
        }],
        duplicate: false,
        dropped: 0,
    }
}

fn wire(code: ErrorCode) -> WireError {
    WireError::new(code, "as asked")
}

#[test]
fn without_linger_what_has_gathered_goes_at_once() {
    let now = Instant::now();
    let mut core = core(Duration::ZERO, 4, 1);
    assert!(matches!(core.step(now), Step::Park(None)));
    assert!(core.wake_writer() && !core.wake_writer(), "woken once");
    drop(offer(&mut core, now).unwrap());
    drop(offer(&mut core, now).unwrap());
    assert_eq!(sent(core.step(now)), (0, 2));
    assert!(matches!(core.step(now), Step::Park(None)));
}

#[test]
fn with_linger_a_batch_waits_until_it_is_due_or_full() {
    let now = Instant::now();
    let mut core = core(LINGER, 4, 1);
    drop(offer(&mut core, now).unwrap());
    match core.step(now) {
        Step::Park(Some(until)) => assert_eq!(until, now + LINGER),
        other => panic!("{other:?}"),
    }
    assert_eq!(sent(core.step(now + LINGER)), (0, 1));
    // Two fill a batch; the third seals it.
    (0..3).for_each(|_| assert!(offer(&mut core, now).is_some()));
    assert_eq!(core.take_sealed(), 2);
    assert_eq!(sent(core.step(now)), (1, 2));
}

#[test]
fn a_full_window_gathers_but_does_not_send() {
    let now = Instant::now();
    let mut core = core(Duration::ZERO, 1, 1);
    let first = offer(&mut core, now).unwrap();
    assert_eq!(sent(core.step(now)), (0, 1));
    assert!(offer(&mut core, now).is_some() && offer(&mut core, now).is_some());
    assert!(offer(&mut core, now).is_none(), "no room");
    assert!(matches!(core.step(now), Step::Park(None)));
    assert_eq!(core.acked(0, ack(40, 1)), Verdict::GoOn);
    let placed = first.now_or_never().unwrap().unwrap();
    assert_eq!(placed.offset, Some(Offset(40)));
    assert_eq!(sent(core.step(now)), (1, 2));
}

#[test]
fn closing_sends_the_rest_and_then_the_end_once() {
    let now = Instant::now();
    let mut core = core(LINGER, 4, 1);
    drop(offer(&mut core, now).unwrap());
    core.close();
    let late = core.offer(&Record::value(b"v"), &at(now));
    assert!(matches!(late, Err(ProduceError::Closed { .. })));
    assert_eq!(sent(core.step(now)), (0, 1));
    assert!(matches!(core.step(now), Step::End));
    assert!(matches!(core.step(now), Step::Park(None)));
}

#[test]
fn flushing_does_not_wait_for_room() {
    let now = Instant::now();
    let mut core = core(LINGER, 1, 1);
    (0..3).for_each(|_| assert!(offer(&mut core, now).is_some()));
    let mark = core.flush();
    assert_eq!(
        (mark, sent(core.step(now)), sent(core.step(now))),
        (2, (0, 2), (1, 1))
    );
    core.acked(0, ack(0, 2));
    assert!(!core.is_settled_below(mark));
    core.acked(1, ack(2, 1));
    assert!(core.is_settled_below(mark));
}

#[test]
fn a_batch_asked_for_again_waits_for_the_hint() {
    let now = Instant::now();
    let mut core = core(Duration::ZERO, 4, 1);
    drop(offer(&mut core, now).unwrap());
    sent(core.step(now));
    let error = wire(ErrorCode::Overloaded).retry_after_ms(700);
    assert_eq!(core.refused(0, error, now, 0), Verdict::GoOn);
    let Step::Park(Some(until)) = core.step(now) else {
        panic!("sent too early")
    };
    assert!(until >= now + Duration::from_millis(700));
    assert_eq!(sent(core.step(until)), (0, 1));
}

#[test]
fn patience_ends_at_the_deadline() {
    let mut now = Instant::now();
    let mut core = core(Duration::ZERO, 4, 1);
    drop(offer(&mut core, now).unwrap());
    let verdict = loop {
        sent(core.step(now));
        match core.refused(0, wire(ErrorCode::Overloaded), now, u64::MAX) {
            Verdict::GoOn => now = core.paused_until().unwrap(),
            other => break other,
        }
    };
    assert!(matches!(
        verdict,
        Verdict::Fail(ProduceError::Refused { .. })
    ));
}

#[test]
fn errors_of_the_stream_are_told_apart() {
    let check = |code, again: bool| {
        let verdict = core(LINGER, 4, 1).stream_refused(wire(code), Instant::now(), 0);
        assert_eq!(verdict == Verdict::Reopen, again, "{code}: {verdict:?}");
    };
    check(ErrorCode::ShuttingDown, true);
    check(ErrorCode::SequenceGap, true);
    check(ErrorCode::ProducerFenced, false);
    check(ErrorCode::NotAuthorized, false);
    check(ErrorCode::TopicDeleted, false);
}

#[test]
fn an_answer_to_nothing_is_an_error() {
    let mut core = core(LINGER, 4, 1);
    let verdict = core.acked(5, ack(0, 1));
    assert!(matches!(
        verdict,
        Verdict::Fail(ProduceError::Protocol { .. })
    ));
}

#[test]
fn a_lost_stream_leaves_the_outcome_open_only_without_an_identity() {
    for id in [0, 1] {
        let now = Instant::now();
        let mut core = core(Duration::ZERO, 4, id);
        let lost = offer(&mut core, now).unwrap();
        sent(core.step(now));
        let unsent = offer(&mut core, now).unwrap();
        assert_eq!(core.stream_lost(now, 0), Verdict::Reopen);
        core.stream_gone();
        let rules = *core.gather().rules();
        core.reopened(rules);
        let told = lost.now_or_never();
        assert!(unsent.now_or_never().is_none(), "it is still to be sent");
        if id == 0 {
            assert!(matches!(
                told,
                Some(Err(ProduceError::OutcomeUnknown { .. }))
            ));
            assert_eq!(sent(core.step(now)), (1, 1));
        } else {
            assert!(told.is_none());
            assert_eq!(sent(core.step(now)), (0, 1), "it is sent again");
        }
    }
}

#[test]
fn an_idle_producer_survives_losses_far_apart() {
    let mut core = core(LINGER, 4, 1);
    let mut now = Instant::now();
    for _ in 0..5 {
        assert_eq!(core.stream_lost(now, 0), Verdict::Reopen);
        let rules = *core.gather().rules();
        core.reopened(rules);
        now += DEADLINE * 2;
    }
}

#[test]
fn what_is_left_at_the_end_is_told_why() {
    let now = Instant::now();
    let mut core = core(LINGER, 4, 1);
    let gathered = offer(&mut core, now).unwrap();
    let why = ProduceError::Closed {
        topic: "acme/t".parse().unwrap(),
    };
    core.finish(why.clone());
    assert_eq!(gathered.now_or_never(), Some(Err(why.clone())));
    assert_eq!(core.check_open(), Err(why.clone()));
    assert_eq!(core.failure(), Some(why), "a record was not stored");
}

#[test]
fn closing_in_good_order_is_no_failure() {
    let now = Instant::now();
    let mut core = core(LINGER, 4, 1);
    drop(offer(&mut core, now).unwrap());
    core.close();
    sent(core.step(now));
    assert!(!core.is_drained());
    core.acked(0, ack(0, 1));
    assert!(core.is_drained());
    core.finish(ProduceError::Closed {
        topic: "acme/t".parse().unwrap(),
    });
    assert!(core.is_over());
    assert_eq!(core.failure(), None);
}

proptest! {
    /// Whatever the order of records, turns of the writer, answers and time: the
    /// window's limit holds, and every record taken is placed once, in order.
    #[test]
    fn everything_taken_is_placed_once_and_in_order(
        steps in proptest::collection::vec(0u8..4, 1..400),
        linger_ms in 0u64..5,
        in_flight in 1usize..5,
    ) {
        let mut core = core(Duration::from_millis(linger_ms), in_flight, 1);
        let mut now = Instant::now();
        let (mut taken, mut wire, mut end) = (Vec::new(), std::collections::VecDeque::new(), 0u64);
        let finish = std::iter::repeat_n([1, 2], 800).flatten();
        let mut closed = false;
        for (i, step) in steps.iter().copied().chain(finish).enumerate() {
            if i == steps.len() {
                core.close();
                closed = true;
            }
            match step {
                0 if !closed => taken.extend(offer(&mut core, now)),
                1 => match core.step(now) {
                    Step::Send { sequence, batch, .. } => wire.push_back((sequence, batch.count())),
                    Step::End => prop_assert!(closed),
                    Step::Park(_) => {}
                },
                2 => {
                    if let Some((sequence, count)) = wire.pop_front() {
                        prop_assert_eq!(core.acked(sequence, ack(end, count)), Verdict::GoOn);
                        end += u64::from(count);
                    }
                }
                _ => now += Duration::from_millis(1),
            }
            prop_assert!(wire.len() <= in_flight);
        }
        prop_assert_eq!(end, taken.len() as u64);
        for (i, delivery) in (0u64..).zip(taken) {
            let placed = delivery.now_or_never();
            prop_assert_eq!(placed.unwrap().unwrap().offset, Some(Offset(i)));
        }
    }
}

#[test]
fn a_batch_wanted_again_after_the_end_was_said_goes_out_on_another_stream() {
    let now = Instant::now();
    let mut core = core(Duration::ZERO, 4, 1);
    let delivery = offer(&mut core, now).unwrap();
    core.close();
    assert_eq!(sent(core.step(now)), (0, 1));
    assert!(matches!(core.step(now), Step::End));
    let again = core.refused(0, wire(ErrorCode::PluginRetry), now, 0);
    assert_eq!(again, Verdict::Reopen);
    core.stream_gone();
    assert!(!core.is_drained());
    let later = core.paused_until().unwrap();
    let rules = *core.gather().rules();
    core.reopened(rules);
    assert_eq!(sent(core.step(later)), (0, 1));
    assert!(matches!(core.step(later), Step::End));
    assert_eq!(core.acked(0, ack(7, 1)), Verdict::GoOn);
    let placed = delivery.now_or_never().unwrap().unwrap();
    assert_eq!(placed.offset, Some(Offset(7)));
}
