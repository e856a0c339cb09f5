#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

const INGEST: &str = "spiffe://d/acme/ingest";

fn rule(effect: Effect, who: &str, ops: &[Operation], kind: ResourceKind, name: &str) -> AclRule {
    AclRule {
        principal: who.parse().unwrap(),
        resource: kind,
        name: name.parse().unwrap(),
        operations: ops.to_vec(),
        effect,
    }
}

fn topic(effect: Effect, who: &str, ops: &[Operation], name: &str) -> AclRule {
    rule(effect, who, ops, ResourceKind::Topic, name)
}

fn may(rules: &Rules, who: &str, operation: Operation, name: &str) -> bool {
    let resource = ResourceKind::Topic;
    rules
        .decide(Question {
            principal: who,
            operation,
            resource,
            name,
        })
        .is_allowed()
}

#[test]
fn nothing_is_allowed_without_a_rule() {
    assert!(!may(
        &Rules::default(),
        INGEST,
        Operation::Describe,
        "acme/t"
    ));
}

#[test]
fn deny_beats_allow_whatever_the_order() {
    let allow = topic(
        Effect::Allow,
        "spiffe://d/acme/*",
        &[Operation::Produce],
        "acme/*",
    );
    let deny = topic(Effect::Deny, INGEST, &[Operation::Produce], "acme/secret*");
    for rules in [[allow.clone(), deny.clone()], [deny, allow]] {
        let rules: Rules = rules.into_iter().collect();
        assert!(may(&rules, INGEST, Operation::Produce, "acme/t"));
        assert!(!may(&rules, INGEST, Operation::Produce, "acme/secret.1"));
        assert!(may(
            &rules,
            "spiffe://d/acme/x",
            Operation::Produce,
            "acme/secret.1"
        ));
        assert!(!may(&rules, INGEST, Operation::Consume, "acme/t"));
    }
}

#[test]
fn any_right_brings_describe_unless_it_is_denied() {
    let produce = topic(Effect::Allow, INGEST, &[Operation::Produce], "acme/*");
    let deny = topic(Effect::Deny, INGEST, &[Operation::Describe], "acme/dark");
    let rules: Rules = [produce, deny].into_iter().collect();
    assert!(may(&rules, INGEST, Operation::Describe, "acme/t"));
    assert!(!may(&rules, INGEST, Operation::Describe, "acme/dark"));
    assert!(may(&rules, INGEST, Operation::Produce, "acme/dark"));
}

#[test]
fn granting_needs_a_rule_that_covers_all_and_no_denial_within() {
    let grant = topic(Effect::Allow, INGEST, &[Operation::Grant], "acme/*");
    let rules: Rules = [grant].into_iter().collect();
    let may = |rules: &Rules, name: &str| {
        rules.may_grant(INGEST, ResourceKind::Topic, &name.parse().unwrap())
    };
    assert!(may(&rules, "acme/*") && may(&rules, "acme/a") && may(&rules, "acme/a*"));
    assert!(!may(&rules, "acme*") && !may(&rules, "*") && !may(&rules, "other/a"));
    assert!(!rules.may_grant(INGEST, ResourceKind::Plugin, &"acme/a".parse().unwrap()));
    let deny = topic(Effect::Deny, INGEST, &[Operation::Grant], "acme/x");
    let rules = rules.with(deny);
    assert!(!may(&rules, "acme/x") && !may(&rules, "acme/*") && may(&rules, "acme/a"));
}

#[test]
fn rules_that_would_do_nothing_are_refused() {
    let plugin = ResourceKind::Plugin;
    let useless = rule(Effect::Allow, "a", &[Operation::Produce], plugin, "acme/p");
    let e = normal(useless).unwrap_err().to_string();
    assert!(
        e.contains("produce means nothing for a plugin") && e.contains("attach"),
        "{e}"
    );
    let e = normal(topic(Effect::Allow, "a", &[], "acme/t"))
        .unwrap_err()
        .to_string();
    assert!(e.contains("no operation") && e.contains("consume"), "{e}");
    let twice = [Operation::Manage, Operation::Describe, Operation::Manage];
    let rule = normal(topic(Effect::Deny, "a", &twice, "acme/t")).unwrap();
    assert_eq!(rule.operations, [Operation::Describe, Operation::Manage]);
}

