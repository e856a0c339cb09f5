//! What a check sees, put together: which topics there are, which offsets of them, what is wrong.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use millstream_proto::limits::MAX_BATCH_RECORDS;
use millstream_proto::storage::{CheckReport, Finding, OffsetRange};
use millstream_proto::{Batch, ConsumerName, Offset, PartitionId, TopicName};
use millstream_store::key::lost::{self, LostKey, LostRow};
use millstream_store::key::offset::{OffsetKey, OffsetRow};
use millstream_store::key::partition::{PartitionKey, PartitionRow};
use millstream_store::key::producer::{ProducerKey, ProducerRow};
use millstream_store::key::record::RecordKey;
use millstream_store::{
    self as store, CheckTotals, Inspector, Key, LostRun, Place, ReadError, Snapshot, Space,
    WriteBatch,
};
use sha2::{Digest as _, Sha256};

use super::coverage::Coverage;
use crate::catalog::row::{
    DoomedRow, NextTopicRow, NextVersionRow, PluginRow, Row, RuleRow, TopicRow, all,
};
use crate::limits::{MAX_FINDING_BYTES, MAX_FINDING_RANGES, MAX_FINDINGS};
use crate::pipeline::row::check_row;

/// A topic's number and a partition's.
type Id = (u32, u32);

/// What is known of one partition.
#[derive(Debug, Default)]
struct Partition {
    row: PartitionRow,
    lost: Vec<Range<u64>>,
    /// The offsets that can be read.
    seen: Coverage,
    /// Bytes of their batches.
    bytes: u64,
    /// The batch furthest back that a producer was told of: its base, and how many records.
    told: Option<(u64, u32)>,
}

/// What a check has seen.
pub(super) struct Survey<'a> {
    topics: BTreeMap<u32, TopicName>,
    doomed: BTreeMap<u32, TopicName>,
    partitions: BTreeMap<Id, Partition>,
    /// The record before, and where it ends.
    before: Option<(RecordKey, u64)>,
    found: Vec<store::Finding>,
    left_out: u64,
    leftovers: Vec<String>,
    totals: CheckTotals,
    /// Told how far it is.
    show: Box<dyn FnMut(&CheckReport) + 'a>,
    /// How many findings have been shown.
    shown: usize,
}

impl<'a> Survey<'a> {
    pub(super) fn new(show: impl FnMut(&CheckReport) + 'a) -> Self {
        Self {
            topics: BTreeMap::new(),
            doomed: BTreeMap::new(),
            partitions: BTreeMap::new(),
            before: None,
            found: Vec::new(),
            left_out: 0,
            leftovers: Vec::new(),
            totals: CheckTotals::default(),
            show: Box::new(show),
            shown: 0,
        }
    }

