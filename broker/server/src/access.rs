//! Who may do what: the admins of the configuration, and the access rules in the store.
//!
//! A check takes a compiled copy of the rules and lets go of the lock before it looks at them, so
//! that nobody waits for anybody. Names are checked before anything is looked up: what a
//! principal is told about a thing that it may not use is the same whether the thing exists or
//! not. Rules stored are rules in force; [`Access::changed`] wakes whoever has work going on that
//! a change may end.

use std::sync::{Arc, PoisonError, RwLock};

use millstream_core::acl::{Decision, Question, Rules, normal};
use millstream_proto::acl::{AclRule, Operation, Pattern, ResourceKind};
use millstream_proto::{ErrorCode, Principal, WireError};
use millstream_store::{Store, WriteBatch};
use tokio::sync::{Mutex, watch};

use crate::catalog::row::{Row, RuleRow, all};
use crate::catalog::{CatalogError, storage_error};
use crate::limits::MAX_RULES_BYTES;

/// The access rules in force.
pub struct Access {
    store: Arc<dyn Store>,
    admins: Vec<Principal>,
    rules: RwLock<Arc<Rules>>,
    /// One change at a time: each is made from the rules that the last one left.
    changing: Mutex<()>,
    changed: watch::Sender<()>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Access({} admins, {} rules)",
            self.admins.len(),
            self.rules().all().len()
        )
    }
}

