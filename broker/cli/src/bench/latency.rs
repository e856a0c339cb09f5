//! Acknowledgement latency of single records at a steady rate, beside its floor: the sync of a
//! 4 KiB append plus a QUIC echo at the same rate.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millstream::{Client, Producer};
use millstream_proto::TopicName;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::live::Live;
use super::payload::Payload;
use super::report::percentile;
use super::scenario::create;
use super::{Bench, disk};
use crate::error::Outcome;

/// Length of one measurement.
pub(super) const SECONDS: u32 = 5;
/// Ticks that may wait to be taken.
const TICKS_AHEAD: usize = 1024;

/// Ticks at a steady rate. tokio's timer is too coarse for them, so a thread sleeps instead.
pub(super) struct Ticks(mpsc::Receiver<()>);

/// Dropping it ends ticks that were to go on for ever.
pub(super) struct End {
    // Held for its end, which the other side sees.
    _held: oneshot::Sender<()>,
}

impl Ticks {
    /// So many.
    pub(super) fn start(rate: u32, count: u32) -> Self {
        Self::tick(rate, (0..u64::from(count)).map(|tick| tick as f64))
    }

    /// As many as come before the other half is dropped.
    pub(super) fn endless(rate: u32) -> (Self, End) {
        let (held, mut other) = oneshot::channel();
        let going = move |_: &u64| matches!(other.try_recv(), Err(TryRecvError::Empty));
        let ticks = (0..u64::MAX).take_while(going).map(|tick| tick as f64);
        (Self::tick(rate, ticks), End { _held: held })
    }

    fn tick(rate: u32, ticks: impl Iterator<Item = f64> + Send + 'static) -> Self {
        let (send, receive) = mpsc::channel(TICKS_AHEAD);
        std::thread::spawn(move || {
            let begun = Instant::now();
            for tick in ticks {
                let due = begun + Duration::from_secs_f64(tick / f64::from(rate.max(1)));
                if let Some(left) = due.checked_duration_since(Instant::now()) {
                    std::thread::park_timeout(left);
                }
                if send.blocking_send(()).is_err() {
                    return;
                }
            }
        });
        Self(receive)
    }

    /// Waits for the next; false when there are no more.
    pub(super) async fn next(&mut self) -> bool {
        self.0.recv().await.is_some()
    }
}

pub(super) fn micros(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|t| t.as_secs_f64() * 1e6).collect()
}

/// Measures and reports.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let shape = args.shape();
    let payload = Payload::new(shape);
    let floor = stage.floor().await?;
    let (mut middle, mut tail) = (Vec::new(), Vec::new());
    let count = args.rate.saturating_mul(SECONDS);
    for round in 0..args.rounds {
        output.note(&format!("latency, round {}", round + 1));
        let live = Live::start(stage, stage.place()?).await?;
        let topic = create(&live.client, "latency", shape.partitions).await?;
        let ticks = Ticks::start(args.rate, count);
        let acks = acks(&live.client, &topic, &payload, ticks).await?;
        live.end(stage).await?;
        let acks = micros(&acks);
        let syncs = micros(&disk::sync_times(stage.dir(), count as usize).await?);
        let echoes = micros(&floor.echo(Ticks::start(args.rate, count)).await?);
        let at = |share| {
            let floor = percentile(&syncs, share) + percentile(&echoes, share);
            (percentile(&acks, share), floor)
        };
        middle.push(at(0.5));
        tail.push(at(0.99));
    }
    let floor_is = "fdatasync of 4 KiB + echo";
    let said = format!(
        "{} records/s of {} B, linger 0",
        args.rate, shape.value_bytes
    );
    report.against("ack latency p50", "us", &middle, floor_is, said.clone());
    report.against("ack latency p99", "us", &tail, floor_is, said);
    Ok(())
}

/// Times from handing a record over to its acknowledgement, one record at each tick.
pub(super) async fn acks(
    client: &Client,
    topic: &TopicName,
    payload: &Payload,
    ticks: Ticks,
) -> Outcome<Vec<Duration>> {
    let producer = client.producer(topic.clone()).linger(Duration::ZERO);
    let producer = producer.build().await?;
    let times = acks_of(std::slice::from_ref(&producer), payload, ticks).await?;
    producer.close().await?;
    Ok(times)
}

/// The same of several producers, which take turns.
pub(super) async fn acks_of(
    producers: &[Producer],
    payload: &Payload,
    mut ticks: Ticks,
) -> Outcome<Vec<Duration>> {
    let mut turns = producers.iter().cycle();
    let mut waiting = FuturesUnordered::new();
    let (mut times, mut number, mut more) = (Vec::new(), 0, true);
    while more || !waiting.is_empty() {
        tokio::select! {
            tick = ticks.next(), if more => {
                more = tick;
                if let (true, Some(producer)) = (tick, turns.next()) {
                    let begun = Instant::now();
                    let delivery = producer.send(&payload.record(number)).await?;
                    number += 1;
                    waiting.push(async move { delivery.await.map(|_| begun.elapsed()) });
                }
            }
            Some(acked) = waiting.next(), if !waiting.is_empty() => times.push(acked?),
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn as_many_ticks_come_as_were_asked_for() {
        let mut ticks = Ticks::start(1_000_000, 50);
        let mut seen = 0;
        while ticks.next().await {
            seen += 1;
        }
        assert_eq!(seen, 50);
    }

    #[tokio::test]
    async fn endless_ticks_end_when_they_are_told_to() {
        let (mut ticks, end) = Ticks::endless(1_000_000);
        for _ in 0..2 * TICKS_AHEAD {
            assert!(ticks.next().await);
        }
        drop(end);
        while ticks.next().await {}
    }
}
