//! Chains: plugins one behind the other, loaded, checked and ready to run.
//!
//! A [`Blueprint`] is a chain that holds together and whose plugins are loaded; it can be raised
//! any number of times. A [`Chain`] is one raising: an instance of each plugin and the buffers
//! between them, used by one task on the guest thread.

use std::sync::Arc;

use millstream_core::pipeline::{Place, Step as Planned, plan};
use millstream_plugin::{EngineFault, Fault, Label, Outlet, Plugin, RunError, Runner, RunnerSpec};
use millstream_proto::limits::MAX_PARTITIONS;
use millstream_proto::message::PluginVersion;
use millstream_proto::pipeline::{ErrorPolicy, PluginKind, PluginUse};
use millstream_proto::{ErrorCode, PartitionId, Tenant, TopicName, WireError};

use super::Guests;
use super::dead_letter::Source;
use super::directory::Directory;
use super::halt::Halt;
use super::step::{Bounds, Flow, Step};

/// Where a chain stands and what its plugins are told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    /// What the rules of planning go by.
    pub(crate) place: Place<'a>,
    /// In words: `topic acme/quakes`.
    pub(crate) name: &'a str,
    /// On whose behalf the plugins run.
    pub(crate) tenant: &'a Tenant,
    /// The topic that the records come from, or are meant for.
    pub(crate) input: &'a TopicName,
    /// The code under which a chain that does not hold together is refused.
    pub(crate) refusal: ErrorCode,
}

impl Site<'_> {
    /// Whether a step has its own number in what errors name.
    fn label(&self, step: usize, steps: usize) -> String {
        match (self.place, steps) {
            (Place::Pipeline(_), 2..) => format!("{} step {}", self.name, step + 1),
            _ => self.name.to_owned(),
        }
    }
}

/// One step of a blueprint.
struct Part {
    plugin: Arc<Plugin>,
    plugin_use: PluginUse,
    version: u32,
    place: String,
    outputs: Vec<String>,
    is_last_transform: bool,
}

/// A chain that holds together, with its plugins loaded.
pub(crate) struct Blueprint {
    guests: Guests,
    parts: Vec<Part>,
    tenant: Tenant,
    input: TopicName,
    refusal: ErrorCode,
}

impl std::fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.parts.iter().map(|part| &part.plugin_use.plugin))
            .finish()
    }
}

impl Blueprint {
    /// Loads the plugins, compiling those that are not compiled yet, and checks their order.
    ///
    /// # Errors
    /// An unknown plugin or version, an unknown dead-letter topic, a chain that does not hold
    /// together; each names the plugin.
    pub(crate) async fn draw(
        guests: &Guests,
        site: Site<'_>,
        uses: &[PluginUse],
        directory: &Arc<dyn Directory>,
    ) -> Result<Self, WireError> {
        let versions = uses
            .iter()
            .map(|u| find(u, site, &**directory))
            .collect::<Result<Vec<_>, _>>()?;
        let kinds: Vec<_> = versions
            .iter()
            .map(|v| (v.plugin.clone(), v.kind))
            .collect();
        let steps = plan(site.place, &kinds)
            .map_err(|error| WireError::new(site.refusal, format!("{}: {error}", site.name)))?;
        let last_transform = kinds
            .iter()
            .rposition(|(_, kind)| *kind == PluginKind::Transform);
        let mut parts = Vec::with_capacity(uses.len());
        for (index, (version, step)) in versions.iter().zip(&steps).enumerate() {
            let plugin = guests.load(version.digest, directory).await?;
            let plugin_use = uses[index].clone();
            let place = site.label(index, uses.len());
            // A subscription has no partitions to choose and no limits of its own.
            let is_last_transform =
                last_transform == Some(index) && site.place != Place::Subscription;
            parts.push(part(
                plugin,
                plugin_use,
                version,
                place,
                (step, site),
                is_last_transform,
            ));
        }
        Ok(Self {
            guests: guests.clone(),
            parts,
            tenant: site.tenant.clone(),
            input: site.input.clone(),
            refusal: site.refusal,
        })
    }

    /// The plugins as attached, versions filled in.
    pub(crate) fn uses(&self) -> Vec<PluginUse> {
        self.parts
            .iter()
            .map(|part| part.plugin_use.clone())
            .collect()
    }

    /// Whether partitions are chosen here, or records made: the producer's own choice of a
    /// partition means little then.
    pub(crate) fn routes(&self) -> bool {
        let routes = |part: &Part| part.plugin.kind() != PluginKind::Filter;
        self.parts.iter().any(routes)
    }

    /// An instance of each plugin, started: a plugin that refuses its configuration shows here.
    /// Runs on the guest thread.
    ///
    /// # Errors
    /// When a plugin does not start, with its reason.
    pub(crate) async fn raise(
        self: Arc<Self>,
        partition: Option<PartitionId>,
    ) -> Result<Chain, WireError> {
        let mut chain = self.lay(partition)?;
        for step in &mut chain.steps {
            step.start()
                .await
                .map_err(|error| self.start_error(&error))?;
        }
        Ok(chain)
    }

