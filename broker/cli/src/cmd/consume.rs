//! `millstream consume`: records to standard output.

mod format;

use std::future::Future;
use std::io::{self, Write};
use std::pin::{Pin, pin};
use std::time::Duration;

use clap::Args;
use futures_util::future::{Either, poll_immediate, select};
use millstream::{Client, ConsumeError, Consumer, Message};
use millstream_proto::pipeline::ErrorPolicy;
use millstream_proto::topic::StartAt;
use millstream_proto::{ConsumerName, Offset, PartitionId, TopicName};
use tokio::time::{Instant, timeout};

use self::format::{Format, Shown};
use crate::args::Global;
use crate::clock;
use crate::error::{CliError, Outcome};
use crate::link;
use crate::output::complain;
use crate::plugin_use::{PluginRef, plugin_use, policy};
use crate::quantity::{pair, show_count};

/// With `--as`, positions are committed about this often, and at the end.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `consume`.
#[derive(Debug, Args)]
#[command(after_help = "\
With --json each record is one object with partition, offset, timestamp, key, value and headers;
bytes that are not UTF-8 are in base64 under key_base64 and value_base64.

Examples:
  millstream consume acme/quakes --from earliest --until-end
  millstream consume acme/quakes --from 2018-02-01T00:00:00Z --format full
  millstream consume acme/quakes --as dashboard --json | jq .value
  millstream consume acme/quakes --filter acme/filter-json --config field=mag --config op='>=' --config value=5")]
pub(crate) struct ConsumeArgs {
    /// tenant/topic.
    topic: TopicName,
    /// Where to begin: earliest, latest, an offset or an RFC 3339 time. The latest unless given,
    /// the earliest with --until-end. With --as, only where nothing was committed yet.
    #[arg(long, value_name = "START", value_parser = start)]
    from: Option<StartAt>,
    /// Only this partition; may be repeated.
    #[arg(long = "partition", value_name = "NUMBER")]
    partitions: Vec<u32>,
    /// Go on where the consumer of this name stopped, and commit how far this one comes.
    #[arg(long = "as", value_name = "CONSUMER")]
    consumer: Option<ConsumerName>,
    /// Read nothing; remove what the consumer of this name has committed, so that it begins anew
    /// and its name counts no more towards how many a topic may have.
    #[arg(
        long,
        requires = "consumer",
        conflicts_with_all = ["from", "partitions", "until_end", "max", "filter"]
    )]
    forget: bool,
    /// End at the end of the topic as it is now.
    #[arg(long)]
    until_end: bool,
    /// End after so many records.
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// A filter or transform that runs in the broker: only what passes crosses the network.
    #[arg(long, value_name = "PLUGIN[@VERSION]")]
    filter: Option<PluginRef>,
    /// What the plugin reads as its configuration; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, requires = "filter")]
    config: Vec<(String, String)>,
    /// What happens when the plugin fails: stop, skip or dead-letter=tenant/topic.
    #[arg(long, value_name = "POLICY", value_parser = policy, requires = "filter")]
    on_error: Option<ErrorPolicy>,
    /// How records are shown without --json.
    #[arg(long, value_enum, default_value_t = Format::Value)]
    format: Format,
}

/// `earliest`, `latest`, an offset or an RFC 3339 time.
fn start(text: &str) -> Result<StartAt, String> {
    match text {
        "earliest" => Ok(StartAt::Earliest),
        "latest" => Ok(StartAt::Latest),
        _ => text
            .parse()
            .map(|offset| StartAt::Offset(Offset(offset)))
            .ok()
            .or_else(|| clock::parse_rfc3339(text).map(StartAt::Timestamp))
            .ok_or_else(|| {
                format!(
                    "{text:?} is no start: earliest, latest, an offset, or 2018-02-01T00:00:00Z"
                )
            }),
    }
}

/// Consumes until the end, the maximum, an error or an interruption.
pub(crate) async fn run(global: &Global, args: ConsumeArgs) -> Outcome {
    let out = global.output();
    if let (true, Some(name)) = (args.forget, &args.consumer) {
        return forget(global, &args.topic, name).await;
    }
    let client = link::connect(global).await?;
    let mut consumer = build(&client, &args).await?;
    let printer = Printer {
        json: global.json,
        format: args.format,
        out: out.stream(),
    };
    let mut work = Work {
        consumer: &mut consumer,
        named: args.consumer.is_some(),
        printer,
        shown: 0,
        committed: Instant::now(),
        setbacks: Vec::new(),
    };
    let outcome = work.run(args.max).await;
    // What was shown is shown, also when the next record could not be had.
    let finished = work.commit().await;
    let (shown, setbacks) = (work.shown, std::mem::take(&mut work.setbacks));
    drop(work);
    link::leave(&client).await;
    outcome.and(finished)?;
    let plural = if shown == 1 { "" } else { "s" };
    out.note(&format!("{} record{plural}", show_count(shown)));
    match setbacks.into_iter().next() {
        None => Ok(()),
        // Not all that was asked for was shown.
        Some(first) => Err(CliError {
            told: true,
            ..first.into()
        }),
    }
}

