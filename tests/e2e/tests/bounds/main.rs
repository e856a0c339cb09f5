//! What a hostile plugin or a lazy reader can make of a broker: nothing that others would notice.
//!
//! A process of its own, in which one test runs at a time: they look at its memory.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

mod cast;
mod places;
mod stalled;

use millstream::{Client, Consumer, Producer, Record, StartAt};
use millstream_e2e::{TestBroker, partitions, topic};
use tokio::sync::{Mutex, MutexGuard};

static ALONE: Mutex<()> = Mutex::const_new(());

/// Waits until no other test runs.
async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// Watches how far the memory of the process grows.
struct Memory {
    admin: Client,
    first: u64,
    most: u64,
}

impl Memory {
    async fn watch(broker: &TestBroker) -> Self {
        let admin = broker.admin().await;
        let first = admin.status().await.unwrap().resident_bytes;
        assert!(first > 0, "the system tells how much memory is in use");
        Self {
            admin,
            first,
            most: first,
        }
    }

    async fn look(&mut self) {
        let now = self.admin.status().await.unwrap().resident_bytes;
        self.most = self.most.max(now);
    }

    fn stayed_below(&self, bound: u64) {
        let grown = self.most - self.first;
        assert!(
            grown < bound,
            "memory grew by {grown} bytes, {bound} are allowed"
        );
    }
}

/// Records of one round.
const ROUND: u64 = 50;

/// Another tenant, who only wants to get on with it.
struct Neighbour {
    client: Client,
    producer: Producer,
    consumer: Consumer,
    done: u64,
}

impl Neighbour {
    async fn new(broker: &TestBroker) -> Self {
        let client = broker.tenant("neighbour").await;
        let name = topic("neighbour/t");
        client
            .create_topic(name.clone(), partitions(1))
            .await
            .unwrap();
        let producer = client.producer(name.clone()).build().await.unwrap();
        let consumer = client.consumer(name).start(StartAt::Earliest);
        let consumer = consumer.build().await.unwrap();
        Self {
            client,
            producer,
            consumer,
            done: 0,
        }
    }

    /// Produces records and reads them to the last, each once and in order.
    async fn round(&mut self) {
        let values: Vec<_> = (self.done..self.done + ROUND)
            .map(u64::to_be_bytes)
            .collect();
        let records = values.iter().map(|value| Record::value(value));
        self.producer
            .send_many(records)
            .await
            .unwrap()
            .await
            .unwrap();
        for value in &values {
            let message = self.consumer.next_message().await.unwrap().unwrap();
            assert_eq!(message.value.as_deref(), Some(&value[..]));
        }
        self.done += ROUND;
    }
}
