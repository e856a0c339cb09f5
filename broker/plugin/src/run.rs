//! Runs one plugin at one place: the calls, their limits, and what happens after a fault.
//!
//! A runner is used by one task at a time and has at most one instance. Its calls run on the
//! calling thread, so that no batch changes threads; a guest gives way to other tasks of that
//! thread at every tick.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use millstream_proto::Tenant;
use millstream_proto::pipeline::PluginKind;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::bindings::exports::millstream::plugin::lifecycle::InitContext;
use crate::bindings::millstream::plugin::types::Error as GuestError;
use crate::budget::Budget;
use crate::columns::{Columns, Needs};
use crate::counters::Counters;
use crate::engine::PluginEngine;
use crate::error::{EngineFault, Fault, GuestFault, Label, LimitHit, RunError, tame};
use crate::host::{Surroundings, seed};
use crate::limits::{BadLimit, Limits};
use crate::logbook::LogBook;
use crate::meter::{Cut, Meter, Usage};
use crate::output::{
    Bounds, Output, OutputFault, Verdict, check_output, check_partitions, check_verdicts,
};
use crate::pool::{Exports, Live, Unborn, call_fault};
use crate::registry::Plugin;

/// One output of a transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// Its name as the definition spells it.
    pub name: String,
    /// Partitions of the topic behind it.
    pub partitions: u32,
}

/// Where and how a plugin runs.
#[derive(Clone, Debug)]
pub struct RunnerSpec {
    /// What errors and log lines name.
    pub label: Label,
    /// On whose behalf it runs.
    pub tenant: Tenant,
    /// Names of the inputs, in the order of [`Columns::input`].
    pub inputs: Vec<String>,
    /// Outputs of a transform; empty for the other kinds.
    pub outputs: Vec<Outlet>,
    /// The owner's configuration, each key once.
    pub config: Vec<(String, String)>,
    /// What it may use.
    pub limits: Limits,
    /// Where its log lines go.
    pub log: Arc<LogBook>,
    /// Where its counts go.
    pub counters: Arc<Counters>,
}

/// Runs one plugin at one place.
///
/// After a fault the instance is gone and the next call makes a new one, so errors do not stick;
/// what to do about them is the caller's policy. A call that failed by a trap, a limit or an
/// invalid result delays the next one by a multiple of the CPU time it used.
///
/// Dropping the future of a call throws the instance away and is otherwise harmless.
pub struct Runner {
    engine: PluginEngine,
    plugin: Arc<Plugin>,
    label: Arc<Label>,
    tenant: Tenant,
    inputs: Vec<String>,
    outputs: Vec<String>,
    partitions: Vec<u32>,
    limits: Limits,
    around: Surroundings,
    live: Option<Live>,
    needs: Option<Needs>,
    meter: Meter,
    budget: Budget,
    turns: Arc<Semaphore>,
    usage: Arc<Usage>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("label", &self.label)
            .field("plugin", &self.plugin)
            .field("live", &self.live.is_some())
            .finish_non_exhaustive()
    }
}

