//! The drill: load on a broker that is killed over and over, and the reckoning.

mod sealing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream::proto::pipeline::{PipelineSpec, PipelineState};
use millstream::proto::topic::Durability;
use millstream::{Client, ConsumeError, PipelineName, ProduceError, TopicConfig, TopicName};
use millstream_guests::{FILTER_JSON, ROUTE_BY_REGION, SPLIT_ALERTS};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::child::Storage;
use crate::history::{self, Item, Log, Promise, Source, Tally};
use crate::load::{Count, Ledger, Load, Reading, open_tail, produce, read_in_pieces, tail};
use crate::quake;
use crate::rig::{Rig, make_topic, read_all, topic, upload};
pub use sealing::Sealed;
use sealing::{Event, Moment, QUICK_ENDS, Sealing};

/// Producers that go on over all crashes.
const PRODUCERS: u32 = 3;
/// Records that one of them sends at most: a bound, far above what a drill needs.
const PRODUCER_RECORDS: u64 = 1_000_000;
/// Records of a producer that is cut off by the next crash.
const VISITOR_RECORDS: u64 = 2_000;
/// Number of the first such producer.
const FIRST_VISITOR: u32 = 100;
/// Most alerts seen between two crashes.
const ALERTS_APART: u64 = 100;
/// Partitions of the topic.
const PARTITIONS: u32 = 4;
/// Partitions of what the pipeline writes.
const ALERT_PARTITIONS: u32 = 3;
const LOG_PARTITIONS: u32 = 2;
/// How long anything may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a drill is about.
#[derive(Clone, Copy, Debug)]
pub struct Drill {
    /// Decides where the crashes are.
    pub seed: u64,
    /// How the broker ends.
    pub end: End,
    /// How often.
    pub cycles: usize,
    /// Most acknowledgements between two ends.
    pub acks_apart: u64,
    /// What an acknowledgement of the topic means.
    pub durability: Durability,
    /// Whether a filter and a partitioner stand before the topic.
    pub chain: bool,
    /// Whether a pipeline reads the topic.
    pub pipeline: bool,
    /// Whether the topics are read while they grow.
    pub readers: bool,
    /// Whether records are always being sealed, removed and backed up, and the broker ends in the
    /// middle of that.
    pub sealing: bool,
}

/// How a broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGKILL; at times its successor too, as soon as it is born.
    Killed,
    /// Asked to.
    Stopped,
}

/// What a drill showed.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How often the broker ended.
    pub ends: usize,
    /// The records of the topic.
    pub records: Tally,
    /// The pipeline's records, over both outputs.
    pub derived: Option<Tally>,
    /// What came of sealing, if there was some.
    pub sealed: Option<Sealed>,
}

/// What happens next to the broker.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// Its end after so many more acknowledgements.
    Acks(u64),
    /// Its end after so many more alerts were seen.
    Alerts(u64),
    /// Its end as soon as it serves.
    AtOnce,
    /// Its end in the middle of sealing.
    Sealing(Moment),
}

/// Everything that goes on while the broker dies.
struct Stage {
    drill: Drill,
    rig: Rig,
    client: Client,
    input: TopicName,
    alerts: TopicName,
    log: TopicName,
    ledgers: Vec<Ledger>,
    /// Acknowledgements of those producers that go on over all crashes.
    acks: Count,
    read: Reading,
    read_in_pieces: Reading,
    read_alerts: Reading,
    sealing: Option<Sealing>,
}

type Reader = JoinHandle<Result<(), ConsumeError>>;

