//! `millstream topic`: create, list, describe, alter and delete topics.

use clap::{Args, Subcommand};
use millstream::Client;
use millstream_proto::limits::MAX_PARTITIONS;
use millstream_proto::topic::{Durability, Spread, TopicChange, TopicConfig, TopicInfo};
use millstream_proto::{Tenant, TopicName};

use crate::args::Global;
use crate::error::{CliError, Outcome};
use crate::link;
use crate::output::Output;
use crate::plugin_use::{show_config, show_policy, show_ref};
use crate::quantity::{bytes, bytes32, duration_ms, show_bytes, show_count, show_ms};
use crate::table::Table;

/// Subcommands of `topic`.
#[derive(Debug, Subcommand)]
#[command(after_help = "Plugins are put on a topic with `millstream plugin attach`.")]
pub(crate) enum TopicCommand {
    /// Make a topic.
    Create(CreateArgs),
    /// List the topics that you may describe.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Show a topic's settings, partitions and plugins.
    Describe {
        /// tenant/topic.
        topic: TopicName,
    },
    /// Change a topic's settings.
    Alter(AlterArgs),
    /// Delete a topic with its records.
    Delete {
        /// tenant/topic.
        topic: TopicName,
        /// Yes, the records too.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DurabilityArg {
    /// A record counts as stored after fsync.
    Fsync,
    /// After the write; fsync follows. A crash can lose acknowledged records.
    Interval,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SpreadArg {
    /// By hash of the key.
    KeyHash,
    /// Every batch to the next partition.
    RoundRobin,
}

/// Settings of a topic; what is not given stays at its default, or as it is.
#[derive(Clone, Debug, Args)]
struct Settings {
    /// Number of partitions; it can be raised later, not lowered.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PARTITIONS)))]
    partitions: Option<u32>,
    /// Bytes kept per partition, such as 10GiB; 0 keeps all.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    retention_bytes: Option<u64>,
    /// How long a record is kept, by its timestamp, such as 7d; 0 keeps all.
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    retention: Option<u64>,
    /// When a record counts as stored.
    #[arg(long, value_enum)]
    durability: Option<DurabilityArg>,
    /// How records are spread over partitions where no partitioner is attached.
    #[arg(long, value_enum)]
    spread: Option<SpreadArg>,
    /// Largest record accepted.
    #[arg(long, value_name = "SIZE", value_parser = bytes32)]
    max_record: Option<u32>,
    /// Largest encoded batch accepted.
    #[arg(long, value_name = "SIZE", value_parser = bytes32)]
    max_batch: Option<u32>,
}

/// Arguments of `topic create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream topic create acme/quakes --partitions 4
  millstream topic create acme/log --retention 7d --retention-bytes 10GiB")]
pub(crate) struct CreateArgs {
    /// tenant/topic.
    topic: TopicName,
    #[command(flatten)]
    settings: Settings,
    /// It is no error when the topic exists already.
    #[arg(long)]
    if_not_exists: bool,
}

/// Arguments of `topic alter`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  millstream topic alter acme/quakes --partitions 8 --retention 30d")]
pub(crate) struct AlterArgs {
    /// tenant/topic.
    topic: TopicName,
    #[command(flatten)]
    settings: Settings,
}

impl Settings {
    fn change(&self) -> TopicChange {
        TopicChange {
            partitions: self.partitions,
            retention_bytes: self.retention_bytes,
            retention_ms: self.retention,
            durability: self.durability.map(|durability| match durability {
                DurabilityArg::Fsync => Durability::Fsync,
                DurabilityArg::Interval => Durability::Interval,
            }),
            spread: self.spread.map(|spread| match spread {
                SpreadArg::KeyHash => Spread::KeyHash,
                SpreadArg::RoundRobin => Spread::RoundRobin,
            }),
            max_record_bytes: self.max_record,
            max_batch_bytes: self.max_batch,
        }
    }

    fn config(&self) -> TopicConfig {
        let TopicChange {
            partitions,
            retention_bytes,
            retention_ms,
            durability,
            spread,
            max_record_bytes,
            max_batch_bytes,
        } = self.change();
        let default = TopicConfig::default();
        TopicConfig {
            partitions: partitions.unwrap_or(default.partitions),
            retention_bytes: retention_bytes.unwrap_or(default.retention_bytes),
            retention_ms: retention_ms.unwrap_or(default.retention_ms),
            durability: durability.unwrap_or(default.durability),
            spread: spread.unwrap_or(default.spread),
            max_record_bytes: max_record_bytes.unwrap_or(default.max_record_bytes),
            max_batch_bytes: max_batch_bytes.unwrap_or(default.max_batch_bytes),
        }
    }
}

/// Runs a subcommand.
pub(crate) async fn run(global: &Global, command: TopicCommand) -> Outcome {
    // What can be seen to be wrong is said before connecting.
    match &command {
        TopicCommand::Create(args) => args.settings.config().check().map_err(CliError::usage)?,
        TopicCommand::Alter(args) if args.settings.change() == TopicChange::default() => {
            return Err(CliError::usage("nothing to change is given")
                .next("see `millstream topic alter --help` for the settings"));
        }
        TopicCommand::Delete { topic, yes: false } => {
            return Err(
                CliError::usage(format!("deleting {topic} deletes its records for good"))
                    .next(format!("say so: millstream topic delete {topic} --yes")),
            );
        }
        _ => {}
    }
    link::with(global, async |client| {
        work(global.output(), client, command).await
    })
    .await
}

async fn work(out: Output, client: &Client, command: TopicCommand) -> Outcome {
    match command {
        TopicCommand::Create(args) => create(out, client, args).await,
        TopicCommand::List { tenant } => list(out, client, tenant).await,
        TopicCommand::Describe { topic } => describe(out, &client.describe_topic(topic).await?),
        TopicCommand::Alter(args) => {
            let info = client
                .alter_topic(args.topic, args.settings.change())
                .await?;
            out.done(&format!("changed {}", info.topic), &info)
        }
        TopicCommand::Delete { topic, .. } => {
            client.delete_topic(topic.clone()).await?;
            out.done(
                &format!("deleted {topic}"),
                &serde_json::json!({ "deleted": topic }),
            )
        }
    }
}

async fn create(out: Output, client: &Client, args: CreateArgs) -> Outcome {
    use millstream_proto::ErrorCode;

    let made = client
        .create_topic(args.topic.clone(), args.settings.config())
        .await;
    let (info, done) = match made {
        Ok(info) => (info, "created"),
        Err(error) => {
            let exists = error
                .wire()
                .is_some_and(|wire| wire.code == ErrorCode::TopicExists);
            if !(exists && args.if_not_exists) {
                return Err(error.into());
            }
            (client.describe_topic(args.topic).await?, "there is already")
        }
    };
    let partitions = info.config.partitions;
    let plural = if partitions == 1 { "" } else { "s" };
    out.done(
        &format!("{done} {} with {partitions} partition{plural}", info.topic),
        &info,
    )
}

async fn list(out: Output, client: &Client, tenant: Option<Tenant>) -> Outcome {
    let names = client.list_topics(tenant.as_ref()).await?;
    if out.json {
        return out.document(&names);
    }
    if names.is_empty() {
        out.note("there is no topic that you may describe");
    }
    names.iter().try_for_each(|name| out.line(name.as_str()))
}

fn describe(out: Output, info: &TopicInfo) -> Outcome {
    if out.json {
        return out.document(info);
    }
    let limit = |n: u64, show: fn(u64) -> String| {
        if n == 0 {
            "no limit".to_owned()
        } else {
            show(n)
        }
    };
    let TopicInfo {
        topic,
        config,
        partitions,
        chain,
        stopped,
    } = info;
    let mut settings = Table::new(&["SETTING", "VALUE"]);
    settings.row(["topic", topic.as_str()]);
    settings.row(["partitions", &config.partitions.to_string()]);
    settings.row([
        "retention by size",
        &limit(config.retention_bytes, show_bytes),
    ]);
    settings.row(["retention by age", &limit(config.retention_ms, show_ms)]);
    settings.row(["durability", durability_word(config.durability)]);
    settings.row(["spread", spread_word(config.spread)]);
    settings.row([
        "largest record",
        &show_bytes(config.max_record_bytes.into()),
    ]);
    settings.row(["largest batch", &show_bytes(config.max_batch_bytes.into())]);
    out.line(&settings.to_string())?;
    let mut table = Table::new(&["PARTITION#", "START#", "END#", "RECORDS#", "SIZE#"]);
    for p in partitions {
        let records = p.end.get().saturating_sub(p.start.get());
        let numbers = [p.start.get(), p.end.get(), records].map(show_count);
        let [start, end, records] = numbers;
        table.row([
            p.partition.to_string(),
            start,
            end,
            records,
            show_bytes(p.bytes),
        ]);
    }
    out.line(&format!("\n{table}"))?;
    if !chain.is_empty() {
        let mut table = Table::new(&["PLUGIN", "ON ERROR", "CONFIG"]);
        for plugin in chain {
            let config = show_config(&plugin.config);
            table.row([show_ref(plugin), show_policy(&plugin.on_error), config]);
        }
        out.line(&format!("\n{table}"))?;
    }
    match stopped {
        Some(why) => out.line(&format!("\nnothing is accepted: {why}")),
        None => Ok(()),
    }
}

fn durability_word(durability: Durability) -> &'static str {
    match durability {
        Durability::Fsync => "fsync",
        Durability::Interval => "interval",
    }
}

fn spread_word(spread: Spread) -> &'static str {
    match spread {
        Spread::KeyHash => "key-hash",
        Spread::RoundRobin => "round-robin",
    }
}
