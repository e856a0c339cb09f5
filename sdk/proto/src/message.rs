//! Messages: what opens a stream, what is asked on the control stream, and the
//! answers. Encoded with postcard. Variants are only ever added at the end.

use serde::{Deserialize, Serialize};

use crate::acl::{AclRule, Operation, ResourceKind};
use crate::backup::BackupState;
use crate::code::WireError;
use crate::name::{ConsumerName, PipelineName, PluginName, Principal, Tenant, TopicName};
use crate::offset::{Offset, PartitionId, ProducerEpoch, ProducerId, Sequence};
use crate::pipeline::{PipelineInfo, PipelineSpec, PluginKind, PluginUse};
use crate::storage::{CheckAction, CheckReport, ShardStorage};
use crate::topic::{StartAt, TopicChange, TopicConfig, TopicInfo};
use crate::version::Hello;

/// The first frame of every bidirectional stream. The control stream must be
/// opened first; the broker refuses other streams until it has answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamOpen {
    /// Requests and responses. Answered with [`HelloOk`](crate::version::HelloOk).
    Control(Hello),
    /// Batches for one topic. Answered with [`ProducerOpened`].
    Producer(OpenProducer),
    /// Batches of one topic. Answered with [`SubscriptionOpened`].
    Subscription(OpenSubscription),
    /// A plugin's bytes, as chunks, then `End`. Answered with [`PluginVersion`]
    /// once it is validated, compiled and stored.
    Upload(OpenUpload),
}

/// Opens a producer's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenProducer {
    /// Where to.
    pub topic: TopicName,
    /// Who, for duplicate detection; [`ProducerId::NONE`] turns it off.
    pub producer: ProducerId,
    /// The producer's generation; an open stream of a lower one is fenced off.
    pub epoch: ProducerEpoch,
}

/// Answer to [`OpenProducer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerOpened {
    /// Number of partitions at present.
    pub partitions: u32,
    /// Whether the broker chooses partitions (a partitioner or transform is
    /// attached); the producer then need not group records by partition.
    pub broker_routes: bool,
    /// The sequence that the broker expects next from this producer and epoch.
    pub next_sequence: Sequence,
    /// Settings that concern the producer.
    pub config: TopicConfig,
}

/// Where a batch, or a part of it, was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The partition.
    pub partition: PartitionId,
    /// Offset of the first record.
    pub base: Offset,
    /// Number of records; none in what follows a lone placement, see [`Ack::placements`].
    pub count: u32,
}

/// The batch is stored as durably as its topic asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Where. Empty when the topic's chain kept no record of it, or when the
    /// batch is a duplicate whose placement is no longer known. A lone placement of as many
    /// records as the batch has holds them one by one, in their order; where plugins left some
    /// out, made several of one or moved them, an empty placement follows it.
    pub placements: Vec<Placement>,
    /// The batch had been stored before; this is what happened then.
    pub duplicate: bool,
    /// Records that the chain filtered out, skipped or dead-lettered.
    pub dropped: u32,
}

/// Opens a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSubscription {
    /// What to read.
    pub topic: TopicName,
    /// Which partitions; empty means all, those too that are added later. They
    /// begin with their first record.
    pub partitions: Vec<PartitionId>,
    /// Where to begin in these partitions, whatever `start` and `consumer` say:
    /// how a consumer takes up the thread.
    pub positions: Vec<(PartitionId, Offset)>,
    /// Where to begin in partitions without a committed offset.
    pub start: StartAt,
    /// Begin at this consumer's committed offsets where there are some.
    pub consumer: Option<ConsumerName>,
    /// End at the durable end as it is when the subscription opens.
    pub until_end: bool,
    /// Filters and transforms that run in the broker: only what passes crosses
    /// the network.
    pub chain: Vec<PluginUse>,
}

/// Answer to [`OpenSubscription`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionOpened {
    /// Chosen partitions and where each begins.
    pub positions: Vec<(PartitionId, Offset)>,
}

/// What a subscription tells of one partition, between the batches of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The partition stands still because what comes next cannot be read; the others go on. The
    /// broker tries again from time to time, and delivers when it can.
    Shut {
        /// Which.
        partition: PartitionId,
        /// The offset that cannot be read.
        at: Offset,
        /// Why, and what to do about it.
        error: WireError,
    },
    /// The partition goes on elsewhere than where the reader stood.
    Gap(Gap),
}