/// Runs a drill with `program` as the broker.
///
/// # Panics
/// With what does not hold, and how to repeat it.
pub async fn run(program: &str, drill: Drill) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(drill.seed);
    let mut stage = Stage::set(program, drill).await;
    let (end, stop) = watch::channel(false);
    let mut producers: Vec<JoinHandle<Result<(), ProduceError>>> = (0..PRODUCERS)
        .map(|source| {
            let acks = stage.acks.clone();
            let load = stage.load(source, PRODUCER_RECORDS, acks, stop.clone());
            tokio::spawn(produce(stage.client.clone(), load))
        })
        .collect();
    let readers = stage.open_readers().await;
    let mut backups = None;
    if let Some(sealing) = &mut stage.sealing {
        let (heavy, backing_up) = sealing.begin(&stage.client, &stop);
        producers.extend(heavy);
        backups = Some(backing_up);
    }
    for cycle in 0..drill.cycles {
        stage.cycle(&mut rng, cycle as u32, &stop).await;
    }
    end.send_replace(true);
    for producer in producers {
        let ended = stage.patiently("a producer to end", producer).await;
        ended
            .expect("producers do not panic")
            .expect("producers outlive every crash");
    }
    let outcome = stage.reckon().await;
    for reader in readers {
        assert!(!reader.is_finished(), "readers outlive every crash");
        reader.abort();
    }
    if let Some(backups) = backups {
        assert!(!backups.is_finished(), "backups are made after every crash");
        backups.abort();
    }
    Outcome {
        sealed: stage.reckon_sealing().await,
        ..outcome
    }
}

impl Drill {
    fn home(&self) -> fn(&Item) -> Option<u32> {
        if self.chain {
            |item| quake::passes(item).then(|| quake::region(item, PARTITIONS))
        } else {
            |item| Some(quake::by_key(item, PARTITIONS))
        }
    }

    fn blow(&self, rng: &mut ChaCha8Rng) -> Blow {
        match rng.random_range(0..8) {
            _ if self.sealing => Blow::Sealing(Moment::draw(rng)),
            0 => Blow::AtOnce,
            1..=3 if self.pipeline && self.readers => {
                Blow::Alerts(rng.random_range(1..=ALERTS_APART))
            }
            _ => Blow::Acks(rng.random_range(1..=self.acks_apart)),
        }
    }

    fn promise(&self, crashes: usize) -> Promise {
        match self.durability {
            Durability::Fsync => Promise::Durable,
            Durability::Interval => Promise::NewestMayGo { crashes },
        }
    }
}

fn pipeline_name() -> PipelineName {
    "acme/alerts".parse().expect("a pipeline's name")
}

impl Stage {
    async fn set(program: &str, drill: Drill) -> Self {
        let storage = if drill.sealing {
            Storage::Small
        } else {
            Storage::Usual
        };
        let rig = Rig::start(program, storage, None).await;
        let client = rig.client().await;
        let mut stage = Self {
            drill,
            rig,
            client,
            input: topic("acme/quakes"),
            alerts: topic("acme/alerts"),
            log: topic("acme/log"),
            ledgers: Vec::new(),
            acks: Count::default(),
            read: Reading::default(),
            read_in_pieces: Reading::default(),
            read_alerts: Reading::default(),
            sealing: None,
        };
        let Drill {
            durability,
            chain,
            pipeline,
            ..
        } = drill;
        if drill.sealing {
            let sealing = Sealing::set(&stage.client, stage.rig.data()).await;
            stage.sealing = Some(sealing);
        }
        let client = &stage.client;
        let config = |partitions| TopicConfig {
            partitions,
            durability,
            ..TopicConfig::default()
        };
        make_topic(client, &stage.input, config(PARTITIONS)).await;
        if chain || pipeline {
            let filter = quake::filter(upload(client, FILTER_JSON).await);
            if chain {
                let route = millstream::PluginUse::new(upload(client, ROUTE_BY_REGION).await);
                for plugin in [filter.clone(), route] {
                    let attached = client.attach(stage.input.clone(), plugin).await;
                    attached.expect("the plugin can be attached");
                }
            }
            if pipeline {
                make_topic(client, &stage.alerts, config(ALERT_PARTITIONS)).await;
                make_topic(client, &stage.log, config(LOG_PARTITIONS)).await;
                let split = quake::split(upload(client, SPLIT_ALERTS).await);
                let outputs = [("alerts", &stage.alerts), ("log", &stage.log)];
                let spec = PipelineSpec {
                    name: pipeline_name(),
                    input: stage.input.clone(),
                    from_latest: false,
                    steps: vec![filter, split],
                    outputs: outputs
                        .map(|(name, topic)| (name.to_owned(), topic.clone()))
                        .into(),
                };
                client
                    .apply_pipeline(spec)
                    .await
                    .expect("the pipeline can be applied");
            }
        }
        stage
    }

