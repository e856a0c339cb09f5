//! What was put in, what was found, and whether the one follows from the other.
//!
//! Pure: no broker, no clock. A [`Source`] is whoever puts records in one after the other: a
//! producer, or a pipeline in one partition of its input. A [`Log`] is a topic read from its first
//! to its last record. [`check`] holds for both kinds of source, so "every acknowledged record is
//! there once" and "the outputs equal the fold of the input" are the same statement, and
//! [`derived`] makes the second one of the first. [`check_reading`] compares with a log what a
//! consumer saw that had to connect anew in between.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use bytes::Bytes;
use millstream_proto::partition::key_partition;

/// Violations that are reported; one mistake can cause thousands.
pub const MAX_VIOLATIONS: usize = 20;

/// A record as far as it identifies itself. No two records of a history are equal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Item {
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |bytes: &Option<Bytes>| {
            bytes
                .as_ref()
                .map_or_else(|| "none".to_owned(), |b| b.escape_ascii().to_string())
        };
        write!(f, "{} = {}", show(&self.key), show(&self.value))
    }
}

/// What a source was told about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing, or an error: it may be there, once.
    InDoubt,
    /// It is stored; at this offset, where the answer said so.
    Acked {
        /// The offset that was told.
        offset: Option<u64>,
    },
}

/// A record that a source put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The record.
    pub item: Item,
    /// The partition it belongs to; `None` when plugins keep it out of the topic.
    pub home: Option<u32>,
    /// What the source was told.
    pub fate: Fate,
}

/// Whoever puts in records, in the order it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// What it is called in violations.
    pub name: String,
    /// What it put in.
    pub puts: Vec<Put>,
}

/// A record where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its offset.
    pub offset: u64,
    /// What it is.
    pub item: Item,
}

/// A topic from its first to its last record, by partition, in the order of reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// One list for each partition.
    pub partitions: Vec<Vec<Entry>>,
}

impl Log {
    /// Records in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.partitions.iter().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// The record outlives every crash.
    Durable,
    /// A crash may take the newest records with it, and nothing but the newest: of one source in
    /// one partition, the lost records form one run for each crash at most.
    NewestMayGo {
        /// Crashes there were.
        crashes: usize,
    },
}

/// What a history that holds is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that were acknowledged and belong into the topic.
    pub acked: usize,
    /// Records that plugins kept out.
    pub kept_out: usize,
    /// Records in doubt that are there.
    pub doubt_there: usize,
    /// Records in doubt that are not.
    pub doubt_gone: usize,
    /// Acknowledged records that are gone; without a violation only where the promise allows it.
    pub lost: usize,
    /// Acknowledged records that retention has removed.
    pub removed: usize,
}

/// A partition and an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.offset)
    }
}

/// Why a history does not hold. `number` is a record's place among those of its source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The history itself is of no use.
    #[error("{source_name} puts in {item:?} although somebody did before")]
    Ambiguous {
        /// The source.
        source_name: String,
        /// The record.
        item: Item,
    },
    /// The offsets of a partition do not follow one another from where its log starts.
    #[error("partition {partition} goes on with offset {found} where {expected} should come")]
    Gap {
        /// The partition.
        partition: u32,
        /// The offset that should come.
        expected: u64,
        /// The offset that came.
        found: u64,
    },
    /// Nobody put this in.
    #[error("at {place} is a record that nobody put in: {item:?}")]
    Alien {
        /// Where.
        place: Place,
        /// What.
        item: Item,
    },
    /// A record is there more than once.
    #[error("record {number} of {source_name} is at {first} and at {second}")]
    Twice {
        /// The source.
        source_name: String,
        /// The record.
        number: usize,
        /// Where it was first.
        first: Place,
        /// Where it was again.
        second: Place,
    },
    /// A plugin should have kept the record out.
    #[error("record {number} of {source_name} is at {place} and should have been kept out")]
    NotKeptOut {
        /// The source.
        source_name: String,
        /// The record.
        number: usize,
        /// Where it is.
        place: Place,
    },
    /// The record is in another partition than the one it belongs to.
    #[error("record {number} of {source_name} is at {place} and belongs into partition {home}")]
    Misrouted {
        /// The source.
        source_name: String,
        /// The record.
        number: usize,
        /// Where it belongs.
        home: u32,
        /// Where it is.
        place: Place,
    },
    /// The acknowledgement told another offset.
    #[error("record {number} of {source_name} was acknowledged at {told} and is at {place}")]
    Moved {
        /// The source.
        source_name: String,
        /// The record.
        number: usize,
        /// The offset that was told.
        told: u64,
        /// Where it is.
        place: Place,
    },
    /// Two records of one source are in the wrong order.
    #[error("record {number} of {source_name} is at {place}, behind record {behind}")]
    Reordered {
        /// The source.
        source_name: String,
        /// The record.
        number: usize,
        /// A later record, which lies before it.
        behind: usize,
        /// Where it is.
        place: Place,
    },
    /// An acknowledged record is not there.
    #[error("record {number} of {source_name} was acknowledged and is not in partition {home}")]
    Lost {
        /// The source.
        source_name: String,
        /// The record.
        number: usize,
        /// Where it should be.
        home: u32,
    },
    /// More was lost than the newest before each crash.
    #[error(
        "of {source_name} in partition {home}, {runs} runs of acknowledged records are lost in \
         {crashes} crashes"
    )]
    LostApart {
        /// The source.
        source_name: String,
        /// The partition.
        home: u32,
        /// Runs of lost records with stored ones between them.
        runs: usize,
        /// Crashes there were.
        crashes: usize,
    },
    /// A reader did not get the log from front to back, each record once.
    #[error("a reader was given {found} where {expected} should come")]
    Misread {
        /// What came next in the log; the end, if nothing did.
        expected: Read,
        /// What the reader was given; the end, if nothing.
        found: Read,
    },
}

