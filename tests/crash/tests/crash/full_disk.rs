//! A disk that is full: for every file, played by a limit on their size; and for segments alone, step
//! by step.

use std::cell::Cell;
use std::time::Duration;

use millstream::{Client, ErrorCode, ProduceError, TopicConfig};
use millstream_broker::check::offline;
use millstream_crash::child::Storage;
use millstream_crash::full::{FullDisk, Step};
use millstream_crash::history::{Promise, check};
use millstream_crash::load::{Count, Ledger, Load, produce};
use millstream_crash::quake;
use millstream_crash::rig::{Rig, make_topic, read_all, topic};
use millstream_e2e::eventually;
use tokio::sync::watch;

use crate::PROGRAM;

/// Largest file that the broker may write.
const DISK: u64 = 6 << 20;
/// Records that fill it more than once.
const RECORDS: u64 = 200_000;
/// The hot file of the broker with a small one.
const HOT_BYTES: u64 = 1 << 20;
/// From which on appends wait.
const FULL_BYTES: u64 = HOT_BYTES / 4 * 3;
/// How often nothing must have been acknowledged before appends count as waiting.
const STILL: u32 = 50;
/// How long clients go on trying: a full disk does not become empty by itself.
const PATIENCE: Duration = Duration::from_secs(2);

struct Ledgers {
    all: Vec<Ledger>,
    acks: Count,
    stop: watch::Sender<bool>,
}

impl Ledgers {
    fn new() -> Self {
        Self {
            all: Vec::new(),
            acks: Count::default(),
            stop: watch::channel(false).0,
        }
    }

    fn heavy_load(&mut self) -> Load {
        Load {
            item: quake::heavy_quake,
            ..self.load(RECORDS)
        }
    }

    fn load(&mut self, most: u64) -> Load {
        let source = self.all.len() as u32;
        let ledger = Ledger::new(format!("producer {source}"));
        self.all.push(ledger.clone());
        let (acks, stop) = (self.acks.clone(), self.stop.subscribe());
        let home = |item: &_| Some(quake::by_key(item, 2));
        Load {
            topic: topic("acme/quakes"),
            source,
            item: quake::quake,
            most,
            home,
            ledger,
            acks,
            stop,
        }
    }