/// Records of a partition that a reader stood before, or had read already, and that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Which partition.
    pub partition: PartitionId,
    /// The first offset of which there is no record, or is another one than before.
    pub from: Offset,
    /// The offset behind the last such.
    pub to: Offset,
    /// Why, which also says where the partition goes on.
    pub cause: GapCause,
}

/// Why records are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GapCause {
    /// They were lost with a damaged segment, and given up. The reader goes on behind them.
    Lost,
    /// Retention removed them before they were read. The reader goes on behind them.
    Removed,
    /// They had been read, or committed as read, before they were on the disk, and a crash took
    /// them: the partition ended before them when it came back. The reader goes on at the first of
    /// these offsets, with the records that have it now.
    Truncated,
}

impl Gap {
    /// Where the reader goes on.
    #[must_use]
    pub fn resumes_at(&self) -> Offset {
        match self.cause {
            GapCause::Lost | GapCause::Removed => self.to,
            GapCause::Truncated => self.from,
        }
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            partition,
            from,
            to,
            cause,
        } = self;
        match cause {
            GapCause::Lost => write!(
                f,
                "partition {partition}: offsets {from} to {to} were lost with damaged storage; \
                 reading goes on at {to}"
            ),
            GapCause::Removed => write!(
                f,
                "partition {partition}: retention removed offsets {from} to {to} before they were \
                 read; reading goes on at {to}"
            ),
            GapCause::Truncated => write!(
                f,
                "partition {partition}: offsets {from} to {to} had been read before they were \
                 durable, and a crash took them; reading goes on at {from}, with what is there now"
            ),
        }
    }
}

/// Opens an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenUpload {
    /// Under which name.
    pub plugin: PluginName,
    /// Size of the component in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub digest: Digest,
}

/// SHA-256 of a component.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// One version of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginVersion {
    /// Its name.
    pub plugin: PluginName,
    /// Its version, from 1.
    pub version: u32,
    /// What it is.
    pub kind: PluginKind,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// Size of the component in bytes.
    pub size: u64,
    /// When it was uploaded, in milliseconds since the Unix epoch.
    pub uploaded_ms: i64,
    /// By whom.
    pub uploaded_by: Principal,
}

/// A line that a plugin wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its number in the plugin's log, from 0; ask for the next page with the one after.
    pub sequence: u64,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// trace, debug, info, warn or error.
    pub level: String,
    /// Where the plugin ran, such as `topic acme/quakes` or `pipeline acme/alerts`.
    pub place: String,
    /// Version of the plugin that wrote it.
    pub version: u32,
    /// The line, cut at the log's limit.
    pub message: String,
}