/// What a reader is given next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A record.
    Entry(Place, Item),
    /// Nothing more of this partition.
    End(u32),
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(place, item) => write!(f, "{place} ({item:?})"),
            Self::End(partition) => write!(f, "the end of partition {partition}"),
        }
    }
}

/// What a pipeline makes of `input`, as a source for each partition of it. `make` is the whole
/// chain, `partitions` the number of the output's; records go where their keys say.
///
/// # Panics
/// When a made record has no key: where it goes would not be determined.
#[must_use]
pub fn derived(input: &Log, partitions: u32, make: impl Fn(&Item) -> Option<Item>) -> Vec<Source> {
    let put = |item: Item| {
        let key = item.key.as_ref().expect("made records have keys");
        let home = Some(key_partition(key, partitions).0);
        let fate = Fate::Acked { offset: None };
        Put { item, home, fate }
    };
    let source = |(number, entries): (usize, &Vec<Entry>)| Source {
        name: format!("the pipeline in input partition {number}"),
        puts: entries
            .iter()
            .filter_map(|e| make(&e.item))
            .map(put)
            .collect(),
    };
    input.partitions.iter().enumerate().map(source).collect()
}

/// Whether `log` is what `sources` made of it.
///
/// # Errors
/// What does not hold, at most [`MAX_VIOLATIONS`] of it.
pub fn check(sources: &[Source], log: &Log, promise: Promise) -> Result<Tally, Vec<Violation>> {
    check_retained(sources, log, &[], promise)
}

/// As [`check`], of a topic from which retention has removed what lies before `starts`, the offset
/// at which each partition's log starts; 0 where it says nothing.
///
/// Of a removed record it is known that it was removed if its source was told its offset. If not,
/// it counts as removed as long as nothing earlier of its source is there.
///
/// # Errors
/// As [`check`].
pub fn check_retained(
    sources: &[Source],
    log: &Log,
    starts: &[u64],
    promise: Promise,
) -> Result<Tally, Vec<Violation>> {
    let mut checker = Checker::new(sources, starts);
    for (partition, entries) in (0..).zip(&log.partitions) {
        checker.partition(partition, entries);
    }
    let tally = checker.missing(promise);
    match checker.violations {
        none if none.is_empty() => Ok(tally),
        mut some => {
            some.truncate(MAX_VIOLATIONS);
            Err(some)
        }
    }
}

