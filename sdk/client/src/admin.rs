//! Administration: one typed method for each request, and plugin uploads.
//!
//! Lists are followed to their end, page by page. A request that the broker asks
//! to have repeated is repeated until the reconnect deadline; so is one whose
//! answer was lost with the connection, where repeating it does no harm.

use millstream_proto::acl::{AclRule, Operation, ResourceKind};
use millstream_proto::backup::BackupState;
use millstream_proto::limits::MAX_PLUGIN_BYTES;
use millstream_proto::message::{
    BrokerStatus, Digest, DoorStatus, LogLine, OpenUpload, PluginVersion, Request, Response,
    StreamOpen,
};
use millstream_proto::pipeline::{PipelineInfo, PipelineSpec, PluginUse};
use millstream_proto::storage::{CheckAction, CheckReport, ShardStorage};
use millstream_proto::topic::{StartAt, TopicChange, TopicConfig, TopicInfo};
use millstream_proto::{
    ConsumerName, ErrorClass, Offset, PartitionId, PipelineName, PluginName, Principal, Tenant,
    TopicName,
};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use crate::ambient::random_u64;
use crate::connect::Client;
use crate::error::{ConnectError, RequestError, UploadError};
use crate::retry::Attempts;
use crate::stream::StreamError;
use crate::upload;

/// What a request is called in errors, and whether doing it twice is the same as
/// doing it once.
fn nature(request: &Request) -> (&'static str, bool) {
    match request {
        Request::CreateTopic { .. } => ("create topic", false),
        Request::AlterTopic { .. } => ("alter topic", true),
        Request::DeleteTopic { .. } => ("delete topic", false),
        Request::DescribeTopic { .. } => ("describe topic", true),
        Request::ListTopics { .. } => ("list topics", true),
        Request::CommitOffsets { .. } => ("commit offsets", true),
        Request::FetchOffsets { .. } => ("fetch offsets", true),
        Request::FindOffsets { .. } => ("find offsets", true),
        Request::ForgetConsumer { .. } => ("forget consumer", true),
        Request::ListPlugins { .. } => ("list plugins", true),
        Request::DeletePlugin { .. } => ("delete plugin", false),
        Request::PluginLog { .. } => ("plugin log", true),
        Request::Attach { .. } => ("attach plugin", true),
        Request::Detach { .. } => ("detach plugin", false),
        Request::ApplyPipeline(_) => ("apply pipeline", true),
        Request::ListPipelines { .. } => ("list pipelines", true),
        Request::ShowPipeline { .. } => ("show pipeline", true),
        Request::PausePipeline { .. } => ("pause pipeline", true),
        Request::ResumePipeline { .. } => ("resume pipeline", true),
        Request::DeletePipeline { .. } => ("delete pipeline", false),
        Request::Grant(_) => ("grant", true),
        Request::Revoke(_) => ("revoke", false),
        Request::ListRules => ("list rules", true),
        Request::CheckAccess { .. } => ("check access", true),
        Request::Status => ("status", true),
        Request::Storage => ("storage", true),
        Request::Door => ("door", true),
        // Started twice, it is refused the second time.
        Request::Check(action) => ("check", !matches!(action, CheckAction::Start)),
        // Started twice, there is one more than there need be.
        Request::StartBackup => ("start backup", false),
        Request::ShowBackup => ("show backup", true),
    }
}

/// The answer of the expected kind, or [`RequestError::Protocol`].
macro_rules! answer {
    ($client:expr, $request:expr, $pattern:pat => $value:expr) => {{
        let request = $request;
        let (what, _) = nature(&request);
        match $client.request(&request).await? {
            $pattern => Ok($value),
            _ => Err(RequestError::Protocol { what }),
        }
    }};
}