    /// The segments that something is wrong with.
    pub(super) fn damaged_segments(&self) -> Vec<u64> {
        let numbers = self.found.iter().filter(|found| match found.place {
            // Its file is there, and only what counts it is wrong.
            Place::Segment(_) => !found.records.is_empty(),
            _ => true,
        });
        let mut numbers: Vec<u64> = numbers.filter_map(|found| found.place.segment()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Whether rows are damaged that say where sealed records lie, or count them.
    pub(super) fn has_damaged_rows(&self) -> bool {
        self.found.iter().any(|found| match found.place {
            Place::Extent(_) => true,
            Place::Segment(_) => found.records.is_empty(),
            _ => false,
        })
    }

    fn catalog(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        fn read<R: Row>(key: &[u8], value: &[u8]) -> Result<R, String> {
            let row = R::decode(value).map_err(|e| e.to_string())?;
            let at_home = *row.key() == *key;
            at_home
                .then_some(row)
                .ok_or_else(|| format!("a {} row stands at the key of another", R::WHAT))
        }
        match key.first() {
            Some(&TopicRow::TAG) => {
                let row: TopicRow = read(key, value)?;
                self.topics.insert(row.id, row.name);
            }
            Some(&DoomedRow::TAG) => {
                let row: DoomedRow = read(key, value)?;
                self.doomed.insert(row.id, row.name);
            }
            Some(&NextTopicRow::TAG) => drop(read::<NextTopicRow>(key, value)?),
            Some(&PluginRow::TAG) => drop(read::<PluginRow>(key, value)?),
            Some(&NextVersionRow::TAG) => drop(read::<NextVersionRow>(key, value)?),
            Some(&RuleRow::TAG) => drop(read::<RuleRow>(key, value)?),
            _ => return Err("a row of the catalogue of a kind that is not known".to_owned()),
        }
        Ok(())
    }

    fn partition_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if key.len() == lost::KEY_LEN {
            let key = LostKey::decode(key).map_err(|e| e.to_string())?;
            let row = LostRow::decode(value).map_err(|e| e.to_string())?;
            if row.end <= key.start {
                return Err("a lost range that ends before it begins".to_owned());
            }
            let id = (key.topic, key.partition);
            let partition = self.partitions.entry(id).or_default();
            partition.lost.push(key.start..row.end);
            return Ok(());
        }
        let key = PartitionKey::decode(key).map_err(|e| e.to_string())?;
        let row = PartitionRow::decode(value).map_err(|e| e.to_string())?;
        let id = (key.topic, key.partition);
        self.partitions.entry(id).or_default().row = row;
        Ok(())
    }

    fn producer(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let key = ProducerKey::decode(key).map_err(|e| e.to_string())?;
        let row = ProducerRow::decode(value).map_err(|e| e.to_string())?;
        for outcome in row.last_outcome {
            let id = (key.topic, outcome.partition);
            let told = &mut self.partitions.entry(id).or_default().told;
            *told = (*told).max(Some((outcome.base_offset, outcome.count)));
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &Bytes) -> Result<(), String> {
        let key = RecordKey::decode(key).map_err(|e| e.to_string())?;
        let batch = Batch::check(value.clone()).map_err(|e| format!("the batch: {e}"))?;
        let range = key.base_offset..key.base_offset.saturating_add(u64::from(batch.count()));
        let id = (key.topic, key.partition);
        let partition = self.partitions.entry(id).or_default();
        let clash = partition.seen.add(range.clone());
        partition.bytes += value.len() as u64;
        let before = self.before.replace((key, range.end));
        let overlaps = before.is_some_and(|(before, end)| {
            (before.topic, before.partition) == id
                && before.base_offset < key.base_offset
                && key.base_offset < end
        });
        if clash || overlaps {
            return Err(format!(
                "offsets {} to {} overlap those of another batch",
                range.start,
                range.end - 1
            ));
        }
        Ok(())
    }

    /// Takes over what has changed since the rows were read: what retention or somebody has
    /// removed is not missing, and what was created is not unknown.
    pub(super) fn confirm(&mut self, snapshot: &dyn Snapshot) -> Result<(), ReadError> {
        // Rows that cannot be read have been found; what was seen then counts.
        if let (Ok(topics), Ok(doomed)) = (all::<TopicRow>(snapshot), all::<DoomedRow>(snapshot)) {
            let now = topics.into_iter().map(|row| (row.id, row.name)).collect();
            let mut before = std::mem::replace(&mut self.topics, now);
            // Those that were deleted meanwhile may be gone without a trace by now.
            before.retain(|id, _| !self.topics.contains_key(id));
            let doomed = doomed.into_iter().map(|row| (row.id, row.name));
            self.doomed.extend(doomed.chain(before));
        }
        for (&(topic, number), partition) in &mut self.partitions {
            let start = partition.row.log_start;
            if partition.gaps(start).is_empty() {
                continue;
            }
            let key = PartitionKey {
                topic,
                partition: number,
            };
            let row = snapshot.get(Space::Partitions, &key.encode())?;
            if let Some(Ok(row)) = row.map(|row| PartitionRow::decode(&row)) {
                partition.row.log_start = row.log_start;
            }
        }
        Ok(())
    }

    /// Looks for what is missing, once everything was seen.
    pub(super) fn judge(&mut self) {
        let mut missing = Vec::new();
        let mut unknown = Vec::new();
        for (&(topic, number), partition) in &self.partitions {
            if self.doomed.contains_key(&topic) {
                continue;
            }
            if !self.topics.contains_key(&topic) {
                unknown.extend((partition.seen.end() > 0).then_some((topic, number)));
                continue;
            }
            for gap in partition.gaps(partition.row.log_start) {
                if !self.explains((topic, number), &gap) {
                    missing.push(((topic, number), gap));
                }
            }
        }
        for ((topic, partition), gap) in missing {
            let key = |base_offset| {
                RecordKey {
                    topic,
                    partition,
                    base_offset,
                }
                .encode()
            };
            let detail = "no stored batch holds these offsets";
            self.note(key(gap.start), detail, vec![key(gap.start)..key(gap.end)]);
        }
        for (topic, partition) in unknown {
            let key = PartitionKey { topic, partition }.encode();
            let detail = "there are records of a topic that the catalogue does not know";
            self.note(key, detail, Vec::new());
        }
    }

    fn note(&mut self, key: Key, detail: &str, records: Vec<Range<Key>>) {
        let space = Space::Records;
        self.found(store::Finding {
            file: "the store".into(),
            place: Place::Row { space, key },
            detail: detail.to_owned(),
            records,
        });
    }

    /// Whether a gap is due to something that was found already.
    fn explains(&self, id: Id, gap: &Range<u64>) -> bool {
        let ranges = self.found.iter().flat_map(|found| &found.records);
        ranges
            .filter_map(Bounds::of)
            .any(|bounds| bounds.id == id && gap.contains(&bounds.start))
    }

    /// The offsets of what lies between two keys, as far as they are known.
    fn offsets(&self, keys: &Range<Key>) -> Option<OffsetRange> {
        let bounds = Bounds::of(keys)?;
        let (topic_id, partition) = bounds.id;
        let known = self.partitions.get(&bounds.id);
        let end = match (bounds.behind, known) {
            (Some(behind), _) => Some(behind),
            (None, Some(known)) => known
                .seen
                .next_start(bounds.start)
                .or_else(|| known.end_of_last(bounds.last)),
            (None, None) => None,
        };
        Some(OffsetRange {
            topic: self.topics.get(&topic_id).cloned(),
            topic_id,
            partition: PartitionId(partition),
            start: Offset(bounds.start),
            end: end.map(Offset),
        })
    }

    /// What is lost with `runs`, by partition, without ranges that touch; each with its segment.
    pub(super) fn losses(&self, runs: &[LostRun]) -> BTreeMap<Id, Vec<(Range<u64>, u64)>> {
        let mut losses: BTreeMap<Id, Vec<(Range<u64>, u64)>> = BTreeMap::new();
        for run in runs {
            let Some(bounds) = Bounds::of(&run.keys) else {
                continue;
            };
            let found = self.offsets(&run.keys).and_then(|range| range.end);
            // Of a batch that nobody knows the length of: as many as it could have held. No
            // offset that was acknowledged once may ever stand for another record.
            let most = bounds.last.saturating_add(u64::from(MAX_BATCH_RECORDS));
            let end = found.map_or(most, |end| end.0);
            let ranges = losses.entry(bounds.id).or_default();
            ranges.push((bounds.start..end, run.segment));
        }
        for ranges in losses.values_mut() {
            ranges.sort_by_key(|(range, _)| range.start);
            ranges.dedup_by(|(next, segment), (range, of)| {
                let joins = next.start <= range.end && segment == of;
                if joins {
                    range.end = range.end.max(next.end);
                } else {
                    // What was lost with another segment is told with that one.
                    range.end = range.end.min(next.start);
                }
                joins
            });
        }
        losses
    }

    /// The rows that say what is lost with `runs`.
    pub(super) fn lost_rows(&self, runs: &[LostRun]) -> WriteBatch {
        let mut rows = WriteBatch::new();
        for ((topic, partition), ranges) in self.losses(runs) {
            if !self.topics.contains_key(&topic) {
                continue;
            }
            let mut end = 0;
            for (range, segment) in ranges {
                end = range.end;
                let key = LostKey {
                    topic,
                    partition,
                    start: range.start,
                };
                let row = LostRow { end, segment };
                rows.put(Space::Partitions, key.encode(), row.encode());
            }
            // Counted anew: whoever opens the partition begins behind everything that is lost.
            let known = self.partitions.get(&(topic, partition));
            let row = known.map_or(PartitionRow::default(), |known| PartitionRow {
                log_start: known.row.log_start,
                bytes: known.bytes,
                counted_to: known.row.counted_to.max(known.seen.end()).max(end),
            });
            let key = PartitionKey { topic, partition };
            rows.put(Space::Partitions, key.encode(), row.encode());
        }
        rows
    }

    /// The losses as people hear of them.
    pub(super) fn told(&self, runs: &[LostRun]) -> Vec<OffsetRange> {
        let told = self.losses(runs).into_iter().flat_map(|(id, ranges)| {
            let ranges = ranges.into_iter();
            ranges.map(move |(range, _)| self.range(id, range))
        });
        told.collect()
    }

    fn range(&self, (topic_id, partition): Id, offsets: Range<u64>) -> OffsetRange {
        OffsetRange {
            topic: self.topics.get(&topic_id).cloned(),
            topic_id,
            partition: PartitionId(partition),
            start: Offset(offsets.start),
            end: Some(Offset(offsets.end)),
        }
    }

    /// What is to be told now.
    pub(super) fn report(&self, totals: CheckTotals) -> CheckReport {
        let lost = self.partitions.iter().flat_map(|(id, partition)| {
            let kept = partition.lost.iter();
            let kept = kept.filter(|range| range.end > partition.row.log_start);
            kept.map(|range| self.range(*id, range.clone()))
        });
        CheckReport {
            findings: self.found.iter().map(|found| self.tell(found)).collect(),
            findings_left_out: self.left_out,
            lost: lost.collect(),
            leftovers: self.leftovers.clone(),
            ..figures(totals)
        }
    }

    fn tell(&self, found: &store::Finding) -> Finding {
        let ranges = found.records.iter().filter_map(|keys| self.offsets(keys));
        let mut what = found.detail.clone();
        if found.records.len() > MAX_FINDING_RANGES {
            let more = found.records.len() - MAX_FINDING_RANGES;
            what.push_str(&format!(" (and {more} more ranges of offsets)"));
        }
        Finding {
            file: found.file.display().to_string(),
            place: bounded(found.place.to_string()),
            what: bounded(what),
            segment: found.place.segment(),
            records: ranges.take(MAX_FINDING_RANGES).collect(),
        }
    }
}

impl Inspector for Survey<'_> {
    fn row(&mut self, space: Space, key: &[u8], value: &Bytes) -> Result<(), String> {
        match space {
            // Nothing stands there yet.
            Space::Meta => Ok(()),
            Space::Records => self.record(key, value),
            Space::Partitions => self.partition_row(key, value),
            Space::Producers => self.producer(key, value),
            Space::Offsets => {
                let key = OffsetKey::decode(key).map_err(|e| e.to_string())?;
                OffsetRow::decode(value).map_err(|e| e.to_string())?;
                let name = std::str::from_utf8(key.consumer).map_err(|e| e.to_string())?;
                let name = name.parse::<ConsumerName>();
                name.map(drop).map_err(|e| e.to_string())
            }
            Space::Pipelines => check_row(key, value),
            Space::Catalog => self.catalog(key, value),
            Space::Blobs if *Sha256::digest(value) == *key => Ok(()),
            Space::Blobs => Err("an uploaded component does not match its digest".to_owned()),
        }
    }

    fn found(&mut self, finding: store::Finding) {
        if finding.is_leftover() {
            if self.leftovers.len() < MAX_FINDINGS {
                self.leftovers.push(finding.file.display().to_string());
            }
        } else if self.found.len() < MAX_FINDINGS {
            tracing::debug!(file = %finding.file.display(), place = %finding.place, detail = finding.detail, "found");
            self.found.push(finding);
        } else {
            self.left_out += 1;
        }
    }

    fn progress(&mut self, totals: CheckTotals) {
        self.totals = totals;
        let report = if self.found.len() > self.shown {
            self.shown = self.found.len();
            self.report(totals)
        } else {
            figures(totals)
        };
        (self.show)(&report);
    }
}

fn figures(totals: CheckTotals) -> CheckReport {
    CheckReport {
        bytes: totals.bytes,
        rows: totals.rows,
        batches: totals.records,
        segments: totals.segments,
        elapsed_ms: totals.elapsed_ms,
        ..CheckReport::default()
    }
}

impl Partition {
    /// The offsets that should be there and are neither there nor given up.
    fn gaps(&self, start: u64) -> Vec<Range<u64>> {
        let mut there = self.seen.clone();
        for range in &self.lost {
            there.add(range.clone());
        }
        there.gaps(start..self.row.counted_to.max(there.end()))
    }

