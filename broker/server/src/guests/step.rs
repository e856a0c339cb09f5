//! One plugin in a chain: its calls, and what its owner's policy makes of its failures.

use millstream_plugin::{EngineFault, Fault, GuestFault, Output, RunError, Runner, Verdict};
use millstream_proto::BatchError;
use millstream_proto::limits::{MAX_PARTITIONS, MAX_RECORD_BYTES};
use millstream_proto::pipeline::{ErrorPolicy, PluginKind};

use super::dead_letter::{Cause, DeadLetters, Source};
use super::halt::Halt;
use super::records::{Made, Records, Scratch, new_size};
use crate::limits::{MAX_BAD_RECORDS, MAX_MADE_BYTES, MAX_MADE_RECORDS};

/// What is known of one output while a batch passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Partitions of the topic behind it.
    pub(crate) partitions: u32,
    /// Largest record that the topic takes, in bytes.
    pub(crate) max_record_bytes: usize,
}

impl Bounds {
    /// Of an output that is only the way to the next step.
    pub(crate) const NEXT: Self = Self {
        partitions: MAX_PARTITIONS,
        max_record_bytes: MAX_RECORD_BYTES,
    };
}

/// One batch on its way through the steps.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) records: Records,
    pub(crate) dead: DeadLetters,
    pub(crate) source: Source,
    /// Records left out by the policy `skip`, or sent to a dead-letter topic that nobody named.
    pub(crate) skipped: u64,
    scratch: Scratch,
}

impl Flow {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            records: Records::default(),
            dead: DeadLetters::default(),
            skipped: 0,
            scratch: Scratch::default(),
        }
    }

    /// Makes it ready for the next batch.
    pub(crate) fn release(&mut self) {
        self.records.release();
        self.dead.clear();
        self.skipped = 0;
    }
}

/// One plugin at its place.
#[derive(Debug)]
pub(crate) struct Step {
    runner: Runner,
    kind: PluginKind,
    /// Whether what it makes is for the outputs of the chain.
    is_last_transform: bool,
    on_error: ErrorPolicy,
    /// Plugin and version, for dead letters.
    name: String,
    made: Made,
    verdicts: Vec<Verdict>,
    assigned: Vec<u32>,
}

/// What one failed call leaves to the policy.
enum Blame {
    /// The record with this index in the call.
    Record(u32, String),
    /// All records of the call.
    Call(String),
}

/// What the error of a call means: a policy to apply, or the end of the batch's way.
fn blame(error: RunError) -> Result<Blame, Halt> {
    let text = error.to_string();
    match error.fault {
        Fault::Guest(GuestFault::Retry(_)) => Err(Halt::Later(text)),
        // The plugin says itself that nothing can be done: no policy would help the next batch.
        Fault::Guest(GuestFault::Fatal(_) | GuestFault::Init(_)) => Err(Halt::Stop(text)),
        Fault::Guest(GuestFault::BadRecord { index, .. }) => Ok(Blame::Record(index, text)),
        Fault::Guest(GuestFault::Trap(_) | GuestFault::Output(_) | GuestFault::Waited)
        | Fault::Limit(_) => Ok(Blame::Call(text)),
        Fault::Engine(EngineFault::PoolExhausted { .. }) => Err(Halt::Busy(text)),
        Fault::Engine(_) => Err(Halt::Fault(text)),
    }
}

impl Step {
    pub(crate) fn new(runner: Runner, is_last_transform: bool, on_error: ErrorPolicy) -> Self {
        let name = format!(
            "{} version {}",
            runner.label().plugin,
            runner.label().version
        );
        Self {
            kind: runner.kind(),
            runner,
            is_last_transform,
            on_error,
            name,
            made: Made::default(),
            verdicts: Vec::new(),
            assigned: Vec::new(),
        }
    }

    /// Makes the first instance.
    ///
    /// # Errors
    /// When the plugin does not start with its configuration.
    pub(crate) async fn start(&mut self) -> Result<(), RunError> {
        self.runner.needs().await.map(|_| ())
    }

    /// Gives the instance back until the next call.
    pub(crate) fn rest(&mut self) {
        self.runner.release();
    }

