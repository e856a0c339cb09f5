//! Builds batches of what came through a chain.
//!
//! Records are gathered by output and partition in two passes: the first decides where each goes
//! and adds up sizes, so that the second writes into buffers of the right size, once.

use std::sync::Arc;

use millstream_proto::batch::{BatchBuilder, HEADER_LEN, NewHeader, NewRecord, PushError, Stamp};
use millstream_proto::limits::{DEFAULT_BATCH_BYTES, MAX_BATCH_BYTES};
use millstream_proto::partition::key_partition;
use millstream_proto::topic::{Spread, TopicConfig};
use millstream_proto::{Batch, BatchError, Codec, Offset, PartitionId};

use super::halt::Halt;
use super::records::Records;
use crate::log::{Append, Topic};

/// Bytes of columns per record and per header, at most.
const PER_RECORD: usize = 22;
const PER_HEADER: usize = 6;

/// How new batches are stamped, compressed and cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) codec: Codec,
    pub(crate) stamp: Stamp,
    /// Bytes of the batch that the records came in: what is built of it may be as large.
    pub(crate) like: usize,
}

impl Form {
    /// As the batch that the records came in.
    pub(crate) fn of(batch: &Batch) -> Self {
        let header = batch.header();
        let stamp = Stamp {
            producer: header.producer,
            epoch: header.epoch,
            sequence: header.sequence,
        };
        let like = header.encoded_len().max(HEADER_LEN + header.plain_len());
        Self {
            codec: header.codec,
            stamp,
            like,
        }
    }

    fn limit(&self, config: &TopicConfig) -> usize {
        let limit = self.like.max(DEFAULT_BATCH_BYTES);
        limit
            .min(config.max_batch_bytes as usize)
            .min(MAX_BATCH_BYTES)
    }
}

/// Where the records of one output go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) topic: Arc<Topic>,
    /// The partition of records for which no plugin chose one; `None` lets the topic spread them.
    pub(crate) wanted: Option<PartitionId>,
}

/// Chooses partitions for records that no plugin has placed, as the topic's settings say.
struct Placer<'a> {
    topic: &'a Topic,
    partitions: u32,
    by_key: bool,
    wanted: Option<PartitionId>,
    /// Whose turn it is, for the records of this batch that have no key.
    turn: Option<PartitionId>,
}

impl<'a> Placer<'a> {
    fn new(target: &'a Target) -> Self {
        Self {
            topic: &target.topic,
            partitions: target.topic.partitions().len() as u32,
            by_key: target.topic.config().spread == Spread::KeyHash,
            wanted: target.wanted,
            turn: None,
        }
    }

    fn place(&mut self, chosen: Option<u32>, key: Option<&[u8]>) -> u32 {
        match (chosen, self.wanted, key) {
            (Some(partition), _, _) | (None, Some(PartitionId(partition)), _) => partition,
            _ if self.partitions == 1 => 0,
            (None, None, Some(key)) if self.by_key => key_partition(key, self.partitions).0,
            _ => {
                self.turn
                    .get_or_insert_with(|| self.topic.next_in_turn(self.partitions))
                    .0
            }
        }
    }
}

/// The records of one partition of one output.
#[derive(Clone, Copy, Debug)]
struct Pile {
    output: u32,
    partition: u32,
    /// Bytes that one batch of them would have.
    bytes: usize,
}

/// Buffers that are used again from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// The pile of each record.
    pile_of: Vec<u32>,
    piles: Vec<Pile>,
    /// By output and partition, the pile plus one; 0 if there is none yet.
    index: Vec<Vec<u32>>,
}

