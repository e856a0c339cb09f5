//! A consumer that reads a backlog which no cache holds: how fast, and what that costs producers.

use futures_util::future::join;
use millstream_proto::TopicName;

use super::latency::{self, Ticks, acks};
use super::live::Live;
use super::payload::{Payload, Shape};
use super::report::{Report, percentile};
use super::retention::between;
use super::scenario::{QUIC, consume, create, produce};
use super::stage::Stage;
use super::{Bench, disk, process};
use crate::error::{CliError, Outcome};

/// What was read, and from where.
#[derive(Clone, Copy)]
struct Reading {
    /// Bytes per second, as they are stored.
    rate: f64,
    /// What part of them came from the device.
    cold: f64,
}

/// Single records at a steady rate: what they waited for.
struct Waits {
    acks: Vec<f64>,
    /// The 99th percentile of the store's commits, in microseconds.
    commit: f64,
}

/// What one round measured.
struct Round {
    raw: f64,
    quic: f64,
    read: Reading,
    read_beside: Reading,
    alone: Waits,
    beside_cached: Waits,
    beside_cold: Waits,
}

/// Reads the backlog, alone and beside a producer of single records, and its files without a broker.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let shape = args.shape();
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    output.note("history, filling the backlog");
    let live = Live::start(stage, stage.place()?).await?;
    let backlog = create(&live.client, "backlog", shape.partitions).await?;
    let current = create(&live.client, "current", shape.partitions).await?;
    produce(&live.client, &backlog, &payload, shape, records).await?;
    let shard = live.rest().await?;
    if shard.segments == 0 {
        return Err(CliError::usage("nothing was sealed: give more --bytes"));
    }
    let stored = shard.live_bytes + shard.unsealed_bytes;
    let reader = Reader {
        stage,
        live: &live,
        topic: &backlog,
        shape,
        records,
        stored,
    };
    let producer = Single {
        live: &live,
        topic: &current,
        payload: &payload,
        rate: args.rate,
    };
    let floor = stage.floor().await?;
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        output.note(&format!("history, round {}", round + 1));
        let alone = producer.alone().await?;
        disk::forget(&live.place.data).await?;
        let raw = disk::read(&live.place.data).await?;
        let quic = floor.fetch(args.bytes).await?;
        disk::forget(&live.place.data).await?;
        let read = reader.read().await?;
        // It has just been read.
        let (beside_cached, _) = producer.beside(reader.read()).await?;
        disk::forget(&live.place.data).await?;
        let (beside_cold, read_beside) = producer.beside(reader.read()).await?;
        rounds.push(Round {
            raw,
            quic,
            read,
            read_beside,
            alone,
            beside_cached,
            beside_cold,
        });
    }
    live.end(stage).await?;
    let said = format!("{} MiB stored, 1 consumer", stored >> 20);
    tell_reading(report, &rounds, &said);
    let said = format!("{} records/s of {} B", args.rate, shape.value_bytes);
    tell_waiting(report, &rounds, &said);
    Ok(())
}

fn tell_reading(report: &mut Report, rounds: &[Round], said: &str) {
    let of = |pair: fn(&Round) -> (f64, f64)| -> Vec<(f64, f64)> {
        let pairs = rounds.iter().map(pair);
        pairs.map(|(a, b)| (a / 1e6, b / 1e6)).collect()
    };
    let pairs = of(|round| (round.read.rate, round.raw));
    let (what, raw_is) = ("reading a cold backlog", "reading its segments, cold");
    report.against(what, "MB/s", &pairs, raw_is, said.to_owned());
    let pairs = of(|round| (round.read.rate, round.quic));
    report.against("the same", "MB/s", &pairs, QUIC, String::new());
    let pairs = of(|round| (round.read_beside.rate, round.read.rate));
    let what = "the same beside a producer";
    report.against(what, "MB/s", &pairs, "alone", String::new());
    let cold = |round: &Round| round.read.cold.min(round.read_beside.cold);
    let colds: Vec<f64> = rounds.iter().map(cold).collect();
    let note = "of what the reader was sent, the rest being hot".to_owned();
    report.plain("read from the device", "x", &colds, note);
}

fn tell_waiting(report: &mut Report, rounds: &[Round], said: &str) {
    type Beside = fn(&Round) -> &Waits;
    let readers: [(&str, Beside); 2] = [
        ("a cached backlog's reader", |round| &round.beside_cached),
        ("a cold backlog's reader", |round| &round.beside_cold),
    ];
    for (reader, beside) in readers {
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            let pair = |round: &Round| {
                let beside = percentile(&beside(round).acks, share);
                (beside, percentile(&round.alone.acks, share))
            };
            let pairs: Vec<(f64, f64)> = rounds.iter().map(pair).collect();
            let what = format!("ack {name} beside {reader}");
            report.against(&what, "us", &pairs, "without", said.to_owned());
        }
        let pair = |round: &Round| (beside(round).commit, round.alone.commit);
        let pairs: Vec<(f64, f64)> = rounds.iter().map(pair).collect();
        let what = format!("commit p99 beside {reader}");
        report.against(&what, "us", &pairs, "without", String::new());
    }
}

/// A producer of single records at a steady rate.
struct Single<'a> {
    live: &'a Live,
    topic: &'a TopicName,
    payload: &'a Payload,
    rate: u32,
}

impl Single<'_> {
    async fn alone(&self) -> Outcome<Waits> {
        let count = self.rate.saturating_mul(latency::SECONDS);
        self.waits(Ticks::start(self.rate, count)).await
    }

    /// As long as `reading` takes.
    async fn beside(
        &self,
        reading: impl Future<Output = Outcome<Reading>>,
    ) -> Outcome<(Waits, Reading)> {
        let (ticks, end) = Ticks::endless(self.rate);
        let reading = async {
            let read = reading.await;
            drop(end);
            read
        };
        let (waits, read) = join(self.waits(ticks), reading).await;
        Ok((waits?, read?))
    }

    async fn waits(&self, ticks: Ticks) -> Outcome<Waits> {
        let before = self.live.storage().await?.commit_us;
        let acks = acks(&self.live.client, self.topic, self.payload, ticks).await?;
        let after = self.live.storage().await?.commit_us;
        Ok(Waits {
            acks: latency::micros(&acks),
            commit: between(&before, &after, 0.99),
        })
    }
}

/// A consumer on a thread of its own, so that what it unpacks does not delay the producer's clock.
struct Reader<'a> {
    stage: &'a Stage,
    live: &'a Live,
    topic: &'a TopicName,
    shape: Shape,
    records: u64,
    stored: u64,
}

impl Reader<'_> {
    /// Reads everything.
    async fn read(&self) -> Outcome<Reading> {
        let before = process::read(self.stage.dir());
        let config = self.stage.client_config(&self.live.broker);
        let (topic, shape, records) = (self.topic.clone(), self.shape, self.records);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.map_err(CliError::failure)?.block_on(async {
                let client = crate::link::connect_with(config).await?;
                let rate = consume(&client, &topic, shape, records).await?;
                client.close().await;
                Ok::<_, CliError>(rate)
            })
        };
        let rate = tokio::task::spawn_blocking(work).await;
        let rate = rate.map_err(CliError::failure)??;
        let given = (self.records * self.shape.record_bytes()) as f64;
        let from_device = process::read(self.stage.dir()) - before;
        Ok(Reading {
            rate: rate * self.stored as f64 / given,
            cold: from_device as f64 / self.stored as f64,
        })
    }
}