    /// Sets the plugin's clock to the time of the batch: the same again if the batch comes again.
    pub(crate) fn set_now(&mut self, now_ms: i64) {
        self.runner.set_now(now_ms);
    }

    /// Runs the plugin over all records of the flow. `outputs` are those of the whole chain.
    ///
    /// # Errors
    /// When the batch must go no further; what the flow holds is worth nothing then.
    pub(crate) async fn run(&mut self, flow: &mut Flow, outputs: &[Bounds]) -> Result<(), Halt> {
        match self.kind {
            PluginKind::Filter => self.filter(flow).await,
            PluginKind::Partitioner => {
                let partitions = outputs.first().map_or(1, |output| output.partitions);
                self.assign(flow, partitions).await
            }
            PluginKind::Transform => {
                let outputs = if self.is_last_transform {
                    outputs
                } else {
                    &[Bounds::NEXT]
                };
                self.transform(flow, outputs).await
            }
            PluginKind::Processor => Err(Halt::Fault(format!("{} is a processor", self.name))),
        }
    }

    async fn filter(&mut self, flow: &mut Flow) -> Result<(), Halt> {
        self.verdicts.clear();
        let (mut at, mut bad) = (0, 0);
        while at < flow.records.len() {
            let end = flow.records.call_end(at);
            match self.call_filter(flow, at, end).await {
                // Nearly always there is one call, and its answer is the whole.
                Ok(verdicts) if at == 0 => (self.verdicts, at) = (verdicts, end),
                Ok(verdicts) => {
                    self.verdicts.extend(verdicts);
                    at = end;
                }
                Err(error) => self.fail(flow, at..end, error, &mut bad)?,
            }
        }
        if self
            .verdicts
            .iter()
            .all(|&verdict| verdict == Verdict::Keep)
        {
            return Ok(());
        }
        self.bury(flow)?;
        let verdicts = &self.verdicts;
        flow.records
            .retain(|index| verdicts[index] == Verdict::Keep);
        Ok(())
    }

    /// Adds the records that the filter sends there to the dead letters.
    fn bury(&mut self, flow: &mut Flow) -> Result<(), BatchError> {
        let dead = |index: &usize| self.verdicts[*index] == Verdict::DeadLetter;
        let indices = (0..self.verdicts.len()).filter(dead);
        let Flow {
            records,
            dead,
            source,
            skipped,
            ..
        } = flow;
        match &self.on_error {
            ErrorPolicy::DeadLetter(topic) => {
                let cause = Cause {
                    plugin: &self.name,
                    error: "the filter's verdict",
                };
                dead.push(topic, records, indices, source, cause)
            }
            // Without a topic for them dead letters are dropped, and counted.
            ErrorPolicy::Stop | ErrorPolicy::Skip => {
                *skipped += indices.count() as u64;
                Ok(())
            }
        }
    }

    async fn assign(&mut self, flow: &mut Flow, partitions: u32) -> Result<(), Halt> {
        self.assigned.clear();
        let (mut at, mut bad) = (0, 0);
        while at < flow.records.len() {
            let end = flow.records.call_end(at);
            match self.call_assign(flow, at, end, partitions).await {
                Ok(assigned) => {
                    self.assigned.extend(assigned);
                    at = end;
                }
                Err(error) => self.fail(flow, at..end, error, &mut bad)?,
            }
        }
        flow.records.place(&self.assigned);
        Ok(())
    }

    async fn transform(&mut self, flow: &mut Flow, outputs: &[Bounds]) -> Result<(), Halt> {
        for (index, output) in outputs.iter().enumerate() {
            self.runner.set_partitions(index, output.partitions);
        }
        self.made.clear();
        flow.records.want_times();
        let (mut at, mut bad) = (0, 0);
        while at < flow.records.len() {
            let end = flow.records.call_end(at);
            let made = match self.call_transform(flow, at, end).await {
                Ok(made) => made,
                Err(error) => {
                    self.fail(flow, at..end, error, &mut bad)?;
                    continue;
                }
            };
            match self.check_made(&flow.records, at, &made, outputs) {
                None => {
                    self.made.take(&flow.records, at, &made);
                    at = end;
                }
                Some(blame) => self.apply(flow, at..end, blame, &mut bad)?,
            }
        }
        flow.records.replace(&mut self.made);
        Ok(())
    }

