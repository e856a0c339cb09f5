//! Plans a chain of plugins: which kinds may stand where, and what each of them sees.
//!
//! The same rules hold for the chain of a topic, of a subscription and of a pipeline; what differs
//! is what stands behind the last transform. Loading and running plugins is the broker's; here are
//! only names and kinds.

use millstream_proto::limits::MAX_CHAIN_STEPS;
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PluginKind};
use millstream_proto::{PluginName, TopicName};

/// The one output that a transform sees unless it is the last of a pipeline.
pub const NEXT: &str = "next";

/// Where a chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Before a topic's storage.
    Topic,
    /// Between a topic and one consumer.
    Subscription,
    /// Between a topic and these outputs, by name.
    Pipeline(&'a [String]),
}

impl Place<'_> {
    fn noun(self) -> &'static str {
        match self {
            Place::Topic => "a topic",
            Place::Subscription => "a subscription",
            Place::Pipeline(_) => "a pipeline",
        }
    }
}

/// What the records of a step belong to afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Makes {
    /// It makes no records: it keeps, drops or places those it is given.
    Nothing,
    /// Records for the next step: its only output is [`NEXT`].
    Next,
    /// Records for the outputs of the pipeline, by the pipeline's names and in its order.
    Outputs,
}

/// One step, planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the plugin is.
    pub kind: PluginKind,
    /// What it makes.
    pub makes: Makes,
}

impl Step {
    /// The names of the outputs that the plugin is told of at this place.
    #[must_use]
    pub fn outputs(&self, place: Place<'_>) -> Vec<String> {
        match (self.makes, place) {
            (Makes::Nothing, _) => Vec::new(),
            (Makes::Outputs, Place::Pipeline(names)) => names.to_vec(),
            (Makes::Outputs | Makes::Next, _) => vec![NEXT.to_owned()],
        }
    }
}

/// Why plugins cannot stand in this order at this place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More steps than a chain may have.
    #[error("the chain has {0} plugins; at most {MAX_CHAIN_STEPS} are allowed")]
    TooLong(usize),
    /// A kind that has no meaning there.
    #[error("{plugin} is a {kind}, which cannot stand at {place}; {expected} can")]
    Misplaced {
        /// Which plugin.
        plugin: PluginName,
        /// What it is.
        kind: PluginKind,
        /// Where it was to stand.
        place: &'static str,
        /// What may stand there.
        expected: &'static str,
    },
    /// A partitioner with something behind it.
    #[error(
        "{plugin} is a partitioner and must be the last of the chain, but {behind} stands behind it"
    )]
    PartitionerNotLast {
        /// The partitioner.
        plugin: PluginName,
        /// What stands behind it.
        behind: PluginName,
    },
    /// Several outputs and nothing that tells them apart.
    #[error(
        "the pipeline has {0} outputs but no transform that writes to them by name; \
         without a transform there must be exactly one output"
    )]
    NothingChooses(usize),
}

/// Checks the order of a chain and tells each step what it makes.
///
/// # Errors
/// The first [`PlanError`], naming the plugin.
pub fn plan(
    place: Place<'_>,
    plugins: &[(PluginName, PluginKind)],
) -> Result<Vec<Step>, PlanError> {
    if plugins.len() > MAX_CHAIN_STEPS {
        return Err(PlanError::TooLong(plugins.len()));
    }
    for (index, (plugin, kind)) in plugins.iter().enumerate() {
        check_kind(place, plugin, *kind)?;
        if let (PluginKind::Partitioner, Some((behind, _))) = (kind, plugins.get(index + 1)) {
            let (plugin, behind) = (plugin.clone(), behind.clone());
            return Err(PlanError::PartitionerNotLast { plugin, behind });
        }
    }
    let last_transform = plugins
        .iter()
        .rposition(|(_, kind)| *kind == PluginKind::Transform);
    if let (Place::Pipeline(outputs), None) = (place, last_transform)
        && outputs.len() != 1
    {
        return Err(PlanError::NothingChooses(outputs.len()));
    }
    let step = |(index, (_, kind)): (usize, &(PluginName, PluginKind))| {
        let makes = match (kind, place) {
            (PluginKind::Transform, Place::Pipeline(_)) if Some(index) == last_transform => {
                Makes::Outputs
            }
            (PluginKind::Transform, _) => Makes::Next,
            _ => Makes::Nothing,
        };
        Step { kind: *kind, makes }
    };
    Ok(plugins.iter().enumerate().map(step).collect())
}

fn check_kind(place: Place<'_>, plugin: &PluginName, kind: PluginKind) -> Result<(), PlanError> {
    let expected = match place {
        Place::Topic => "a filter, a transform or, at the end, a partitioner",
        Place::Subscription | Place::Pipeline(_) => "a filter or a transform",
    };
    match (kind, place) {
        (PluginKind::Filter | PluginKind::Transform, _)
        | (PluginKind::Partitioner, Place::Topic) => Ok(()),
        (PluginKind::Partitioner | PluginKind::Processor, _) => Err(PlanError::Misplaced {
            plugin: plugin.clone(),
            kind,
            place: place.noun(),
            expected,
        }),
    }
}

/// Where a pipeline's records come from, and every topic they can go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The input.
    pub from: TopicName,
    /// The outputs and the topics of dead letters.
    pub to: Vec<TopicName>,
}

impl Edge {
    /// The edge that a definition draws.
    #[must_use]
    pub fn of(spec: &PipelineSpec) -> Self {
        let dead = spec.steps.iter().filter_map(|step| match &step.on_error {
            ErrorPolicy::DeadLetter(topic) => Some(topic.clone()),
            ErrorPolicy::Stop | ErrorPolicy::Skip => None,
        });
        let to = spec
            .outputs
            .iter()
            .map(|(_, topic)| topic.clone())
            .chain(dead)
            .collect();
        Self {
            from: spec.input.clone(),
            to,
        }
    }
}

