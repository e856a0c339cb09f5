//! What a drill adds in which records are always being sealed: a topic of which retention removes
//! most again, backups one after the other, an end in the middle of all that, and a look at
//! everything after each.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream::{Client, TopicConfig, TopicName};
use millstream_broker::backup::{Progress, Selection, Which, restore};
use millstream_broker::check::offline;
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{PRODUCER_RECORDS, Stage};
use crate::backups::Backups;
use crate::history::{self, Fate, Log, Promise, Source};
use crate::load::{Count, Ledger, Load, produce};
use crate::quake;
use crate::rig::{make_topic, read_all, topic, try_read_all};

/// Producers of what is removed again. Their numbers are between those of the others.
const HEAVY_SOURCES: std::ops::Range<u32> = 50..52;
/// Partitions of their topic.
const SHORT_PARTITIONS: u32 = 3;
/// What each of them keeps.
const SHORT_BYTES: u64 = 256 << 10;
/// Most events of a kind to wait for before the end.
const MOST_EVENTS: u32 = 3;
/// Looks at the directory between an event and the end: fewer than two to the power of this. A look
/// takes some ten microseconds, a commit some milliseconds, and all of that is to be hit.
const LOOKS_POWER: u32 = 8;
/// The same for a backup, which takes longer, and for a broker's start.
const MANY_LOOKS_POWER: u32 = 11;
/// Ends one soon after the other, before it is reckoned what is there.
pub(super) const QUICK_ENDS: u32 = 2;

/// What can be seen of sealing from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A segment is being written.
    Writing,
    /// One has got its name: the commit that makes it count comes next.
    Named,
    /// One was unlinked.
    Unlinked,
    /// A backup is being made.
    BackingUp,
    /// A broker that has just been started looks at what the last one has left.
    Opening,
}

/// When the broker ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) event: Event,
    /// Which of those events.
    nth: u32,
    /// How many looks later.
    looks: u32,
}