impl Assembler {
    /// Builds batches of `records` for `targets`, one target for each output. The batches of a
    /// partition come in the order of their records. `whole` is the batch that the records are,
    /// if they are exactly one batch: going to one place it is passed on uncopied.
    ///
    /// # Errors
    /// [`Halt::Fault`] when a record names an output or a partition that is not there.
    pub(crate) fn gather(
        &mut self,
        records: &mut Records,
        targets: &[Target],
        form: Form,
        whole: Option<&Batch>,
        appends: &mut Vec<Append>,
    ) -> Result<(), Halt> {
        self.sort(records, targets)?;
        let finish = |pile: &Pile, batch: Batch| {
            let topic = &targets[pile.output as usize].topic;
            let partition = PartitionId(pile.partition);
            let gone = || {
                Halt::Fault(format!(
                    "topic {} has no partition {partition}",
                    topic.name()
                ))
            };
            Append::to(topic, partition, batch).ok_or_else(gone)
        };
        if let (Some(batch), [pile]) = (whole, &self.piles[..]) {
            appends.push(finish(pile, batch.clone())?);
            return Ok(());
        }
        records.want_times();
        let limit = |pile: &Pile| {
            let limit = form.limit(&targets[pile.output as usize].topic.config());
            BatchBuilder::new(limit.min(pile.bytes))
        };
        let mut builders: Vec<_> = self.piles.iter().map(limit).collect();
        let mut build = |pile: &Pile, builder: &mut BatchBuilder| {
            let batch = builder.build(form.codec, form.stamp)?;
            appends.push(finish(pile, batch)?);
            Ok::<_, Halt>(())
        };
        let mut headers = Vec::new();
        for (index, &pile) in self.pile_of.iter().enumerate() {
            let (pile, builder) = (&self.piles[pile as usize], &mut builders[pile as usize]);
            headers.clear();
            records.headers(index, &mut headers);
            let record = records.record(index, &headers);
            match builder.push(&record) {
                Ok(()) => continue,
                Err(PushError::Full) => build(pile, builder)?,
                Err(error) => return Err(Halt::Batch(refused(&error, &record))),
            }
            builder
                .push(&record)
                .map_err(|error| refused(&error, &record))?;
        }
        for (pile, builder) in self.piles.iter().zip(&mut builders) {
            if !builder.is_empty() {
                build(pile, builder)?;
            }
        }
        Ok(())
    }

    /// Decides the pile of every record and adds up their sizes.
    fn sort(&mut self, records: &Records, targets: &[Target]) -> Result<(), Halt> {
        self.pile_of.clear();
        self.piles.clear();
        self.index.resize(targets.len(), Vec::new());
        let mut placers: Vec<_> = targets.iter().map(Placer::new).collect();
        for (slots, placer) in self.index.iter_mut().zip(&placers) {
            slots.clear();
            slots.resize(placer.partitions as usize, 0);
        }
        for index in 0..records.len() {
            let output = records.output(index);
            let no_output = || Halt::Fault(format!("a record for output {output}"));
            let placer = placers.get_mut(output as usize).ok_or_else(no_output)?;
            let partition = placer.place(records.partition(index), records.key(index));
            let slots = &mut self.index[output as usize];
            let no_partition = || {
                let topic = placer.topic.name();
                Halt::Fault(format!(
                    "a record for partition {partition} of topic {topic}"
                ))
            };
            let slot = slots.get_mut(partition as usize).ok_or_else(no_partition)?;
            if *slot == 0 {
                self.piles.push(Pile {
                    output,
                    partition,
                    bytes: HEADER_LEN,
                });
                *slot = self.piles.len() as u32;
            }
            let pile = *slot - 1;
            self.piles[pile as usize].bytes += weight(records, index);
            self.pile_of.push(pile);
        }
        Ok(())
    }
}

/// What a record adds to a batch, at most.
fn weight(records: &Records, index: usize) -> usize {
    records.size(index) + PER_RECORD + records.header_count(index) * PER_HEADER
}

fn refused(error: &PushError, record: &NewRecord<'_>) -> BatchError {
    match error {
        PushError::RecordTooLarge { len, max } => BatchError::RecordTooLarge {
            index: 0,
            len: *len,
            max: *max,
        },
        PushError::Full => BatchError::TooLarge {
            len: record.size(),
            max: MAX_BATCH_BYTES,
        },
        PushError::Headers => BatchError::Malformed("a record has too many or too long headers"),
    }
}

/// Builds batches of `records` that keep the offsets the records have in their partition. A
/// record that a transform put before its predecessors shows the offset of the record before it,
/// so that offsets never fall.
///
/// # Errors
/// When a record fits no batch.
pub(crate) fn view(records: &mut Records, codec: Codec) -> Result<Vec<Batch>, BatchError> {
    records.want_times();
    let all = (0..records.len())
        .map(|index| weight(records, index))
        .sum::<usize>();
    let mut builder = BatchBuilder::new((HEADER_LEN + all).min(MAX_BATCH_BYTES));
    let (mut views, mut last) = (Vec::new(), Offset(0));
    let mut headers: Vec<NewHeader<'_>> = Vec::new();
    for index in 0..records.len() {
        headers.clear();
        records.headers(index, &mut headers);
        let record = records.record(index, &headers);
        last = last.max(records.offset(index).unwrap_or_default());
        match builder.push_at(last, &record) {
            Ok(()) => continue,
            Err(PushError::Full) => views.push(builder.build(codec, Stamp::default())?),
            Err(error) => return Err(refused(&error, &record)),
        }
        builder
            .push_at(last, &record)
            .map_err(|error| refused(&error, &record))?;
    }
    if !builder.is_empty() {
        views.push(builder.build(codec, Stamp::default())?);
    }
    Ok(views)
}

#[cfg(test)]
mod tests;
