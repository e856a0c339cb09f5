//! How much a hostile plugin of one tenant costs another: ingest into a topic, alone and while a
//! hostile plugin is fed one record after the other elsewhere in the same broker.

use std::time::Duration;

use bytes::Bytes;
use millstream::{Client, Record};
use millstream_guests::{BAD_FILTER, BAD_TRANSFORM, Guest};
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PluginUse};
use millstream_proto::topic::StartAt;
use millstream_proto::{PluginName, TopicName};

use super::live::Live;
use super::payload::Payload;
use super::scenario::{create, megabytes, produce};
use super::{Bench, process};
use crate::error::{CliError, Outcome};

/// What the plugins do, one after the other.
const DEEDS: [&str; 6] = [
    "spin",
    "eat-memory",
    "recurse",
    "trap",
    "flood-output",
    "flood-logs",
];

/// Where the plugin stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    Topic,
    Subscription,
    Pipeline,
}

/// Measures every deed at every place.
pub(super) async fn run(bench: &mut Bench<'_>) -> Outcome {
    let Bench {
        stage,
        args,
        report,
        output,
    } = bench;
    let live = Live::start(stage, stage.hot_place(args)?).await?;
    let (good, bad) = (&live.client, stage.client(&live.broker).await?);
    let filter = upload(&bad, BAD_FILTER).await?;
    let transform = upload(&bad, BAD_TRANSFORM).await?;
    let shape = args.shape();
    let payload = Payload::new(shape);
    let records = args.bytes / shape.record_bytes();
    let topic = create(good, "good", shape.partitions).await?;
    for (at, plugin) in [
        (Place::Topic, &filter),
        (Place::Subscription, &filter),
        (Place::Pipeline, &transform),
    ] {
        for deed in DEEDS {
            output.note(&format!("a plugin on a {at:?} does {deed}"));
            let mut pairs = Vec::new();
            for round in 0..args.rounds {
                let alone = produce(good, &topic, &payload, shape, records).await?;
                let name = format!("{at:?}-{deed}-{round}").to_lowercase();
                // A transform's output floods by its size.
                let mode = match (at, deed) {
                    (Place::Pipeline, "flood-output") => "flood-bytes",
                    _ => deed,
                };
                let attack = attack(&bad, at, hostile(plugin, mode), &name);
                let attacked = tokio::select! {
                    rate = produce(good, &topic, &payload, shape, records) => rate?,
                    ended = attack => {
                        ended?;
                        return Err(CliError::failure("the attack ended by itself"));
                    }
                };
                pairs.push((attacked, alone));
            }
            let what = format!("ingest beside {deed} on a {at:?}").to_lowercase();
            report.against(
                &what,
                "MB/s",
                &megabytes(&pairs),
                "the same alone",
                String::new(),
            );
        }
    }
    let peak = process::peak_resident(live.pid()) as f64 / f64::from(1 << 20);
    report.plain(
        "peak memory of the broker under attack",
        "MiB",
        &[peak],
        String::new(),
    );
    live.end(stage).await
}

async fn upload(client: &Client, guest: Guest) -> Outcome<PluginName> {
    let name: PluginName = format!("bad/{}", guest.name)
        .parse()
        .map_err(CliError::failure)?;
    client
        .upload_plugin(name.clone(), Bytes::from_static(guest.wasm), |_| {})
        .await?;
    Ok(name)
}

/// A plugin that is called again after everything it does.
fn hostile(plugin: &PluginName, deed: &str) -> PluginUse {
    let mut plugin = PluginUse::new(plugin.clone());
    plugin.config.insert("mode".to_owned(), deed.to_owned());
    plugin.on_error = ErrorPolicy::Skip;
    plugin
}

/// Feeds a hostile plugin one record after the other, for ever.
async fn attack(client: &Client, at: Place, plugin: PluginUse, name: &str) -> Outcome {
    let input = create(client, &format!("in-{name}"), 1).await?;
    match at {
        Place::Topic => {
            client.attach(input.clone(), plugin).await?;
            feed(client, &input).await
        }
        Place::Subscription => {
            let reader = client
                .consumer(input.clone())
                .start(StartAt::Earliest)
                .plugin(plugin);
            let mut reader = reader.build().await?;
            let reading = async {
                while let Some(batch) = reader.next_batch().await {
                    batch?;
                }
                Err(CliError::failure("the attacked subscription ended"))
            };
            tokio::select! {
                ended = feed(client, &input) => ended,
                ended = reading => ended,
            }
        }
        Place::Pipeline => {
            let out = create(client, &format!("out-{name}"), 1).await?;
            let spec = PipelineSpec {
                name: format!("bench/{name}").parse().map_err(CliError::failure)?,
                input: input.clone(),
                from_latest: false,
                steps: vec![plugin],
                outputs: vec![("out".to_owned(), out)],
            };
            client.apply_pipeline(spec).await?;
            feed(client, &input).await
        }
    }
}

/// Time between two records: feeding itself must cost next to nothing.
const PAUSE: Duration = Duration::from_millis(2);

/// One record at a time.
async fn feed(client: &Client, topic: &TopicName) -> Outcome {
    let producer = client
        .producer(topic.clone())
        .linger(Duration::ZERO)
        .build()
        .await?;
    loop {
        producer.send(&Record::value(b"bait")).await?.await?;
        tokio::time::sleep(PAUSE).await;
    }
}
