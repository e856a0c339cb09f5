//! `millstream status`: the broker's state.

use millstream_proto::message::BrokerStatus;

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};
use crate::link;
use crate::quantity::{show_bytes, show_count, show_ms};
use crate::table::Table;

/// Shows it. A shard that has stopped is an error, so that a health check needs no parser.
pub(crate) async fn run(global: &Global) -> Outcome {
    let (status, principal) = link::with(global, async |client| {
        client
            .status()
            .await
            .map(|status| (status, client.principal()))
    })
    .await?;
    let out = global.output();
    if out.json {
        out.document(&status)?;
    } else {
        let mut table = Table::new(&["BROKER", "VALUE"]);
        table.row(["version", &status.version]);
        table.row(["you are", principal.as_str()]);
        table.row(["up for", &show_ms(status.uptime_s.saturating_mul(1000))]);
        table.row(["connections", &show_count(status.connections)]);
        table.row(["topics", &show_count(status.topics)]);
        if status.resident_bytes > 0 {
            table.row(["resident memory", &show_bytes(status.resident_bytes)]);
        }
        out.line(&table.to_string())?;
        out.line(&format!("\n{}", shards(&status)))?;
    }
    match status.shards.iter().find(|shard| shard.stopped.is_some()) {
        Some(shard) => Err(CliError::new(
            Exit::Unavailable,
            format!("shard {} has stopped and accepts nothing", shard.shard),
        )
        .next("see the broker's log, mend the cause and restart the broker")),
        None => Ok(()),
    }
}

fn shards(status: &BrokerStatus) -> Table {
    let mut table = Table::new(&["SHARD#", "FILE#", "COMMITS#", "STATE"]);
    for shard in &status.shards {
        table.row([
            shard.shard.to_string(),
            show_bytes(shard.file_bytes),
            show_count(shard.commits),
            shard
                .stopped
                .clone()
                .unwrap_or_else(|| "serving".to_owned()),
        ]);
    }
    table
}