    fn load(&mut self, source: u32, most: u64, acks: Count, stop: watch::Receiver<bool>) -> Load {
        let ledger = Ledger::new(format!("producer {source}"));
        self.ledgers.push(ledger.clone());
        Load {
            topic: self.input.clone(),
            source,
            item: quake::quake,
            most,
            home: self.drill.home(),
            ledger,
            acks,
            stop,
        }
    }

    /// Readers have a connection of their own, which carries nothing to the broker.
    async fn open_readers(&self) -> Vec<Reader> {
        let mut readers = Vec::new();
        if !self.drill.readers {
            return readers;
        }
        let client = self.rig.client().await;
        let tails = [
            (true, &self.input, &self.read),
            (self.drill.pipeline, &self.alerts, &self.read_alerts),
        ];
        for (_, topic, reading) in tails.into_iter().filter(|(wanted, ..)| *wanted) {
            let consumer = open_tail(&client, topic)
                .await
                .expect("the topic can be read");
            readers.push(tokio::spawn(tail(consumer, reading.clone())));
        }
        let name = "pieces".parse().expect("a consumer's name");
        let reading = self.read_in_pieces.clone();
        let pieces = read_in_pieces(client, self.input.clone(), name, reading);
        readers.push(tokio::spawn(pieces));
        readers
    }

    /// One end and one beginning.
    async fn cycle(&mut self, rng: &mut ChaCha8Rng, cycle: u32, stop: &watch::Receiver<bool>) {
        let visitor = self.rig.client().await;
        let source = FIRST_VISITOR + cycle;
        let load = self.load(source, VISITOR_RECORDS, Count::default(), stop.clone());
        let visit = tokio::spawn(produce(visitor.clone(), load));
        let blow = self.drill.blow(rng);
        let what = format!("{blow:?} in cycle {cycle}");
        match blow {
            Blow::AtOnce => {}
            Blow::Acks(n) => {
                self.patiently(&what, self.acks.reach(self.acks.get() + n))
                    .await;
            }
            Blow::Alerts(n) => {
                let count = &self.read_alerts.count;
                self.patiently(&what, count.reach(count.get() + n)).await;
            }
            Blow::Sealing(moment) => {
                for _ in 0..QUICK_ENDS {
                    self.kill_at(Moment::draw(rng), &what).await;
                    self.inspect(rng).await;
                    self.rig.revive().await;
                }
                self.kill_at(moment, &what).await;
            }
        }
        match self.drill.end {
            End::Killed => self.rig.kill(),
            End::Stopped => self.rig.stop().await,
        }
        // What the visitor was not told by now it will never be told.
        visit.abort();
        tokio::spawn(async move { visitor.close().await });
        if self.drill.end == End::Killed && rng.random_bool(0.25) {
            self.rig.kill_at_birth();
        }
        self.inspect(rng).await;
        self.rig.revive().await;
        self.reckon_so_far().await;
    }

    /// Kills the broker at a moment of sealing.
    async fn kill_at(&mut self, moment: Moment, what: &str) {
        let late = Arc::<AtomicBool>::default();
        let Some(sealing) = &self.sealing else {
            return;
        };
        if moment.event == Event::Opening {
            self.rig.kill();
            self.rig.be_born();
        }
        let is_time = sealing.watch(moment, Arc::clone(&late));
        let killed = timeout(PATIENCE, self.rig.kill_when(is_time)).await;
        if killed.is_err() {
            // Or the thread that watches would go on.
            late.store(true, Ordering::Relaxed);
            self.fail(&format!("waited {PATIENCE:?} for {what}"));
        }
    }