    /// Where the batch at `base` ends, which is the last of the partition.
    fn end_of_last(&self, base: u64) -> Option<u64> {
        // A partition is counted up to the end of a batch.
        let counted = Some(self.row.counted_to).filter(|counted| *counted > base);
        // Whatever a producer was told of behind it was lost too.
        let told = self.told.filter(|(of, _)| *of >= base);
        counted.or(told.map(|(base, count)| base + u64::from(count)))
    }
}

/// Two keys of records, as numbers.
struct Bounds {
    id: Id,
    /// The base of the first batch.
    start: u64,
    /// The base of the last batch, or less.
    last: u64,
    /// Where the batch behind the last one begins, if that is what the end says.
    behind: Option<u64>,
}

impl Bounds {
    fn of(keys: &Range<Key>) -> Option<Self> {
        const KEY: usize = millstream_store::key::record::KEY_LEN;
        let first = RecordKey::decode(keys.start.get(..KEY)?).ok()?;
        let id = (first.topic, first.partition);
        let end = keys.end.get(..KEY).map(RecordKey::decode);
        let end = end.and_then(Result::ok);
        let end = end.filter(|end| (end.topic, end.partition) == id);
        let end = end.map(|end| end.base_offset);
        // A key with something behind it is that of the last batch itself.
        let behind = end.filter(|_| keys.end.len() == KEY);
        let last = match behind {
            Some(behind) => behind.saturating_sub(1),
            None => end.unwrap_or(first.base_offset),
        };
        Some(Self {
            id,
            start: first.base_offset,
            last: last.max(first.base_offset),
            behind,
        })
    }
}

/// Bounded, so that a report of many fits a message.
fn bounded(mut text: String) -> String {
    if text.len() > MAX_FINDING_BYTES {
        let cut = (0..=MAX_FINDING_BYTES)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(cut.unwrap_or(0));
        text.push('…');
    }
    text
}
