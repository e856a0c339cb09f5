//! `millstream status`: the broker's state.

use millstream::RequestError;
use millstream_proto::message::{BrokerStatus, DoorStatus};
use millstream_proto::storage::{Histogram, ShardStorage};
use serde::Serialize;

use crate::args::Global;
use crate::clock;
use crate::error::{CliError, Exit, Outcome};
use crate::link;
use crate::quantity::{show_bytes, show_count, show_ms};
use crate::table::Table;

/// Shows it. A shard that has stopped is an error, so that a health check needs no parser.
pub(crate) async fn run(global: &Global) -> Outcome {
    let (status, storage, door, principal) = link::with(global, async |client| {
        let status = client.status().await?;
        let storage = client.storage().await?;
        let door = client.door().await?;
        Ok::<_, RequestError>((status, storage, door, client.principal()))
    })
    .await?;
    let out = global.output();
    if out.json {
        let (status, storage, door) = (&status, &storage, &door);
        out.document(&Told {
            status,
            storage,
            door,
        })?;
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
        out.line(&format!("\n{}", at_the_door(&door)))?;
        out.line(&format!("\n{}", shards(&status)))?;
        for shard in &storage {
            out.line(&format!("\n{}", figures(shard)))?;
        }
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

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    status: &'a BrokerStatus,
    storage: &'a [ShardStorage],
    door: &'a DoorStatus,
}

/// What is in force at the door, for people.
fn at_the_door(door: &DoorStatus) -> Table {
    let mut table = Table::new(&["DOOR", "VALUE"]);
    if let Some(until) = door.certificate_until_ms {
        table.row(["certificate until", &clock::rfc3339(until)]);
    }
    let reloads = format!(
        "{} times, {} failed",
        show_count(door.reloads),
        show_count(door.reload_failures)
    );
    table.row(["read again", &reloads]);
    if let Some(trouble) = &door.trouble {
        table.row(["not in force", trouble]);
    }
    if !door.needs_restart.is_empty() {
        table.row(["needs a restart", &door.needs_restart.join(", ")]);
    }
    table.row(["handshakes", &show_count(door.handshakes)]);
    table.row(["connections ended", &show_count(door.ended)]);
    for (reason, n) in &door.refused {
        table.row([&format!("refused: {reason}"), &show_count(*n)]);
    }
    table
}

/// The storage of one shard, for people.
fn figures(shard: &ShardStorage) -> Table {
    let mut table = Table::new(&["STORAGE", "VALUE"]);
    let hot = format!(
        "{}, of which {} are not sealed",
        show_bytes(shard.hot_bytes),
        show_bytes(shard.unsealed_bytes)
    );
    table.row(["records in the hot file", &hot]);
    table.row(["sealer behind by", &show_bytes(shard.seal_lag_bytes)]);
    let sealed = format!(
        "{} in {} segments, {} live, {} garbage",
        show_bytes(shard.sealed_bytes),
        show_count(shard.segments),
        show_bytes(shard.live_bytes),
        show_bytes(shard.garbage_bytes)
    );
    table.row(["sealed", &sealed]);
    let written = format!(
        "{} appended, {} to the hot file, {} to segments",
        show_bytes(shard.appended_bytes),
        show_bytes(shard.hot_written_bytes),
        show_bytes(shard.segment_written_bytes)
    );
    table.row(["written since the start", &written]);
    if let Some(share) = shard.write_amplification_per_mille {
        let share = format!("{}.{:02}", share / 1000, share % 1000 / 10);
        table.row(["write amplification", &share]);
    }
    table.row(["commits", &spread(&shard.commit_us, show_us)]);
    table.row([
        "bytes of a commit",
        &spread(&shard.commit_bytes, show_bytes),
    ]);
    table.row(["opened in", &show_us(shard.opened_in_us)]);
    if let Some(trouble) = &shard.trouble {
        table.row(["trouble", trouble]);
    }
    table
}

fn spread(histogram: &Histogram, show: fn(u64) -> String) -> String {
    let below = |per_mille| histogram.bound(per_mille).map(show);
    match (below(500), below(990)) {
        (Some(half), Some(most)) => format!("half up to {half}, 99% up to {most}"),
        _ => "none yet".to_owned(),
    }
}

fn show_us(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..10_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => show_ms(us / 1000),
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