/// What is asked on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make a topic. Answer: [`Response::Topic`].
    CreateTopic {
        /// Its name.
        topic: TopicName,
        /// Its settings.
        config: TopicConfig,
    },
    /// Change a topic's settings. Answer: [`Response::Topic`].
    AlterTopic {
        /// Which.
        topic: TopicName,
        /// What to change.
        change: TopicChange,
    },
    /// Delete a topic with its records. Answer: [`Response::Done`].
    DeleteTopic {
        /// Which.
        topic: TopicName,
    },
    /// Answer: [`Response::Topic`].
    DescribeTopic {
        /// Which.
        topic: TopicName,
    },
    /// The topics that the principal may describe. Answer: [`Response::Topics`].
    ListTopics {
        /// Only of this tenant.
        tenant: Option<Tenant>,
        /// Only names behind this one; for the next page.
        after: Option<TopicName>,
    },
    /// Commit a consumer's offsets durably: the next offset to read, by
    /// partition. Answer: [`Response::Done`].
    CommitOffsets {
        /// Which topic.
        topic: TopicName,
        /// For whom.
        consumer: ConsumerName,
        /// The next offset to read.
        offsets: Vec<(PartitionId, Offset)>,
    },
    /// Answer: [`Response::Offsets`].
    FetchOffsets {
        /// Which topic.
        topic: TopicName,
        /// Whose.
        consumer: ConsumerName,
    },
    /// Where a reader would begin, by partition. Answer: [`Response::Offsets`].
    FindOffsets {
        /// Which topic.
        topic: TopicName,
        /// Where.
        at: StartAt,
    },
    /// The versions of plugins that the principal may describe. Answer: [`Response::Plugins`].
    ListPlugins {
        /// Only of this tenant.
        tenant: Option<Tenant>,
        /// Only names behind this one; for the next page.
        after: Option<PluginName>,
    },
    /// Delete one version, or all. Answer: [`Response::Done`].
    DeletePlugin {
        /// Which.
        plugin: PluginName,
        /// One version; `None` means all.
        version: Option<u32>,
    },
    /// What a plugin wrote. Answer: [`Response::Log`].
    PluginLog {
        /// Which.
        plugin: PluginName,
        /// From this line number on.
        from: u64,
    },
    /// Put a plugin on a topic, before storage. A partitioner takes the
    /// partitioner's place; a plugin of the same name is replaced where it
    /// stands; any other goes to the end of the chain. Answer: [`Response::Topic`].
    Attach {
        /// Where.
        topic: TopicName,
        /// What.
        plugin: PluginUse,
    },
    /// Take a plugin off a topic. Answer: [`Response::Topic`].
    Detach {
        /// Where.
        topic: TopicName,
        /// What.
        plugin: PluginName,
    },
    /// Create a pipeline, or replace its definition; its positions stay.
    /// Answer: [`Response::Pipeline`].
    ApplyPipeline(PipelineSpec),
    /// Answer: [`Response::Pipelines`].
    ListPipelines {
        /// Only of this tenant.
        tenant: Option<Tenant>,
        /// Only names behind this one; for the next page.
        after: Option<PipelineName>,
    },
    /// Answer: [`Response::Pipeline`].
    ShowPipeline {
        /// Which.
        pipeline: PipelineName,
    },
    /// Answer: [`Response::Pipeline`].
    PausePipeline {
        /// Which.
        pipeline: PipelineName,
    },
    /// Run again after a pause or an error. Answer: [`Response::Pipeline`].
    ResumePipeline {
        /// Which.
        pipeline: PipelineName,
    },
    /// Delete a pipeline and its positions. Answer: [`Response::Done`].
    DeletePipeline {
        /// Which.
        pipeline: PipelineName,
    },
    /// Add a rule. Answer: [`Response::Done`].
    Grant(AclRule),
    /// Remove a rule that is exactly this. Answer: [`Response::Done`].
    Revoke(AclRule),
    /// Answer: [`Response::Rules`].
    ListRules,
    /// Whether somebody may do something, and which rule decides. Answer: [`Response::Decision`].
    CheckAccess {
        /// Who.
        principal: Principal,
        /// What.
        operation: Operation,
        /// On what kind of thing.
        resource: ResourceKind,
        /// On which one.
        name: String,
    },
    /// Answer: [`Response::Status`].
    Status,
    /// How the storage stands. Answer: [`Response::Storage`].
    Storage,
    /// Check the stored data. Answer: [`Response::Check`].
    Check(CheckAction),
    /// Make a backup where the broker's configuration says, unless one is under way. Answer:
    /// [`Response::Backup`].
    StartBackup,
    /// How far the backup is. Answer: [`Response::Backup`].
    ShowBackup,
    /// Remove what a consumer has committed, in all partitions; its name counts no more. Answer:
    /// [`Response::Done`].
    ForgetConsumer {
        /// Of which topic.
        topic: TopicName,
        /// Whose.
        consumer: ConsumerName,
    },
    /// What is in force of certificates and lists, and who was not let in. Answer:
    /// [`Response::Door`].
    Door,
}

/// An answer on the control stream; errors are frames of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done, durably.
    Done,
    /// A topic as it is now.
    Topic(TopicInfo),
    /// Names, in order, at most a page.
    Topics(Vec<TopicName>),
    /// Offsets by partition.
    Offsets(Vec<(PartitionId, Offset)>),
    /// Versions, in order, at most a page.
    Plugins(Vec<PluginVersion>),
    /// Lines, in order, at most a page.
    Log(Vec<LogLine>),
    /// A pipeline as it is now.
    Pipeline(PipelineInfo),
    /// Pipelines, in order, at most a page.
    Pipelines(Vec<PipelineInfo>),
    /// Rules, in order.
    Rules(Vec<AclRule>),
    /// The decision and why.
    Decision {
        /// Whether it is allowed.
        allowed: bool,
        /// The rule that decides; none means "nothing allows it".
        rule: Option<AclRule>,
    },
    /// The broker's state.
    Status(BrokerStatus),
    /// The storage of each shard.
    Storage(Vec<ShardStorage>),
    /// How far the check is, and what it has found.
    Check(CheckReport),
    /// How far the backup is, or how the last one ended.
    Backup(BackupState),
    /// What is in force at the door.
    Door(DoorStatus),
}