    /// What is wrong with what a transform made, beyond what the call itself checks: records too
    /// large for their output, and too many of them over all calls.
    fn check_made(
        &self,
        records: &Records,
        from: usize,
        made: &Output,
        outputs: &[Bounds],
    ) -> Option<Blame> {
        let name = self.runner.label();
        let bytes = made
            .expanded_bytes()
            .saturating_add(self.made.bytes() as u64);
        if bytes > MAX_MADE_BYTES as u64 {
            return Some(Blame::Call(format!(
                "{name}: made more than {MAX_MADE_BYTES} bytes of one batch"
            )));
        }
        if self.made.len() + made.len() > MAX_MADE_RECORDS {
            return Some(Blame::Call(format!(
                "{name}: made more than {MAX_MADE_RECORDS} records of one batch"
            )));
        }
        let least = outputs
            .iter()
            .map(|output| output.max_record_bytes)
            .min()
            .unwrap_or(0);
        if made.expanded_bytes() <= least as u64 {
            return None;
        }
        made.iter().find_map(|new| {
            let size = new_size(records, from, &new);
            let most = outputs.get(new.output as usize)?.max_record_bytes;
            (size > most).then(|| {
                let text = format!(
                    "{name}: made a record of {size} bytes; at most {most} are allowed there"
                );
                Blame::Record(new.input, text)
            })
        })
    }

    /// Applies the policy after a failed call.
    fn fail(
        &self,
        flow: &mut Flow,
        call: std::ops::Range<usize>,
        error: RunError,
        bad: &mut usize,
    ) -> Result<(), Halt> {
        self.apply(flow, call, blame(error)?, bad)
    }

    fn apply(
        &self,
        flow: &mut Flow,
        call: std::ops::Range<usize>,
        blame: Blame,
        bad: &mut usize,
    ) -> Result<(), Halt> {
        let (range, error) = match blame {
            Blame::Call(error) => (call, error),
            Blame::Record(index, error) => {
                *bad += 1;
                let index = call.start + index as usize;
                // One by one is fine for a few; a plugin that calls everything bad must not make
                // the broker call it once for every record.
                let end = if *bad > MAX_BAD_RECORDS {
                    flow.records.len()
                } else {
                    index + 1
                };
                (
                    if *bad > MAX_BAD_RECORDS {
                        call.start
                    } else {
                        index
                    }..end,
                    error,
                )
            }
        };
        match &self.on_error {
            ErrorPolicy::Stop => return Err(Halt::Stop(error)),
            ErrorPolicy::Skip => flow.skipped += range.len() as u64,
            ErrorPolicy::DeadLetter(topic) => {
                let cause = Cause {
                    plugin: &self.name,
                    error: &error,
                };
                let Flow {
                    records,
                    dead,
                    source,
                    ..
                } = flow;
                dead.push(topic, records, range.clone(), source, cause)?;
            }
        }
        flow.records.remove(range.start, range.end);
        Ok(())
    }

    async fn call_filter(
        &mut self,
        flow: &mut Flow,
        from: usize,
        to: usize,
    ) -> Result<Vec<Verdict>, RunError> {
        let needs = self.runner.needs().await?;
        let columns = flow
            .records
            .columns(from, to, needs, false, &mut flow.scratch);
        self.runner.filter(&columns).await
    }

    async fn call_assign(
        &mut self,
        flow: &mut Flow,
        from: usize,
        to: usize,
        partitions: u32,
    ) -> Result<Vec<u32>, RunError> {
        let needs = self.runner.needs().await?;
        let columns = flow
            .records
            .columns(from, to, needs, false, &mut flow.scratch);
        self.runner.assign(&columns, partitions).await
    }

    async fn call_transform(
        &mut self,
        flow: &mut Flow,
        from: usize,
        to: usize,
    ) -> Result<Output, RunError> {
        let needs = self.runner.needs().await?;
        let columns = flow
            .records
            .columns(from, to, needs, true, &mut flow.scratch);
        self.runner.transform(&columns).await
    }
}

#[cfg(test)]
mod tests;
