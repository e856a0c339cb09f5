//! Access decisions: which rule says whether somebody may do something.
//!
//! Nothing is allowed that no rule allows, and a rule that denies beats every rule that allows.
//! Whoever may do anything with a thing may describe it, unless describing it is denied: a
//! producer has to see how many partitions there are. Absent: admins, who stand above the rules,
//! and where rules are kept; both are the broker's.

use std::collections::{BTreeSet, HashMap};

use millstream_proto::acl::{AclRule, Effect, Operation, Pattern, ResourceKind};

/// What the rules say about one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// This rule allows it, and none denies it.
    Allowed(&'a AclRule),
    /// This rule denies it.
    Denied(&'a AclRule),
    /// No rule is about it, so it is not allowed.
    NoRule,
}

impl<'a> Decision<'a> {
    /// Whether it is allowed.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// The rule that decides, if one does.
    #[must_use]
    pub fn rule(self) -> Option<&'a AclRule> {
        match self {
            Self::Allowed(rule) | Self::Denied(rule) => Some(rule),
            Self::NoRule => None,
        }
    }
}

/// One question: who wants to do what with which thing?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who, as text.
    pub principal: &'a str,
    /// What.
    pub operation: Operation,
    /// With what kind of thing.
    pub resource: ResourceKind,
    /// With which one.
    pub name: &'a str,
}

/// Why a rule cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It is about no operation.
    #[error("the rule names no operation; name at least one of {}", words(.0.operations()))]
    Empty(Kind),
    /// An operation that its kind of thing does not have: the rule would do nothing.
    #[error(
        "{operation} means nothing for a {}; a {} has {}",
        .kind.0, .kind.0, words(.kind.operations())
    )]
    Meaningless {
        /// The operation.
        operation: Operation,
        /// The kind of thing.
        kind: Kind,
    },
}

/// A kind of thing, with the operations that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub ResourceKind);

impl Kind {
    /// The operations that mean something for it.
    #[must_use]
    pub fn operations(self) -> &'static [Operation] {
        use Operation::{Attach, Consume, Describe, Grant, Manage, Produce, Upload};
        match self.0 {
            ResourceKind::Topic => &[Describe, Produce, Consume, Manage, Grant],
            ResourceKind::Plugin => &[Describe, Manage, Upload, Attach, Grant],
            ResourceKind::Pipeline => &[Describe, Manage, Grant],
        }
    }
}

fn words(operations: &[Operation]) -> String {
    operations
        .iter()
        .map(|o| o.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The rule with its operations in order and without repetition, so that equal rules are equal.
///
/// # Errors
/// [`RuleError`] when it has no operation, or one that its kind of thing does not have.
pub fn normal(mut rule: AclRule) -> Result<AclRule, RuleError> {
    let kind = Kind(rule.resource);
    rule.operations.sort_unstable();
    rule.operations.dedup();
    if rule.operations.is_empty() {
        return Err(RuleError::Empty(kind));
    }
    match rule
        .operations
        .iter()
        .find(|o| !kind.operations().contains(o))
    {
        Some(&operation) => Err(RuleError::Meaningless { operation, kind }),
        None => Ok(rule),
    }
}

/// A pattern taken apart: what names begin with, and whether more may follow.
fn parts(pattern: &Pattern) -> (&str, bool) {
    let text = pattern.as_str();
    text.strip_suffix('*')
        .map_or((text, false), |prefix| (prefix, true))
}

/// Whether every name that `inner` means is one that `outer` means.
#[must_use]
pub fn covers(outer: &Pattern, inner: &Pattern) -> bool {
    match (parts(outer), parts(inner)) {
        ((outer, true), (inner, _)) => inner.starts_with(outer),
        ((outer, false), (inner, open)) => !open && inner == outer,
    }
}

/// Whether there can be a name that both mean.
#[must_use]
pub fn overlap(a: &Pattern, b: &Pattern) -> bool {
    match (parts(a), parts(b)) {
        ((a, true), (b, true)) => a.starts_with(b) || b.starts_with(a),
        ((a, true), (b, false)) => b.starts_with(a),
        ((a, false), (b, true)) => a.starts_with(b),
        ((a, false), (b, false)) => a == b,
    }
}

/// A set of rules, indexed by whom they are about.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    all: Vec<AclRule>,
    /// Rules about one principal, as places in `all`, ascending.
    exact: HashMap<Box<str>, Vec<u32>>,
    /// Rules about all principals that begin alike, as places in `all`, ascending.
    open: Vec<u32>,
}

impl FromIterator<AclRule> for Rules {
    fn from_iter<I: IntoIterator<Item = AclRule>>(rules: I) -> Self {
        let all: Vec<AclRule> = rules
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut rules = Self::default();
        for (at, rule) in (0u32..).zip(&all) {
            match parts(&rule.principal) {
                (_, true) => rules.open.push(at),
                (name, false) => rules.exact.entry(name.into()).or_default().push(at),
            }
        }
        Self { all, ..rules }
    }
}

impl Rules {
    /// Every rule, in order.
    #[must_use]
    pub fn all(&self) -> &[AclRule] {
        &self.all
    }

    /// Whether there is a rule exactly like this.
    #[must_use]
    pub fn contains(&self, rule: &AclRule) -> bool {
        self.all.binary_search(rule).is_ok()
    }

    /// The same rules and this one.
    #[must_use]
    pub fn with(&self, rule: AclRule) -> Self {
        self.all.iter().cloned().chain([rule]).collect()
    }

    /// The same rules but this one.
    #[must_use]
    pub fn without(&self, rule: &AclRule) -> Self {
        self.all.iter().filter(|r| *r != rule).cloned().collect()
    }

    /// Rules about `principal` and a kind of thing; those about it by its full name first.
    fn about(&self, principal: &str, resource: ResourceKind) -> impl Iterator<Item = &AclRule> {
        let exact = self
            .exact
            .get(principal)
            .map_or(&[][..], Vec::as_slice)
            .iter();
        let open = self
            .open
            .iter()
            .filter(move |at| self.all[**at as usize].principal.matches(principal));
        exact
            .chain(open)
            .map(|at| &self.all[*at as usize])
            .filter(move |r| r.resource == resource)
    }

    /// Answers a question.
    #[must_use]
    pub fn decide(&self, q: Question<'_>) -> Decision<'_> {
        let mut decision = Decision::NoRule;
        for rule in self
            .about(q.principal, q.resource)
            .filter(|r| r.name.matches(q.name))
        {
            let named = rule.operations.contains(&q.operation);
            match rule.effect {
                Effect::Deny if named => return Decision::Denied(rule),
                Effect::Allow if named || q.operation == Operation::Describe => {
                    if decision == Decision::NoRule {
                        decision = Decision::Allowed(rule);
                    }
                }
                Effect::Deny | Effect::Allow => {}
            }
        }
        decision
    }

    /// Whether `principal` may grant and revoke rules about all names that `pattern` means: one
    /// rule must allow it for all of them, and none may deny it for any.
    #[must_use]
    pub fn may_grant(&self, principal: &str, resource: ResourceKind, pattern: &Pattern) -> bool {
        let grants = || {
            let about = self.about(principal, resource);
            about.filter(|r| r.operations.contains(&Operation::Grant))
        };
        grants().any(|r| r.effect == Effect::Allow && covers(&r.name, pattern))
            && !grants().any(|r| r.effect == Effect::Deny && overlap(&r.name, pattern))
    }
}

#[cfg(test)]
mod tests;