/// The broker's state as its operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Version of the software.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// One entry per shard: serving, or why it stopped.
    pub shards: Vec<ShardStatus>,
    /// Open connections.
    pub connections: u64,
    /// Topics.
    pub topics: u64,
    /// Resident memory of the process in bytes; 0 where it cannot be read.
    pub resident_bytes: u64,
}

/// What decides who is let in, and what came of it since the broker was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorStatus {
    /// Until when the broker's own certificate is good, in milliseconds since the Unix epoch.
    pub certificate_until_ms: Option<i64>,
    /// How often certificates, lists and settings were read again and put in force.
    pub reloads: u64,
    /// How often they were read again and could not be used.
    pub reload_failures: u64,
    /// Why what the files hold now is not in force; what was before is.
    pub trouble: Option<String>,
    /// What of the configuration was changed and takes effect with the next start only.
    pub needs_restart: Vec<String>,
    /// Handshakes under way.
    pub handshakes: u64,
    /// Connections that were ended because their certificate was not accepted any more.
    pub ended: u64,
    /// How many were not let in, by reason; reasons that did not occur are left out.
    pub refused: Vec<(String, u64)>,
}

/// The state of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub shard: u32,
    /// `None` while it serves, else why it stopped.
    pub stopped: Option<String>,
    /// Size of its file in bytes.
    pub file_bytes: u64,
    /// Commits since the start.
    pub commits: u64,
}

/// An answer of any kind, as the client sees it.
pub type Answer<T> = Result<T, WireError>;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::frame::{Assembler, FrameKind, message_frame};

    #[test]
    fn a_request_survives_its_frame() {
        let request = Request::CreateTopic {
            topic: "acme/t".parse().unwrap(),
            config: TopicConfig::default(),
        };
        let mut bytes = message_frame(FrameKind::Request, 9, &request).unwrap();
        let frame = Assembler::default().feed(&mut bytes).unwrap().unwrap();
        assert_eq!(
            (frame.tag, frame.message::<Request>().unwrap()),
            (9, request)
        );
    }

    /// Clients of this version and brokers of the next meet in these bytes.
    #[test]
    fn golden_messages() {
        let describe = Request::DescribeTopic {
            topic: "a/b".parse().unwrap(),
        };
        assert_eq!(
            postcard::to_allocvec(&describe).unwrap(),
            [3, 3, b'a', b'/', b'b']
        );
        let open = StreamOpen::Control(Hello {
            min_version: 1,
            max_version: 2,
            client: "c".into(),
        });
        assert_eq!(postcard::to_allocvec(&open).unwrap(), [0, 1, 2, 1, b'c']);
        let ack = Ack {
            placements: vec![Placement {
                partition: PartitionId(1),
                base: Offset(300),
                count: 2,
            }],
            duplicate: false,
            dropped: 0,
        };
        assert_eq!(
            postcard::to_allocvec(&ack).unwrap(),
            [1, 1, 0xac, 2, 2, 0, 0]
        );
        let gap = Gap {
            partition: PartitionId(1),
            from: Offset(5),
            to: Offset(9),
            cause: GapCause::Truncated,
        };
        assert_eq!(
            postcard::to_allocvec(&Notice::Gap(gap)).unwrap(),
            [1, 1, 5, 9, 2]
        );
        assert_eq!(postcard::to_allocvec(&Request::Status).unwrap(), [23]);
        assert_eq!(postcard::to_allocvec(&Request::Storage).unwrap(), [24]);
        let look = Request::Check(CheckAction::Look);
        assert_eq!(postcard::to_allocvec(&look).unwrap(), [25, 1]);
        assert_eq!(postcard::to_allocvec(&Request::StartBackup).unwrap(), [26]);
        assert_eq!(postcard::to_allocvec(&Request::ShowBackup).unwrap(), [27]);
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        let mut bytes: Bytes = [
            &crate::frame::frame_header(FrameKind::Request, 0, 2)[..],
            &[23, 0],
        ]
        .concat()
        .into();
        let frame = Assembler::default().feed(&mut bytes).unwrap().unwrap();
        assert!(frame.message::<Request>().is_err());
    }
}
