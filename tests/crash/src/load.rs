//! Producers and readers under load, each with a record of what it was told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use millstream::{
    Client, ConsumeError, Consumer, ConsumerName, Delivery, Message, ProduceError, Record, StartAt,
    TopicName,
};
use tokio::sync::watch;

use crate::history::{Entry, Fate, Item, Put, Source};
use crate::rig::entry;

/// Size of a producer's batches: small, so that there are many.
const BATCH_BYTES: usize = 4 << 10;
/// Batches of a producer on their way.
const IN_FLIGHT: usize = 8;
/// Records that a producer has out before it waits for the oldest.
const OUTSTANDING: usize = 128;
/// Most records that a named consumer reads before it commits.
const PIECE: usize = 100;

/// Something that is counted, and can be waited for.
#[derive(Clone, Debug)]
pub struct Count(watch::Sender<u64>);

impl Default for Count {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Count {
    /// One more.
    pub fn add(&self) {
        self.0.send_modify(|n| *n += 1);
    }

    /// How many.
    #[must_use]
    pub fn get(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits until there are so many.
    pub async fn reach(&self, target: u64) {
        let mut count = self.0.subscribe();
        // The sender lives as long as `self`.
        let _ = count.wait_for(|n| *n >= target).await;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one producer sent and was told; true at every moment, also when its task is cut off.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Source>>);

impl Ledger {
    /// An empty one.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self(Arc::new(Mutex::new(Source {
            name,
            puts: Vec::new(),
        })))
    }

    /// As far as it goes.
    #[must_use]
    pub fn source(&self) -> Source {
        locked(&self.0).clone()
    }

    fn put(&self, item: Item, home: Option<u32>) {
        locked(&self.0).puts.push(Put {
            item,
            home,
            fate: Fate::InDoubt,
        });
    }

    fn acked(&self, number: usize, offset: Option<u64>) {
        locked(&self.0).puts[number].fate = Fate::Acked { offset };
    }
}

/// One producer.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub topic: TopicName,
    /// Which source it is.
    pub source: u32,
    /// Its records, by source and number.
    pub item: fn(u32, u64) -> Item,
    /// Most records it sends.
    pub most: u64,
    /// Where a record belongs; `None` if plugins keep it out.
    pub home: fn(&Item) -> Option<u32>,
    /// What it was told.
    pub ledger: Ledger,
    /// Acknowledgements of all producers.
    pub acks: Count,
    /// Set when it shall come to an end.
    pub stop: watch::Receiver<bool>,
}

/// Sends records until it is told to stop, then waits for all acknowledgements.
///
/// # Errors
/// The first error of the producer; what is not acknowledged by then is in doubt.
pub async fn produce(client: Client, load: Load) -> Result<(), ProduceError> {
    let producer = client.producer(load.topic.clone());
    let producer = producer
        .batch_bytes(BATCH_BYTES)
        .in_flight(IN_FLIGHT)
        .build()
        .await?;
    let mut outstanding: VecDeque<(usize, Delivery)> = VecDeque::with_capacity(OUTSTANDING);
    for number in 0..load.most {
        if *load.stop.borrow() {
            break;
        }
        let item = (load.item)(load.source, number);
        load.ledger.put(item.clone(), (load.home)(&item));
        let key = item.key.as_deref().unwrap_or_default();
        let record = Record::value(item.value.as_deref().unwrap_or_default()).key(key);
        outstanding.push_back((number as usize, producer.send(&record).await?));
        settle(&load, &mut outstanding, OUTSTANDING).await?;
    }
    settle(&load, &mut outstanding, 1).await?;
    producer.close().await
}

/// Takes note of what was acknowledged, and waits as long as `most` or more are not.
async fn settle(
    load: &Load,
    outstanding: &mut VecDeque<(usize, Delivery)>,
    most: usize,
) -> Result<(), ProduceError> {
    while let Some((number, delivery)) = outstanding.front_mut() {
        let number = *number;
        let told = match delivery.now_or_never() {
            Some(told) => told,
            None if outstanding.len() < most => return Ok(()),
            None => match outstanding.front_mut() {
                Some((_, delivery)) => delivery.await,
                None => return Ok(()),
            },
        };
        outstanding.pop_front();
        load.ledger
            .acked(number, told?.offset.map(|offset| offset.0));
        load.acks.add();
    }
    Ok(())
}

/// What a reader was given, in order.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    seen: Arc<Mutex<Vec<(u32, Entry)>>>,
    /// How much it is.
    pub count: Count,
}

impl Reading {
    fn add(&self, message: Message) {
        let (partition, entry) = entry(message);
        locked(&self.seen).push((partition.0, entry));
        self.count.add();
    }

    /// As far as it goes.
    #[must_use]
    pub fn seen(&self) -> Vec<(u32, Entry)> {
        locked(&self.seen).clone()
    }
}

/// Opens a reader of everything that is there and comes.
///
/// # Errors
/// When the subscription is refused.
pub async fn open_tail(client: &Client, topic: &TopicName) -> Result<Consumer, ConsumeError> {
    client
        .consumer(topic.clone())
        .start(StartAt::Earliest)
        .build()
        .await
}

/// Reads for as long as it is let.
///
/// # Errors
/// What ended it: no lost connection does.
pub async fn tail(mut consumer: Consumer, reading: Reading) -> Result<(), ConsumeError> {
    while let Some(message) = consumer.next_message().await {
        reading.add(message?);
    }
    Ok(())
}

/// Reads for as long as it is let, a piece at a time: each with a consumer of its own, which takes
/// up the thread where the one before has committed.
///
/// # Errors
/// What ended it: no lost connection does.
pub async fn read_in_pieces(
    client: Client,
    topic: TopicName,
    name: ConsumerName,
    reading: Reading,
) -> Result<(), ConsumeError> {
    loop {
        let consumer = client
            .consumer(topic.clone())
            .start(StartAt::Earliest)
            .named(name.clone());
        let mut consumer = consumer.build().await?;
        let mut piece = Vec::with_capacity(PIECE);
        match consumer.next_message().await {
            Some(message) => piece.push(message?),
            None => return Ok(()),
        }
        // At the end of the topic the rest of the piece may never come.
        while piece.len() < PIECE
            && let Some(Some(message)) = consumer.next_message().now_or_never()
        {
            piece.push(message?);
        }
        consumer.commit().await?;
        piece.into_iter().for_each(|message| reading.add(message));
    }
}
