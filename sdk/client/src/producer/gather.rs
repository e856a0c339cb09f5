//! Records that wait to become a batch: which partition each goes to, and when
//! a batch is due.
//!
//! Pure. There is a lane for each partition, and one more for batches that the
//! broker routes; a lane costs memory only once it is used.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use millstream_proto::batch::{BatchBuilder, PushError, Stamp};
use millstream_proto::message::ProducerOpened;
use millstream_proto::partition::key_partition;
use millstream_proto::topic::Spread;
use millstream_proto::{Batch, BatchError, Codec, PartitionId};
use tokio::time::Instant;

use super::slot::Slot;
use crate::ambient::Clock;
use crate::record::Record;

/// Where a batch is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneId(usize);

/// The lane of batches that go where the broker says.
const ROUTED: LaneId = LaneId(0);

impl LaneId {
    fn of(partition: PartitionId) -> Self {
        Self(partition.0 as usize + 1)
    }

    /// The partition that batches of this lane name.
    pub(crate) fn partition(self) -> Option<PartitionId> {
        let number = self.0.checked_sub(1)?;
        // Lanes are made from partition numbers, which are 32 bits wide.
        Some(PartitionId(number as u32))
    }
}

#[derive(Debug)]
struct Lane {
    builder: BatchBuilder,
    /// There while the builder holds records.
    slot: Option<Arc<Slot>>,
    since: Instant,
    /// The call that last took this lane's slot along.
    taken_by: u64,
}

/// A batch ready to be sent.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) partition: Option<PartitionId>,
    pub(crate) batch: Batch,
    pub(crate) slot: Arc<Slot>,
}

/// Why a record was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// The lane's batch is full: seal it and push again.
    Full(LaneId),
    /// The topic has no such partition.
    UnknownPartition(PartitionId),
    /// No batch takes it.
    Record(PushError),
}

/// The settings of the topic and of the producer that matter here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) partitions: u32,
    pub(crate) broker_routes: bool,
    pub(crate) spread: Spread,
    pub(crate) batch_bytes: usize,
    pub(crate) max_record_bytes: usize,
}

