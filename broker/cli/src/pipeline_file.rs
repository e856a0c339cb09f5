//! A pipeline as a TOML file.
//!
//! ```toml
//! name = "acme/alerts"
//! input = "acme/quakes"
//! start = "earliest"            # or "latest"; only for the first time
//!
//! [[step]]
//! plugin = "acme/split-alerts"
//! version = 1                   # the newest unless given
//! on_error = "dead-letter"      # or "stop", which it is unless given, or "skip"
//! dead_letter = "acme/dead"
//! [step.config]
//! threshold = 4.5
//!
//! [[output]]
//! name = "alerts"
//! topic = "acme/alerts"
//! ```
//!
//! Outputs are an array of tables because their order counts: it is the order in which the last
//! transform sees them. Unknown keys are refused, so that a misspelt one is not silently without
//! effect.

use std::collections::BTreeMap;

use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PluginUse};
use millstream_proto::{PipelineName, PluginName, TopicName};
use serde::Deserialize;
use toml::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: PipelineName,
    input: TopicName,
    #[serde(default)]
    start: Start,
    #[serde(default)]
    step: Vec<Step>,
    #[serde(default)]
    output: Vec<Output>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Start {
    #[default]
    Earliest,
    Latest,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    plugin: PluginName,
    version: Option<u32>,
    #[serde(default)]
    on_error: OnError,
    dead_letter: Option<TopicName>,
    #[serde(default)]
    config: BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OnError {
    #[default]
    Stop,
    Skip,
    DeadLetter,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    name: String,
    topic: TopicName,
}

/// Reads a pipeline's file.
///
/// # Errors
/// What is wrong, with the line where TOML or a key is, and with the step or output where they
/// do not fit together.
pub(crate) fn parse(text: &str) -> Result<PipelineSpec, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    let File {
        name,
        input,
        start,
        step,
        output,
    } = file;
    let steps = step
        .into_iter()
        .enumerate()
        .map(|(i, step)| plugin_use(i, step));
    let spec = PipelineSpec {
        name,
        input,
        from_latest: matches!(start, Start::Latest),
        steps: steps.collect::<Result<_, _>>()?,
        outputs: output
            .into_iter()
            .map(|output| (output.name, output.topic))
            .collect(),
    };
    if spec.outputs.is_empty() {
        return Err(format!(
            "{} has no output: add [[output]] with name and topic",
            spec.name
        ));
    }
    spec.check()?;
    Ok(spec)
}

fn plugin_use(index: usize, step: Step) -> Result<PluginUse, String> {
    let Step {
        plugin,
        version,
        on_error,
        dead_letter,
        config,
    } = step;
    let place = format!("step {} ({plugin})", index + 1);
    if version == Some(0) {
        return Err(format!(
            "{place}: version = 0: versions are numbered from 1"
        ));
    }
    let on_error = match (on_error, dead_letter) {
        (OnError::DeadLetter, Some(topic)) => ErrorPolicy::DeadLetter(topic),
        (OnError::DeadLetter, None) => {
            return Err(format!(
                "{place}: on_error = \"dead-letter\" needs dead_letter = \"tenant/topic\""
            ));
        }
        (_, Some(_)) => {
            return Err(format!(
                "{place}: dead_letter has no effect without on_error = \"dead-letter\""
            ));
        }
        (OnError::Stop, None) => ErrorPolicy::Stop,
        (OnError::Skip, None) => ErrorPolicy::Skip,
    };
    let config = config.into_iter().map(|(key, value)| match plain(&value) {
        Some(text) => Ok((key, text)),
        None => Err(format!(
            "{place}: config {key} is neither a text, a number nor true or false"
        )),
    });
    Ok(PluginUse {
        plugin,
        version,
        config: config.collect::<Result<_, _>>()?,
        on_error,
    })
}

/// Plugins read texts; numbers and booleans may be written as what they are.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: &str = r#"
        name = "acme/alerts"
        input = "acme/quakes"
        start = "latest"

        [[step]]
        plugin = "acme/filter"
        version = 1
        on_error = "skip"

        [[step]]
        plugin = "acme/split"
        on_error = "dead-letter"
        dead_letter = "acme/dead"
        [step.config]
        threshold = 4.5
        strict = true
        fields = "id,mag"

        [[output]]
        name = "z-first"
        topic = "acme/alerts"
        [[output]]
        name = "a-second"
        topic = "acme/log"
    "#;

    #[test]
    fn every_key_reaches_its_place_and_outputs_keep_their_order() {
        let spec = parse(WHOLE).unwrap();
        assert!(spec.from_latest);
        assert_eq!(spec.steps[0].version, Some(1));
        assert_eq!(spec.steps[0].on_error, ErrorPolicy::Skip);
        assert_eq!(
            spec.steps[1].on_error,
            ErrorPolicy::DeadLetter("acme/dead".parse().unwrap())
        );
        let config: Vec<(&str, &str)> = spec.steps[1]
            .config
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            config,
            [
                ("fields", "id,mag"),
                ("strict", "true"),
                ("threshold", "4.5")
            ]
        );
        let outputs: Vec<&str> = spec.outputs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(outputs, ["z-first", "a-second"]);
    }

    fn refused(text: &str, expected: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{expected:?} in {error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        refused(&WHOLE.replace("version", "verison"), "verison");
        refused(&WHOLE.replace("version", "verison"), "line 8");
        refused(&WHOLE.replace("\"latest\"", "\"newest\""), "newest");
        refused(
            &WHOLE.replace("version = 1", "version = 0"),
            "step 1 (acme/filter)",
        );
        refused(
            &WHOLE.replace("dead_letter = \"acme/dead\"", ""),
            "step 2 (acme/split)",
        );
        refused(
            &WHOLE.replace("\"skip\"", "\"skip\"\ndead_letter = \"acme/dead\""),
            "no effect",
        );
        refused(&WHOLE.replace("true", "[1]"), "config strict");
        refused(&WHOLE.replace("a-second", "z-first"), "two outputs");
        refused("name = \"acme/p\"\ninput = \"acme/in\"", "[[output]]");
        refused("name = \"p\"\ninput = \"acme/in\"", "tenant/pipeline");
    }

    proptest! {
        #[test]
        fn any_text_is_a_pipeline_or_an_error(text in "\\PC{0,80}") {
            let _ = parse(&text);
        }
    }
}
