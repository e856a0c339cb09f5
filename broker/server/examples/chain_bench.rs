//! What a topic's chain costs: batches of 560 records of 116 bytes through a cheap filter that
//! keeps everything, several under way at a time, against the same without a chain.
//!
//! `cargo run --release -p millstream-broker --example chain_bench`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a tool for its author"
)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use millstream_broker::guests::{Directory, Guests, TopicChain};
use millstream_broker::log::{TailBudget, Topic};
use millstream_broker::{Clock, config::PluginsConfig, route};
use millstream_guests::{FILTER_FIELD, FILTER_JSON, Guest, REDACT, ROUTE_BY_REGION};
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
use millstream_proto::limits::MAX_BATCH_BYTES;
use millstream_proto::message::{Digest, PluginVersion};
use millstream_proto::pipeline::PluginUse;
use millstream_proto::topic::TopicConfig;
use millstream_proto::{Batch, Codec, PartitionId, PluginName, Principal, TopicName, WireError};
use millstream_store::MemoryStore;

const RECORDS: u32 = 560;
const BATCHES: usize = 40_000;
const IN_FLIGHT: usize = 16;

struct Only(Guest);

impl Directory for Only {
    fn topic(&self, _: &TopicName) -> Option<Arc<Topic>> {
        None
    }
    fn plugin(&self, name: &PluginName, _: Option<u32>) -> Option<PluginVersion> {
        let about = millstream_plugin::inspect(self.0.wasm).unwrap();
        Some(PluginVersion {
            plugin: name.clone(),
            version: 1,
            kind: about.kind,
            digest: about.digest,
            size: self.0.wasm.len() as u64,
            uploaded_ms: 0,
            uploaded_by: "spiffe://d/acme/me".parse().unwrap(),
        })
    }
    fn plugin_bytes(&self, _: Digest) -> Result<Bytes, WireError> {
        Ok(Bytes::from_static(self.0.wasm))
    }
    fn allow(
        &self,
        _: &Principal,
        _: Operation,
        _: ResourceKind,
        _: &str,
    ) -> Result<(), WireError> {
        Ok(())
    }
}

fn batch(json: bool) -> Batch {
    let mut builder = BatchBuilder::new(MAX_BATCH_BYTES);
    for n in 0..RECORDS {
        let key = format!("{n:016}");
        let value = match json {
            true => format!(
                r#"{{"id":"{n:020}","lon":{},"lat":61.5,"mag":4.25,"place":"somewhere or other"}}"#,
                n % 180
            ),
            false => format!("{n:0100}"),
        };
        let record = NewRecord {
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            timestamp: i64::from(n),
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    builder.build(Codec::None, Stamp::default()).unwrap()
}

fn cpu_ns() -> u64 {
    // utime and stime of the whole process, in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10_000_000
}

async fn drive(
    chain: Option<&TopicChain>,
    topic: &Arc<Topic>,
    batch: &Batch,
    wanted: Option<PartitionId>,
) -> (f64, f64) {
    let (started, cpu) = (Instant::now(), cpu_ns());
    let mut ahead = FuturesOrdered::new();
    let one = || async {
        match chain {
            Some(chain) => chain
                .run(batch.clone(), wanted, topic)
                .await
                .unwrap()
                .appends
                .len(),
            None => route::spread(batch, topic).unwrap().len(),
        }
    };
    for _ in 0..BATCHES {
        if ahead.len() == IN_FLIGHT {
            ahead.next().await;
        }
        ahead.push_back(one());
    }
    while ahead.next().await.is_some() {}
    let records = (BATCHES as u32 * RECORDS) as f64;
    let ns = |total: f64| total / records;
    (
        ns(started.elapsed().as_nanos() as f64),
        ns((cpu_ns() - cpu) as f64),
    )
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let guests = Guests::start(&PluginsConfig::default(), dir.path(), Clock::system()).unwrap();
    let store = Arc::new(MemoryStore::new().unwrap());
    let config = TopicConfig {
        partitions: 8,
        ..TopicConfig::default()
    };
    let name: TopicName = "acme/t".parse().unwrap();
    let topic = Topic::open(1, name.clone(), config, store, TailBudget::new(1 << 20)).unwrap();
    let keep: &[(&str, &str)] = &[("type", "u8"), ("op", ">="), ("value", "0")];
    let half: &[(&str, &str)] = &[
        ("type", "u8"),
        ("offset", "99"),
        ("op", ">="),
        ("value", "53"),
    ];
    let mag: &[(&str, &str)] = &[("field", "mag"), ("op", ">"), ("value", "4")];
    let redact: &[(&str, &str)] = &[("fields", "place")];
    let cases = [
        ("field filter, keeps all", FILTER_FIELD, keep, false),
        ("field filter, keeps half", FILTER_FIELD, half, false),
        ("JSON filter, keeps all", FILTER_JSON, mag, true),
        ("redact", REDACT, redact, true),
        ("route by region", ROUTE_BY_REGION, &[], true),
    ];
    let me: Principal = "spiffe://d/acme/me".parse().unwrap();
    let (wall, cpu) = drive(None, &topic, &batch(false), None).await;
    println!(
        "{:28} {wall:7.1} ns/record wall {cpu:7.1} ns/record CPU",
        "spread alone"
    );
    for (what, guest, config, json) in cases {
        let mut plugin = PluginUse::new(format!("acme/{}", guest.name).parse().unwrap());
        plugin.config = config
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let directory: Arc<dyn Directory> = Arc::new(Only(guest));
        let chain = guests
            .topic_chain(&name, &me, vec![plugin], directory)
            .await
            .unwrap();
        let (wall, cpu) = drive(Some(&chain), &topic, &batch(json), Some(PartitionId(3))).await;
        println!("{what:28} {wall:7.1} ns/record wall {cpu:7.1} ns/record CPU");
    }
    guests.stop().await;
}