/// Follows pages: `$last` names the last item of a page, and the next page
/// begins behind it.
macro_rules! pages {
    ($client:expr, |$after:ident| $request:expr, $pattern:pat => $page:expr, $last:expr) => {{
        let mut all = Vec::new();
        let mut $after = None;
        loop {
            let request = $request;
            let (what, _) = nature(&request);
            let page = match $client.request(&request).await? {
                $pattern => $page,
                _ => return Err(RequestError::Protocol { what }),
            };
            let Some(last) = page.last().map($last) else {
                return Ok(all);
            };
            // A broker that does not move on would be asked for ever.
            if $after.as_ref().is_some_and(|before| last <= *before) {
                return Err(RequestError::Protocol { what });
            }
            $after = Some(last);
            all.extend(page);
        }
    }};
}

impl Client {
    /// Makes a topic.
    ///
    /// # Errors
    /// `TopicExists`, `InvalidConfig`, `NotAuthorized`; or any [`RequestError`].
    pub async fn create_topic(
        &self,
        topic: TopicName,
        config: TopicConfig,
    ) -> Result<TopicInfo, RequestError> {
        answer!(self, Request::CreateTopic { topic, config }, Response::Topic(info) => info)
    }

    /// Changes a topic's settings.
    ///
    /// # Errors
    /// `UnknownTopic`, `InvalidConfig`, `NotAuthorized`; or any [`RequestError`].
    pub async fn alter_topic(
        &self,
        topic: TopicName,
        change: TopicChange,
    ) -> Result<TopicInfo, RequestError> {
        answer!(self, Request::AlterTopic { topic, change }, Response::Topic(info) => info)
    }

    /// Deletes a topic with its records.
    ///
    /// # Errors
    /// `UnknownTopic`, `NotAuthorized`; or any [`RequestError`].
    pub async fn delete_topic(&self, topic: TopicName) -> Result<(), RequestError> {
        answer!(self, Request::DeleteTopic { topic }, Response::Done => ())
    }

    /// A topic's settings, partitions and chain.
    ///
    /// # Errors
    /// `UnknownTopic`, `NotAuthorized`; or any [`RequestError`].
    pub async fn describe_topic(&self, topic: TopicName) -> Result<TopicInfo, RequestError> {
        answer!(self, Request::DescribeTopic { topic }, Response::Topic(info) => info)
    }

    /// The topics that this client may describe, all or one tenant's.
    ///
    /// # Errors
    /// Any [`RequestError`].
    pub async fn list_topics(
        &self,
        tenant: Option<&Tenant>,
    ) -> Result<Vec<TopicName>, RequestError> {
        pages!(
            self,
            |after| Request::ListTopics { tenant: tenant.cloned(), after: after.clone() },
            Response::Topics(page) => page,
            TopicName::clone
        )
    }

    /// Commits a consumer's offsets durably: the next offset to read, by partition.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, `NotAuthorized`; or any [`RequestError`].
    pub async fn commit_offsets(
        &self,
        topic: TopicName,
        consumer: ConsumerName,
        offsets: Vec<(PartitionId, Offset)>,
    ) -> Result<(), RequestError> {
        let request = Request::CommitOffsets {
            topic,
            consumer,
            offsets,
        };
        answer!(self, request, Response::Done => ())
    }

    /// Removes what a consumer has committed: under its name one begins anew, and the name counts
    /// no more towards how many a topic may have.
    ///
    /// # Errors
    /// `UnknownTopic`, `NotAuthorized`; or any [`RequestError`].
    pub async fn forget_consumer(
        &self,
        topic: TopicName,
        consumer: ConsumerName,
    ) -> Result<(), RequestError> {
        let request = Request::ForgetConsumer { topic, consumer };
        answer!(self, request, Response::Done => ())
    }

    /// A consumer's committed offsets.
    ///
    /// # Errors
    /// `UnknownTopic`, `NotAuthorized`; or any [`RequestError`].
    pub async fn fetch_offsets(
        &self,
        topic: TopicName,
        consumer: ConsumerName,
    ) -> Result<Vec<(PartitionId, Offset)>, RequestError> {
        let request = Request::FetchOffsets { topic, consumer };
        answer!(self, request, Response::Offsets(offsets) => offsets)
    }

