//! What the tests of chains and pipelines stand on: topics on a store in memory, the example
//! plugins, and a directory that knows both.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use millstream_guests::Guest;
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::batch::{BatchBuilder, NewHeader, NewRecord, Stamp};
use millstream_proto::limits::MAX_BATCH_BYTES;
use millstream_proto::message::{Digest, PluginVersion};
use millstream_proto::pipeline::{ErrorPolicy, PluginUse};
use millstream_proto::topic::TopicConfig;
use millstream_proto::{
    Batch, Codec, ErrorCode, Offset, PluginName, Principal, TopicName, WireError,
};
use millstream_store::{MemoryStore, Store, WriteBatch};

use super::{Directory, Guests};
use crate::clock::Clock;
use crate::config::PluginsConfig;
use crate::log::{Append, TailBudget, Topic, append};

/// One guest thread and one set of compiled plugins for all tests: compiling is what takes time.
static GUESTS: LazyLock<Guests> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let mut config = PluginsConfig::default();
    // The tests of penalties are the plugin crate's; here they would only take time.
    config.limits.penalty_factor = 0;
    Guests::start(&config, &dir.keep(), Clock::fixed(1_000)).unwrap()
});

pub(crate) fn guests() -> Guests {
    GUESTS.clone()
}

/// A record as tests write it down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rec {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) timestamp: i64,
    pub(crate) offset: u64,
}

impl Rec {
    pub(crate) fn new(key: &str, value: &str) -> Self {
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        Self {
            key: bytes(key),
            value: bytes(value),
            ..Self::default()
        }
    }

    pub(crate) fn value_text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }
}

pub(crate) fn batch_of(records: &[Rec]) -> Batch {
    encoded(records, Codec::None)
}

pub(crate) fn encoded(records: &[Rec], codec: Codec) -> Batch {
    let mut builder = BatchBuilder::new(MAX_BATCH_BYTES);
    for rec in records {
        let headers: Vec<NewHeader<'_>> = rec
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), &value[..]))
            .collect();
        let (key, value) = (rec.key.as_deref(), rec.value.as_deref());
        let record = NewRecord {
            key,
            value,
            headers: &headers,
            timestamp: rec.timestamp,
        };
        builder.push(&record).unwrap();
    }
    builder.build(codec, Stamp::default()).unwrap()
}

/// The records of a batch; offsets count from `base`, or from the batch's own if it is none.
pub(crate) fn decoded(batch: &Batch, base: Option<Offset>) -> Vec<Rec> {
    let body = batch.body().unwrap();
    let own = body.header().base_offset.0;
    let records = body.view().unwrap().records();
    records
        .map(|record| Rec {
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            timestamp: record.timestamp,
            offset: record.offset.0 - own + base.map_or(own, |base| base.0),
            headers: record
                .headers
                .map(|(n, v)| (n.to_owned(), v.to_vec()))
                .collect(),
        })
        .collect()
}

/// The use of a plugin, configured.
pub(crate) fn using(guest: Guest, config: &[(&str, &str)], on_error: ErrorPolicy) -> PluginUse {
    let config = config
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let plugin = format!("acme/{}", guest.name).parse().unwrap();
    PluginUse {
        config: config.collect(),
        on_error,
        ..PluginUse::new(plugin)
    }
}

pub(crate) fn dead_letter(topic: &str) -> ErrorPolicy {
    ErrorPolicy::DeadLetter(topic.parse().unwrap())
}

pub(crate) fn me() -> Principal {
    "spiffe://test/acme/me".parse().unwrap()
}

