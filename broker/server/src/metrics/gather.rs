//! Reads all figures together, when somebody asks for them.
//!
//! Counters are read one by one, so figures of one page may be one batch apart. The locks that are
//! taken are held for as long as it takes to copy names and handles, never while writing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use millstream_plugin::{FaultKind, Usage};
use millstream_proto::Tenant;
use millstream_store::{Store, StoreStats};
use rustix::time::{ClockId, clock_gettime};

use super::counters::{Amount, Refusal, StreamKind, Traffic};
use super::families as of;
use super::page::{Page, Source, render};
use crate::broker::Broker;
use crate::limits::MAX_COUNTED_TENANTS;
use crate::pipeline::Figures;
use crate::status::resident_bytes;

/// Stands for all tenants that are not counted apart. No tenant's name begins like this.
const OTHERS: &str = "_other";
/// The one shard.
const SHARD: &[&str] = &["0"];
/// One of what the store's histograms of time count, in seconds.
const MICROSECOND: f64 = 1e-6;

/// All figures as text.
///
/// # Errors
/// Only if a family is written as what it is not.
pub(super) fn page(broker: &Arc<Broker>) -> Result<String, fmt::Error> {
    render(Figured(Arc::clone(broker)))
}

struct Figured(Arc<Broker>);

impl Source for Figured {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let Self(broker) = self;
        process(page, broker)?;
        door(page, broker)?;
        topics(page, broker)?;
        traffic(page, &broker.counters.tenants())?;
        storage(page, &*broker.store)?;
        plugins(page, &broker.guests.engine().usages())?;
        page.whole(
            &of::FREE_INSTANCES,
            broker.guests.engine().free_instances() as u64,
        )?;
        pipelines(page, &broker.pipelines.figures())
    }
}

fn process(page: &mut Page<'_>, broker: &Broker) -> fmt::Result {
    page.family(&of::BUILD, |samples| {
        samples.info(&[env!("CARGO_PKG_VERSION")])
    })?;
    page.parts(&of::STARTED, broker.started_ms as f64 / 1000.0)?;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    page.parts(&of::CPU, cpu.tv_sec as f64 + cpu.tv_nsec as f64 * 1e-9)?;
    page.whole(&of::RESIDENT, resident_bytes())
}

fn door(page: &mut Page<'_>, broker: &Broker) -> fmt::Result {
    let counters = &broker.counters;
    page.whole(&of::CONNECTIONS, broker.endpoint.open_connections() as u64)?;
    let (ever, now) = counters.sessions();
    page.whole(&of::SESSIONS, now)?;
    page.whole(&of::ADMITTED, ever)?;
    page.family(&of::REFUSED, |samples| {
        let mut all = Refusal::ALL.into_iter();
        all.try_for_each(|why| samples.whole(&[why.name()], counters.refused(why)))
    })?;
    let credentials = &broker.credentials;
    page.whole(&of::EXPELLED, credentials.ended())?;
    page.whole(&of::RELOADS, credentials.reloads())?;
    page.whole(&of::FAILED_RELOADS, credentials.failures())?;
    page.whole(&of::STALE, u64::from(credentials.trouble().is_some()))?;
    page.family(&of::EXPIRY, |samples| match credentials.now().until_ms {
        Some(ms) => samples.parts(&[], ms as f64 / 1000.0),
        None => Ok(()),
    })?;
    page.family(&of::STREAMS, |samples| {
        let mut all = StreamKind::ALL.into_iter();
        all.try_for_each(|kind| samples.whole(&[kind.name()], counters.streams(kind)))
    })?;
    page.family(&of::ERRORS, |samples| {
        let mut all = counters.errors();
        all.try_for_each(|(code, n)| samples.whole(&[code.name()], n))
    })
}

/// Sums by tenant, of which no more than may be have one of their own.
struct ByTenant<T>(BTreeMap<String, T>);

impl<T: Default> ByTenant<T> {
    fn of(&mut self, tenant: &str) -> &mut T {
        let Self(sums) = self;
        let own = sums.len() < MAX_COUNTED_TENANTS || sums.contains_key(tenant);
        let name = if own { tenant } else { OTHERS };
        sums.entry(name.to_owned()).or_default()
    }

    /// One sample for each tenant.
    fn write(
        &self,
        page: &mut Page<'_>,
        family: &of::Family,
        value: impl Fn(&T) -> u64,
    ) -> fmt::Result {
        page.family(family, |samples| {
            let mut all = self.0.iter();
            all.try_for_each(|(tenant, sum)| samples.whole(&[tenant], value(sum)))
        })
    }
}

#[derive(Default)]
struct Held {
    topics: u64,
    partitions: u64,
    shut: u64,
}

fn topics(page: &mut Page<'_>, broker: &Broker) -> fmt::Result {
    let mut tenants = ByTenant::<Held>(BTreeMap::new());
    for topic in broker.catalog.topics() {
        let held = tenants.of(topic.name().tenant_str());
        let partitions = topic.partitions();
        held.topics += 1;
        held.partitions += partitions.len() as u64;
        held.shut += partitions
            .iter()
            .filter(|p| p.unreadable().is_some())
            .count() as u64;
    }
    tenants.write(page, &of::TOPICS, |held| held.topics)?;
    tenants.write(page, &of::PARTITIONS, |held| held.partitions)?;
    tenants.write(page, &of::SHUT, |held| held.shut)
}