    /// As [`Blueprint::raise`], but the plugins start with the first batch.
    ///
    /// # Errors
    /// When the broker's limits of plugins cannot be.
    pub(crate) fn lay(&self, partition: Option<PartitionId>) -> Result<Chain, WireError> {
        let steps = self.parts.iter().map(|part| self.step(part, partition));
        let source = Source {
            topic: self.input.clone(),
            partition,
        };
        Ok(Chain {
            steps: steps.collect::<Result<_, _>>()?,
            flow: Flow::new(source),
        })
    }

    fn start_error(&self, error: &RunError) -> WireError {
        let code = match error.fault {
            Fault::Engine(EngineFault::PoolExhausted { .. }) => ErrorCode::Overloaded,
            Fault::Engine(_) => ErrorCode::Internal,
            Fault::Guest(_) | Fault::Limit(_) => self.refusal,
        };
        WireError::new(code, error.to_string())
    }

    fn step(&self, part: &Part, partition: Option<PartitionId>) -> Result<Step, WireError> {
        let config = part.plugin_use.config.iter();
        let books = self.guests.books(&part.plugin_use.plugin);
        let outlet = |name: &String| Outlet {
            name: name.clone(),
            partitions: MAX_PARTITIONS,
        };
        let spec = RunnerSpec {
            label: Label {
                plugin: part.plugin_use.plugin.clone(),
                version: part.version,
                place: part.place.clone(),
                partition: partition.map(|partition| partition.0),
            },
            tenant: self.tenant.clone(),
            inputs: vec![self.input.as_str().to_owned()],
            outputs: part.outputs.iter().map(outlet).collect(),
            config: config
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            limits: self.guests.limits().clone(),
            log: Arc::clone(&books.log),
            counters: Arc::clone(&books.counters),
        };
        let plugin = Arc::clone(&part.plugin);
        let runner = Runner::new(self.guests.engine(), plugin, spec)
            .map_err(|bad| WireError::new(ErrorCode::Internal, bad.to_string()))?;
        Ok(Step::new(
            runner,
            part.is_last_transform,
            part.plugin_use.on_error.clone(),
        ))
    }
}

fn part(
    plugin: Arc<Plugin>,
    plugin_use: PluginUse,
    version: &PluginVersion,
    place: String,
    (step, site): (&Planned, Site<'_>),
    is_last_transform: bool,
) -> Part {
    let plugin_use = PluginUse {
        version: Some(version.version),
        ..plugin_use
    };
    let (version, outputs) = (version.version, step.outputs(site.place));
    Part {
        plugin,
        plugin_use,
        version,
        place,
        outputs,
        is_last_transform,
    }
}

/// The version that is meant, and whether the use of it can work at all.
fn find(
    plugin_use: &PluginUse,
    site: Site<'_>,
    directory: &dyn Directory,
) -> Result<PluginVersion, WireError> {
    let PluginUse {
        plugin,
        version,
        on_error,
        ..
    } = plugin_use;
    plugin_use
        .check()
        .map_err(|error| WireError::new(site.refusal, format!("{}: {error}", site.name)))?;
    if let ErrorPolicy::DeadLetter(topic) = on_error {
        if directory.topic(topic).is_none() {
            let text =
                format!("the dead-letter topic {topic} of {plugin} does not exist; create it");
            return Err(WireError::new(ErrorCode::UnknownTopic, text));
        }
        if matches!(site.place, Place::Pipeline(_)) && topic == site.input {
            let text = format!(
                "the dead-letter topic {topic} of {plugin} is the pipeline's input: \
                 it would never end"
            );
            return Err(WireError::new(site.refusal, text));
        }
    }
    directory.plugin(plugin, *version).ok_or_else(|| {
        let which = version.map_or(String::new(), |version| format!(" version {version}"));
        let text = format!("plugin {plugin}{which} does not exist; upload it first");
        WireError::new(ErrorCode::UnknownPlugin, text)
    })
}

/// A chain at work: used by one task, on the guest thread.
#[derive(Debug)]
pub(crate) struct Chain {
    steps: Vec<Step>,
    pub(crate) flow: Flow,
}

impl Chain {
    /// Gives the instances back until the next batch.
    pub(crate) fn rest(&mut self) {
        self.steps.iter_mut().for_each(Step::rest);
    }

    /// Runs the records that were loaded into the flow through all steps. `outputs` are the bounds
    /// of the chain's outputs, `now_ms` the time that plugins are told.
    ///
    /// # Errors
    /// When the batch must go no further; the flow is to be released.
    pub(crate) async fn run(&mut self, now_ms: i64, outputs: &[Bounds]) -> Result<(), Halt> {
        for step in &mut self.steps {
            if self.flow.records.is_empty() {
                break;
            }
            step.set_now(now_ms);
            step.run(&mut self.flow, outputs).await?;
        }
        Ok(())
    }
}