    /// Waits for `what`, but not for ever.
    async fn patiently<T>(&self, what: &str, waiting: impl Future<Output = T>) -> T {
        match timeout(PATIENCE, waiting).await {
            Ok(value) => value,
            Err(_) => self.fail(&format!("waited {PATIENCE:?} for {what}")),
        }
    }

    fn fail(&self, why: &str) -> ! {
        let (drill, acks, log) = (self.drill, self.acks.get(), self.rig.log_tail());
        panic!("{why}\n{drill:?}, {acks} acknowledgements so far; the broker logged:\n{log}")
    }

    fn must<T>(&self, what: &str, checked: Result<T, Vec<history::Violation>>) -> T {
        checked.unwrap_or_else(|violations| {
            let list: Vec<String> = violations.iter().map(ToString::to_string).collect();
            self.fail(&format!("{what}:\n  {}", list.join("\n  ")))
        })
    }

    /// Everything that was promised, compared with everything that is there.
    async fn reckon(&self) -> Outcome {
        let sources: Vec<Source> = self.ledgers.iter().map(Ledger::source).collect();
        let log = self
            .patiently("the topic", read_all(&self.client, &self.input))
            .await;
        let promise = self.drill.promise(self.rig.crashes());
        let checked = history::check(&sources, &log, promise);
        let records = self.must("the topic", checked);
        if self.drill.readers {
            self.same_reading("the reader of the topic", &self.read, &log)
                .await;
            let pieces = &self.read_in_pieces;
            self.same_reading("the reader that commits", pieces, &log)
                .await;
        }
        let derived = match self.drill.pipeline {
            true => Some(self.reckon_pipeline(&log).await),
            false => None,
        };
        Outcome {
            ends: self.rig.ends(),
            records,
            derived,
            sealed: None,
        }
    }

    async fn same_reading(&self, what: &str, reading: &Reading, log: &Log) {
        self.patiently(what, reading.count.reach(log.len() as u64))
            .await;
        self.must(what, history::check_reading(&reading.seen(), log));
    }

    async fn reckon_pipeline(&self, input: &Log) -> Tally {
        let (tally, alerts) = self.fold(input).await;
        if self.drill.readers {
            self.same_reading("the reader of the alerts", &self.read_alerts, &alerts)
                .await;
        }
        tally
    }

    /// Compares what the pipeline has made of `input`, which is all there is, with what it should
    /// have made. Returns its alerts, too.
    async fn fold(&self, input: &Log) -> (Tally, Log) {
        self.patiently("the pipeline", self.pipeline_catches_up(input))
            .await;
        let kept = |item: &Item| quake::passes(item).then(|| item.clone());
        let alert = |item: &Item| kept(item).as_ref().and_then(quake::alert);
        let alerts = read_all(&self.client, &self.alerts).await;
        let expected = history::derived(input, ALERT_PARTITIONS, alert);
        let checked = history::check(&expected, &alerts, Promise::Durable);
        let tally = self.must("the pipeline's alerts", checked);
        let log = read_all(&self.client, &self.log).await;
        let expected = history::derived(input, LOG_PARTITIONS, kept);
        let also = history::check(&expected, &log, Promise::Durable);
        let also = self.must("the pipeline's log", also);
        let both = Tally {
            acked: tally.acked + also.acked,
            ..tally
        };
        (both, alerts)
    }

    async fn pipeline_catches_up(&self, input: &Log) {
        loop {
            let info = self.client.show_pipeline(pipeline_name()).await;
            let info = info.expect("the pipeline can be shown");
            if info.state != PipelineState::Running {
                self.fail(&format!("the pipeline is {:?}", info.state));
            }
            let at_end = |(p, entries): (usize, &Vec<_>)| {
                let position = info.progress.iter().find(|at| at.partition.0 as usize == p);
                position.is_some_and(|at| at.position.0 == entries.len() as u64)
            };
            if input.partitions.iter().enumerate().all(at_end) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}
