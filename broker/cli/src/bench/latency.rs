//! Acknowledgement latency of single records at a steady rate, beside its floor: the sync of a
//! 4 KiB append plus a QUIC echo at the same rate.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millstream::Client;
use millstream_proto::TopicName;
use millstream_proto::topic::TopicConfig;
use tokio::sync::mpsc;

use super::payload::Payload;
use super::report::{Report, percentile};
use super::stage::Stage;
use super::{BenchArgs, disk};
use crate::error::{CliError, Outcome};
use crate::output::Output;

/// Length of one measurement.
const SECONDS: u32 = 5;
/// Ticks that may wait to be taken.
const TICKS_AHEAD: usize = 1024;

/// Ticks at a steady rate. tokio's timer is too coarse for them, so a thread sleeps instead.
pub(super) struct Ticks(mpsc::Receiver<()>);

impl Ticks {
    fn start(rate: u32, count: u32) -> Self {
        let (send, receive) = mpsc::channel(TICKS_AHEAD);
        std::thread::spawn(move || {
            let begun = Instant::now();
            for tick in 0..count {
                let due = begun + Duration::from_secs_f64(f64::from(tick) / f64::from(rate.max(1)));
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

fn micros(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|t| t.as_secs_f64() * 1e6).collect()
}

/// Measures and reports.
pub(super) async fn run(
    stage: &Stage,
    args: &BenchArgs,
    report: &mut Report,
    output: &Output,
) -> Outcome {
    let shape = args.shape();
    let payload = Payload::new(shape);
    let floor = stage.floor().await?;
    let (mut middle, mut tail) = (Vec::new(), Vec::new());
    let count = args.rate.saturating_mul(SECONDS);
    for round in 0..args.rounds {
        output.note(&format!("latency, round {}", round + 1));
        let place = stage.place()?;
        let broker = stage.broker(&place).await?;
        let client = stage.client(&broker).await?;
        let topic: TopicName = "bench/latency".parse().map_err(CliError::failure)?;
        let config = TopicConfig {
            partitions: shape.partitions,
            ..TopicConfig::default()
        };
        client.create_topic(topic.clone(), config).await?;
        let acks = acks(&client, &topic, &payload, Ticks::start(args.rate, count)).await?;
        client.close().await;
        broker.kill().await.map_err(CliError::failure)?;
        stage.clear(&place)?;
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

/// Times from handing a record over to its acknowledgement.
async fn acks(
    client: &Client,
    topic: &TopicName,
    payload: &Payload,
    mut ticks: Ticks,
) -> Outcome<Vec<Duration>> {
    let producer = client
        .producer(topic.clone())
        .linger(Duration::ZERO)
        .build()
        .await?;
    let mut waiting = FuturesUnordered::new();
    let (mut times, mut number, mut more) = (Vec::new(), 0, true);
    while more || !waiting.is_empty() {
        tokio::select! {
            tick = ticks.next(), if more => {
                more = tick;
                if tick {
                    let begun = Instant::now();
                    let delivery = producer.send(&payload.record(number)).await?;
                    number += 1;
                    waiting.push(async move { delivery.await.map(|_| begun.elapsed()) });
                }
            }
            Some(acked) = waiting.next(), if !waiting.is_empty() => times.push(acked?),
        }
    }
    producer.close().await?;
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
}