    async fn check(&self, client: &Client) -> usize {
        let sources: Vec<_> = self.all.iter().map(Ledger::source).collect();
        let log = read_all(client, &topic("acme/quakes")).await;
        match check(&sources, &log, Promise::Durable) {
            Ok(tally) => tally.acked,
            Err(violations) => panic!("{violations:#?}"),
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_takes_nothing_that_was_acknowledged() {
    let mut rig = Rig::start(PROGRAM, Storage::Usual, Some(DISK)).await;
    let config = rig.client_config().reconnect_deadline(PATIENCE);
    let client = Client::connect(config).await.unwrap();
    let config = TopicConfig {
        partitions: 2,
        ..TopicConfig::default()
    };
    make_topic(&client, &topic("acme/quakes"), config).await;
    let mut ledgers = Ledgers::new();

    let load = ledgers.load(RECORDS);
    let full = produce(client.clone(), load).await.unwrap_err();
    let ProduceError::Refused { error, .. } = &full else {
        panic!("{full:?}; the broker logged:\n{}", rig.log_tail());
    };
    assert_eq!(error.code, ErrorCode::StorageStopped, "{full}");
    let told = full.to_string();
    assert!(
        told.contains("acme/quakes") && told.contains("is full"),
        "{told}"
    );
    let acked = ledgers.acks.get();
    assert!(acked > 0, "there was room at first");

    // It stays up and says why, and nothing is acknowledged any more.
    assert!(rig.runs(), "the broker logged:\n{}", rig.log_tail());
    let status = client.status().await.unwrap();
    let stopped = status.shards[0].stopped.clone().unwrap_or_default();
    assert!(
        stopped.contains("is full") && stopped.contains("restart"),
        "{stopped:?}"
    );
    let load = ledgers.load(10);
    produce(client.clone(), load).await.unwrap_err();
    assert_eq!(ledgers.acks.get(), acked);

    assert_eq!(
        ledgers.check(&client).await as u64,
        acked,
        "reading goes on"
    );

    // With room again: everything that was acknowledged is there, and it goes on.
    rig.kill();
    rig.lift_file_limit();
    rig.revive().await;
    let client = rig.client().await;
    assert_eq!(ledgers.check(&client).await as u64, acked);
    let load = ledgers.load(100);
    produce(client.clone(), load).await.unwrap();
    assert_eq!(ledgers.check(&client).await as u64, acked + 100);
}

/// What is wrong with the storage, if something is.
async fn trouble(client: &Client) -> Option<String> {
    client.storage().await.unwrap().remove(0).trouble
}

/// Waits until there is trouble, and sees that it says what, where, and what to do.
async fn is_told(client: &Client) {
    let told = eventually("the trouble to be told", async || trouble(client).await).await;
    for part in [
        "cannot be sealed",
        "shard-0.segments",
        "No space left on device",
        "appends wait",
        "free space on that disk",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

/// Waits until no append gets through any more.
async fn appends_wait(client: &Client, acks: &Count) {
    let last = Cell::new((0, 0));
    eventually("appends to wait", async || {
        let (count, times) = last.get();
        let now = acks.get();
        last.set(if now == count {
            (now, times + 1)
        } else {
            (now, 0)
        });
        let storage = client.storage().await.unwrap().remove(0);
        (times >= STILL && storage.unsealed_bytes >= FULL_BYTES).then_some(())
    })
    .await;
    let storage = client.storage().await.unwrap().remove(0);
    assert!(storage.hot_bytes <= 2 * HOT_BYTES, "{storage:?}");
}

/// At every step of sealing: nothing is lost and nothing refused, the status says why appends wait,
/// whatever else is asked is answered, a crash changes nothing, and with the space everything goes on
/// by itself.
#[tokio::test]
async fn a_disk_that_is_full_at_any_step_of_sealing_holds_up_appends_until_there_is_room() {
    let mut rig = Rig::start(PROGRAM, Storage::SmallAndFull, None).await;
    let disk = FullDisk::of(rig.data());
    let client = rig.client().await;
    let config = TopicConfig {
        partitions: 2,
        ..TopicConfig::default()
    };
    make_topic(&client, &topic("acme/quakes"), config.clone()).await;
    let mut ledgers = Ledgers::new();
    for (number, step) in Step::ALL.into_iter().enumerate() {
        disk.fill(step).unwrap();
        let producing = tokio::spawn(produce(client.clone(), ledgers.heavy_load()));
        is_told(&client).await;
        appends_wait(&client, &ledgers.acks).await;
        let acked = ledgers.acks.get();
        let status = client.status().await.unwrap();
        assert_eq!(status.shards[0].stopped, None, "{step:?}");
        assert_eq!(ledgers.check(&client).await as u64, acked, "{step:?}");
        // What appends nothing does not wait.
        let name = topic(&format!("acme/other-{number}"));
        make_topic(&client, &name, config.clone()).await;
        if number % 2 == 0 {
            rig.kill();
            rig.revive().await;
            is_told(&client).await;
        }
        assert!(!producing.is_finished(), "{step:?}");

        disk.empty().unwrap();
        let acks = &ledgers.acks;
        eventually("appends to go on", async || {
            let on = acks.get() > acked + 100 && trouble(&client).await.is_none();
            on.then_some(())
        })
        .await;
        ledgers.stop.send_replace(true);
        producing.await.unwrap().unwrap();
        ledgers.stop.send_replace(false);
        let stored = ledgers.check(&client).await as u64;
        assert_eq!(stored, ledgers.acks.get(), "{step:?}");
    }
    rig.stop().await;
    let report = offline::check(rig.data(), false, |_| ()).unwrap().check;
    assert_eq!((report.findings, report.leftovers), (vec![], vec![]));
    assert!(report.segments > 0);
}