    /// Where a reader that starts at `at` would begin, by partition.
    ///
    /// # Errors
    /// `UnknownTopic`, `OffsetOutOfRange`, `NotAuthorized`; or any [`RequestError`].
    pub async fn find_offsets(
        &self,
        topic: TopicName,
        at: StartAt,
    ) -> Result<Vec<(PartitionId, Offset)>, RequestError> {
        answer!(self, Request::FindOffsets { topic, at }, Response::Offsets(offsets) => offsets)
    }

    /// The plugin versions that this client may describe, all or one tenant's.
    ///
    /// # Errors
    /// Any [`RequestError`].
    pub async fn list_plugins(
        &self,
        tenant: Option<&Tenant>,
    ) -> Result<Vec<PluginVersion>, RequestError> {
        pages!(
            self,
            |after| Request::ListPlugins { tenant: tenant.cloned(), after: after.clone() },
            Response::Plugins(page) => page,
            |version: &PluginVersion| version.plugin.clone()
        )
    }

    /// Deletes one version of a plugin, or all.
    ///
    /// # Errors
    /// `UnknownPlugin`, `PluginInUse`, `NotAuthorized`; or any [`RequestError`].
    pub async fn delete_plugin(
        &self,
        plugin: PluginName,
        version: Option<u32>,
    ) -> Result<(), RequestError> {
        answer!(self, Request::DeletePlugin { plugin, version }, Response::Done => ())
    }

    /// What a plugin wrote, from line number `from` on, as far as it is kept.
    ///
    /// # Errors
    /// `UnknownPlugin`, `NotAuthorized`; or any [`RequestError`].
    pub async fn plugin_log(
        &self,
        plugin: PluginName,
        from: u64,
    ) -> Result<Vec<LogLine>, RequestError> {
        pages!(
            self,
            |next| Request::PluginLog { plugin: plugin.clone(), from: next.unwrap_or(from) },
            Response::Log(page) => page,
            |line: &LogLine| line.sequence.saturating_add(1)
        )
    }

    /// Puts a plugin on a topic, before storage.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPlugin`, `AttachInvalid`, `NotAuthorized`; or any
    /// [`RequestError`].
    pub async fn attach(
        &self,
        topic: TopicName,
        plugin: PluginUse,
    ) -> Result<TopicInfo, RequestError> {
        answer!(self, Request::Attach { topic, plugin }, Response::Topic(info) => info)
    }

    /// Takes a plugin off a topic.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPlugin`, `NotAuthorized`; or any [`RequestError`].
    pub async fn detach(
        &self,
        topic: TopicName,
        plugin: PluginName,
    ) -> Result<TopicInfo, RequestError> {
        answer!(self, Request::Detach { topic, plugin }, Response::Topic(info) => info)
    }

    /// Creates a pipeline, or replaces its definition; its positions stay.
    ///
    /// # Errors
    /// `InvalidPipeline`, `UnknownTopic`, `UnknownPlugin`, `NotAuthorized`; or any
    /// [`RequestError`].
    pub async fn apply_pipeline(&self, spec: PipelineSpec) -> Result<PipelineInfo, RequestError> {
        answer!(self, Request::ApplyPipeline(spec), Response::Pipeline(info) => info)
    }

    /// The pipelines that this client may describe, all or one tenant's.
    ///
    /// # Errors
    /// Any [`RequestError`].
    pub async fn list_pipelines(
        &self,
        tenant: Option<&Tenant>,
    ) -> Result<Vec<PipelineInfo>, RequestError> {
        pages!(
            self,
            |after| Request::ListPipelines { tenant: tenant.cloned(), after: after.clone() },
            Response::Pipelines(page) => page,
            |info: &PipelineInfo| info.spec.name.clone()
        )
    }