impl Moment {
    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Self {
        let event = match rng.random_range(0..9) {
            0..=1 => Event::Writing,
            2..=5 => Event::Named,
            6 => Event::Unlinked,
            7 => Event::BackingUp,
            _ => Event::Opening,
        };
        let power = match event {
            Event::BackingUp | Event::Opening => MANY_LOOKS_POWER,
            _ => LOOKS_POWER,
        };
        let most = 1 << rng.random_range(0..=power);
        Self {
            event,
            nth: rng.random_range(1..=MOST_EVENTS),
            looks: rng.random_range(0..most),
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sealed {
    /// Ends that left a segment half-written.
    pub unfinished: usize,
    /// Ends that left a whole segment that does not count yet, or no more.
    pub unknown: usize,
    /// Backups that were made.
    pub backups: usize,
    /// Records that were removed.
    pub removed: usize,
    /// Records of the main topic in the last backup.
    pub restored: usize,
}

pub(super) struct Sealing {
    short: TopicName,
    ledgers: Vec<Ledger>,
    backups: Backups,
    segments: PathBuf,
    sealed: Sealed,
}

type Producer = JoinHandle<Result<(), millstream::ProduceError>>;

impl Sealing {
    pub(super) async fn set(client: &Client, data: &Path) -> Self {
        let short = topic("acme/short");
        let config = TopicConfig {
            partitions: SHORT_PARTITIONS,
            retention_bytes: SHORT_BYTES,
            ..TopicConfig::default()
        };
        make_topic(client, &short, config).await;
        Self {
            short,
            ledgers: Vec::new(),
            backups: Backups::new(&data.with_file_name("backups")),
            segments: data.join("shard-0.segments"),
            sealed: Sealed::default(),
        }
    }

    /// Sets off what goes on over all crashes besides the rest.
    pub(super) fn begin(
        &mut self,
        client: &Client,
        stop: &watch::Receiver<bool>,
    ) -> (Vec<Producer>, JoinHandle<()>) {
        let mut producers = Vec::new();
        for source in HEAVY_SOURCES {
            let ledger = Ledger::new(format!("heavy producer {source}"));
            self.ledgers.push(ledger.clone());
            let load = Load {
                topic: self.short.clone(),
                source,
                item: quake::heavy_quake,
                most: PRODUCER_RECORDS,
                home: |item| Some(quake::by_key(item, SHORT_PARTITIONS)),
                ledger,
                acks: Count::default(),
                stop: stop.clone(),
            };
            producers.push(tokio::spawn(produce(client.clone(), load)));
        }
        let backups = self.backups.clone().keep_making(client.clone());
        (producers, tokio::spawn(backups))
    }

    /// Says when the moment is there, to be asked all the time; or that it is `late`.
    pub(super) fn watch(
        &self,
        moment: Moment,
        late: Arc<AtomicBool>,
    ) -> impl FnMut() -> bool + Send + 'static {
        let (directory, backups) = (self.segments.clone(), self.backups.clone());
        let mut before = names(&directory);
        let (mut events, mut looks) = (0, moment.looks);
        move || {
            let now = names(&directory);
            let unfinished = |name: &&String| name.ends_with(".new");
            let events_now = match moment.event {
                _ if events >= moment.nth => 0,
                Event::Writing => now.difference(&before).filter(unfinished).count(),
                Event::Named => now.difference(&before).filter(|n| !unfinished(n)).count(),
                Event::Unlinked => before.difference(&now).filter(|n| !unfinished(n)).count(),
                Event::BackingUp if backups.is_running() => usize::MAX,
                Event::BackingUp => 0,
                Event::Opening => usize::MAX,
            };
            before = now;
            if events < moment.nth {
                events = events.saturating_add(u32::try_from(events_now).unwrap_or(u32::MAX));
            } else {
                looks = looks.saturating_sub(1);
            }
            (events >= moment.nth && looks == 0) || late.load(Ordering::Relaxed)
        }
    }

    /// Checks what the dead broker has left: a copy of it, or, so that the next broker finds it
    /// after a check, itself. And what it has backed up.
    async fn inspect(&mut self, rng: &mut ChaCha8Rng, data: &Path) -> Result<(), String> {
        let left = names(&self.segments);
        self.sealed.unfinished += usize::from(left.iter().any(|name| name.ends_with(".new")));
        let dir = if rng.random_bool(0.5) {
            data.to_owned()
        } else {
            let copy = data.with_file_name("copy");
            copy_dir(data, &copy).map_err(|error| format!("the copy: {error}"))?;
            copy
        };
        self.sealed.unknown += usize::from(check(&dir).await? > 0);
        match self.backups.wrong().await {
            none if none.is_empty() => Ok(()),
            wrong => Err(format!("backups: {wrong:#?}")),
        }
    }
}

/// The names in a directory; none if it cannot be read.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Copies a directory over another.
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir(to)?,
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// What `millstream check --data-dir` says: nothing is wrong. How many files belong to nothing?
async fn check(data: &Path) -> Result<usize, String> {
    let data = data.to_owned();
    let checked = tokio::task::spawn_blocking(move || offline::check(&data, false, |_| ())).await;
    let checked = checked.map_err(|error| error.to_string())?;
    let report = checked.map_err(|error| error.to_string())?.check;
    if report.findings.is_empty() && report.lost.is_empty() {
        Ok(report.leftovers.len())
    } else {
        Err(format!("the check: {report:#?}"))
    }
}

/// What `after` says was put in, with what was told by the time of `before`: enough to judge a log
/// that was read between the two.
fn told_before(before: &[Source], mut after: Vec<Source>) -> Vec<Source> {
    for (at, source) in after.iter_mut().enumerate() {
        let told = before.get(at).map_or(&[][..], |source| &source.puts[..]);
        for (number, put) in source.puts.iter_mut().enumerate() {
            put.fate = told.get(number).map_or(Fate::InDoubt, |put| put.fate);
        }
    }
    after
}

fn sources(ledgers: &[Ledger]) -> Vec<Source> {
    ledgers.iter().map(Ledger::source).collect()
}

/// A topic from where its partitions start, while retention is at work on it.
async fn read_retained(client: &Client, name: &TopicName) -> (Log, Vec<u64>) {
    let starts = async || {
        let info = client.describe_topic(name.clone()).await;
        let partitions = info.expect("the topic can be described").partitions;
        for partition in &partitions {
            // It removes no more than it must.
            let kept = partition.start.0 == 0 || partition.bytes >= SHORT_BYTES;
            assert!(kept, "retention has removed too much: {partition:?}");
        }
        partitions.iter().map(|p| p.start.0).collect::<Vec<_>>()
    };
    loop {
        let before = starts().await;
        // It may have been removed while it was read.
        if let Ok(log) = try_read_all(client, name).await
            && starts().await == before
        {
            return (log, before);
        }
        tokio::task::yield_now().await;
    }
}

impl Stage {
    fn sealing(&self) -> &Sealing {
        self.sealing.as_ref().expect("asked only in such a drill")
    }

    /// Looks at what the broker has left that has just been killed.
    pub(super) async fn inspect(&mut self, rng: &mut ChaCha8Rng) {
        if let Some(mut sealing) = self.sealing.take() {
            let data = self.rig.data().to_owned();
            let inspected = sealing.inspect(rng, &data).await;
            self.sealing = Some(sealing);
            inspected.unwrap_or_else(|why| self.fail(&why));
        }
    }

    /// Looks whether the broker that has just come back has everything that was acknowledged.
    pub(super) async fn reckon_so_far(&self) {
        if self.sealing.is_none() {
            return;
        }
        let before = sources(&self.ledgers);
        let log = self
            .patiently("the topic", read_all(&self.client, &self.input))
            .await;
        let sources = told_before(&before, sources(&self.ledgers));
        self.must(
            "the topic so far",
            history::check(&sources, &log, Promise::Durable),
        );
        self.reckon_short().await;
    }

    /// The same for the topic of which most is removed. Returns how much was.
    async fn reckon_short(&self) -> usize {
        let Sealing { short, ledgers, .. } = self.sealing();
        let before = sources(ledgers);
        let reading = read_retained(&self.client, short);
        let (log, starts) = self.patiently("the short topic", reading).await;
        let sources = told_before(&before, sources(ledgers));
        let checked = history::check_retained(&sources, &log, &starts, Promise::Durable);
        self.must("the short topic", checked).removed
    }

    /// Everything at the end; leaves a broker on what was restored of the last backup.
    pub(super) async fn reckon_sealing(&mut self) -> Option<Sealed> {
        self.sealing.as_ref()?;
        let removed = self.reckon_short().await;
        self.rig.stop().await;
        let checked = check(self.rig.data()).await;
        let left = checked.unwrap_or_else(|why| self.fail(&why));
        if left > 0 {
            self.fail("a broker that was stopped has left files that belong to nothing");
        }
        let restored = self.restore().await;
        let sealing = self.sealing();
        Some(Sealed {
            backups: sealing.backups.count(),
            removed,
            restored,
            ..sealing.sealed
        })
    }

    /// A broker on what was restored has the records of one moment, and its pipeline goes on from
    /// there exactly once.
    async fn restore(&mut self) -> usize {
        let data = self.rig.data().with_file_name("restored");
        let target = self.sealing().backups.target();
        let manifest = target.find(&Which::Latest).await;
        let manifest = manifest.unwrap_or_else(|error| self.fail(&error.to_string()));
        let progress = Progress::default();
        let restored = restore(target, &manifest, &data, &Selection::All, &progress).await;
        restored.unwrap_or_else(|error| self.fail(&error.to_string()));
        check(&data).await.unwrap_or_else(|why| self.fail(&why));
        self.rig.move_to(data);
        self.rig.revive().await;
        let log = read_all(&self.client, &self.input).await;
        let in_doubt = told_before(&[], sources(&self.ledgers));
        let checked = history::check(&in_doubt, &log, Promise::Durable);
        self.must("the restored topic", checked);
        self.fold(&log).await;
        log.len()
    }
}
