//! Restoring a part of a backup: which rows belong to a tenant or to a topic.
//!
//! What comes with a topic: its records, its producers' state, its consumers' offsets, its settings
//! and chain, the plugins that the chain names (all their versions), and the access rules that
//! mean it. With a tenant: all of that for each of its topics, all its plugins, and its pipelines.
//! A pipeline comes only if its input and all its outputs do: with an output missing it could not
//! run, and exactly once is a matter of all of them together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use millstream_proto::acl::{AclRule, ResourceKind};
use millstream_proto::pipeline::{ErrorPolicy, PluginUse};
use millstream_proto::{PipelineName, PluginName, Tenant, TopicName};
use millstream_store::{Key, Row as StoreRow, Space};

use crate::catalog::row::{
    DoomedRow, NextTopicRow, NextVersionRow, PluginRow, Row, RuleRow, TopicRow, blob_key,
};
use crate::pipeline::row::DefinitionRow;

/// What is to be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The whole store.
    All,
    /// What belongs to a tenant.
    Tenant(Tenant),
    /// A topic and what it needs.
    Topic(TopicName),
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Tenant(tenant) => write!(f, "topic of tenant {}", tenant.as_str()),
            Self::Topic(topic) => write!(f, "topic {topic}"),
        }
    }
}

impl Selection {
    fn topic(&self, name: &TopicName) -> bool {
        match self {
            Self::All => true,
            Self::Tenant(tenant) => name.tenant_str() == tenant.as_str(),
            Self::Topic(topic) => name == topic,
        }
    }

    fn plugin(&self, name: &PluginName) -> bool {
        matches!(self, Self::Tenant(tenant) if name.tenant_str() == tenant.as_str())
    }

    fn pipeline(&self, name: &PipelineName) -> bool {
        matches!(self, Self::Tenant(tenant) if name.tenant_str() == tenant.as_str())
    }

    /// Whether a rule means something that is restored.
    fn rule(&self, rule: &AclRule) -> bool {
        match self {
            Self::All => true,
            Self::Topic(topic) => {
                rule.resource == ResourceKind::Topic && rule.name.matches(topic.as_str())
            }
            Self::Tenant(tenant) => {
                let own = format!("{}/", tenant.as_str());
                match rule.name.as_str().strip_suffix('*') {
                    Some(prefix) => prefix.starts_with(&own) || own.starts_with(prefix),
                    None => rule.name.as_str().starts_with(&own),
                }
            }
        }
    }
}

/// Gathers the rows that say what there is, and then which of them are wanted.
#[derive(Default)]
pub(super) struct Survey {
    topics: Vec<TopicRow>,
    plugins: Vec<PluginRow>,
    pipelines: Vec<DefinitionRow>,
}

impl Survey {
    /// Looks at a row.
    pub(super) fn look(&mut self, space: Space, key: &Key, value: &[u8]) -> Result<(), String> {
        match (space, key.first().copied()) {
            (Space::Catalog, Some(TopicRow::TAG)) => self.topics.push(decode(value)?),
            (Space::Catalog, Some(PluginRow::TAG)) => self.plugins.push(decode(value)?),
            (Space::Pipelines, Some(b'd')) => self.pipelines.push(definition(key, value)?),
            _ => {}
        }
        Ok(())
    }

    /// What `selection` means here.
    pub(super) fn choose(self, selection: &Selection) -> Wanted {
        let mut wanted = Wanted {
            selection: selection.clone(),
            topics: BTreeMap::new(),
            plugins: BTreeSet::new(),
            blobs: BTreeSet::new(),
            pipelines: BTreeMap::new(),
            notes: Vec::new(),
        };
        for row in self.topics {
            if selection.topic(&row.name) {
                wanted.topics.insert(row.id, row.name);
                wanted.plugins.extend(names(&row.chain));
                wanted.dead_letters(&row.chain);
            }
        }
        let there: BTreeSet<TopicName> = wanted.topics.values().cloned().collect();
        for row in self.pipelines {
            let spec = row.spec;
            if !selection.pipeline(&spec.name) {
                continue;
            }
            let outputs = spec.outputs.iter().map(|(_, topic)| topic);
            let mut needs = outputs.chain([&spec.input]);
            if let Some(missing) = needs.find(|topic| !there.contains(*topic)) {
                wanted.notes.push(format!(
                    "pipeline {} is left out: it needs topic {missing}, which is not restored",
                    spec.name
                ));
                continue;
            }
            wanted.plugins.extend(names(&spec.steps));
            wanted.pipelines.insert(row.id, spec.name);
        }
        for PluginRow(version) in self.plugins {
            if selection.plugin(&version.plugin) {
                wanted.plugins.insert(version.plugin.clone());
            }
            if wanted.plugins.contains(&version.plugin) {
                wanted.blobs.insert(blob_key(&version.digest));
            }
        }
        wanted.note_dead_letters(&there);
        wanted
    }
}

fn names(chain: &[PluginUse]) -> impl Iterator<Item = PluginName> {
    chain.iter().map(|used| used.plugin.clone())
}

fn decode<R: Row>(value: &[u8]) -> Result<R, String> {
    R::decode(value).map_err(|error| error.to_string())
}

fn definition(key: &Key, value: &[u8]) -> Result<DefinitionRow, String> {
    let row = StoreRow {
        key: key.clone(),
        value: bytes::Bytes::copy_from_slice(value),
    };
    DefinitionRow::decode(&row).map_err(|error| error.to_string())
}