impl Rules {
    pub(crate) fn new(opened: &ProducerOpened, batch_bytes: usize) -> Self {
        Self {
            partitions: opened.partitions.max(1),
            broker_routes: opened.broker_routes,
            spread: opened.config.spread,
            batch_bytes: batch_bytes.min(opened.config.max_batch_bytes as usize),
            max_record_bytes: opened.config.max_record_bytes as usize,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Gather {
    rules: Rules,
    lanes: Vec<Lane>,
    /// Lanes with records, the one that has waited longest first.
    order: VecDeque<LaneId>,
    /// Where records without a key go until that lane's batch is sealed.
    sticky: u32,
}

impl Gather {
    /// `first` is the partition that records without a key begin with, modulo
    /// the number of partitions: different producers should begin at different ones.
    pub(crate) fn new(rules: Rules, first: u64) -> Self {
        let sticky = (first % u64::from(rules.partitions)) as u32;
        Self {
            rules,
            lanes: Vec::new(),
            order: VecDeque::new(),
            sticky,
        }
    }

    /// The broker told the topic's settings anew.
    pub(crate) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds a record to its lane.
    #[inline]
    pub(crate) fn push(
        &mut self,
        record: &Record<'_>,
        clock: &impl Clock,
    ) -> Result<LaneId, NotTaken> {
        let id = self.lane_of(record)?;
        if self.lanes.len() <= id.0 {
            self.grow(id, clock.instant());
        }
        let lane = &mut self.lanes[id.0];
        lane.builder
            .push(&record.stamped(clock))
            .map_err(|e| match e {
                PushError::Full => NotTaken::Full(id),
                PushError::RecordTooLarge { .. } | PushError::Headers => NotTaken::Record(e),
            })?;
        if lane.slot.is_none() {
            lane.slot = Some(Arc::default());
            lane.since = clock.instant();
            lane.taken_by = 0;
            self.order.push_back(id);
        }
        Ok(id)
    }

    #[cold]
    fn grow(&mut self, id: LaneId, now: Instant) {
        let limit = self.rules.batch_bytes;
        self.lanes.resize_with(id.0 + 1, || Lane {
            builder: BatchBuilder::new(limit),
            slot: None,
            since: now,
            taken_by: 0,
        });
    }

    #[inline]
    fn lane_of(&self, record: &Record<'_>) -> Result<LaneId, NotTaken> {
        let partitions = self.rules.partitions;
        if let Some(partition) = record.partition {
            return if partition.0 < partitions {
                Ok(LaneId::of(partition))
            } else {
                Err(NotTaken::UnknownPartition(partition))
            };
        }
        if self.rules.broker_routes {
            return Ok(ROUTED);
        }
        Ok(match (self.rules.spread, record.key) {
            (Spread::KeyHash, Some(key)) => LaneId::of(key_partition(key, partitions)),
            (Spread::KeyHash, None) | (Spread::RoundRobin, _) => {
                LaneId::of(PartitionId(self.sticky))
            }
        })
    }

    /// The slot of the record pushed last to `id`, and its place in the batch.
    #[inline]
    pub(crate) fn last(&self, id: LaneId) -> (&Arc<Slot>, u32) {
        let lane = &self.lanes[id.0];
        let slot = lane.slot.as_ref().expect("a record was just pushed");
        (slot, (lane.builder.len() - 1) as u32)
    }

    /// The lane's slot, the first time that call number `call` asks for it.
    #[inline]
    pub(crate) fn take_along(&mut self, id: LaneId, call: u64) -> Option<Arc<Slot>> {
        let lane = &mut self.lanes[id.0];
        if lane.taken_by == call {
            return None;
        }
        lane.taken_by = call;
        lane.slot.clone()
    }

    /// The lane that has waited longest, if it has waited for `linger`.
    pub(crate) fn due(&self, now: Instant, linger: Duration) -> Option<LaneId> {
        let id = *self.order.front()?;
        (now >= self.lanes[id.0].since + linger).then_some(id)
    }

    /// When [`Gather::due`] will have something.
    pub(crate) fn due_at(&self, linger: Duration) -> Option<Instant> {
        let id = self.order.front()?;
        Some(self.lanes[id.0].since + linger)
    }

    /// Any lane with records.
    pub(crate) fn first(&self) -> Option<LaneId> {
        self.order.front().copied()
    }

    /// Makes a batch of what the lane holds; `Err` carries the slot to tell.
    pub(crate) fn seal(
        &mut self,
        id: LaneId,
        codec: Codec,
        stamp: Stamp,
    ) -> Option<Result<Sealed, (BatchError, Arc<Slot>)>> {
        let lane = self.lanes.get_mut(id.0)?;
        let slot = lane.slot.take()?;
        if let Some(at) = self.order.iter().position(|lane| *lane == id) {
            self.order.remove(at);
        }
        if id.partition() == Some(PartitionId(self.sticky)) {
            self.sticky = (self.sticky + 1) % self.rules.partitions;
        }
        let built = lane.builder.build(codec, stamp);
        lane.builder.set_limit(self.rules.batch_bytes);
        Some(match built {
            Ok(batch) => Ok(Sealed {
                partition: id.partition(),
                batch,
                slot,
            }),
            Err(e) => Err((e, slot)),
        })
    }

    /// Throws everything away; returns the slots to tell.
    pub(crate) fn take_slots(&mut self) -> Vec<Arc<Slot>> {
        self.order.clear();
        let slots = self.lanes.iter_mut().filter_map(|lane| lane.slot.take());
        let slots = slots.collect();
        self.lanes.clear();
        slots
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ambient::Stopped;

    fn at(instant: Instant) -> Stopped {
        Stopped { instant, millis: 0 }
    }

    fn rules(partitions: u32) -> Rules {
        Rules {
            partitions,
            broker_routes: false,
            spread: Spread::KeyHash,
            batch_bytes: 1000,
            max_record_bytes: 1 << 20,
        }
    }

    fn seal(gather: &mut Gather, id: LaneId) -> Sealed {
        let sealed = gather.seal(id, Codec::None, Stamp::default());
        sealed.unwrap().unwrap()
    }

    #[test]
    fn records_without_a_key_take_turns_by_batch() {
        let now = Instant::now();
        let mut gather = Gather::new(rules(3), 4);
        let record = Record::value(b"v");
        let mut seen = Vec::new();
        for _ in 0..4 {
            let id = gather.push(&record, &at(now)).unwrap();
            assert_eq!(
                gather.push(&record, &at(now)).unwrap(),
                id,
                "sticky within a batch"
            );
            seen.push(seal(&mut gather, id).partition.unwrap().0);
        }
        assert_eq!(seen, [1, 2, 0, 1]);
    }

    #[test]
    fn round_robin_does_not_look_at_keys() {
        let rules = Rules {
            spread: Spread::RoundRobin,
            ..rules(2)
        };
        let mut gather = Gather::new(rules, 0);
        for i in 0..20u8 {
            let key = [i];
            let record = Record::value(b"v").key(&key);
            gather.push(&record, &at(Instant::now())).unwrap();
        }
        let only = gather.first().unwrap();
        assert_eq!(seal(&mut gather, only).batch.count(), 20);
        assert!(gather.is_empty());
    }

    #[test]
    fn a_broker_that_routes_gets_everything_in_one_lane() {
        let rules = Rules {
            broker_routes: true,
            ..rules(8)
        };
        let mut gather = Gather::new(rules, 0);
        for i in 0..9u8 {
            let key = [i];
            gather
                .push(&Record::value(b"v").key(&key), &at(Instant::now()))
                .unwrap();
        }
        let id = gather.first().unwrap();
        let sealed = seal(&mut gather, id);
        assert_eq!((sealed.partition, sealed.batch.count()), (None, 9));
    }

    #[test]
    fn a_partition_that_is_not_there_is_named() {
        let mut gather = Gather::new(rules(2), 0);
        let record = Record::value(b"v").partition(PartitionId(2));
        let e = gather.push(&record, &at(Instant::now())).unwrap_err();
        assert_eq!(e, NotTaken::UnknownPartition(PartitionId(2)));
    }

    #[test]
    fn a_full_lane_says_so_and_takes_the_record_once_sealed() {
        let mut gather = Gather::new(rules(1), 0);
        let record = Record::value(&[7; 400]);
        let now = Instant::now();
        let id = gather.push(&record, &at(now)).unwrap();
        gather.push(&record, &at(now)).unwrap();
        assert_eq!(gather.push(&record, &at(now)), Err(NotTaken::Full(id)));
        assert_eq!(seal(&mut gather, id).batch.count(), 2);
        assert!(gather.push(&record, &at(now)).is_ok());
    }

    #[test]
    fn lanes_are_due_in_the_order_they_began() {
        let linger = Duration::from_millis(10);
        let start = Instant::now();
        let mut gather = Gather::new(rules(2), 0);
        let to = |p| Record::value(b"v").partition(PartitionId(p));
        let late = gather.push(&to(1), &at(start)).unwrap();
        gather.push(&to(0), &at(start + linger / 2)).unwrap();
        assert_eq!(gather.due(start, linger), None);
        assert_eq!(gather.due_at(linger), Some(start + linger));
        assert_eq!(gather.due(start + linger, linger), Some(late));
        seal(&mut gather, late);
        assert_eq!(gather.due(start + linger, linger), None);
        assert!(gather.due(start + linger * 2, linger).is_some());
    }

    #[test]
    fn a_call_takes_each_slot_along_once() {
        let mut gather = Gather::new(rules(1), 0);
        let record = Record::value(b"v");
        let id = gather.push(&record, &at(Instant::now())).unwrap();
        assert!(gather.take_along(id, 1).is_some());
        assert!(gather.take_along(id, 1).is_none());
        seal(&mut gather, id);
        let id = gather.push(&record, &at(Instant::now())).unwrap();
        assert!(
            gather.take_along(id, 1).is_some(),
            "the next batch has another slot"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_every_partition_keeps_its_order(
            records in proptest::collection::vec(
                (proptest::option::of(0u8..10), proptest::option::of(0u32..4), any::<bool>()),
                1..200,
            ),
        ) {
            let mut gather = Gather::new(rules(4), 0);
            let now = Instant::now();
            let mut got: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            let mut expected: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            let mut collect = |sealed: Sealed| {
                let body = sealed.batch.body().unwrap();
                let numbers = got.entry(sealed.partition.unwrap().0).or_default();
                for record in body.view().unwrap().records() {
                    let bytes = record.value.unwrap().first_chunk().unwrap();
                    numbers.push(u32::from_le_bytes(*bytes));
                }
            };
            for (number, (key, partition, seal_now)) in (0u32..).zip(records) {
                let mut value = vec![0; 100];
                value[..4].copy_from_slice(&number.to_le_bytes());
                let key = key.map(|k| [k]);
                let mut record = Record::value(&value);
                record.key = key.as_ref().map(|k| k.as_slice());
                record.partition = partition.map(PartitionId);
                let id = loop {
                    match gather.push(&record, &at(now)) {
                        Ok(id) => break id,
                        Err(NotTaken::Full(id)) => collect(seal(&mut gather, id)),
                        Err(e) => return Err(TestCaseError::fail(format!("{e:?}"))),
                    }
                };
                expected.entry(id.partition().unwrap().0).or_default().push(number);
                if let (Some(key), None) = (key, partition) {
                    prop_assert_eq!(id.partition(), Some(key_partition(&key, 4)));
                }
                if seal_now {
                    collect(seal(&mut gather, id));
                }
            }
            while let Some(id) = gather.first() {
                collect(seal(&mut gather, id));
            }
            prop_assert_eq!(got, expected);
        }
    }
}
