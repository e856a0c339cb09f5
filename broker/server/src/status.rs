//! The broker's state, for its operator.

use std::sync::Arc;

use millstream_proto::WireError;
use millstream_proto::message::{BrokerStatus, DoorStatus, Response, ShardStatus};
use millstream_proto::storage::{Histogram, ShardStorage};
use millstream_store::Store;

use crate::metrics::Refusal;
use crate::session::Peer;

/// Answers a request for the status; admins only, since it tells about all tenants.
pub(crate) fn answer(peer: &Peer) -> Result<Response, WireError> {
    let broker = &peer.broker;
    broker
        .access
        .check_admin(&peer.principal, "the broker's status")?;
    let up_ms = broker.clock.now_ms().saturating_sub(broker.started_ms);
    Ok(Response::Status(BrokerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: u64::try_from(up_ms / 1000).unwrap_or(0),
        shards: vec![shard(0, &broker.store)],
        connections: broker.endpoint.open_connections() as u64,
        topics: broker.catalog.topics().len() as u64,
        resident_bytes: resident_bytes(),
    }))
}

fn shard(number: u32, store: &Arc<dyn Store>) -> ShardStatus {
    let stats = store.stats();
    let health = store.health();
    let stopped = health.borrow().cause().map(ToString::to_string);
    ShardStatus {
        shard: number,
        stopped,
        file_bytes: stats.file_bytes,
        commits: stats.commits,
    }
}

/// Answers a request for what happens at the door; admins only, as the status.
pub(crate) fn door(peer: &Peer) -> Result<Response, WireError> {
    let broker = &peer.broker;
    broker
        .access
        .check_admin(&peer.principal, "the broker's status")?;
    let (credentials, counters) = (&broker.credentials, &broker.counters);
    let in_force = credentials.now();
    let refused = Refusal::ALL
        .into_iter()
        .map(|why| (why.name().to_owned(), counters.refused(why)));
    Ok(Response::Door(DoorStatus {
        certificate_until_ms: in_force.until_ms,
        reloads: credentials.reloads(),
        reload_failures: credentials.failures(),
        trouble: credentials.trouble(),
        needs_restart: in_force.restart.iter().map(ToString::to_string).collect(),
        handshakes: broker.door.busy() as u64,
        ended: credentials.ended(),
        refused: refused.filter(|(_, n)| *n > 0).collect(),
    }))
}

/// Answers a request for the storage's figures; admins only, as the status.
pub(crate) fn storage(peer: &Peer) -> Result<Response, WireError> {
    let broker = &peer.broker;
    broker
        .access
        .check_admin(&peer.principal, "the broker's status")?;
    Ok(Response::Storage(vec![shard_storage(0, &broker.store)]))
}

fn shard_storage(number: u32, store: &Arc<dyn Store>) -> ShardStorage {
    let stats = store.stats();
    let figures = stats.storage;
    let histogram = |counted: millstream_store::Histogram| Histogram {
        first: counted.first,
        counts: counted.counts.to_vec(),
    };
    ShardStorage {
        shard: number,
        trouble: store.trouble(),
        hot_bytes: figures.hot_bytes,
        unsealed_bytes: figures.unsealed_bytes,
        seal_lag_bytes: figures.seal_lag_bytes,
        segments: figures.segments,
        sealed_bytes: figures.sealed_bytes,
        live_bytes: figures.live_bytes,
        garbage_bytes: figures.garbage_bytes,
        appended_bytes: figures.appended_bytes,
        hot_written_bytes: figures.hot_written_bytes,
        segment_written_bytes: figures.segment_written_bytes,
        write_amplification_per_mille: figures.write_amplification_per_mille(),
        opened_in_us: figures.opened_in_us,
        commit_bytes: histogram(stats.commit_bytes),
        commit_us: histogram(stats.commit_us),
    }
}

/// Resident memory of this process in bytes; 0 where the system does not say.
pub(crate) fn resident_bytes() -> u64 {
    // From the kernel's memory, not from a disk: reading it does not block.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    resident(&status).unwrap_or(0)
}

/// The resident memory in the text of `/proc/self/status`, in bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_store::{MemoryStore, StopCause};

    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_system_s_text() {
        assert_eq!(
            resident("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t1\n"),
            Some(1234 << 10)
        );
        for odd in ["", "VmRSS:", "VmRSS: many kB", "VmRSS: 5 MB"] {
            assert_eq!(resident(odd), None, "{odd:?}");
        }
        #[cfg(target_os = "linux")]
        assert!(resident_bytes() > 1 << 20);
    }

    #[test]
    fn a_stopped_shard_says_why() {
        let memory = Arc::new(MemoryStore::new().unwrap());
        let store = Arc::clone(&memory) as Arc<dyn Store>;
        assert_eq!(shard(3, &store).stopped, None);
        memory.fail(StopCause::DiskFull {
            file: "shard-3".into(),
            detail: "none left".into(),
        });
        let status = shard(3, &store);
        assert!(status.stopped.unwrap().contains("shard-3"));
    }
}