    /// A pipeline's definition, state and progress.
    ///
    /// # Errors
    /// `UnknownPipeline`, `NotAuthorized`; or any [`RequestError`].
    pub async fn show_pipeline(
        &self,
        pipeline: PipelineName,
    ) -> Result<PipelineInfo, RequestError> {
        answer!(self, Request::ShowPipeline { pipeline }, Response::Pipeline(info) => info)
    }

    /// Pauses a pipeline.
    ///
    /// # Errors
    /// `UnknownPipeline`, `NotAuthorized`; or any [`RequestError`].
    pub async fn pause_pipeline(
        &self,
        pipeline: PipelineName,
    ) -> Result<PipelineInfo, RequestError> {
        answer!(self, Request::PausePipeline { pipeline }, Response::Pipeline(info) => info)
    }

    /// Lets a pipeline run again after a pause or an error.
    ///
    /// # Errors
    /// `UnknownPipeline`, `NotAuthorized`; or any [`RequestError`].
    pub async fn resume_pipeline(
        &self,
        pipeline: PipelineName,
    ) -> Result<PipelineInfo, RequestError> {
        answer!(self, Request::ResumePipeline { pipeline }, Response::Pipeline(info) => info)
    }

    /// Deletes a pipeline and its positions.
    ///
    /// # Errors
    /// `UnknownPipeline`, `NotAuthorized`; or any [`RequestError`].
    pub async fn delete_pipeline(&self, pipeline: PipelineName) -> Result<(), RequestError> {
        answer!(self, Request::DeletePipeline { pipeline }, Response::Done => ())
    }

    /// Adds an access rule.
    ///
    /// # Errors
    /// `NotAuthorized`, `InvalidConfig`; or any [`RequestError`].
    pub async fn grant(&self, rule: AclRule) -> Result<(), RequestError> {
        answer!(self, Request::Grant(rule), Response::Done => ())
    }

    /// Removes the access rule that is exactly this.
    ///
    /// # Errors
    /// `NotAuthorized`, `InvalidConfig`; or any [`RequestError`].
    pub async fn revoke(&self, rule: AclRule) -> Result<(), RequestError> {
        answer!(self, Request::Revoke(rule), Response::Done => ())
    }

    /// All access rules.
    ///
    /// # Errors
    /// `NotAuthorized`; or any [`RequestError`].
    pub async fn list_rules(&self) -> Result<Vec<AclRule>, RequestError> {
        answer!(self, Request::ListRules, Response::Rules(rules) => rules)
    }

    /// Whether somebody may do something, and which rule decides; no rule means
    /// that nothing allows it.
    ///
    /// # Errors
    /// `NotAuthorized`; or any [`RequestError`].
    pub async fn check_access(
        &self,
        principal: Principal,
        operation: Operation,
        resource: ResourceKind,
        name: impl Into<String>,
    ) -> Result<(bool, Option<AclRule>), RequestError> {
        let request = Request::CheckAccess {
            principal,
            operation,
            resource,
            name: name.into(),
        };
        answer!(self, request, Response::Decision { allowed, rule } => (allowed, rule))
    }

    /// The broker's state.
    ///
    /// # Errors
    /// `NotAuthorized`; or any [`RequestError`].
    pub async fn status(&self) -> Result<BrokerStatus, RequestError> {
        answer!(self, Request::Status, Response::Status(status) => status)
    }

    /// How the storage of each shard stands.
    ///
    /// # Errors
    /// `NotAuthorized`; or any [`RequestError`].
    pub async fn storage(&self) -> Result<Vec<ShardStorage>, RequestError> {
        answer!(self, Request::Storage, Response::Storage(shards) => shards)
    }

    /// What is in force of the broker's certificates and lists, and who was not let in.
    ///
    /// # Errors
    /// `NotAuthorized`; or any [`RequestError`].
    pub async fn door(&self) -> Result<DoorStatus, RequestError> {
        answer!(self, Request::Door, Response::Door(door) => door)
    }