/// What is wanted of a backup.
#[derive(Debug)]
pub(super) struct Wanted {
    selection: Selection,
    topics: BTreeMap<u32, TopicName>,
    plugins: BTreeSet<PluginName>,
    blobs: BTreeSet<Key>,
    pipelines: BTreeMap<u32, PipelineName>,
    /// What an operator should know.
    pub(super) notes: Vec<String>,
}

impl Wanted {
    /// How many topics are wanted.
    pub(super) fn topics(&self) -> usize {
        self.topics.len()
    }

    fn dead_letters(&mut self, chain: &[PluginUse]) {
        for used in chain {
            if let ErrorPolicy::DeadLetter(topic) = &used.on_error {
                self.notes.push(format!(
                    "{DEAD_LETTERS}{topic}, which is not restored: create it"
                ));
            }
        }
    }

    /// Leaves only what is true of them now that all topics are known.
    fn note_dead_letters(&mut self, there: &BTreeSet<TopicName>) {
        self.notes.retain(|note| {
            let topic = note.strip_prefix(DEAD_LETTERS);
            let topic = topic.and_then(|rest| rest.split(',').next());
            topic.is_none_or(|topic| !there.iter().any(|name| name.as_str() == topic))
        });
        self.notes.dedup();
    }

    /// Whether the records of a run that begins at `key` are wanted.
    pub(super) fn records(&self, key: &[u8]) -> bool {
        self.topic_at(key, 0)
    }

    fn topic_at(&self, key: &[u8], at: usize) -> bool {
        number(key, at).is_some_and(|topic| self.topics.contains_key(&topic))
    }

    /// Whether a row is wanted.
    pub(super) fn row(&self, space: Space, key: &[u8], value: &[u8]) -> Result<bool, String> {
        Ok(match space {
            Space::Meta => true,
            Space::Records | Space::Partitions | Space::Producers | Space::Offsets => {
                self.topic_at(key, 0)
            }
            Space::Blobs => self.blobs.contains(key),
            Space::Pipelines => match key.first() {
                Some(b'd') => {
                    let row = definition(&Key::from(key), value)?;
                    self.pipelines.contains_key(&row.id)
                }
                _ => {
                    let pipeline = number(key, 1);
                    pipeline.is_some_and(|id| self.pipelines.contains_key(&id))
                        && self.topic_at(key, 5)
                }
            },
            Space::Catalog => self.catalog(key.first().copied(), value)?,
        })
    }

    fn catalog(&self, tag: Option<u8>, value: &[u8]) -> Result<bool, String> {
        Ok(match tag {
            Some(NextTopicRow::TAG) => true,
            Some(TopicRow::TAG) => self.topics.contains_key(&decode::<TopicRow>(value)?.id),
            Some(PluginRow::TAG) => {
                let PluginRow(version) = decode(value)?;
                self.plugins.contains(&version.plugin)
            }
            Some(NextVersionRow::TAG) => {
                let NextVersionRow { plugin, .. } = decode(value)?;
                self.plugins.contains(&plugin)
            }
            Some(RuleRow::TAG) => {
                let RuleRow(rule) = decode(value)?;
                self.selection.rule(&rule)
            }
            // The records of a deleted topic are not restored, so there is nothing to remove.
            Some(DoomedRow::TAG) => false,
            other => return Err(format!("the catalogue has no rows of kind {other:?}")),
        })
    }
}

const DEAD_LETTERS: &str = "a chain sends its dead letters to topic ";

fn number(key: &[u8], at: usize) -> Option<u32> {
    let field = key.get(at..at + 4)?.first_chunk()?;
    Some(u32::from_be_bytes(*field))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::acl::{Effect, Operation};

    use super::*;

    fn rule(resource: ResourceKind, name: &str) -> AclRule {
        AclRule {
            principal: "spiffe://d/acme/a".parse().unwrap(),
            resource,
            name: name.parse().unwrap(),
            operations: vec![Operation::Consume],
            effect: Effect::Allow,
        }
    }

    #[test]
    fn rules_come_with_what_they_mean() {
        let tenant = Selection::Tenant("acme".parse().unwrap());
        let topic = Selection::Topic("acme/t".parse().unwrap());
        for (name, by_tenant, by_topic) in [
            ("acme/t", true, true),
            ("acme/*", true, true),
            ("ac*", true, true),
            ("*", true, true),
            ("acme/other", true, false),
            ("acme2/t", false, false),
            ("other/*", false, false),
        ] {
            let rule = rule(ResourceKind::Topic, name);
            assert_eq!(tenant.rule(&rule), by_tenant, "{name}");
            assert_eq!(topic.rule(&rule), by_topic, "{name}");
            assert!(Selection::All.rule(&rule));
        }
        let plugins = rule(ResourceKind::Plugin, "acme/t");
        assert!(tenant.rule(&plugins) && !topic.rule(&plugins));
    }

    #[test]
    fn a_short_key_belongs_to_no_topic() {
        let mut survey = Survey::default();
        assert!(
            survey
                .look(Space::Catalog, &Key::from("t"), b"\xff")
                .is_err()
        );
        survey.look(Space::Offsets, &Key::from("x"), b"").unwrap();
        let wanted = survey.choose(&Selection::Topic("acme/t".parse().unwrap()));
        assert_eq!(wanted.topics(), 0);
        for space in [
            Space::Records,
            Space::Producers,
            Space::Pipelines,
            Space::Blobs,
        ] {
            assert!(!wanted.row(space, b"p", b"").unwrap());
        }
        assert!(wanted.row(Space::Catalog, b"?", b"").is_err());
    }
}