/// What a label says of a tenant.
fn label(tenant: Option<&Tenant>) -> &str {
    tenant.map_or(OTHERS, Tenant::as_str)
}

fn traffic(page: &mut Page<'_>, all: &[(Option<Tenant>, Arc<Traffic>)]) -> fmt::Result {
    type Part = fn(&Traffic) -> u64;
    let parts: [(&of::Family, Part); 4] = [
        (&of::PRODUCED_RECORDS, |t| records(t.produced())),
        (&of::PRODUCED_BYTES, |t| t.produced().bytes),
        (&of::CONSUMED_RECORDS, |t| records(t.consumed())),
        (&of::CONSUMED_BYTES, |t| t.consumed().bytes),
    ];
    parts.iter().try_for_each(|(family, part)| {
        page.family(family, |samples| {
            let mut all = all.iter();
            all.try_for_each(|(tenant, t)| samples.whole(&[label(tenant.as_ref())], part(t)))
        })
    })
}

fn records(amount: Amount) -> u64 {
    amount.records
}

fn storage(page: &mut Page<'_>, store: &dyn Store) -> fmt::Result {
    let stats = store.stats();
    let stopped = store.health().borrow().cause().is_some();
    let mut one = |family: &of::Family, value: u64| {
        page.family(family, |samples| samples.whole(SHARD, value))
    };
    one(&of::STOPPED, u64::from(stopped))?;
    one(&of::TROUBLE, u64::from(store.trouble().is_some()))?;
    let StoreStats {
        queued_bytes,
        appends_waiting,
        file_bytes,
        storage: figures,
        ..
    } = stats;
    for (family, value) in [
        (&of::QUEUED, queued_bytes),
        (&of::WAITING, appends_waiting),
        (&of::FILE, file_bytes),
        (&of::HOT, figures.hot_bytes),
        (&of::UNSEALED, figures.unsealed_bytes),
        (&of::LAG, figures.seal_lag_bytes),
        (&of::SEGMENTS, figures.segments),
        (&of::SEALED, figures.sealed_bytes),
        (&of::LIVE, figures.live_bytes),
        (&of::GARBAGE, figures.garbage_bytes),
        (&of::APPENDED, figures.appended_bytes),
        (&of::HOT_WRITTEN, figures.hot_written_bytes),
        (&of::SEGMENT_WRITTEN, figures.segment_written_bytes),
    ] {
        one(family, value)?;
    }
    page.family(&of::OPENING, |samples| {
        samples.parts(SHARD, figures.opened_in_us as f64 * MICROSECOND)
    })?;
    page.family(&of::COMMIT_TIME, |samples| {
        samples.spread(SHARD, &stats.commit_us, MICROSECOND)
    })?;
    page.family(&of::COMMIT_SIZE, |samples| {
        samples.spread(SHARD, &stats.commit_bytes, 1.0)
    })
}

fn plugins(page: &mut Page<'_>, all: &[(Option<Tenant>, Arc<Usage>)]) -> fmt::Result {
    type Part = fn(&Usage) -> u64;
    let parts: [(&of::Family, Part); 4] = [
        (&of::CALLS, Usage::calls),
        (&of::HANDED, Usage::records),
        (&of::STARTS, Usage::starts),
        (&of::DROPPED_LINES, Usage::dropped_lines),
    ];
    for (family, part) in parts {
        page.family(family, |samples| {
            let mut all = all.iter();
            all.try_for_each(|(tenant, usage)| {
                samples.whole(&[label(tenant.as_ref())], part(usage))
            })
        })?;
    }
    page.family(&of::PLUGIN_CPU, |samples| {
        let mut all = all.iter();
        all.try_for_each(|(tenant, usage)| {
            samples.parts(&[label(tenant.as_ref())], usage.cpu().as_secs_f64())
        })
    })?;
    page.family(&of::FAILURES, |samples| {
        for (tenant, usage) in all {
            let tenant = label(tenant.as_ref());
            for kind in FaultKind::ALL {
                samples.whole(&[tenant, kind.name()], usage.failures_of(kind))?;
            }
        }
        Ok(())
    })
}

#[derive(Default)]
struct Flowing {
    states: [u64; Figures::STATES.len()],
    lag: u64,
}

fn pipelines(page: &mut Page<'_>, all: &[Figures]) -> fmt::Result {
    let mut tenants = ByTenant::<Flowing>(BTreeMap::new());
    for pipeline in all {
        let sum = tenants.of(pipeline.name.tenant_str());
        sum.lag = sum.lag.saturating_add(pipeline.lag);
        let state = Figures::STATES
            .iter()
            .position(|state| *state == pipeline.state);
        if let Some(state) = state {
            sum.states[state] += 1;
        }
    }
    page.family(&of::PIPELINES, |samples| {
        for (tenant, sum) in &tenants.0 {
            for (state, count) in Figures::STATES.into_iter().zip(sum.states) {
                samples.whole(&[tenant, state], count)?;
            }
        }
        Ok(())
    })?;
    tenants.write(page, &of::PIPELINE_LAG, |sum| sum.lag)
}
