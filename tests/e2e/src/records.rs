//! Records in and out, plugins up: what nearly every test does.

use std::time::Duration;

use bytes::Bytes;
use millstream::{Client, Message, Offset, PluginUse, Record, StartAt, TopicConfig};
use millstream_guests::Guest;
use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
use millstream_proto::limits::MAX_BATCH_BYTES;
use millstream_proto::message::PluginVersion;
use millstream_proto::pipeline::ErrorPolicy;
use millstream_proto::{Batch, Codec, PluginName, ProducerEpoch, ProducerId, Sequence, TopicName};

/// How long something that must happen may take on a busy machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A topic with so many partitions.
#[must_use]
pub fn partitions(partitions: u32) -> TopicConfig {
    TopicConfig {
        partitions,
        ..TopicConfig::default()
    }
}

/// Produces these values, each keyed by itself, and waits until all are stored.
pub async fn produce<V: AsRef<[u8]>>(
    client: &Client,
    topic: &TopicName,
    values: impl IntoIterator<Item = V>,
) {
    let producer = client.producer(topic.clone()).build().await;
    let producer = producer.expect("the topic can be produced to");
    let mut deliveries = Vec::new();
    for value in values {
        let value = value.as_ref();
        let sent = producer.send(&Record::value(value).key(value)).await;
        deliveries.push(sent.expect("the record is taken"));
    }
    for delivery in deliveries {
        delivery.await.expect("the record is stored");
    }
    producer.close().await.expect("the producer ends well");
}

/// Everything in a topic, in the order in which it comes.
pub async fn read(client: &Client, topic: &TopicName) -> Vec<Message> {
    let consumer = client.consumer(topic.clone()).start(StartAt::Earliest);
    let consumer = consumer.until_end(true).build().await;
    let mut consumer = consumer.expect("the topic can be read");
    let mut messages = Vec::new();
    while let Some(message) = consumer.next_message().await {
        messages.push(message.expect("the record comes out"));
    }
    messages
}

/// A record's value as text; nothing for a tombstone.
#[must_use]
pub fn text(message: &Message) -> String {
    String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned()
}

/// The values of a topic as text, sorted.
pub async fn texts(client: &Client, topic: &TopicName) -> Vec<String> {
    let mut texts: Vec<_> = read(client, topic).await.iter().map(text).collect();
    texts.sort_unstable();
    texts
}

/// A header's value as text.
#[must_use]
pub fn header(message: &Message, name: &str) -> Option<String> {
    let found = message.headers.iter().find(|(own, _)| own == name);
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

/// The name under which `tenant` uploads a guest.
///
/// # Panics
/// When the tenant is no name.
#[must_use]
pub fn plugin(tenant: &str, guest: Guest) -> PluginName {
    format!("{tenant}/{}", guest.name)
        .parse()
        .expect("a valid plugin name")
}

/// Uploads a guest for `tenant`.
pub async fn upload(client: &Client, tenant: &str, guest: Guest) -> PluginVersion {
    let wasm = Bytes::from_static(guest.wasm);
    let uploaded = client
        .upload_plugin(plugin(tenant, guest), wasm, |_| {})
        .await;
    uploaded.expect("the guest is a plugin")
}

/// The use of `tenant`'s plugin.
#[must_use]
pub fn using(
    tenant: &str,
    guest: Guest,
    config: &[(&str, &str)],
    on_error: ErrorPolicy,
) -> PluginUse {
    let config = config
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    PluginUse {
        config: config.collect(),
        on_error,
        ..PluginUse::new(plugin(tenant, guest))
    }
}

/// A batch of these values without keys, stamped.
///
/// # Panics
/// When no batch can hold them.
#[must_use]
pub fn batch(values: &[&[u8]], producer: u64, epoch: u16, sequence: u64) -> Batch {
    let mut builder = BatchBuilder::new(MAX_BATCH_BYTES);
    for value in values {
        let record = NewRecord {
            value: Some(value),
            timestamp: 1,
            ..NewRecord::default()
        };
        builder.push(&record).expect("the batch has room");
    }
    let stamp = Stamp {
        producer: ProducerId(producer),
        epoch: ProducerEpoch(epoch),
        sequence: Sequence(sequence),
    };
    builder
        .build(Codec::None, stamp)
        .expect("the batch has records")
}

/// The end of the topic's first partition.
pub async fn end(client: &Client, topic: &TopicName) -> Offset {
    let info = client.describe_topic(topic.clone()).await;
    info.expect("the topic can be described").partitions[0].end
}

/// Asks until there is an answer.
///
/// # Panics
/// When there is none in a minute; `what` says of what.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    let answered = tokio::time::timeout(PATIENCE, asking).await;
    answered.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}
