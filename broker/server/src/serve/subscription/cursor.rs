//! One partition's place in a subscription.

use std::sync::Arc;

use millstream_proto::{Offset, TopicName, WireError};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::limits::{DELIVER_BYTES, READ_CHUNK_BYTES, SHUT_RETRY};
use crate::log::{Follow, Partition, ReadFault, Stored, TailRead};

/// How far a subscription has come in one partition.
pub(super) struct Cursor {
    pub(super) partition: Arc<Partition>,
    _follow: Follow,
    pub(super) next: Offset,
    pub(super) stop: Option<Offset>,
    /// The read of the chunk at `next`, begun before this cursor's turn. At most one
    /// cursor of a subscription has it.
    ahead: Option<JoinHandle<Result<Vec<Stored>, ReadFault>>>,
    pub(super) shut: Option<Shut>,
}

/// What comes next cannot be read.
pub(super) struct Shut {
    /// When to try again; never before a restart if nobody knows where the partition ends.
    pub(super) again: Option<Instant>,
}

impl Cursor {
    pub(super) fn new(partition: Arc<Partition>, next: Offset, stop: Option<Offset>) -> Self {
        let _follow = partition.follow();
        Self {
            partition,
            _follow,
            next,
            stop,
            ahead: None,
            shut: None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.stop.is_some_and(|stop| self.next >= stop)
    }

    /// What there is at the cursor, and nothing at the durable end.
    pub(super) async fn read(&mut self) -> Result<Vec<Stored>, ReadFault> {
        if let Some(ahead) = self.ahead.take() {
            return ahead.await.unwrap_or(Err(ReadFault::Closing));
        }
        match self.partition.read_tail(self.next, DELIVER_BYTES) {
            TailRead::Batches(batches) => Ok(batches),
            TailRead::AtEnd => Ok(Vec::new()),
            TailRead::OutOfRange { start, end } => Err(ReadFault::OutOfRange {
                wanted: self.next,
                start,
                end,
            }),
            TailRead::Older => self.partition.read(self.next, READ_CHUNK_BYTES).await,
        }
    }

    /// Whether what follows has to be read from the store.
    fn lags(&self) -> bool {
        let older = || matches!(self.partition.read_tail(self.next, 1), TailRead::Older);
        !self.is_done() && self.shut.is_none() && older()
    }

    /// Begins to read what follows.
    fn read_ahead(&mut self) {
        let (partition, next) = (Arc::clone(&self.partition), self.next);
        self.ahead = Some(tokio::spawn(async move {
            partition.read(next, READ_CHUNK_BYTES).await
        }));
    }

    /// Whether an end was asked for, and nothing more comes before it.
    pub(super) fn has_said_all(&self) -> bool {
        self.is_done() || (self.stop.is_some() && self.shut.is_some())
    }

    /// Whether there is no use in reading just now.
    pub(super) fn stands_still(&self, now: Instant) -> bool {
        let again = |shut: &Shut| shut.again.is_some_and(|again| again <= now);
        self.shut.as_ref().is_some_and(|shut| !again(shut))
    }

    /// What comes next cannot be read, and with `others` there are partitions that can. Returns why,
    /// and whether that is news.
    pub(super) fn shut(
        &mut self,
        topic: &TopicName,
        fault: &ReadFault,
        others: bool,
    ) -> (WireError, bool) {
        let (partition, end) = (self.partition.id(), self.partition.end());
        let error = fault.to_wire(topic);
        let served = match others {
            true => "; other partitions are served",
            false => "",
        };
        let text = format!(
            "partition {partition} of topic {topic} cannot be read from offset {} on (it ends at \
             {end}): {fault}{served}. `millstream check` shows which offsets \
             are damaged; restore them from a backup, or give them up: stop the broker and run \
             `millstream check --quarantine`",
            self.next
        );
        let error = WireError {
            retry_after_ms: error.retry_after_ms,
            ..WireError::new(error.code, text)
        };
        let retry = self.partition.unreadable().is_none();
        let again = retry.then(|| Instant::now() + SHUT_RETRY);
        let is_news = self.shut.replace(Shut { again }).is_none();
        (error, is_news)
    }
}

/// Cursors that are looked at for one that lags.
const LOOK_AHEAD: usize = 16;

/// Begins to read, while what cursor `at` has read is being sent, for the next that lags, which may
/// be the same one; unless that was done already.
pub(super) fn read_ahead(cursors: &mut [Cursor], at: usize) {
    if cursors.iter().any(|cursor| cursor.ahead.is_some()) {
        return;
    }
    let count = cursors.len();
    let others = (1..count.min(LOOK_AHEAD)).map(|step| (at + step) % count);
    if let Some(next) = others.chain([at]).find(|place| cursors[*place].lags()) {
        cursors[next].read_ahead();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::PartitionId;
    use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
    use millstream_proto::topic::TopicConfig;
    use millstream_proto::{Batch, Codec};
    use millstream_store::{MemoryStore, Store, WriteBatch};

    use super::*;
    use crate::log::{Append, TailBudget, Topic, append};

    fn batch() -> Batch {
        let mut builder = BatchBuilder::new(1 << 16);
        builder.push(&NewRecord::default()).unwrap();
        builder.build(Codec::None, Stamp::default()).unwrap()
    }

    /// A cursor for each partition, at its beginning: those of `lagging` have two batches to read
    /// from the store, the others nothing.
    async fn cursors(lagging: &[u32]) -> Vec<Cursor> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new().unwrap());
        let config = TopicConfig {
            partitions: 6,
            ..TopicConfig::default()
        };
        let name = "acme/t".parse().unwrap();
        let tails = TailBudget::new(0);
        let topic = Topic::open(7, name, config, Arc::clone(&store), tails).unwrap();
        for partition in lagging.iter().flat_map(|number| [*number; 2]) {
            let to = Append::to(&topic, PartitionId(partition), batch()).unwrap();
            append(&store, vec![to], WriteBatch::new()).await.unwrap();
        }
        let partitions = topic.partitions();
        let cursor = |partition: &Arc<Partition>| {
            Cursor::new(Arc::clone(partition), partition.start(), None)
        };
        partitions.iter().map(cursor).collect()
    }

    fn ahead(cursors: &[Cursor]) -> Vec<usize> {
        let places = 0..cursors.len();
        places.filter(|at| cursors[*at].ahead.is_some()).collect()
    }

    #[tokio::test]
    async fn the_next_that_lags_is_read_ahead_and_no_other() {
        let mut all = cursors(&[1, 4]).await;
        read_ahead(&mut all, 1);
        assert_eq!(ahead(&all), [4]);
        read_ahead(&mut all, 4);
        assert_eq!(ahead(&all), [4], "one at a time");
        assert_eq!(all[4].read().await.unwrap().len(), 2);
        all[4].next = Offset(1);
        read_ahead(&mut all, 4);
        assert_eq!(ahead(&all), [1]);
    }

    #[tokio::test]
    async fn one_that_lags_alone_is_read_ahead_while_it_is_sent() {
        let mut all = cursors(&[3]).await;
        all[3].next = Offset(1);
        read_ahead(&mut all, 3);
        assert_eq!(ahead(&all), [3]);
        let read = all[3].read().await.unwrap();
        assert_eq!(read.first().unwrap().base, Offset(1));
        all[3].next = Offset(2);
        read_ahead(&mut all, 3);
        assert_eq!(ahead(&all), [0usize; 0], "at the end");
    }
}