async fn forget(global: &Global, topic: &TopicName, name: &ConsumerName) -> Outcome {
    link::with(global, async |client| {
        client.forget_consumer(topic.clone(), name.clone()).await
    })
    .await?;
    global.output().done(
        &format!("{topic}: what {name} has committed is forgotten"),
        &serde_json::json!({ "topic": topic, "forgotten": name }),
    )
}

async fn build(client: &Client, args: &ConsumeArgs) -> Outcome<Consumer> {
    let start = match (args.from, args.until_end) {
        (Some(start), _) => start,
        (None, true) => StartAt::Earliest,
        (None, false) => StartAt::Latest,
    };
    let partitions = args
        .partitions
        .iter()
        .map(|&partition| PartitionId(partition));
    let mut builder = client
        .consumer(args.topic.clone())
        .start(start)
        .partitions(partitions)
        .until_end(args.until_end);
    if let Some(name) = &args.consumer {
        builder = builder.named(name.clone());
    }
    if let Some(plugin) = &args.filter {
        let on_error = args.on_error.clone().unwrap_or_default();
        let used = plugin_use(plugin, &args.config, on_error).map_err(CliError::usage)?;
        builder = builder.plugin(used);
    }
    Ok(builder.build().await?)
}

/// Shows records.
struct Printer<W> {
    json: bool,
    format: Format,
    out: W,
}

impl<W: Write> Printer<W> {
    fn print(&mut self, message: &Message) -> io::Result<()> {
        let shown = Shown {
            partition: message.partition.get(),
            offset: message.offset.get(),
            timestamp: message.timestamp,
            key: message.key.as_deref(),
            value: message.value.as_deref(),
        };
        let headers = message
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), &value[..]));
        match (self.json, self.format) {
            (true, _) => format::json(&mut self.out, shown, headers),
            (false, Format::Value) => format::value(&mut self.out, shown),
            (false, Format::Full) => format::full(&mut self.out, shown, headers),
        }
    }
}

struct Work<'a, W> {
    consumer: &'a mut Consumer,
    /// There is a name to commit under.
    named: bool,
    printer: Printer<W>,
    shown: u64,
    committed: Instant,
    /// Partitions that could not be read on: they were told when it happened.
    setbacks: Vec<ConsumeError>,
}

impl<W: Write> Work<'_, W> {
    async fn run(&mut self, max: Option<u64>) -> Outcome {
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        while max.is_none_or(|max| self.shown < max) {
            let next = self.next(interrupted.as_mut()).await?;
            for gap in self.consumer.take_gaps() {
                complain(&format!("warning: {}, {gap}", self.consumer.topic()));
            }
            match next {
                Some(Ok(message)) => {
                    self.printer
                        .print(&message)
                        .map_err(|e| CliError::output(&e))?;
                    self.shown += 1;
                }
                Some(Err(setback)) if setback.is_setback() => {
                    complain(&format!("warning: {setback}"));
                    self.setbacks.push(setback);
                }
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        Ok(())
    }

    /// The next record; none at the end or when interrupted. Before it waits, what was printed is
    /// flushed, so that nobody looks at half of it; and it is committed from time to time.
    async fn next<I>(
        &mut self,
        mut interrupted: Pin<&mut I>,
    ) -> Outcome<Option<Result<Message, ConsumeError>>>
    where
        I: Future<Output = io::Result<()>>,
    {
        if self.committed.elapsed() >= COMMIT_EVERY {
            self.commit().await?;
        }
        if let Some(received) = poll_immediate(pin!(self.consumer.next_message())).await {
            return Ok(received);
        }
        self.printer.out.flush().map_err(|e| CliError::output(&e))?;
        loop {
            let waited = {
                // A future that is dropped here loses nothing: the consumer is asked again.
                let next = pin!(self.consumer.next_message());
                timeout(COMMIT_EVERY, select(next, interrupted.as_mut()))
                    .await
                    .map(|first| match first {
                        Either::Left((received, _)) => Ok(received),
                        Either::Right((signal, _)) => Err(signal),
                    })
            };
            match waited {
                Ok(Ok(received)) => return Ok(received),
                Ok(Err(signal)) => return signal.map(|()| None).map_err(CliError::failure),
                Err(_) => self.commit().await?,
            }
        }
    }

    /// Commits what was shown and no more: a record whose bytes did not leave is read again.
    async fn commit(&mut self) -> Outcome {
        self.printer.out.flush().map_err(|e| CliError::output(&e))?;
        if self.named {
            self.consumer.commit().await?;
        }
        self.committed = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        assert_eq!(start("earliest"), Ok(StartAt::Earliest));
        assert_eq!(start("latest"), Ok(StartAt::Latest));
        assert_eq!(start("17"), Ok(StartAt::Offset(Offset(17))));
        assert_eq!(start("1970-01-01T00:00:01Z"), Ok(StartAt::Timestamp(1000)));
        for bad in ["", "-1", "newest", "2018-02-01"] {
            assert!(start(bad).is_err(), "{bad}");
        }
    }
}