/// Waits until few enough guests of the tenant are running.
async fn turn(turns: &Semaphore) -> Option<SemaphorePermit<'_>> {
    // Never closed, so never none.
    turns.acquire().await.ok()
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Runner {
    /// A runner without an instance yet.
    ///
    /// # Errors
    /// When a limit is out of range.
    pub fn new(
        engine: &PluginEngine,
        plugin: Arc<Plugin>,
        spec: RunnerSpec,
    ) -> Result<Self, BadLimit> {
        let RunnerSpec {
            label,
            tenant,
            inputs,
            outputs,
            config,
            limits,
            log,
            counters,
        } = spec;
        limits.check()?;
        let usage = Arc::new(Usage::within(engine.usage_of(&tenant)));
        let label = Arc::new(label);
        let around = Surroundings {
            config: Arc::new(config),
            log,
            label: Arc::clone(&label),
            counters,
            now_ms: Arc::new(AtomicI64::new(0)),
            seed: seed(&plugin.digest(), label.partition),
        };
        Ok(Self {
            engine: engine.clone(),
            plugin,
            label,
            turns: engine.turns(&tenant),
            tenant,
            inputs,
            partitions: outputs.iter().map(|outlet| outlet.partitions).collect(),
            outputs: outputs.into_iter().map(|outlet| outlet.name).collect(),
            budget: Budget::new(&limits, now()),
            limits,
            around,
            live: None,
            needs: None,
            meter: Meter::new(),
            usage,
        })
    }

    /// What the plugin is.
    #[must_use]
    pub fn kind(&self) -> PluginKind {
        self.plugin.kind()
    }

    /// What errors and log lines name.
    #[must_use]
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// What the runner has used; stays readable while it runs.
    #[must_use]
    pub fn usage(&self) -> Arc<Usage> {
        Arc::clone(&self.usage)
    }

    /// Sets the guest's wall clock, in milliseconds since the Unix epoch. It stands still until
    /// it is set again, and at 0 until it is set at all; use the batch's time, so that processing
    /// the batch again gives the same result.
    pub fn set_now(&mut self, now_ms: i64) {
        self.around.now_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Sets the number of partitions of an output, when its topic has grown. An unknown output
    /// is ignored.
    pub fn set_partitions(&mut self, output: usize, partitions: u32) {
        if let Some(slot) = self.partitions.get_mut(output) {
            *slot = partitions;
        }
    }

    /// Gives the instance's place in the pool back until the next call.
    pub fn release(&mut self) {
        self.live = None;
    }

    /// Which columns the plugin looks at. Makes an instance if there is none, so it also tells
    /// whether the plugin starts with its configuration.
    ///
    /// # Errors
    /// When the plugin does not start.
    pub async fn needs(&mut self) -> Result<Needs, RunError> {
        match (&self.live, self.needs) {
            (Some(_), Some(needs)) => Ok(needs),
            _ => {
                self.wait_for_budget().await;
                self.start().await
            }
        }
    }

    /// Asks a filter what to do with each record.
    ///
    /// # Errors
    /// Anything but one verdict for each record. Nothing is known about any record then.
    pub async fn filter(&mut self, columns: &Columns<'_>) -> Result<Vec<Verdict>, RunError> {
        let mut live = self.begin(columns).await?;
        let Exports::Filter(guest) = &live.exports else {
            return Err(self.wrong_kind(PluginKind::Filter));
        };
        let mut spent = Duration::ZERO;
        let call = guest.call_filter(&mut live.store, columns.batch());
        let ended = self.metered(call, &mut spent).await;
        let returned = self.end(live, ended, columns.records());
        let checked = returned.and_then(|raw| Ok(check_verdicts(raw, columns.records())?));
        self.settle(spent, checked)
    }

    /// Asks a partitioner for the partition of each record, each less than `partitions`.
    ///
    /// # Errors
    /// Anything but one partition for each record.
    pub async fn assign(
        &mut self,
        columns: &Columns<'_>,
        partitions: u32,
    ) -> Result<Vec<u32>, RunError> {
        let mut live = self.begin(columns).await?;
        let Exports::Partitioner(guest) = &live.exports else {
            return Err(self.wrong_kind(PluginKind::Partitioner));
        };
        let mut spent = Duration::ZERO;
        let call = guest.call_assign(&mut live.store, columns.batch(), partitions);
        let ended = self.metered(call, &mut spent).await;
        let returned = self.end(live, ended, columns.records());
        let checked =
            returned.and_then(|raw| Ok(check_partitions(raw, columns.records(), partitions)?));
        self.settle(spent, checked)
    }

    /// Asks a transform for the new records of a batch.
    ///
    /// # Errors
    /// Anything but records that are in bounds and within the limits.
    pub async fn transform(&mut self, columns: &Columns<'_>) -> Result<Output, RunError> {
        let mut live = self.begin(columns).await?;
        let Exports::Transform(guest) = &live.exports else {
            return Err(self.wrong_kind(PluginKind::Transform));
        };
        let mut spent = Duration::ZERO;
        let call = guest.call_transform(&mut live.store, columns.batch());
        let ended = self.metered(call, &mut spent).await;
        let returned = self.end(live, ended, columns.records());
        let bounds = Bounds {
            outputs: &self.partitions,
            bytes: self.limits.output_bytes,
            records: self.limits.output_records,
        };
        let checked = returned.and_then(|raw| check_output(raw, columns, &bounds));
        self.settle(spent, checked)
    }

    /// Waits for the runner's turn and takes its instance out, so that a call that does not come
    /// back leaves none behind.
    async fn begin(&mut self, columns: &Columns<'_>) -> Result<Live, RunError> {
        columns.check().map_err(|fault| self.error(fault.into()))?;
        self.wait_for_budget().await;
        if self.live.is_none() {
            self.start().await?;
        }
        self.usage.count_call(columns.records());
        match self.live.take() {
            Some(mut live) => {
                live.store.set_epoch_deadline(1);
                live.store.data().forget_stderr();
                Ok(live)
            }
            None => {
                let fault = EngineFault::Instantiate("the new instance is gone".into());
                Err(self.error(fault.into()))
            }
        }
    }

    async fn wait_for_budget(&mut self) {
        let wait = self.budget.wait(now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Makes an instance.
    async fn start(&mut self) -> Result<Needs, RunError> {
        let kind = self.plugin.kind();
        let unborn = Unborn::new(&self.engine, &self.around, &self.limits, kind).await;
        let mut unborn = unborn.map_err(|fault| self.error(fault.into()))?;
        self.usage.count_start();
        let mut spent = Duration::ZERO;
        let deadline = self.limits.init_cpu;
        let inputs: Vec<_> = self.inputs.iter().map(String::as_str).collect();
        let outputs: Vec<_> = self.outputs.iter().map(String::as_str).collect();
        let config = self.around.config.iter();
        let config: Vec<_> = config.map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let context = InitContext {
            tenant: self.tenant.as_str(),
            module: self.label.plugin.local(),
            partition: self.label.partition,
            inputs: &inputs,
            outputs: &outputs,
            config: &config,
        };
        let started = {
            let _turn = turn(&self.turns).await;
            let _running = self.engine.running();
            let start = unborn.start(&self.plugin, context);
            self.meter
                .run(start, deadline, &self.usage, &mut spent)
                .await
        };
        unborn.store.data().flush();
        let result = match started {
            Ok(Ok((exports, Ok(needs)))) if self.needs.is_none_or(|before| before == needs) => {
                self.live = Some(unborn.born(exports));
                self.needs = Some(needs);
                Ok(needs)
            }
            Ok(Ok((_, Ok(_)))) => Err(GuestFault::Output(OutputFault::NeedsChanged).into()),
            Ok(Ok((_, Err(why)))) => Err(GuestFault::Init(tame(&why)).into()),
            Ok(Err(error)) => Err(error.fault(unborn.store.data())),
            Err(Cut::Cpu) => Err(LimitHit::InitCpu(deadline).into()),
            Err(Cut::Waited) => Err(GuestFault::Waited.into()),
        };
        self.settle(spent, result)
    }

    async fn metered<F: Future>(
        &mut self,
        call: F,
        spent: &mut Duration,
    ) -> Result<F::Output, Cut> {
        let _turn = turn(&self.turns).await;
        let _running = self.engine.running();
        self.meter
            .run(call, self.limits.call_cpu, &self.usage, spent)
            .await
    }

    /// Keeps the instance if the call left it whole, and tells what the guest returned.
    fn end<T>(
        &mut self,
        live: Live,
        ended: Result<wasmtime::Result<Result<T, GuestError>>, Cut>,
        records: usize,
    ) -> Result<T, Fault> {
        let state = live.store.data();
        state.flush();
        let returned = match ended {
            Ok(Ok(returned)) => returned,
            Ok(Err(error)) => return Err(call_fault(&error, state)),
            Err(Cut::Cpu) => return Err(LimitHit::CallCpu(self.limits.call_cpu).into()),
            Err(Cut::Waited) => return Err(GuestFault::Waited.into()),
        };
        if state.limiter.memory() < self.limits.high_water_bytes {
            self.live = Some(live);
        }
        returned.map_err(|error| guest_error(error, records).into())
    }

    /// Accounts a call and gives its fault a name.
    fn settle<T>(&mut self, spent: Duration, result: Result<T, Fault>) -> Result<T, RunError> {
        let failed = matches!(
            &result,
            Err(Fault::Limit(_)
                | Fault::Guest(GuestFault::Trap(_) | GuestFault::Output(_) | GuestFault::Waited))
        );
        self.budget.spend(now(), spent, failed);
        result.map_err(|fault| self.error(fault))
    }

    fn error(&self, fault: Fault) -> RunError {
        self.usage.count_failure(fault.kind());
        RunError {
            label: Arc::clone(&self.label),
            fault,
        }
    }

    fn wrong_kind(&self, wanted: PluginKind) -> RunError {
        self.error(
            EngineFault::WrongKind {
                actual: self.plugin.kind(),
                wanted,
            }
            .into(),
        )
    }
}

fn guest_error(error: GuestError, records: usize) -> GuestFault {
    match error {
        GuestError::Retry(why) => GuestFault::Retry(tame(&why)),
        GuestError::Fatal(why) => GuestFault::Fatal(tame(&why)),
        GuestError::BadRecord((index, _)) if index as usize >= records => {
            OutputFault::BadIndex { index, records }.into()
        }
        GuestError::BadRecord((index, why)) => GuestFault::BadRecord {
            index,
            why: tame(&why),
        },
    }
}

impl From<OutputFault> for Fault {
    fn from(fault: OutputFault) -> Self {
        Self::Guest(fault.into())
    }
}

#[cfg(test)]
mod tests;
