//! Producing: records are gathered into batches, batches are sent in order and
//! acknowledged when they are as durable as their topic asks.
//!
//! ```text
//! send() -> gather (a lane per partition) -> window (in flight) -> stream
//!              ^ waits for room here                    |
//! Delivery <------------------------ slot <---------- Ack
//! ```
//! A record costs a copy into its batch and a reference count; everything else
//! happens once per batch. There is one producer per topic and stream: what one
//! producer sends to a partition is stored in that order.

mod core;
mod driver;
mod gather;
mod slot;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millstream_proto::batch::BatchBuilder;
use millstream_proto::limits::{DEFAULT_BATCH_BYTES, MAX_BATCH_BYTES};
use millstream_proto::{Codec, PartitionId, ProducerId, TopicName};
use tokio::sync::Notify;

use self::core::{Core, Offer, Settings};
use self::gather::{Gather, Rules, Sealed};
use self::slot::Slot;
use crate::ambient::{Running, Stopped, random_u64};
use crate::connect::Client;
use crate::error::ProduceError;
use crate::record::Record;
use crate::retry::Attempts;

pub use self::slot::{BatchDelivery, BatchPlaced, Delivery, Placed};

/// Batches in flight by default.
const DEFAULT_IN_FLIGHT: usize = 16;
/// Most batches in flight. The broker remembers where the last 64 of a producer
/// went; of a repeated batch older than that it only knows that it is stored.
pub const MAX_IN_FLIGHT: usize = 256;
/// Smallest batch size that can be asked for, in bytes.
const MIN_BATCH_BYTES: usize = 256;
/// What a page of the broker's store needs beside a batch, and some more, in bytes.
const PAGE_ROOM: usize = 256;
/// Records that one call adds before it lets others at the producer.
const RECORDS_AT_ONCE: usize = 1024;
/// Batches that one call completes before it lets the writer at them: a part of
/// the window, so that the network does not wait for the whole of it.
const BATCHES_AT_ONCE: u32 = 4;

/// Sets up a [`Producer`].
#[derive(Debug)]
#[must_use = "call build() to have a producer"]
pub struct ProducerBuilder {
    client: Client,
    topic: TopicName,
    linger: Duration,
    batch_bytes: usize,
    in_flight: usize,
    codec: Codec,
    idempotent: bool,
}

impl Client {
    /// Begins a producer for `topic`.
    ///
    /// ```no_run
    /// # async fn run(client: millstream::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use millstream::Record;
    ///
    /// let producer = client.producer("acme/quakes".parse()?).build().await?;
    /// let delivery = producer.send(&Record::value(b"4.7 Mw").key(b"hv7123")).await?;
    /// let placed = delivery.await?;
    /// println!("stored at {:?}", placed.offset);
    /// producer.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn producer(&self, topic: TopicName) -> ProducerBuilder {
        ProducerBuilder {
            client: self.clone(),
            topic,
            linger: Duration::ZERO,
            batch_bytes: DEFAULT_BATCH_BYTES,
            in_flight: DEFAULT_IN_FLIGHT,
            codec: Codec::None,
            idempotent: true,
        }
    }
}

impl ProducerBuilder {
    /// How long a record waits for others to share its batch. Default: zero,
    /// which sends at once, together with what came in while the batch before
    /// was being sent.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Size at which a batch is full, in bytes before compression; 256 bytes to
    /// 16 MiB. Default: just under 64 KiB.
    ///
    /// The broker's store gives a large batch a page of the next power of two. A
    /// power of two from 4 KiB up therefore means a little less: exactly as much
    /// would take up twice the room.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        let page = bytes.is_power_of_two() && bytes >= 4096;
        let bytes = if page { bytes - PAGE_ROOM } else { bytes };
        self.batch_bytes = bytes.clamp(MIN_BATCH_BYTES, MAX_BATCH_BYTES);
        self
    }

    /// Batches sent and not acknowledged, 1 to [`MAX_IN_FLIGHT`]; with more to
    /// send, [`Producer::send`] waits. Default: 16.
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches.clamp(1, MAX_IN_FLIGHT);
        self
    }

    /// Compression. Default: none.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Whether the broker recognises batches that are sent again after a lost
    /// connection. Default: it does, and every record is stored once. Without,
    /// batches in doubt fail with [`ProduceError::OutcomeUnknown`].
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// Opens the producer's stream.
    ///
    /// # Errors
    /// `UnknownTopic`, `NotAuthorized`; or any [`ProduceError`].
    pub async fn build(self) -> Result<Producer, ProduceError> {
        let id = if self.idempotent {
            // Zero means "none"; every other number is as good as any.
            ProducerId(random_u64().max(1))
        } else {
            ProducerId::NONE
        };
        let settings = Settings {
            linger: self.linger,
            batch_bytes: self.batch_bytes,
            in_flight: self.in_flight,
            codec: self.codec,
            id,
        };
        let config = self.client.config();
        let mut attempts = Attempts::new(config.backoff, config.reconnect_deadline);
        let stream = driver::open(&self.client, &self.topic, id, &mut attempts).await?;
        let rules = Rules::new(&stream.opened, settings.batch_bytes);
        let attempts = Attempts::new(config.backoff, config.reconnect_deadline);
        let gather = Gather::new(rules, random_u64());
        let shared = Arc::new(Shared {
            topic: self.topic.clone(),
            core: Mutex::new(Core::new(self.topic, settings, gather, attempts)),
            calls: std::sync::atomic::AtomicU64::new(1),
            writer: Notify::new(),
            room: Notify::new(),
        });
        tokio::spawn(driver::drive(self.client, Arc::clone(&shared), stream));
        Ok(Producer { shared })
    }
}