impl Access {
    /// Reads the rules from the store. Blocking.
    ///
    /// # Errors
    /// When the store cannot be read, or holds a rule that cannot be.
    pub fn load(store: Arc<dyn Store>, admins: Vec<Principal>) -> Result<Self, CatalogError> {
        let rows = all::<RuleRow>(&*store.snapshot()?)?;
        let rules: Rules = rows.into_iter().map(|RuleRow(rule)| rule).collect();
        Ok(Self {
            store,
            admins,
            rules: RwLock::new(Arc::new(rules)),
            changing: Mutex::new(()),
            changed: watch::Sender::new(()),
        })
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether somebody may do everything.
    #[must_use]
    pub fn is_admin(&self, who: &Principal) -> bool {
        self.admins.contains(who)
    }

    /// Whether `who` may do `operation` with the thing called `name`.
    #[must_use]
    pub fn allows(
        &self,
        who: &Principal,
        operation: Operation,
        resource: ResourceKind,
        name: &str,
    ) -> bool {
        let question = Question {
            principal: who.as_str(),
            operation,
            resource,
            name,
        };
        self.is_admin(who) || self.rules().decide(question).is_allowed()
    }

    /// As [`Access::allows`], with an error for the one who asked.
    ///
    /// # Errors
    /// `NotAuthorized`, which says who lacks what, and how to get it.
    pub fn check(
        &self,
        who: &Principal,
        operation: Operation,
        resource: ResourceKind,
        name: &str,
    ) -> Result<(), WireError> {
        if self.allows(who, operation, resource, name) {
            return Ok(());
        }
        let text = format!(
            "{who} may not {operation} {resource} {name}; somebody who may can grant it: \
             millstream acl grant {who} --{resource} {name} --allow {operation}"
        );
        Err(WireError::new(ErrorCode::NotAuthorized, text))
    }

    /// Refuses everybody but admins.
    ///
    /// # Errors
    /// `NotAuthorized`, which says that `what` is for admins.
    pub fn check_admin(&self, who: &Principal, what: &str) -> Result<(), WireError> {
        if self.is_admin(who) {
            return Ok(());
        }
        let text = format!(
            "{what} is for admins, and {who} is none; the broker's configuration names them \
             under `admins`"
        );
        Err(WireError::new(ErrorCode::NotAuthorized, text))
    }

    /// What the rules say, and which one decides. Admins are allowed without a rule.
    #[must_use]
    pub fn explain(
        &self,
        who: &Principal,
        operation: Operation,
        resource: ResourceKind,
        name: &str,
    ) -> (bool, Option<AclRule>) {
        if self.is_admin(who) {
            return (true, None);
        }
        let rules = self.rules();
        let question = Question {
            principal: who.as_str(),
            operation,
            resource,
            name,
        };
        let decision: Decision<'_> = rules.decide(question);
        (decision.is_allowed(), decision.rule().cloned())
    }

    /// Whether `who` may grant, revoke and see rules about all names that `pattern` means.
    #[must_use]
    pub fn may_grant(&self, who: &Principal, resource: ResourceKind, pattern: &Pattern) -> bool {
        self.is_admin(who) || self.rules().may_grant(who.as_str(), resource, pattern)
    }

    /// The rules that `who` could revoke, in order.
    #[must_use]
    pub fn visible_to(&self, who: &Principal) -> Vec<AclRule> {
        let rules = self.rules();
        let admin = self.is_admin(who);
        let visible =
            |rule: &&AclRule| admin || rules.may_grant(who.as_str(), rule.resource, &rule.name);
        rules.all().iter().filter(visible).cloned().collect()
    }

    fn check_grant(&self, who: &Principal, rule: &AclRule) -> Result<(), WireError> {
        if self.may_grant(who, rule.resource, &rule.name) {
            return Ok(());
        }
        let text = format!(
            "{who} may not grant or revoke rules about {} {}; that takes a rule that allows \
             `grant` for all of it, or an admin",
            rule.resource, rule.name
        );
        Err(WireError::new(ErrorCode::NotAuthorized, text))
    }

    /// Adds a rule, durably; one that is there already is left as it is.
    ///
    /// # Errors
    /// `NotAuthorized` when `who` may not, `InvalidConfig` when the rule would do nothing,
    /// `Overloaded` when there are too many, and errors of the storage.
    pub async fn grant(&self, who: &Principal, rule: AclRule) -> Result<(), WireError> {
        self.check_grant(who, &rule)?;
        let invalid = |text: String| WireError::new(ErrorCode::InvalidConfig, text);
        let rule = normal(rule).map_err(|e| invalid(e.to_string()))?;
        let _turn = self.changing.lock().await;
        let rules = self.rules();
        if rules.contains(&rule) {
            return Ok(());
        }
        let row = RuleRow(rule.clone());
        let size = |rule: &AclRule| RuleRow(rule.clone()).encode().len();
        let total: usize = rules.all().iter().map(size).sum::<usize>() + row.encode().len();
        if total > MAX_RULES_BYTES {
            return Err(invalid(format!(
                "the access rules would take {total} bytes; at most {MAX_RULES_BYTES} are \
                 allowed. Revoke some, or cover several with one pattern"
            )));
        }
        let mut batch = WriteBatch::new();
        row.put(&mut batch);
        self.store
            .commit(batch)
            .await
            .map_err(|e| storage_error(&e))?;
        tracing::info!(by = %who, "granted: {rule}");
        self.publish(rules.with(rule));
        Ok(())
    }

    /// Removes a rule, durably.
    ///
    /// # Errors
    /// `NotAuthorized` when `who` may not, `InvalidConfig` when there is no such rule, and errors
    /// of the storage.
    pub async fn revoke(&self, who: &Principal, rule: AclRule) -> Result<(), WireError> {
        self.check_grant(who, &rule)?;
        let invalid = |text: String| WireError::new(ErrorCode::InvalidConfig, text);
        let rule = normal(rule).map_err(|e| invalid(e.to_string()))?;
        let _turn = self.changing.lock().await;
        let rules = self.rules();
        if !rules.contains(&rule) {
            return Err(invalid(format!(
                "there is no rule {rule:?}; `millstream acl list` shows those there are",
                rule = rule.to_string()
            )));
        }
        let mut batch = WriteBatch::new();
        RuleRow(rule.clone()).delete(&mut batch);
        self.store
            .commit(batch)
            .await
            .map_err(|e| storage_error(&e))?;
        tracing::info!(by = %who, "revoked: {rule}");
        self.publish(rules.without(&rule));
        Ok(())
    }

    fn publish(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.changed.send_replace(());
    }

    /// Wakes whenever a rule was granted or revoked.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::acl::Effect;
    use millstream_store::MemoryStore;

    use super::*;

    fn who(name: &str) -> Principal {
        format!("spiffe://d/{name}").parse().unwrap()
    }

    fn rule(who: &str, operation: Operation, name: &str) -> AclRule {
        AclRule {
            principal: format!("spiffe://d/{who}").parse().unwrap(),
            resource: ResourceKind::Topic,
            name: name.parse().unwrap(),
            operations: vec![operation],
            effect: Effect::Allow,
        }
    }

    fn store() -> Arc<dyn Store> {
        Arc::new(MemoryStore::new().unwrap())
    }

    fn open(store: &Arc<dyn Store>) -> Access {
        Access::load(Arc::clone(store), vec![who("ops/admin")]).unwrap()
    }

    fn may(access: &Access, name: &str, operation: Operation, topic: &str) -> bool {
        access
            .check(&who(name), operation, ResourceKind::Topic, topic)
            .is_ok()
    }

    #[tokio::test]
    async fn granted_rules_are_in_force_and_survive_a_restart() {
        let store = store();
        let access = open(&store);
        let admin = who("ops/admin");
        assert!(may(&access, "ops/admin", Operation::Manage, "acme/t"));
        assert!(!may(&access, "acme/a", Operation::Produce, "acme/t"));
        let mut changed = access.changed();
        let produce = rule("acme/a", Operation::Produce, "acme/*");
        access.grant(&admin, produce.clone()).await.unwrap();
        access.grant(&admin, produce.clone()).await.unwrap();
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        assert!(may(&access, "acme/a", Operation::Produce, "acme/t"));

        let again = open(&store);
        assert!(may(&again, "acme/a", Operation::Produce, "acme/t"));
        assert_eq!(again.visible_to(&admin), std::slice::from_ref(&produce));
        again.revoke(&admin, produce.clone()).await.unwrap();
        assert!(!may(&again, "acme/a", Operation::Produce, "acme/t"));
        let e = again.revoke(&admin, produce).await.unwrap_err();
        assert_eq!(e.code, ErrorCode::InvalidConfig);
        assert_eq!(open(&store).visible_to(&admin), []);
    }

    #[tokio::test]
    async fn a_delegate_grants_within_its_pattern_only() {
        let access = open(&store());
        let delegate = who("acme/boss");
        let own = rule("acme/x", Operation::Consume, "acme/t");
        let e = access.grant(&delegate, own.clone()).await.unwrap_err();
        assert_eq!(e.code, ErrorCode::NotAuthorized);
        let grant = rule("acme/boss", Operation::Grant, "acme/*");
        access
            .grant(&who("ops/admin"), grant.clone())
            .await
            .unwrap();
        access.grant(&delegate, own.clone()).await.unwrap();
        let foreign = rule("acme/x", Operation::Consume, "other/t");
        assert!(access.grant(&delegate, foreign.clone()).await.is_err());
        access
            .grant(&who("ops/admin"), foreign.clone())
            .await
            .unwrap();
        assert!(access.revoke(&delegate, foreign).await.is_err());
        assert_eq!(access.visible_to(&delegate), [grant, own]);
        assert_eq!(access.visible_to(&who("acme/x")), []);
    }

    #[tokio::test]
    async fn a_refusal_says_who_lacks_what_and_how_to_get_it() {
        let access = open(&store());
        let check = |name| {
            let topic = ResourceKind::Topic;
            access
                .check(&who("acme/a"), Operation::Produce, topic, name)
                .unwrap_err()
        };
        let e = check("acme/t");
        assert_eq!(e.code, ErrorCode::NotAuthorized);
        for part in ["spiffe://d/acme/a", "produce", "acme/t", "acl grant"] {
            assert!(e.message.contains(part), "{e}");
        }
        let e = access
            .check_admin(&who("acme/a"), "the broker's status")
            .unwrap_err();
        assert!(e.message.contains("admins"), "{e}");
    }

    #[tokio::test]
    async fn rules_have_a_limit_and_must_mean_something() {
        let access = open(&store());
        let admin = who("ops/admin");
        let useless = rule("acme/a", Operation::Upload, "acme/t");
        let e = access.grant(&admin, useless).await.unwrap_err();
        assert_eq!(e.code, ErrorCode::InvalidConfig);
        let mut last = Ok(());
        let long = "x".repeat(490);
        for i in 0..MAX_RULES_BYTES / 900 {
            let wide = rule(&long, Operation::Produce, &format!("{i}{long}"));
            last = access.grant(&admin, wide).await;
            if last.is_err() {
                break;
            }
        }
        assert!(last.unwrap_err().message.contains("at most"));
    }
}
