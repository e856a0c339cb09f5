//! What a person would do by hand before there is anything to see: certificates, rights, topics,
//! plugins and the pipeline.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use millstream::{Client, ClientConfig, Identity, TransportSettings};
use millstream_guests::{FILTER_JSON, Guest, REDACT, ROUTE_BY_REGION, SPLIT_ALERTS};
use millstream_proto::acl::{AclRule, Effect, Operation, ResourceKind};
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PluginUse};
use millstream_proto::topic::TopicConfig;
use millstream_proto::{NameError, PipelineName, PluginName, TopicName};

use super::expect::{ALERT_FROM, KIND, PARTITIONS, REDACTED, STRONG_FROM};
use crate::error::{CliError, Outcome};
use crate::link;
use crate::pki::{self, InitRequest, IssueRequest, KeyKind, Layout, To};

/// Tenant of everything in the demo.
const TENANT: &str = "acme";
/// Name of the client that does everything but granting.
const CLIENT: &str = "demo";
/// Days that the demo's certificates are good for.
const DAYS: u32 = 1;
/// Silence after which a client of the demo takes the broker for dead. The default suits networks
/// that stutter; here the broker dies for certain, and somebody looks on.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an idle connection shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Partitions of the log.
const LOG_PARTITIONS: u32 = 2;

/// The names of the demo.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Where the earthquakes go.
    pub(super) quakes: TopicName,
    /// Where the pipeline's alerts go.
    pub(super) alerts: TopicName,
    /// Where the pipeline's log goes.
    pub(super) log: TopicName,
    /// The pipeline.
    pub(super) pipeline: PipelineName,
}

impl Names {
    /// The names.
    pub(super) fn new() -> Result<Self, NameError> {
        Ok(Self {
            quakes: format!("{TENANT}/quakes").parse()?,
            alerts: format!("{TENANT}/alerts").parse()?,
            log: format!("{TENANT}/log").parse()?,
            pipeline: format!("{TENANT}/alerts").parse()?,
        })
    }
}

/// Makes the authority, the broker's certificate, the administrator's and the client's.
pub(super) fn certificates(dir: &Path) -> Outcome {
    let request = InitRequest {
        domain: "demo.local".to_owned(),
        tenant: pki::ADMIN_TENANT.to_owned(),
        admin: pki::ADMIN_NAME.to_owned(),
        hosts: Vec::new(),
        days: DAYS,
        keys: KeyKind::P256,
    };
    pki::init(dir, &request).map_err(CliError::failure)?;
    let issue = IssueRequest {
        to: To::Client {
            tenant: TENANT.to_owned(),
            name: CLIENT.to_owned(),
        },
        days: DAYS,
        keys: None,
        renew: false,
    };
    pki::issue(dir, &issue).map_err(CliError::failure)?;
    Ok(())
}

/// Connects as one of the directory's identities.
async fn connect(pki: &Path, addr: SocketAddr, tenant: &str, name: &str) -> Outcome<Client> {
    let layout = Layout::new(pki);
    let pair = layout.client(tenant, name);
    let identity = Identity::new(layout.authority().certificate, pair.certificate, pair.key);
    let transport = TransportSettings {
        idle_timeout: IDLE_TIMEOUT,
        keep_alive: KEEP_ALIVE,
        ..TransportSettings::default()
    };
    link::connect_with(ClientConfig::new(addr.to_string(), identity).transport(transport)).await
}

/// As the administrator, lets the client do what it needs to, and connects as that client.
pub(super) async fn client(pki: &Path, addr: SocketAddr) -> Outcome<Client> {
    let admin = connect(pki, addr, pki::ADMIN_TENANT, pki::ADMIN_NAME).await?;
    let principal = format!("spiffe://demo.local/{TENANT}/{CLIENT}");
    for (resource, operations) in [
        (
            ResourceKind::Topic,
            vec![
                Operation::Describe,
                Operation::Produce,
                Operation::Consume,
                Operation::Manage,
            ],
        ),
        (
            ResourceKind::Plugin,
            vec![Operation::Describe, Operation::Upload, Operation::Attach],
        ),
        (
            ResourceKind::Pipeline,
            vec![Operation::Describe, Operation::Manage],
        ),
    ] {
        let rule = AclRule {
            principal: principal.parse().map_err(CliError::failure)?,
            resource,
            name: format!("{TENANT}/*").parse().map_err(CliError::failure)?,
            operations,
            effect: Effect::Allow,
        };
        admin.grant(rule).await?;
    }
    link::leave(&admin).await;
    connect(pki, addr, TENANT, CLIENT).await
}

/// Makes the topics.
pub(super) async fn topics(client: &Client, names: &Names) -> Outcome {
    for (topic, partitions) in [
        (&names.quakes, PARTITIONS),
        (&names.alerts, 1),
        (&names.log, LOG_PARTITIONS),
    ] {
        let config = TopicConfig {
            partitions,
            ..TopicConfig::default()
        };
        client.create_topic(topic.clone(), config).await?;
    }
    Ok(())
}

fn plugin(guest: Guest) -> Outcome<PluginName> {
    format!("{TENANT}/{}", guest.name)
        .parse()
        .map_err(CliError::failure)
}

/// Uploads the example plugins; returns how many bytes they are.
pub(super) async fn plugins(client: &Client) -> Outcome<usize> {
    let guests = [ROUTE_BY_REGION, FILTER_JSON, REDACT, SPLIT_ALERTS];
    for guest in guests {
        client
            .upload_plugin(plugin(guest)?, Bytes::from_static(guest.wasm), |_| {})
            .await?;
    }
    Ok(guests.iter().map(|guest| guest.wasm.len()).sum())
}

fn using(guest: Guest, config: &[(&str, &str)]) -> Outcome<PluginUse> {
    let config: BTreeMap<String, String> = config
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Ok(PluginUse {
        plugin: plugin(guest)?,
        version: None,
        config,
        on_error: ErrorPolicy::Stop,
    })
}

/// The filter of the subscription to strong earthquakes.
pub(super) fn strong() -> Outcome<PluginUse> {
    let from = STRONG_FROM.to_string();
    using(
        FILTER_JSON,
        &[("field", "mag"), ("op", ">="), ("value", &from)],
    )
}

/// Puts the partitioner on the topic and applies the pipeline.
pub(super) async fn chain(client: &Client, names: &Names) -> Outcome {
    client
        .attach(names.quakes.clone(), using(ROUTE_BY_REGION, &[])?)
        .await?;
    let threshold = ALERT_FROM.to_string();
    let spec = PipelineSpec {
        name: names.pipeline.clone(),
        input: names.quakes.clone(),
        from_latest: false,
        steps: vec![
            using(
                FILTER_JSON,
                &[("field", "kind"), ("op", "=="), ("value", KIND)],
            )?,
            using(REDACT, &[("fields", REDACTED)])?,
            using(SPLIT_ALERTS, &[("threshold", &threshold)])?,
        ],
        outputs: vec![
            ("alerts".to_owned(), names.alerts.clone()),
            ("log".to_owned(), names.log.clone()),
        ],
    };
    client.apply_pipeline(spec).await?;
    Ok(())
}
