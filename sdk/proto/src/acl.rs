//! Access rules as they are granted, listed and stored. Deciding is the broker's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// See that it exists, its settings and its state.
    Describe,
    /// Write records to a topic.
    Produce,
    /// Read records of a topic and commit consumer offsets.
    Consume,
    /// Create, alter and delete.
    Manage,
    /// Upload versions of a plugin, and read its log.
    Upload,
    /// Put a plugin to use.
    Attach,
    /// Grant and revoke rules.
    Grant,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 7] = [
        Operation::Describe,
        Operation::Produce,
        Operation::Consume,
        Operation::Manage,
        Operation::Upload,
        Operation::Attach,
        Operation::Grant,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::Describe => "describe",
            Operation::Produce => "produce",
            Operation::Consume => "consume",
            Operation::Manage => "manage",
            Operation::Upload => "upload",
            Operation::Attach => "attach",
            Operation::Grant => "grant",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Operation {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|o| o.as_str() == s)
            .ok_or_else(|| {
                let all = Self::ALL.map(Operation::as_str).join(", ");
                format!("unknown operation {s:?}; use one of {all}")
            })
    }
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    /// A topic, `tenant/topic`.
    Topic,
    /// A plugin, `tenant/plugin`.
    Plugin,
    /// A pipeline, `tenant/pipeline`.
    Pipeline,
}

impl ResourceKind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ResourceKind::Topic => "topic",
            ResourceKind::Plugin => "plugin",
            ResourceKind::Pipeline => "pipeline",
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ResourceKind {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "topic" => Ok(Self::Topic),
            "plugin" => Ok(Self::Plugin),
            "pipeline" => Ok(Self::Pipeline),
            other => Err(format!(
                "unknown resource {other:?}; use topic, plugin or pipeline"
            )),
        }
    }
}

/// A text that stands for itself, or with `*` at its end for all that begin so.
///
/// Serde goes through the same parser as text does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Whether `text` is meant.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => text.starts_with(prefix),
            None => self.0 == text,
        }
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let body = s.strip_suffix('*').unwrap_or(s);
        if s.is_empty() || s.len() > 512 || body.contains('*') {
            return Err(format!(
                "{s:?} is not a pattern: an exact name, or a beginning followed by one '*'"
            ));
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether a rule opens or closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Opens.
    Allow,
    /// Closes; beats every rule that opens.
    Deny,
}

/// One access rule. Nothing is allowed that no rule allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AclRule {
    /// Whom it is about.
    pub principal: Pattern,
    /// What kind of thing.
    pub resource: ResourceKind,
    /// Which of them, by name.
    pub name: Pattern,
    /// Which operations, without repetition.
    pub operations: Vec<Operation>,
    /// Open or close.
    pub effect: Effect,
}

impl fmt::Display for AclRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match self.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        };
        let ops: Vec<&str> = self.operations.iter().map(|o| o.as_str()).collect();
        write!(
            f,
            "{effect} {} {} on {} {}",
            self.principal,
            ops.join(","),
            self.resource,
            self.name
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn a_star_at_the_end_means_a_beginning() {
        let all: Pattern = "acme/*".parse().unwrap();
        assert!(all.matches("acme/x") && !all.matches("acm"));
        let one: Pattern = "acme/x".parse().unwrap();
        assert!(one.matches("acme/x") && !one.matches("acme/xy"));
        assert!("a*b".parse::<Pattern>().is_err() && "".parse::<Pattern>().is_err());
        for text in ["acme/*", "a*b", ""] {
            let wire = postcard::to_allocvec(text).unwrap();
            let read = postcard::from_bytes::<Pattern>(&wire).ok();
            assert_eq!(read, text.parse().ok(), "{text:?}");
        }
    }

    #[test]
    fn words_go_both_ways() {
        for op in Operation::ALL {
            assert_eq!(op.as_str().parse::<Operation>().unwrap(), op);
        }
        assert!(
            "write"
                .parse::<Operation>()
                .unwrap_err()
                .contains("produce")
        );
    }
}
