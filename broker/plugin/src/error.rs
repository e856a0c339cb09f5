//! What can go wrong when a plugin runs, told apart by whose fault it is.
//!
//! [`GuestFault`] is the plugin's, [`LimitHit`] is a cap doing its work, [`EngineFault`] is ours.
//! The policy of the plugin's owner (stop, skip, dead-letter) applies to the first two only.
//! What can go wrong before a plugin runs is in `inspect` ([`Refusal`](crate::Refusal)) and
//! `registry` ([`LoadError`](crate::LoadError)).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millstream_proto::PluginName;
use millstream_proto::pipeline::PluginKind;

use crate::limits::MAX_TEXT_BYTES;
use crate::output::OutputFault;

/// Who ran where: what every error of a runner names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The plugin.
    pub plugin: PluginName,
    /// Its version.
    pub version: u32,
    /// Where it was attached, in words: `topic acme/quakes`, `pipeline acme/alerts step 2`.
    pub place: String,
    /// The input partition, if it runs once for each.
    pub partition: Option<u32>,
}

impl Label {
    /// Where, with the partition: `topic acme/quakes, partition 3`.
    #[must_use]
    pub fn full_place(&self) -> String {
        match self.partition {
            Some(partition) => format!("{}, partition {partition}", self.place),
            None => self.place.clone(),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self {
            plugin: "acme/plugin".parse().expect("a valid name"),
            version: 1,
            place: "topic acme/quakes".into(),
            partition: None,
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "plugin {} version {} at {}",
            self.plugin,
            self.version,
            self.full_place()
        )
    }
}

/// A call that gave no result.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{label}: {fault}")]
pub struct RunError {
    /// Who ran where.
    pub label: Arc<Label>,
    /// What went wrong.
    pub fault: Fault,
}

/// What went wrong in a call, by whose fault it is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// The plugin's.
    #[error(transparent)]
    Guest(#[from] GuestFault),
    /// A cap was reached and the instance thrown away.
    #[error(transparent)]
    Limit(#[from] LimitHit),
    /// The broker's.
    #[error(transparent)]
    Engine(#[from] EngineFault),
}

/// The kinds of what can go wrong, to be counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The plugin asks for the same batch again.
    Retry,
    /// The plugin gave up.
    Fatal,
    /// The plugin cannot process a record.
    BadRecord,
    /// The plugin refused its configuration.
    Init,
    /// The plugin's code failed.
    Trap,
    /// The plugin returned what the interface does not allow.
    Output,
    /// The plugin waited for something.
    Waited,
    /// A cap was reached.
    Limit,
    /// The broker's fault.
    Engine,
}

impl FaultKind {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Retry,
        Self::Fatal,
        Self::BadRecord,
        Self::Init,
        Self::Trap,
        Self::Output,
        Self::Waited,
        Self::Limit,
        Self::Engine,
    ];

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Fatal => "fatal",
            Self::BadRecord => "bad_record",
            Self::Init => "init",
            Self::Trap => "trap",
            Self::Output => "output",
            Self::Waited => "waited",
            Self::Limit => "limit",
            Self::Engine => "engine",
        }
    }
}

impl Fault {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Guest(GuestFault::Retry(_)) => FaultKind::Retry,
            Self::Guest(GuestFault::Fatal(_)) => FaultKind::Fatal,
            Self::Guest(GuestFault::BadRecord { .. }) => FaultKind::BadRecord,
            Self::Guest(GuestFault::Init(_)) => FaultKind::Init,
            Self::Guest(GuestFault::Trap(_)) => FaultKind::Trap,
            Self::Guest(GuestFault::Output(_)) => FaultKind::Output,
            Self::Guest(GuestFault::Waited) => FaultKind::Waited,
            Self::Limit(_) => FaultKind::Limit,
            Self::Engine(_) => FaultKind::Engine,
        }
    }
}

/// The plugin's own doing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// It asks for the same batch again later.
    #[error("asks to retry later: {0}")]
    Retry(String),
    /// It cannot go on.
    #[error("gave up: {0}")]
    Fatal(String),
    /// It cannot process one record; call again without it.
    #[error("cannot process record {index} of the batch: {why}")]
    BadRecord {
        /// Index of the record in the batch; checked to be in range.
        index: u32,
        /// The plugin's reason.
        why: String,
    },
    /// `init` refused the configuration.
    #[error("refused its configuration: {0}")]
    Init(String),
    /// The guest's code failed; the instance is gone.
    #[error("{0}")]
    Trap(Trapped),
    /// The result is not one that the interface allows.
    #[error("returned an invalid result: {0}")]
    Output(#[from] OutputFault),
    /// The guest waited for something, and a plugin has nothing to wait for.
    #[error("tried to sleep or to wait for input; a plugin must answer from the batch it is given")]
    Waited,
}

