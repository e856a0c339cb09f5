//! The producers of one topic: who streams, and what each has stored.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_core::dedup::{Judgement, ProducerState};
use millstream_proto::message::Placement;
use millstream_proto::{ErrorCode, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence};
use millstream_store::key::RowError;
use millstream_store::key::producer::{self, Outcome, ProducerKey, ProducerRow};
use millstream_store::{
    CommitError, Direction, Key, ReadError, Row, ScanLimit, Space, Store, WriteBatch,
};
use tokio::sync::oneshot;

use super::read::ReadFault;
use super::retention::RetainError;
use super::topic::Topic;
use crate::limits::{IDLE_PRODUCERS, PRODUCER_EXPIRY, PRODUCER_PAGE};

/// Why a producer's stream was not opened.
#[derive(Debug, thiserror::Error)]
pub enum ProducerRefused {
    /// A newer one has taken over.
    #[error("producer {0} has a newer epoch than {1}: this instance was replaced")]
    Fenced(ProducerId, ProducerEpoch),
    /// Its row cannot be read.
    #[error("{0}")]
    Store(#[from] ReadError),
    /// Its row makes no sense.
    #[error("the row of producer {0} is damaged: {1}")]
    Row(ProducerId, RowError),
}

/// Bytes charged for the removal of one row beside its key.
const ROW_BYTES: usize = 128;

type Shared = Arc<Mutex<ProducerState>>;

/// States of the producers that stream now or did lately.
#[derive(Debug, Default)]
pub(super) struct Producers {
    known: Mutex<HashMap<ProducerId, Shared>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One open stream of a producer.
#[derive(Debug)]
pub struct ProducerStream {
    state: Shared,
    stream: u64,
    topic: u32,
    id: ProducerId,
    epoch: ProducerEpoch,
}

impl Topic {
    /// Opens a stream for a producer and fences off its earlier streams.
    /// Blocking when the producer is not in memory.
    ///
    /// # Errors
    /// See [`ProducerRefused`].
    pub fn open_producer(
        &self,
        id: ProducerId,
        epoch: ProducerEpoch,
    ) -> Result<ProducerStream, ProducerRefused> {
        let state = if id == ProducerId::NONE {
            Shared::new(Mutex::new(ProducerState::unknown(epoch)))
        } else {
            self.producer_state(id, epoch)?
        };
        let stream = locked(&state)
            .open(epoch)
            .ok_or(ProducerRefused::Fenced(id, epoch))?;
        Ok(ProducerStream {
            state,
            stream,
            topic: self.id(),
            id,
            epoch,
        })
    }

    fn producer_state(
        &self,
        id: ProducerId,
        epoch: ProducerEpoch,
    ) -> Result<Shared, ProducerRefused> {
        if let Some(state) = locked(&self.producers.known).get(&id) {
            return Ok(Arc::clone(state));
        }
        let restored = restore(&**self.store(), self.id(), id, epoch)?;
        let mut known = locked(&self.producers.known);
        if known.len() >= IDLE_PRODUCERS {
            // Idle ones have everything durable: their last stream saw its last answer.
            known.retain(|_, state| Arc::strong_count(state) > 1);
        }
        // Whoever came first in the meantime counts.
        let state = known
            .entry(id)
            .or_insert_with(|| Shared::new(Mutex::new(restored)));
        Ok(Arc::clone(state))
    }
}

fn restore(
    store: &dyn Store,
    topic: u32,
    id: ProducerId,
    epoch: ProducerEpoch,
) -> Result<ProducerState, ProducerRefused> {
    let key = ProducerKey {
        topic,
        producer: id.0,
    }
    .encode();
    let Some(bytes) = store.snapshot()?.get(Space::Producers, &key)? else {
        return Ok(ProducerState::unknown(epoch));
    };
    let row = ProducerRow::decode(&bytes).map_err(|e| ProducerRefused::Row(id, e))?;
    let placements = row.last_outcome.iter().map(|o| Placement {
        partition: PartitionId(o.partition),
        base: Offset(o.base_offset),
        count: o.count,
    });
    let last = Sequence(row.last_sequence);
    Ok(ProducerState::restored(
        ProducerEpoch(row.epoch),
        last,
        placements.collect(),
    ))
}

impl ProducerStream {
    /// The sequence that the broker expects next.
    #[must_use]
    pub fn next(&self) -> Sequence {
        locked(&self.state).next()
    }

    /// Judges a batch before anything is done with it.
    #[must_use]
    pub fn judge(&self, sequence: Sequence) -> Judgement {
        locked(&self.state).judge(self.stream, sequence)
    }

    /// Notes that a batch was refused for good.
    pub fn refused(&self, sequence: Sequence, code: ErrorCode) {
        let mut state = locked(&self.state);
        if state.is_current(self.stream) {
            state.refused(sequence, code);
        }
    }

    /// Notes that a batch was refused for now: it is to come again before any behind it.
    pub fn ask_again(&self, sequence: Sequence) {
        let mut state = locked(&self.state);
        if state.is_current(self.stream) {
            state.ask_again(sequence);
        }
    }