/// What the producer's handle and its driver share.
struct Shared {
    topic: TopicName,
    core: Mutex<Core>,
    calls: std::sync::atomic::AtomicU64,
    /// Wakes the driver's writer.
    writer: Notify,
    /// Wakes whoever waits for room in the window, or for it to empty.
    room: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        // The core's own invariants panic before they change anything.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` gives something; it is asked again whenever a batch
    /// was settled.
    async fn wait_for<T>(&self, mut ready: impl FnMut(&mut Core) -> Option<T>) -> T {
        loop {
            let settled = self.room.notified();
            tokio::pin!(settled);
            // Before looking, so that nothing settles unseen in between.
            settled.as_mut().enable();
            if let Some(found) = ready(&mut self.lock()) {
                return found;
            }
            settled.await;
        }
    }
}

/// Produces records to one topic. Methods take `&self`: share it by reference or
/// in an [`Arc`].
///
/// Dropping it sends what it took, in the background and without saying whether
/// that succeeded; [`Producer::close`] says so.
pub struct Producer {
    shared: Arc<Shared>,
}

/// How far one turn at the producer got.
enum Turn {
    /// All records are in.
    Done,
    /// A batch is on its way, and others should run.
    Yield,
    /// The window is full.
    NoRoom,
}

impl Producer {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.shared.topic
    }

    /// Number of the topic's partitions, as far as the producer knows.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.shared.lock().gather().rules().partitions
    }

    /// Takes a record. Waits only for room among the batches in flight; the
    /// returned future waits for the acknowledgement.
    ///
    /// # Errors
    /// A record that cannot be sent, or the error that ended the producer.
    pub async fn send(&self, record: &Record<'_>) -> Result<Delivery, ProduceError> {
        let (delivery, sealed) = match self.try_send(record)? {
            Some(taken) => taken,
            None => {
                let again = |core: &mut Core| self.offer(core, record).transpose();
                self.shared.wait_for(again).await?
            }
        };
        if sealed {
            // A batch is complete: a good moment for the writer to have it.
            tokio::task::yield_now().await;
        }
        Ok(delivery)
    }

    fn try_send(&self, record: &Record<'_>) -> Result<Option<(Delivery, bool)>, ProduceError> {
        self.offer(&mut self.shared.lock(), record)
    }

    #[inline]
    fn offer(
        &self,
        core: &mut Core,
        record: &Record<'_>,
    ) -> Result<Option<(Delivery, bool)>, ProduceError> {
        let first = core.gather().is_empty();
        let offered = core.offer(record, &Running);
        let sealed = core.take_sealed() > 0;
        if (first || sealed) && core.wake_writer() {
            self.shared.writer.notify_one();
        }
        match offered? {
            Offer::NoRoom => Ok(None),
            Offer::Taken(lane) => {
                let (slot, index) = core.gather().last(lane);
                Ok(Some((Delivery::new(Arc::clone(slot), index), sealed)))
            }
        }
    }

    /// Takes many records, with one future for them all. The cheapest way to
    /// send in bulk.
    ///
    /// # Errors
    /// As [`Producer::send`]; the records before the one that failed are sent.
    pub async fn send_many<'a, I>(&self, records: I) -> Result<BatchDelivery, ProduceError>
    where
        I: IntoIterator<Item = Record<'a>>,
    {
        let mut bulk = Bulk {
            call: self
                .shared
                .calls
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            records: records.into_iter(),
            held: None,
            slots: Vec::new(),
            taken: 0,
        };
        loop {
            let turn = self.turn(&mut self.shared.lock(), &mut bulk)?;
            match turn {
                Turn::Done => return Ok(BatchDelivery::new(bulk.slots, bulk.taken)),
                Turn::Yield => tokio::task::yield_now().await,
                Turn::NoRoom => {
                    let again = |core: &mut Core| match self.turn(core, &mut bulk) {
                        Ok(Turn::NoRoom) => None,
                        other => Some(other),
                    };
                    match self.shared.wait_for(again).await? {
                        Turn::Done => return Ok(BatchDelivery::new(bulk.slots, bulk.taken)),
                        Turn::Yield | Turn::NoRoom => tokio::task::yield_now().await,
                    }
                }
            }
        }
    }

    /// Adds records until a batch is complete or the window full.
    fn turn<'a, I>(&self, core: &mut Core, bulk: &mut Bulk<'a, I>) -> Result<Turn, ProduceError>
    where
        I: Iterator<Item = Record<'a>>,
    {
        let clock = Stopped::now();
        let first = core.gather().is_empty();
        let turn = bulk.fill(core, &clock);
        let sealed = core.take_sealed() > 0;
        if (first || sealed) && core.wake_writer() {
            self.shared.writer.notify_one();
        }
        turn
    }

    /// Sends the records of `builder` as a batch of their own, stamped and
    /// compressed as this producer does, and leaves the builder empty. For
    /// callers that make batches themselves.
    ///
    /// # Errors
    /// As [`Producer::send`]; an empty builder is an error.
    pub async fn send_batch(
        &self,
        partition: Option<PartitionId>,
        builder: &mut BatchBuilder,
    ) -> Result<BatchDelivery, ProduceError> {
        let records = builder.len() as u64;
        let topic = &self.shared.topic;
        let slot = self
            .shared
            .wait_for(|core| {
                let partitions = core.gather().rules().partitions;
                if let Some(partition) = partition.filter(|p| p.0 >= partitions) {
                    return Some(Err(ProduceError::UnknownPartition {
                        topic: topic.clone(),
                        partition,
                        partitions,
                    }));
                }
                let build = |codec, stamp| {
                    let error = |error| ProduceError::Encode {
                        topic: topic.clone(),
                        error,
                    };
                    Ok(Sealed {
                        partition,
                        batch: builder.build(codec, stamp).map_err(error)?,
                        slot: Arc::<Slot>::default(),
                    })
                };
                let offered = core.offer_batch(build).transpose();
                if core.take_sealed() > 0 && core.wake_writer() {
                    self.shared.writer.notify_one();
                }
                offered
            })
            .await?;
        tokio::task::yield_now().await;
        Ok(BatchDelivery::new(vec![slot], records))
    }

    /// Sends what was gathered at once, and waits until everything taken so far
    /// is acknowledged or has failed.
    ///
    /// # Errors
    /// The error that ended the producer. A batch that failed by itself tells its
    /// own deliveries only.
    pub async fn flush(&self) -> Result<(), ProduceError> {
        let mark = {
            let mut core = self.shared.lock();
            let mark = core.flush();
            if core.wake_writer() {
                self.shared.writer.notify_one();
            }
            mark
        };
        self.shared
            .wait_for(|core| match core.failure() {
                Some(e) => Some(Err(e)),
                None => core.is_settled_below(mark).then_some(Ok(())),
            })
            .await
    }

    /// Sends what it took, waits for the acknowledgements and ends the stream.
    ///
    /// # Errors
    /// The error that ended the producer before its time.
    pub async fn close(self) -> Result<(), ProduceError> {
        self.begin_close();
        self.shared
            .wait_for(|core| core.is_over().then(|| core.failure().map_or(Ok(()), Err)))
            .await
    }

    fn begin_close(&self) {
        let mut core = self.shared.lock();
        core.close();
        if core.wake_writer() {
            self.shared.writer.notify_one();
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.begin_close();
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("topic", &self.shared.topic)
            .finish_non_exhaustive()
    }
}

/// The state of one [`Producer::send_many`].
struct Bulk<'a, I> {
    call: u64,
    records: I,
    /// A record that found no room.
    held: Option<Record<'a>>,
    slots: Vec<Arc<Slot>>,
    taken: u64,
}

impl<'a, I: Iterator<Item = Record<'a>>> Bulk<'a, I> {
    fn fill(&mut self, core: &mut Core, clock: &Stopped) -> Result<Turn, ProduceError> {
        for _ in 0..RECORDS_AT_ONCE {
            let Some(record) = self.held.take().or_else(|| self.records.next()) else {
                core.check_open()?;
                return Ok(Turn::Done);
            };
            match core.offer(&record, clock)? {
                Offer::Taken(lane) => {
                    self.taken += 1;
                    self.slots.extend(core.gather().take_along(lane, self.call));
                    if core.sealed() >= BATCHES_AT_ONCE {
                        return Ok(Turn::Yield);
                    }
                }
                Offer::NoRoom => {
                    self.held = Some(record);
                    return Ok(Turn::NoRoom);
                }
            }
        }
        Ok(Turn::Yield)
    }
}