/// The topics through which a record of `new` would come back to its input, by way of `others`;
/// `None` if it never would. Such records would go round for ever.
#[must_use]
pub fn loop_through(new: &Edge, others: &[Edge]) -> Option<Vec<TopicName>> {
    let mut seen: Vec<TopicName> = Vec::new();
    let mut ways: Vec<Vec<TopicName>> = new.to.iter().map(|topic| vec![topic.clone()]).collect();
    while let Some(way) = ways.pop() {
        let Some(last) = way.last() else { continue };
        if *last == new.from {
            return Some(way);
        }
        if seen.contains(last) {
            continue;
        }
        seen.push(last.clone());
        for next in others
            .iter()
            .filter(|edge| edge.from == *last)
            .flat_map(|edge| &edge.to)
        {
            ways.push(way.iter().chain([next]).cloned().collect());
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edge(from: &str, to: &[&str]) -> Edge {
        let topic = |name: &str| -> TopicName { format!("acme/{name}").parse().unwrap() };
        Edge {
            from: topic(from),
            to: to.iter().map(|name| topic(name)).collect(),
        }
    }

    #[test]
    fn records_that_would_come_back_are_found_out() {
        let others = [
            edge("b", &["c", "d"]),
            edge("d", &["e"]),
            edge("e", &["d", "x"]),
        ];
        assert_eq!(loop_through(&edge("a", &["b", "c"]), &others), None);
        let way = loop_through(&edge("x", &["b"]), &others).unwrap();
        let way: Vec<&str> = way.iter().map(|topic| topic.local()).collect();
        assert_eq!(way, ["b", "d", "e", "x"]);
        assert!(loop_through(&edge("a", &["a"]), &[]).is_some());
    }

    fn chain(kinds: &str) -> Vec<(PluginName, PluginKind)> {
        let kind = |c| match c {
            'f' => PluginKind::Filter,
            't' => PluginKind::Transform,
            'p' => PluginKind::Partitioner,
            _ => PluginKind::Processor,
        };
        let named = |(i, c)| (format!("acme/{c}{i}").parse().unwrap(), kind(c));
        kinds.chars().enumerate().map(named).collect()
    }

    fn outputs(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("out{i}")).collect()
    }

    /// One letter for each step: `-` makes nothing, `n` the next step's, `o` the outputs'.
    fn check(place: Place<'_>, kinds: &str, expected: &str) {
        let steps = plan(place, &chain(kinds)).unwrap();
        let letters: String = steps
            .iter()
            .map(|step| match step.makes {
                Makes::Nothing => '-',
                Makes::Next => 'n',
                Makes::Outputs => 'o',
            })
            .collect();
        assert_eq!(letters, expected, "{kinds}");
    }

    #[test]
    fn only_the_last_transform_of_a_pipeline_sees_its_outputs() {
        let two = outputs(2);
        check(Place::Pipeline(&two), "ftftf", "-n-o-");
        check(Place::Pipeline(&two[..1]), "ff", "--");
        check(Place::Pipeline(&two[..1]), "", "");
        check(Place::Topic, "tftp", "n-n-");
        check(Place::Subscription, "tf", "n-");
    }

    #[test]
    fn a_step_is_told_the_names_of_its_outputs() {
        let two = outputs(2);
        let place = Place::Pipeline(&two);
        let steps = plan(place, &chain("tft")).unwrap();
        let names: Vec<_> = steps.iter().map(|step| step.outputs(place)).collect();
        assert_eq!(names, [vec![NEXT.to_owned()], vec![], two.clone()]);
    }

    #[test]
    fn what_does_not_hold_together_is_named() {
        let refused = |place, kinds: &str| plan(place, &chain(kinds)).unwrap_err().to_string();
        let (one, two) = (outputs(1), outputs(2));
        assert!(refused(Place::Topic, "fpf").contains("acme/f2 stands behind it"));
        assert!(refused(Place::Topic, "pp").contains("must be the last"));
        assert!(refused(Place::Subscription, "p").contains("cannot stand at a subscription"));
        assert!(refused(Place::Pipeline(&one), "fp").contains("acme/p1 is a partitioner"));
        assert!(refused(Place::Topic, "x").contains("is a processor"));
        assert!(refused(Place::Pipeline(&two), "f").contains("2 outputs but no transform"));
        let long = "f".repeat(MAX_CHAIN_STEPS + 1);
        assert!(refused(Place::Topic, &long).contains("17 plugins"));
    }

    proptest! {
        /// Whatever is planned holds what the running chain relies on.
        #[test]
        fn plans_hold_their_promises(kinds in "[ftpx]{0,17}", topic: bool, n in 1usize..4) {
            let names = outputs(n);
            let place = if topic { Place::Topic } else { Place::Pipeline(&names) };
            let plugins = chain(&kinds);
            let Ok(steps) = plan(place, &plugins) else { return Ok(()) };
            prop_assert_eq!(steps.len(), plugins.len());
            for (index, step) in steps.iter().enumerate() {
                prop_assert_eq!(step.kind, plugins[index].1);
                let makes_records = step.kind == PluginKind::Transform;
                prop_assert_eq!(makes_records, step.makes != Makes::Nothing);
                prop_assert_eq!(makes_records, !step.outputs(place).is_empty());
                if step.kind == PluginKind::Partitioner {
                    prop_assert!(topic && index + 1 == steps.len());
                }
            }
            let finals = steps.iter().filter(|step| step.makes == Makes::Outputs).count();
            if topic {
                prop_assert_eq!(finals, 0);
            } else {
                prop_assert!(finals == 1 || names.len() == 1);
            }
        }
    }
}
