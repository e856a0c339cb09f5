//! What a bad plugin costs the others: turns, waiting, and nothing after it is cut off.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use millstream_guests as guests;

use crate::Runner;
use crate::limits::{Limits, TENANT_CALLS, TICK};
use crate::testing::{engine, limits, plugin, quakes, runner, spec};

/// Runs a guest that spins for `cpu`, and beside it, on the same thread, rounds of `other`;
/// returns how many rounds there were.
async fn rounds_beside_a_spinner(cpu: Duration, other: impl AsyncFn()) -> u32 {
    let spec = spec(
        &[("mode", "spin")],
        Limits {
            call_cpu: cpu,
            ..limits()
        },
    );
    let mut spinner = Runner::new(engine(), plugin(guests::BAD_FILTER), spec).unwrap();
    spinner.needs().await.unwrap();
    let spin = tokio::spawn(async move { spinner.filter(&quakes().columns()).await });
    let rounds = Cell::new(0);
    while !spin.is_finished() {
        other().await;
        rounds.set(rounds.get() + 1);
    }
    assert!(spin.await.unwrap().is_err());
    rounds.get()
}

#[tokio::test]
async fn neighbours_have_a_turn_at_every_tick() {
    let ticks = 20;
    let rounds = rounds_beside_a_spinner(TICK * ticks, tokio::task::yield_now).await;
    // Under load a tick may pass unseen, but not most of them.
    assert!(rounds >= ticks / 2, "{rounds}");
}

#[tokio::test]
async fn the_network_is_looked_at_while_a_guest_spins() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let ticks = 40;
    let rounds = rounds_beside_a_spinner(TICK * ticks, async || {
        socket.send_to(b"x", address).await.unwrap();
        socket.recv(&mut [0; 8]).await.unwrap();
    });
    let rounds = rounds.await;
    assert!(rounds >= ticks / 4, "{rounds}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_plugin_waits_for_its_next_turn() {
    let call_cpu = 2 * TICK;
    let limits = Limits {
        call_cpu,
        penalty_factor: 19,
        ..limits()
    };
    let spec = spec(&[("mode", "spin")], limits);
    let mut runner = Runner::new(engine(), plugin(guests::BAD_FILTER), spec).unwrap();
    runner.needs().await.unwrap();
    let batch = quakes();
    assert!(runner.filter(&batch.columns()).await.is_err());
    let began = tokio::time::Instant::now();
    assert!(runner.filter(&batch.columns()).await.is_err());
    // Time is stopped but for waiting.
    assert!(began.elapsed() >= 19 * call_cpu, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_plugin_keeps_to_its_share_of_a_core() {
    let limits = Limits {
        cpu_share: 0.01,
        cpu_burst: Duration::ZERO,
        ..limits()
    };
    let spec = spec(&[], limits);
    let mut runner = Runner::new(engine(), plugin(guests::BAD_FILTER), spec).unwrap();
    let batch = quakes();
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        assert!(runner.filter(&batch.columns()).await.is_ok());
    }
    // Start and two calls were paid for before the third; each hundredfold.
    let used = runner.usage().cpu();
    assert!(
        began.elapsed() > used * 20,
        "{:?} for {used:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_the_runner_whole() {
    let mut runner = runner(guests::BAD_FILTER, &[("mode", "spin")]);
    runner.needs().await.unwrap();
    let free = engine().free_instances();
    let batch = quakes();
    let columns = batch.columns();
    tokio::select! {
        biased;
        _ = runner.filter(&columns) => panic!("it spins"),
        () = tokio::task::yield_now() => {}
    }
    assert!(engine().free_instances() <= free + 1);
    runner.release();
    assert!(runner.needs().await.is_ok());
    assert_eq!(runner.usage().starts(), 2);
}

#[tokio::test]
async fn a_busy_tenant_keeps_no_other_from_its_turn() {
    let runner_of = |tenant: &str| {
        let mut spec = spec(&[], limits());
        spec.tenant = tenant.parse().unwrap();
        Runner::new(engine(), plugin(guests::BAD_FILTER), spec).unwrap()
    };
    let (mut late, mut other) = (runner_of("busy"), runner_of("other"));
    late.needs().await.unwrap();
    let turns = engine().turns(&"busy".parse().unwrap());
    let busy = turns.acquire_many(TENANT_CALLS as u32).await.unwrap();
    let batch = quakes();
    let columns = batch.columns();
    let mut late = pin!(late.filter(&columns));
    let waits = poll_fn(|context| Poll::Ready(late.as_mut().poll(context).is_pending()));
    assert!(waits.await);
    assert!(other.filter(&columns).await.is_ok());
    drop(busy);
    assert!(late.await.is_ok());
}
