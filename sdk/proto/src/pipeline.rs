//! Plugins in use, and pipelines: topic -> chain -> topics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_CHAIN_STEPS, MAX_CONFIG_BYTES, MAX_CONFIG_ENTRIES, MAX_OUTPUTS};
use crate::name::{PipelineName, PluginName, Principal, TopicName};
use crate::offset::{Offset, PartitionId};

/// What a plugin does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginKind {
    /// Chooses a partition for each record.
    Partitioner,
    /// Keeps or drops records.
    Filter,
    /// Turns a record into none, one or many, for named outputs.
    Transform,
    /// A transform with state and timers.
    Processor,
}

impl std::fmt::Display for PluginKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            PluginKind::Partitioner => "partitioner",
            PluginKind::Filter => "filter",
            PluginKind::Transform => "transform",
            PluginKind::Processor => "processor",
        })
    }
}

/// What happens when a plugin traps, hits a limit or rejects records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorPolicy {
    /// Nothing passes until somebody attaches or resumes again. The default.
    #[default]
    Stop,
    /// The records of the failed call are left out, and counted.
    Skip,
    /// The records of the failed call go to this topic, with the cause in headers.
    DeadLetter(TopicName),
}

/// A plugin at a place, with its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginUse {
    /// Which plugin.
    pub plugin: PluginName,
    /// Which version; `None` means the newest at the time of attaching, and the
    /// broker writes down which that was.
    pub version: Option<u32>,
    /// What the plugin can read through `config`.
    pub config: BTreeMap<String, String>,
    /// What happens when it fails.
    pub on_error: ErrorPolicy,
}

impl PluginUse {
    /// The newest version of `plugin`, without configuration, stopping on errors.
    #[must_use]
    pub fn new(plugin: PluginName) -> Self {
        Self {
            plugin,
            version: None,
            config: BTreeMap::new(),
            on_error: ErrorPolicy::Stop,
        }
    }

    /// Checks the configuration against its limits.
    ///
    /// # Errors
    /// A sentence that names the plugin and the limit.
    pub fn check(&self) -> Result<(), String> {
        if self.config.len() > MAX_CONFIG_ENTRIES {
            let n = self.config.len();
            return Err(format!(
                "{} has {n} configuration entries; at most {MAX_CONFIG_ENTRIES} are allowed",
                self.plugin
            ));
        }
        match self
            .config
            .iter()
            .find(|(k, v)| k.len().max(v.len()) > MAX_CONFIG_BYTES)
        {
            Some(_) => Err(format!(
                "a configuration entry of {} is longer than {MAX_CONFIG_BYTES} bytes",
                self.plugin
            )),
            None => Ok(()),
        }
    }
}

/// A pipeline as its author writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineSpec {
    /// Its name.
    pub name: PipelineName,
    /// The topic it reads.
    pub input: TopicName,
    /// Where it begins when it has no position yet: oldest or newest record.
    pub from_latest: bool,
    /// Filters and transforms in order; may be empty (a copy).
    pub steps: Vec<PluginUse>,
    /// The outputs by name. The last transform sees these names in this order;
    /// earlier transforms see the one output `next`. Without a transform there
    /// must be exactly one output.
    pub outputs: Vec<(String, TopicName)>,
}

impl PipelineSpec {
    /// Checks what can be checked without knowing plugins and topics.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if self.steps.len() > MAX_CHAIN_STEPS {
            return Err(format!(
                "{name} has {} steps; at most {MAX_CHAIN_STEPS} are allowed",
                self.steps.len()
            ));
        }
        if self.outputs.is_empty() || self.outputs.len() > MAX_OUTPUTS {
            return Err(format!(
                "{name} has {} outputs; 1 to {MAX_OUTPUTS} are allowed",
                self.outputs.len()
            ));
        }
        for (i, (output, topic)) in self.outputs.iter().enumerate() {
            if output.is_empty() || output.len() > 64 {
                return Err(format!(
                    "output {i} of {name} needs a name of 1 to 64 bytes"
                ));
            }
            if self.outputs[..i].iter().any(|(other, _)| other == output) {
                return Err(format!("{name} has two outputs called {output:?}"));
            }
            if *topic == self.input {
                return Err(format!(
                    "output {output:?} of {name} is its own input {topic}: it would never end"
                ));
            }
        }
        self.steps.iter().try_for_each(PluginUse::check)
    }
}

/// Whether a pipeline runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PipelineState {
    /// Reading and writing.
    Running,
    /// Paused by somebody.
    Paused,
    /// Stopped by an error; resume after mending the cause.
    Failed(String),
}

/// How far a pipeline is in one partition of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineProgress {
    /// The input partition.
    pub partition: PartitionId,
    /// The next offset it will read.
    pub position: Offset,
    /// The input's durable end.
    pub end: Offset,
}

/// A pipeline as `show` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineInfo {
    /// Its definition, versions filled in.
    pub spec: PipelineSpec,
    /// Who applied it, and as whom it runs.
    pub owner: Principal,
    /// Whether it runs.
    pub state: PipelineState,
    /// Position per input partition.
    pub progress: Vec<PipelineProgress>,
    /// Records read since the broker started.
    pub records_in: u64,
    /// Records written since the broker started, dead letters not counted.
    pub records_out: u64,
    /// Records dead-lettered since the broker started.
    pub dead_letters: u64,
    /// Records skipped by the policy `skip` since the broker started.
    pub skipped: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    fn spec() -> PipelineSpec {
        PipelineSpec {
            name: "acme/p".parse().unwrap(),
            input: "acme/in".parse().unwrap(),
            from_latest: false,
            steps: Vec::new(),
            outputs: vec![("out".into(), "acme/out".parse().unwrap())],
        }
    }

    #[test]
    fn a_pipeline_into_itself_is_refused() {
        assert!(spec().check().is_ok());
        let looped = PipelineSpec {
            outputs: vec![("out".into(), "acme/in".parse().unwrap())],
            ..spec()
        };
        assert!(looped.check().unwrap_err().contains("never end"));
        let twice = PipelineSpec {
            outputs: [spec().outputs, spec().outputs].concat(),
            ..spec()
        };
        assert!(twice.check().unwrap_err().contains("two outputs"));
        let none = PipelineSpec {
            outputs: Vec::new(),
            ..spec()
        };
        assert!(none.check().is_err());
    }
}