    /// Takes the producer's turn for submitting a batch that was judged new.
    /// Another stream may have taken over since, so it is judged again, and
    /// nobody else gets a turn until the claim is dropped.
    ///
    /// # Errors
    /// The judgement, when the batch is not new any more.
    pub fn claim(&self, sequence: Sequence) -> Result<Claim<'_>, Judgement> {
        let state = locked(&self.state);
        match state.judge(self.stream, sequence) {
            Judgement::New => Ok(Claim {
                of: self,
                state,
                sequence,
            }),
            other => Err(other),
        }
    }

    /// Keeps the producer's state in memory while batches are on their way to
    /// the disk: until then its row there is behind.
    #[must_use]
    pub fn keep(&self) -> KeepInMemory {
        KeepInMemory {
            _state: Arc::clone(&self.state),
        }
    }
}

/// See [`ProducerStream::keep`].
#[derive(Debug)]
pub struct KeepInMemory {
    _state: Shared,
}

/// The right to submit one batch of a producer.
#[derive(Debug)]
pub struct Claim<'a> {
    of: &'a ProducerStream,
    state: MutexGuard<'a, ProducerState>,
    sequence: Sequence,
}

impl Claim<'_> {
    /// Notes that the batch is being submitted and adds the row that makes a
    /// resend of it a duplicate.
    pub fn stored(&mut self, placements: &[Placement], rows: &mut WriteBatch, now_ms: i64) {
        self.state.stored(self.sequence, placements.to_vec());
        if self.of.id == ProducerId::NONE {
            return;
        }
        let outcome = placements.iter().map(|p| Outcome {
            partition: p.partition.0,
            base_offset: p.base.0,
            count: p.count,
        });
        let row = ProducerRow {
            epoch: self.of.epoch.0,
            last_sequence: self.sequence.0,
            stored_ms: u64::try_from(now_ms).unwrap_or(0),
            last_outcome: outcome.collect(),
        };
        let key = ProducerKey {
            topic: self.of.topic,
            producer: self.of.id.0,
        };
        rows.put(Space::Producers, key.encode(), row.encode());
    }
}

/// Forgets producers that have stored nothing for [`PRODUCER_EXPIRY`]. Returns how many.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn expire_producers(topic: &Arc<Topic>, now_ms: i64) -> Result<usize, RetainError> {
    let all = producer::range_topic(topic.id());
    let (mut from, mut expired) = (all.start, 0);
    loop {
        let (scanned, end) = (Arc::clone(topic), all.end.clone());
        let page = move || idle_page(&scanned, &from..&end, now_ms);
        let page = tokio::task::spawn_blocking(page)
            .await
            .unwrap_or(Err(ReadFault::Closing))?;
        if !page.idle.is_empty() {
            expired += forget(topic, page.idle).await?;
        }
        match page.next {
            Some(next) => from = next,
            None => return Ok(expired),
        }
    }
}

/// Some producers' rows that are idle, and where to go on.
struct IdlePage {
    idle: Vec<(ProducerId, Key)>,
    next: Option<Key>,
}

fn idle_page(topic: &Topic, range: Range<&Key>, now_ms: i64) -> Result<IdlePage, ReadFault> {
    let snapshot = topic.store().snapshot()?;
    let range = &range.start[..]..&range.end[..];
    let limit = ScanLimit::rows(PRODUCER_PAGE);
    let page = snapshot.scan(Space::Producers, range, Direction::Forward, limit)?;
    let oldest = u64::try_from(now_ms)
        .unwrap_or(0)
        .saturating_sub(PRODUCER_EXPIRY.as_millis() as u64);
    // Behind the last key and before any other.
    let last = page.rows.last().filter(|_| page.more);
    let next = last.map(|row| row.key.clone().push_bytes(&[0]));
    let idle = |row: Row| {
        let id = ProducerKey::decode(&row.key).ok()?.producer;
        let idle = ProducerRow::decode(&row.value).ok()?.stored_ms < oldest;
        idle.then_some((ProducerId(id), row.key))
    };
    Ok(IdlePage {
        idle: page.rows.into_iter().filter_map(idle).collect(),
        next,
    })
}

/// Removes the rows of those who have not come back in the meantime. Submitted
/// under the lock behind which they come back, so what they store is behind it too.
async fn forget(topic: &Arc<Topic>, idle: Vec<(ProducerId, Key)>) -> Result<usize, RetainError> {
    let room: usize = idle.iter().map(|(_, key)| key.len() + ROW_BYTES).sum();
    let permit = topic.store().reserve(room).await?;
    let (sender, receiver) = oneshot::channel();
    let mut rows = WriteBatch::new();
    let mut forgotten = 0;
    {
        let known = locked(&topic.producers.known);
        for (_, key) in idle.into_iter().filter(|(id, _)| !known.contains_key(id)) {
            rows.delete(Space::Producers, key);
            forgotten += 1;
        }
        // Whoever waits may have gone; the rows are removed all the same.
        let done = move |result: Result<_, CommitError>| drop(sender.send(result.map(drop)));
        topic.store().submit(permit, rows, Box::new(done));
    }
    receiver.await.unwrap_or(Err(CommitError::Closed))?;
    Ok(forgotten)
}