/// A failure of the guest's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trapped {
    /// The cause, such as `wasm trap: integer divide by zero`.
    pub cause: String,
    /// What the guest last wrote to its standard error: of a Rust panic, the message.
    pub stderr: Option<String>,
    /// The innermost frames, as far as the guest's symbols tell.
    pub backtrace: Vec<String>,
}

impl fmt::Display for Trapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        if let Some(text) = &self.stderr {
            write!(f, " ({text})")?;
        }
        if !self.backtrace.is_empty() {
            write!(f, ", in {}", self.backtrace.join(" < "))?;
        }
        Ok(())
    }
}

/// A cap that a guest reached. Display names the cap and its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitHit {
    /// CPU time of one call.
    #[error("used more than {0:?} of CPU time in one call and was stopped")]
    CallCpu(Duration),
    /// CPU time of making an instance.
    #[error("used more than {0:?} of CPU time to start and was stopped")]
    InitCpu(Duration),
    /// Linear memory.
    #[error("asked for {wanted} bytes of memory; at most {limit} are allowed")]
    Memory {
        /// What it asked for, in bytes.
        wanted: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Table elements.
    #[error("asked for {wanted} table elements; at most {limit} are allowed")]
    Table {
        /// What it asked for.
        wanted: usize,
        /// The limit.
        limit: usize,
    },
    /// Recursion.
    #[error("recursed deeper than its stack of {0} bytes")]
    Stack(usize),
    /// Bytes returned in one call.
    #[error("returned more than {0} bytes in one call")]
    Crossing(usize),
    /// Bytes of all records made in one call.
    #[error("made records of more than {0} bytes in one call")]
    OutputBytes(usize),
    /// Records made in one call.
    #[error("made {made} records in one call; at most {limit} are allowed")]
    OutputRecords {
        /// How many it made.
        made: usize,
        /// The limit.
        limit: usize,
    },
}

/// A failure of the broker or its configuration, not of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    /// wasmtime could not be set up.
    #[error("the WebAssembly engine cannot start: {0}")]
    Start(String),
    /// No place in the pool became free in time.
    #[error(
        "all {instances} plugin instances are in use; raise the number of plugin instances or detach a plugin"
    )]
    PoolExhausted {
        /// The size of the pool.
        instances: u32,
    },
    /// The component could not be instantiated for a reason outside its code.
    #[error("no instance could be made: {0}")]
    Instantiate(String),
    /// A method was called that this kind of plugin does not have.
    #[error("a {actual} was used as a {wanted}")]
    WrongKind {
        /// What the plugin is.
        actual: PluginKind,
        /// What it was used as.
        wanted: PluginKind,
    },
    /// The columns given to the runner contradict each other.
    #[error("the batch handed to the plugin is malformed: {0}")]
    BadColumns(&'static str),
}

/// Makes a guest's text fit for an error or a log line: bounded, and without control characters
/// that would forge lines or move a terminal's cursor.
pub(crate) fn tame(text: &str) -> String {
    let cut = text.floor_char_boundary(MAX_TEXT_BYTES);
    let mut tamed: String = text[..cut]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if cut < text.len() {
        tamed.push_str(" ... (cut)");
    }
    tamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_plugin_version_place_and_cause() {
        let label = Label {
            plugin: "acme/alerts".parse().expect("a valid name"),
            version: 3,
            place: "topic acme/quakes".into(),
            partition: Some(7),
        };
        let fault = LimitHit::CallCpu(Duration::from_millis(100)).into();
        assert_eq!(
            RunError {
                label: label.into(),
                fault
            }
            .to_string(),
            "plugin acme/alerts version 3 at topic acme/quakes, partition 7: \
             used more than 100ms of CPU time in one call and was stopped"
        );
    }

    #[test]
    fn every_kind_has_its_own_counter() {
        for (at, kind) in FaultKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind:?}");
        }
        let usage = crate::Usage::default();
        usage.count_failure(FaultKind::Trap);
        assert_eq!(usage.failures_of(FaultKind::Trap), 1);
        assert_eq!(usage.failures(), 1);
    }

    #[test]
    fn guest_text_is_bounded_and_has_no_control_characters() {
        assert_eq!(tame("a\nb\u{1b}[31m"), "a b [31m");
        let long = tame(&"\u{e9}".repeat(MAX_TEXT_BYTES));
        assert!(long.len() < MAX_TEXT_BYTES + 20 && long.ends_with("(cut)"));
    }
}
