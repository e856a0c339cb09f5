//! `millstream acl`: who may do what.

use clap::{Args, Subcommand};
use millstream::Client;
use millstream_proto::Principal;
use millstream_proto::acl::{AclRule, Effect, Operation, Pattern, ResourceKind};
use serde::Serialize;

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};
use crate::link;
use crate::output::Output;
use crate::table::Table;

/// Subcommands of `acl`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Nothing is allowed that no rule allows, except to the administrators in the broker's configuration.
A denial beats every permission. A '*' at the end of a principal or name means all that begin so.

Operations: describe, produce, consume, manage, upload, attach, grant")]
pub(crate) enum AclCommand {
    /// Add a rule.
    Grant(RuleArgs),
    /// Remove a rule; give exactly what was granted.
    Revoke(RuleArgs),
    /// List the rules.
    List,
    /// Whether somebody may do something, and which rule decides. Ends with 3 if not.
    Check(CheckArgs),
}

/// What a rule is about: exactly one of the three.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct Resource {
    /// Topics of this name.
    #[arg(long, value_name = "NAME")]
    topic: Option<Pattern>,
    /// Plugins of this name.
    #[arg(long, value_name = "NAME")]
    plugin: Option<Pattern>,
    /// Pipelines of this name.
    #[arg(long, value_name = "NAME")]
    pipeline: Option<Pattern>,
}

impl Resource {
    fn split(self) -> Outcome<(ResourceKind, Pattern)> {
        let Self {
            topic,
            plugin,
            pipeline,
        } = self;
        [
            (ResourceKind::Topic, topic),
            (ResourceKind::Plugin, plugin),
            (ResourceKind::Pipeline, pipeline),
        ]
        .into_iter()
        .find_map(|(kind, name)| name.map(|name| (kind, name)))
        .ok_or_else(|| CliError::usage("give one of --topic, --plugin and --pipeline"))
    }
}

/// Whether a rule opens or closes: exactly one of the two.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct EffectArgs {
    /// Allow these operations, between commas.
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',')]
    allow: Vec<Operation>,
    /// Deny these operations, between commas.
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',')]
    deny: Vec<Operation>,
}

/// Arguments of `acl grant` and `acl revoke`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream acl grant spiffe://millstream.local/acme/ingest --topic 'acme/*' --allow describe,produce
  millstream acl grant 'spiffe://millstream.local/acme/*' --topic acme/secret --deny consume")]
pub(crate) struct RuleArgs {
    /// Whom it is about.
    principal: Pattern,
    #[command(flatten)]
    resource: Resource,
    #[command(flatten)]
    effect: EffectArgs,
}

/// Arguments of `acl check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  millstream acl check spiffe://millstream.local/acme/ingest produce --topic acme/quakes")]
pub(crate) struct CheckArgs {
    /// Who.
    principal: Principal,
    /// What.
    operation: Operation,
    #[command(flatten)]
    resource: Resource,
}

#[derive(Serialize)]
struct Decision<'a> {
    allowed: bool,
    rule: Option<&'a AclRule>,
}

impl RuleArgs {
    fn rule(self) -> Outcome<AclRule> {
        let Self {
            principal,
            resource,
            effect: EffectArgs { allow, deny },
        } = self;
        let (effect, mut operations) = if deny.is_empty() {
            (Effect::Allow, allow)
        } else {
            (Effect::Deny, deny)
        };
        // The same rule is the same bytes, however it was typed.
        operations.sort_unstable();
        operations.dedup();
        let (resource, name) = resource.split()?;
        Ok(AclRule {
            principal,
            resource,
            name,
            operations,
            effect,
        })
    }
}

/// Runs a subcommand.
pub(crate) async fn run(global: &Global, command: AclCommand) -> Outcome {
    let out = global.output();
    match command {
        AclCommand::Grant(args) => {
            let rule = args.rule()?;
            link::with(global, async |client| client.grant(rule.clone()).await).await?;
            out.done(&format!("granted: {rule}"), &rule)
        }
        AclCommand::Revoke(args) => {
            let rule = args.rule()?;
            link::with(global, async |client| client.revoke(rule.clone()).await).await?;
            out.done(&format!("revoked: {rule}"), &rule)
        }
        AclCommand::List => list(
            out,
            &link::with(global, async |client| client.list_rules().await).await?,
        ),
        AclCommand::Check(args) => check(global, args).await,
    }
}

fn list(out: Output, rules: &[AclRule]) -> Outcome {
    let mut table = Table::new(&["EFFECT", "PRINCIPAL", "KIND", "NAME", "OPERATIONS"]);
    for rule in rules {
        let operations: Vec<&str> = rule.operations.iter().map(|o| o.as_str()).collect();
        let effect = match rule.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        };
        table.row([
            effect,
            rule.principal.as_str(),
            rule.resource.as_str(),
            rule.name.as_str(),
            &operations.join(","),
        ]);
    }
    out.table(&table, &rules)
}

async fn check(global: &Global, args: CheckArgs) -> Outcome {
    let CheckArgs {
        principal,
        operation,
        resource,
    } = args;
    let (kind, name) = resource.split()?;
    let asked = async |client: &Client| {
        client
            .check_access(principal.clone(), operation, kind, name.as_str())
            .await
    };
    let (allowed, rule) = link::with(global, asked).await?;
    let by = rule
        .as_ref()
        .map_or("no rule is about it".to_owned(), |rule| {
            format!("by: {rule}")
        });
    let sentence = format!(
        "{principal} {} {operation} on {kind} {name}; {by}",
        if allowed { "may" } else { "may not" }
    );
    let out = global.output();
    if out.json {
        out.document(&Decision {
            allowed,
            rule: rule.as_ref(),
        })?;
    } else {
        out.line(&sentence)?;
    }
    if allowed {
        return Ok(());
    }
    Err(CliError {
        told: true,
        ..CliError::new(Exit::Refused, sentence)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: AclCommand,
    }

    fn rule(line: &str) -> Result<AclRule, clap::Error> {
        let words = std::iter::once("acl").chain(line.split(' '));
        match Line::try_parse_from(words)?.command {
            AclCommand::Grant(args) | AclCommand::Revoke(args) => Ok(args.rule().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_rule_is_the_same_however_it_is_typed() {
        let a = rule("grant spiffe://d/a/* --topic a/* --allow produce,describe,produce").unwrap();
        let b = rule("revoke spiffe://d/a/* --allow describe --allow produce --topic a/*").unwrap();
        assert_eq!(a, b);
        assert_eq!(a.operations, [Operation::Describe, Operation::Produce]);
        assert_eq!((a.resource, a.effect), (ResourceKind::Topic, Effect::Allow));
    }

    #[test]
    fn half_a_rule_is_refused() {
        for line in [
            "grant p --topic a/*",
            "grant p --allow produce",
            "grant p --topic a/* --plugin a/* --allow produce",
            "grant p --topic a/* --allow produce --deny consume",
            "grant p --topic a/* --allow write",
        ] {
            assert!(rule(line).is_err(), "{line}");
        }
    }
}
