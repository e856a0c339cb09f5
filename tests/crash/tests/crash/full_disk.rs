//! A disk that is full, played by a limit on the size of files.

use std::time::Duration;

use millstream::{Client, ErrorCode, ProduceError, TopicConfig};
use millstream_crash::history::{Promise, check};
use millstream_crash::load::{Count, Ledger, Load, produce};
use millstream_crash::quake;
use millstream_crash::rig::{Rig, make_topic, read_all, topic};
use tokio::sync::watch;

use crate::PROGRAM;

/// Largest file that the broker may write.
const DISK: u64 = 6 << 20;
/// Records that fill it more than once.
const RECORDS: u64 = 200_000;
/// How long clients go on trying: a full disk does not become empty by itself.
const PATIENCE: Duration = Duration::from_secs(2);

struct Ledgers {
    all: Vec<Ledger>,
    acks: Count,
    stop: watch::Sender<bool>,
}

impl Ledgers {
    fn load(&mut self, most: u64) -> Load {
        let source = self.all.len() as u32;
        let ledger = Ledger::new(format!("producer {source}"));
        self.all.push(ledger.clone());
        let (acks, stop) = (self.acks.clone(), self.stop.subscribe());
        let home = |item: &_| Some(quake::by_key(item, 2));
        Load {
            topic: topic("acme/quakes"),
            source,
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
    let mut rig = Rig::start(PROGRAM, Some(DISK)).await;
    let config = rig.client_config().reconnect_deadline(PATIENCE);
    let client = Client::connect(config).await.unwrap();
    let config = TopicConfig {
        partitions: 2,
        ..TopicConfig::default()
    };
    make_topic(&client, &topic("acme/quakes"), config).await;
    let (stop, _) = watch::channel(false);
    let mut ledgers = Ledgers {
        all: Vec::new(),
        acks: Count::default(),
        stop,
    };

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