struct Checker<'a> {
    sources: &'a [Source],
    starts: &'a [u64],
    known: HashMap<&'a Item, (usize, usize)>,
    /// By source and record, where it was found.
    found: Vec<Vec<Option<Place>>>,
    violations: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn new(sources: &'a [Source], starts: &'a [u64]) -> Self {
        let mut known = HashMap::new();
        let mut violations = Vec::new();
        for (s, source) in sources.iter().enumerate() {
            for (number, put) in source.puts.iter().enumerate() {
                if known.insert(&put.item, (s, number)).is_some() {
                    let (source_name, item) = (source.name.clone(), put.item.clone());
                    violations.push(Violation::Ambiguous { source_name, item });
                }
            }
        }
        let found = sources.iter().map(|s| vec![None; s.puts.len()]).collect();
        Self {
            sources,
            starts,
            known,
            found,
            violations,
        }
    }

    /// Where a partition's log starts.
    fn start(&self, partition: u32) -> u64 {
        self.starts
            .get(partition as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Everything that is there, is there by right.
    fn partition(&mut self, partition: u32, entries: &[Entry]) {
        let mut expected = self.start(partition);
        // By source, its newest record so far.
        let mut newest = vec![None; self.sources.len()];
        for Entry { offset, item } in entries {
            let place = Place {
                partition,
                offset: *offset,
            };
            if *offset != expected {
                let found = *offset;
                self.violations.push(Violation::Gap {
                    partition,
                    expected,
                    found,
                });
            }
            expected = offset + 1;
            let Some(&(s, number)) = self.known.get(item) else {
                self.violations.push(Violation::Alien {
                    place,
                    item: item.clone(),
                });
                continue;
            };
            self.entry(s, number, place);
            match newest[s] {
                Some(behind) if behind > number => {
                    let source_name = self.sources[s].name.clone();
                    let reordered = Violation::Reordered {
                        source_name,
                        number,
                        behind,
                        place,
                    };
                    self.violations.push(reordered);
                }
                _ => newest[s] = Some(number),
            }
        }
    }

    fn entry(&mut self, s: usize, number: usize, place: Place) {
        let source = &self.sources[s];
        let put = &source.puts[number];
        let source_name = source.name.clone();
        if let Some(first) = self.found[s][number].replace(place) {
            let twice = Violation::Twice {
                source_name,
                number,
                first,
                second: place,
            };
            self.violations.push(twice);
            return;
        }
        let violation = match (put.home, put.fate) {
            (None, _) => Violation::NotKeptOut {
                source_name,
                number,
                place,
            },
            (Some(home), _) if home != place.partition => Violation::Misrouted {
                source_name,
                number,
                home,
                place,
            },
            (_, Fate::Acked { offset: Some(told) }) if told != place.offset => Violation::Moved {
                source_name,
                number,
                told,
                place,
            },
            _ => return,
        };
        self.violations.push(violation);
    }

    /// Whether a record that is not there was removed by retention.
    fn is_removed(&self, home: u32, offset: Option<u64>, begun: &BTreeSet<u32>) -> bool {
        let start = self.start(home);
        match offset {
            Some(told) => told < start,
            None => start > 0 && !begun.contains(&home),
        }
    }

    /// Everything that should be there, is there.
    fn missing(&mut self, promise: Promise) -> Tally {
        let mut tally = Tally::default();
        for (source, found) in self.sources.iter().zip(&self.found) {
            // By partition: lost runs, and whether the last acknowledged record was lost.
            let mut runs: BTreeMap<u32, (usize, bool)> = BTreeMap::new();
            // Partitions in which something of this source was found.
            let mut begun = BTreeSet::new();
            for (number, (put, found)) in source.puts.iter().zip(found).enumerate() {
                let Some(home) = put.home else {
                    tally.kept_out += 1;
                    continue;
                };
                if found.is_some() {
                    begun.insert(home);
                }
                match (put.fate, found) {
                    (Fate::InDoubt, Some(_)) => tally.doubt_there += 1,
                    (Fate::InDoubt, None) => tally.doubt_gone += 1,
                    (Fate::Acked { .. }, Some(_)) => {
                        tally.acked += 1;
                        runs.entry(home).or_default().1 = false;
                    }
                    (Fate::Acked { offset }, None) if self.is_removed(home, offset, &begun) => {
                        tally.acked += 1;
                        tally.removed += 1;
                    }
                    (Fate::Acked { .. }, None) => {
                        tally.acked += 1;
                        tally.lost += 1;
                        let (runs, running) = runs.entry(home).or_default();
                        *runs += usize::from(!std::mem::replace(running, true));
                        if promise == Promise::Durable {
                            let source_name = source.name.clone();
                            self.violations.push(Violation::Lost {
                                source_name,
                                number,
                                home,
                            });
                        }
                    }
                }
            }
            if let Promise::NewestMayGo { crashes } = promise {
                for (home, (runs, _)) in runs.into_iter().filter(|(_, (runs, _))| *runs > crashes) {
                    let source_name = source.name.clone();
                    self.violations.push(Violation::LostApart {
                        source_name,
                        home,
                        runs,
                        crashes,
                    });
                }
            }
        }
        tally
    }
}

/// Whether `seen`, what a reader was given in this order, is exactly `log`: each record once, each
/// partition from front to back.
///
/// # Errors
/// The first difference of each partition.
pub fn check_reading(seen: &[(u32, Entry)], log: &Log) -> Result<(), Vec<Violation>> {
    let mut by_partition: BTreeMap<u32, Vec<&Entry>> = BTreeMap::new();
    for (partition, entry) in seen {
        by_partition.entry(*partition).or_default().push(entry);
    }
    let mut violations = Vec::new();
    let partitions = (0..log.partitions.len() as u32).chain(by_partition.keys().copied());
    let partitions: BTreeSet<u32> = partitions.collect();
    for partition in partitions {
        let read = |entry: Option<&Entry>| match entry {
            Some(Entry { offset, item }) => Read::Entry(
                Place {
                    partition,
                    offset: *offset,
                },
                item.clone(),
            ),
            None => Read::End(partition),
        };
        let seen = by_partition.get(&partition).map_or(&[][..], Vec::as_slice);
        let there = log
            .partitions
            .get(partition as usize)
            .map_or(&[][..], Vec::as_slice);
        let longest = seen.len().max(there.len());
        let differs = |i: &usize| seen.get(*i).copied() != there.get(*i);
        if let Some(i) = (0..longest).find(differs) {
            let (expected, found) = (read(there.get(i)), read(seen.get(i).copied()));
            violations.push(Violation::Misread { expected, found });
        }
    }
    if violations.is_empty() {
        Ok(())
    } else {
        Err(violations)
    }
}

#[cfg(test)]
mod tests;