fn pattern() -> impl Strategy<Value = Pattern> {
    "[ab]{0,3}\\*|[ab]{1,3}".prop_map(|text| text.parse().unwrap())
}

fn any_rule() -> impl Strategy<Value = AclRule> {
    let kinds = vec![ResourceKind::Topic, ResourceKind::Plugin];
    let operations = subsequence(Operation::ALL.to_vec(), 1..4);
    let effect = prop_oneof![3 => Just(Effect::Allow), 1 => Just(Effect::Deny)];
    (pattern(), select(kinds), pattern(), operations, effect).prop_map(
        |(principal, resource, name, operations, effect)| AclRule {
            principal,
            resource,
            name,
            operations,
            effect,
        },
    )
}

proptest! {
    #[test]
    fn the_index_decides_as_reading_all_rules_would(
        rules in vec(any_rule(), 0..12),
        who in "[ab]{1,3}",
        name in "[ab]{1,3}",
        operation in select(Operation::ALL.to_vec()),
    ) {
        let resource = ResourceKind::Topic;
        let about: Vec<_> = rules
            .iter()
            .filter(|r| r.resource == resource && r.principal.matches(&who) && r.name.matches(&name))
            .collect();
        let has = |effect| move |r: &&&AclRule| {
            r.effect == effect && r.operations.contains(&operation)
        };
        let describe = operation == Operation::Describe;
        let denied = about.iter().any(|r| has(Effect::Deny)(&r));
        let allowed =
            about.iter().any(|r| has(Effect::Allow)(&r) || (describe && r.effect == Effect::Allow));
        let index: Rules = rules.iter().cloned().collect();
        let q = Question { principal: &who, operation, resource, name: &name };
        let decision = index.decide(q);
        prop_assert_eq!(decision.is_allowed(), allowed && !denied);
        if let Some(rule) = decision.rule() {
            prop_assert!(about.contains(&rule), "{} does not decide this", rule);
        }
        prop_assert_eq!(matches!(decision, Decision::Denied(_)), denied);
    }

    #[test]
    fn more_rules_never_undo_a_denial_and_removing_restores(
        rules in vec(any_rule(), 0..8), extra in any_rule(), who in "[ab]{1,3}", name in "[ab]{1,3}",
    ) {
        let before: Rules = rules.into_iter().filter(|r| *r != extra).collect();
        let after = before.with(extra.clone());
        prop_assert!(after.contains(&extra) && !before.contains(&extra));
        let restored = after.without(&extra);
        prop_assert_eq!(restored.all(), before.all());
        for operation in Operation::ALL {
            let q = Question {
                principal: &who, operation, resource: ResourceKind::Topic, name: &name,
            };
            if matches!(before.decide(q), Decision::Denied(_)) {
                prop_assert!(!after.decide(q).is_allowed());
            }
            prop_assert_eq!(restored.decide(q), before.decide(q));
        }
    }

    #[test]
    fn covering_and_overlapping_agree_with_matching(
        a in pattern(), b in pattern(), name in "[ab]{0,4}",
    ) {
        if covers(&a, &b) && b.matches(&name) {
            prop_assert!(a.matches(&name));
        }
        if a.matches(&name) && b.matches(&name) {
            prop_assert!(overlap(&a, &b));
        }
        prop_assert_eq!(overlap(&a, &b), overlap(&b, &a));
        prop_assert!(covers(&a, &a) && overlap(&a, &a));
    }

    /// Whoever may grant a pattern may grant every name in it.
    #[test]
    fn granting_a_pattern_is_granting_its_names(
        rules in vec(any_rule(), 0..8), who in "[ab]{1,3}", wide in pattern(), name in "[ab]{1,4}",
    ) {
        let rules: Rules = rules.into_iter().collect();
        let topic = ResourceKind::Topic;
        if rules.may_grant(&who, topic, &wide) && wide.matches(&name) {
            prop_assert!(rules.may_grant(&who, topic, &name.parse().unwrap()));
            let operation = Operation::Grant;
            let q = Question { principal: &who, operation, resource: topic, name: &name };
            prop_assert!(rules.decide(q).is_allowed());
        }
    }
}
