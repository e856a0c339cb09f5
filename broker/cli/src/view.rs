//! Shapes of answers for programs where the protocol's own types do not make good JSON.

use millstream_proto::message::{LogLine, PluginVersion};
use millstream_proto::pipeline::{
    ErrorPolicy, PipelineInfo, PipelineProgress, PipelineState, PluginUse,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::clock::rfc3339;

/// One version of a plugin.
#[derive(Debug, Serialize)]
pub(crate) struct VersionView<'a> {
    plugin: &'a str,
    version: u32,
    kind: String,
    sha256: String,
    bytes: u64,
    uploaded: String,
    uploaded_by: &'a str,
}

impl<'a> VersionView<'a> {
    /// The view of a version.
    pub(crate) fn new(version: &'a PluginVersion) -> Self {
        Self {
            plugin: version.plugin.as_str(),
            version: version.version,
            kind: version.kind.to_string(),
            sha256: version.digest.to_string(),
            bytes: version.size,
            uploaded: rfc3339(version.uploaded_ms),
            uploaded_by: version.uploaded_by.as_str(),
        }
    }
}

/// A line of a plugin's log.
#[derive(Debug, Serialize)]
pub(crate) struct LogView<'a> {
    sequence: u64,
    time: String,
    level: &'a str,
    place: &'a str,
    version: u32,
    message: &'a str,
}

impl<'a> LogView<'a> {
    /// The view of a line.
    pub(crate) fn new(line: &'a LogLine) -> Self {
        Self {
            sequence: line.sequence,
            time: rfc3339(line.time_ms),
            level: &line.level,
            place: &line.place,
            version: line.version,
            message: &line.message,
        }
    }
}

#[derive(Debug, Serialize)]
struct StepView<'a> {
    plugin: &'a str,
    version: Option<u32>,
    on_error: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter: Option<&'a str>,
    config: Map<String, Value>,
}

impl<'a> StepView<'a> {
    fn new(plugin: &'a PluginUse) -> Self {
        let (on_error, dead_letter) = match &plugin.on_error {
            ErrorPolicy::Stop => ("stop", None),
            ErrorPolicy::Skip => ("skip", None),
            ErrorPolicy::DeadLetter(topic) => ("dead-letter", Some(topic.as_str())),
        };
        let config = plugin
            .config
            .iter()
            .map(|(k, v)| (k.clone(), v.as_str().into()))
            .collect();
        Self {
            plugin: plugin.plugin.as_str(),
            version: plugin.version,
            on_error,
            dead_letter,
            config,
        }
    }
}

#[derive(Debug, Serialize)]
struct OutputView<'a> {
    name: &'a str,
    topic: &'a str,
}

/// A pipeline: its definition with the names of the TOML file, and how it goes.
#[derive(Debug, Serialize)]
pub(crate) struct PipelineView<'a> {
    name: &'a str,
    input: &'a str,
    start: &'static str,
    step: Vec<StepView<'a>>,
    output: Vec<OutputView<'a>>,
    owner: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    progress: &'a [PipelineProgress],
    behind: u64,
    records_in: u64,
    records_out: u64,
    dead_letters: u64,
    skipped: u64,
}

/// The word for a pipeline's state.
pub(crate) fn state_word(state: &PipelineState) -> &'static str {
    match state {
        PipelineState::Running => "running",
        PipelineState::Paused => "paused",
        PipelineState::Failed(_) => "failed",
    }
}

/// Input records that a pipeline has not read yet.
pub(crate) fn behind(info: &PipelineInfo) -> u64 {
    let behind = |p: &PipelineProgress| p.end.get().saturating_sub(p.position.get());
    info.progress.iter().map(behind).sum()
}

impl<'a> PipelineView<'a> {
    /// The view of a pipeline.
    pub(crate) fn new(info: &'a PipelineInfo) -> Self {
        let spec = &info.spec;
        let outputs = spec.outputs.iter();
        Self {
            name: spec.name.as_str(),
            input: spec.input.as_str(),
            start: if spec.from_latest {
                "latest"
            } else {
                "earliest"
            },
            step: spec.steps.iter().map(StepView::new).collect(),
            output: outputs
                .map(|(name, topic)| OutputView {
                    name,
                    topic: topic.as_str(),
                })
                .collect(),
            owner: info.owner.as_str(),
            state: state_word(&info.state),
            why: match &info.state {
                PipelineState::Failed(why) => Some(why),
                PipelineState::Running | PipelineState::Paused => None,
            },
            progress: &info.progress,
            behind: behind(info),
            records_in: info.records_in,
            records_out: info.records_out,
            dead_letters: info.dead_letters,
            skipped: info.skipped,
        }
    }
}