    /// Starts a check of the stored data, ends it, or says how far it is.
    ///
    /// # Errors
    /// `NotAuthorized`, `Overloaded` if one is started while another runs; or any
    /// [`RequestError`].
    pub async fn check(&self, action: CheckAction) -> Result<CheckReport, RequestError> {
        answer!(self, Request::Check(action), Response::Check(report) => report)
    }

    /// Has the broker make a backup where its configuration says, unless one is under way.
    /// [`Client::show_backup`] says how far it is.
    ///
    /// # Errors
    /// `NotAuthorized`, `InvalidConfig` if the configuration says nothing; or any
    /// [`RequestError`].
    pub async fn start_backup(&self) -> Result<BackupState, RequestError> {
        answer!(self, Request::StartBackup, Response::Backup(state) => state)
    }

    /// How far the broker's backup is, or how the last one ended.
    ///
    /// # Errors
    /// As [`Client::start_backup`].
    pub async fn show_backup(&self) -> Result<BackupState, RequestError> {
        answer!(self, Request::ShowBackup, Response::Backup(state) => state)
    }

    /// Uploads a component as the next version of `plugin`; the broker validates
    /// and compiles it before it answers. `progress` hears how many bytes have
    /// been handed to the network, at least once per chunk; from the beginning again
    /// when the broker was too busy and the upload is repeated.
    ///
    /// # Errors
    /// `UploadRejected` with what is wrong with the component, `NotAuthorized`;
    /// or any [`UploadError`].
    pub async fn upload_plugin(
        &self,
        plugin: PluginName,
        component: bytes::Bytes,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<PluginVersion, UploadError> {
        if component.len() > MAX_PLUGIN_BYTES {
            return Err(UploadError::TooLarge {
                len: component.len(),
                max: MAX_PLUGIN_BYTES,
            });
        }
        let digest = Digest(Sha256::digest(&component).into());
        let open = StreamOpen::Upload(OpenUpload {
            plugin,
            size: component.len() as u64,
            digest,
        });
        let config = self.config();
        let mut attempts = Attempts::new(config.backoff, config.reconnect_deadline);
        loop {
            let link = self.link().await?;
            let sent = upload::run(&link.connection, &open, component.clone(), &mut progress).await;
            let hint = match &sent {
                Err(UploadError::Refused(wire)) if wire.class() == ErrorClass::Retry => {
                    wire.retry_after_ms
                }
                _ => return sent,
            };
            match attempts.failed(Instant::now(), hint, random_u64()) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return sent,
            }
        }
    }

    /// Sends a request, again where that is right.
    async fn request(&self, request: &Request) -> Result<Response, RequestError> {
        let (what, repeatable) = nature(request);
        let config = self.config();
        let mut attempts = Attempts::new(config.backoff, config.reconnect_deadline);
        loop {
            let link = self.link().await?;
            let answer = timeout(config.request_timeout, link.control.request(request)).await;
            let (error, hint) = match answer {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(StreamError::Refused(wire))) => {
                    if wire.class() != ErrorClass::Retry {
                        return Err(wire.into());
                    }
                    let hint = wire.retry_after_ms;
                    (RequestError::Refused(wire), hint)
                }
                Ok(Err(StreamError::Lost)) if repeatable => (
                    ConnectError::Lost {
                        addr: config.addrs.join(", "),
                        why: format!("before the answer to {what} came"),
                    }
                    .into(),
                    None,
                ),
                Ok(Err(StreamError::Lost)) => return Err(RequestError::OutcomeUnknown { what }),
                Ok(Err(StreamError::Protocol(_))) => return Err(RequestError::Protocol { what }),
                Err(_) => {
                    return Err(RequestError::Timeout {
                        what,
                        after: config.request_timeout,
                    });
                }
            };
            match attempts.failed(Instant::now(), hint, random_u64()) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            }
        }
    }
}