/// A small broker: everything but the network.
pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    tails: TailBudget,
    topics: Mutex<BTreeMap<TopicName, Arc<Topic>>>,
    denied: Mutex<HashSet<(Operation, String)>>,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            store: Arc::new(MemoryStore::new().unwrap()),
            tails: TailBudget::new(1 << 20),
            topics: Mutex::default(),
            denied: Mutex::default(),
        })
    }

    pub(crate) fn directory(self: &Arc<Self>) -> Arc<dyn Directory> {
        self.clone()
    }

    /// Adds a topic with so many partitions.
    pub(crate) fn topic(&self, name: &str, partitions: u32) -> Arc<Topic> {
        self.configured(
            name,
            TopicConfig {
                partitions,
                ..TopicConfig::default()
            },
        )
    }

    pub(crate) fn configured(&self, name: &str, config: TopicConfig) -> Arc<Topic> {
        let mut topics = self.topics.lock().unwrap();
        let (id, name) = (topics.len() as u32 + 1, name.parse::<TopicName>().unwrap());
        let (store, tails) = (Arc::clone(&self.store), self.tails.clone());
        let topic = Topic::open(id, name.clone(), config, store, tails).unwrap();
        topics.insert(name, Arc::clone(&topic));
        topic
    }

    pub(crate) fn forget_topic(&self, name: &str) {
        self.topics
            .lock()
            .unwrap()
            .remove(&name.parse::<TopicName>().unwrap());
    }

    /// Takes a right away from everybody.
    pub(crate) fn deny(&self, operation: Operation, name: &str) {
        self.denied
            .lock()
            .unwrap()
            .insert((operation, name.to_owned()));
    }

    /// Appends a batch to partition `partition`.
    pub(crate) async fn write(&self, topic: &Arc<Topic>, partition: u32, records: &[Rec]) {
        let to = millstream_proto::PartitionId(partition);
        self.commit(vec![Append::to(topic, to, batch_of(records)).unwrap()])
            .await;
    }

    pub(crate) async fn commit(&self, appends: Vec<Append>) {
        append(&self.store, appends, WriteBatch::new())
            .await
            .unwrap();
    }
}

impl Directory for World {
    fn topic(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.topics.lock().unwrap().get(name).cloned()
    }

    fn plugin(&self, name: &PluginName, version: Option<u32>) -> Option<PluginVersion> {
        let guest = find(|guest| guest.name == name.local())?;
        let about = millstream_plugin::inspect(guest.wasm).unwrap();
        let newest = 2;
        let version = version.unwrap_or(newest);
        (1..=newest).contains(&version).then(|| PluginVersion {
            plugin: name.clone(),
            version,
            kind: about.kind,
            digest: about.digest,
            size: guest.wasm.len() as u64,
            uploaded_ms: 0,
            uploaded_by: me(),
        })
    }

    fn plugin_bytes(&self, digest: Digest) -> Result<Bytes, WireError> {
        let has = |guest: &Guest| {
            millstream_plugin::inspect(guest.wasm).is_ok_and(|about| about.digest == digest)
        };
        let guest = find(has).ok_or_else(|| WireError::new(ErrorCode::Internal, "no such digest"));
        guest.map(|guest| Bytes::from_static(guest.wasm))
    }

    fn allow(
        &self,
        who: &Principal,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
    ) -> Result<(), WireError> {
        if self
            .denied
            .lock()
            .unwrap()
            .contains(&(operation, name.to_owned()))
        {
            let text = format!("{who} may not {operation} {kind} {name}");
            return Err(WireError::new(ErrorCode::NotAuthorized, text));
        }
        Ok(())
    }
}

fn find(matches: impl Fn(&Guest) -> bool) -> Option<Guest> {
    millstream_guests::ALL.iter().copied().find(matches)
}

/// Every record of a topic, by partition.
pub(crate) async fn contents(topic: &Topic) -> Vec<Vec<Rec>> {
    let mut all = Vec::new();
    for partition in topic.partitions().iter() {
        let (mut records, mut from) = (Vec::new(), partition.start());
        while from < partition.end() {
            for stored in partition.read(from, 1 << 20).await.unwrap() {
                records.extend(decoded(&stored.batch, Some(stored.base)));
                from = stored.end();
            }
        }
        all.push(records);
    }
    all
}
