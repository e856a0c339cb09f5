//! The list of what is exported: every name, once.
//!
//! `docs/operations.md` has it as a table; a test compares them.

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How it stands now.
    Gauge,
    /// How often, or how much, since the broker was started.
    Counter,
    /// How values were spread since the broker was started.
    Histogram,
    /// A text that hardly changes.
    Info,
}

impl Kind {
    /// As OpenMetrics calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// What a family's samples are counted in, where they are not just numbers of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// As it ends a name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
        }
    }
}

/// One name, with what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, without unit and suffix.
    pub stem: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// What they are counted in.
    pub unit: Option<Unit>,
    /// The labels that each sample has, besides those that its kind brings.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

impl Family {
    /// The name with its unit, as `# TYPE` has it.
    #[must_use]
    pub fn name(&self) -> String {
        match self.unit {
            Some(unit) => format!("{}_{}", self.stem, unit.name()),
            None => self.stem.to_owned(),
        }
    }

    /// The name to be asked for: as samples have it, but for what a histogram's parts append.
    #[must_use]
    pub fn series(&self) -> String {
        let suffix = match self.kind {
            Kind::Gauge | Kind::Histogram => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        };
        format!("{}{suffix}", self.name())
    }
}

macro_rules! families {
    (@unit) => { None };
    (@unit $unit:ident) => { Some(Unit::$unit) };
    ($($name:ident = $kind:ident $stem:literal $(in $unit:ident)? [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $name: Family = Family {
            stem: $stem,
            kind: Kind::$kind,
            unit: families!(@unit $($unit)?),
            labels: &[$($label),*],
            help: $help,
        };)*

        /// Everything that is exported, in this order.
        pub const FAMILIES: &[Family] = &[$($name),*];
    };
}

families! {
    BUILD = Info "millstream_build" ["version"] "The version that runs";
    STARTED = Gauge "millstream_start_time" in Seconds [] "When the broker was started, since 1970";
    CPU = Counter "millstream_cpu" in Seconds [] "CPU time of the process, plugins included";
    RESIDENT = Gauge "millstream_resident_memory" in Bytes [] "Resident memory of the process";
    CONNECTIONS = Gauge "millstream_connections" [] "Connections, those in their handshake included";
    SESSIONS = Gauge "millstream_sessions" [] "Connections of clients that were let in";
    ADMITTED = Counter "millstream_admitted_connections" [] "Connections of clients that were let in";
    REFUSED = Counter "millstream_refused_handshakes" ["reason"] "Connections that were not let in, by reason";
    EXPELLED = Counter "millstream_expelled_connections" [] "Connections that were ended because their certificate is not accepted any more";
    RELOADS = Counter "millstream_reloads" [] "How often certificates, lists and settings were read again and put in force";
    FAILED_RELOADS = Counter "millstream_failed_reloads" [] "How often what was read again could not be used";
    STALE = Gauge "millstream_stale_credentials" [] "1 if what the files hold now is not in force because it cannot be used, else 0";
    EXPIRY = Gauge "millstream_certificate_expiry" in Seconds [] "Until when the broker's own certificate is good, since 1970";
    STREAMS = Gauge "millstream_streams" ["kind"] "Open streams, by what they are for";
    ERRORS = Counter "millstream_refused_requests" ["code"] "Errors that clients were answered with, about a request, a batch or a stream, by code";
    TOPICS = Gauge "millstream_topics" ["tenant"] "Topics";
    PARTITIONS = Gauge "millstream_partitions" ["tenant"] "Partitions";
    SHUT = Gauge "millstream_shut_partitions" ["tenant"] "Partitions that are not served because their newest records cannot be read";
    PRODUCED_RECORDS = Counter "millstream_produced_records" ["tenant"] "Records of acknowledged batches of producers, as they came, by the tenant of the topic";
    PRODUCED_BYTES = Counter "millstream_produced" in Bytes ["tenant"] "Bytes of those batches";
    CONSUMED_RECORDS = Counter "millstream_consumed_records" ["tenant"] "Records sent to consumers, by the tenant of the topic";
    CONSUMED_BYTES = Counter "millstream_consumed" in Bytes ["tenant"] "Bytes sent to consumers with them";
    STOPPED = Gauge "millstream_shard_stopped" ["shard"] "1 if the shard takes nothing more until a restart, else 0";
    TROUBLE = Gauge "millstream_storage_trouble" ["shard"] "1 if records cannot be moved to segments, else 0; `millstream status` says why";
    COMMIT_TIME = Histogram "millstream_commit_duration" in Seconds ["shard"] "How long group commits took";
    COMMIT_SIZE = Histogram "millstream_commit_size" in Bytes ["shard"] "Bytes that group commits carried";
    QUEUED = Gauge "millstream_storage_queued" in Bytes ["shard"] "Bytes that wait for a commit, or are in one";
    WAITING = Gauge "millstream_storage_waiting_appends" ["shard"] "Appends that wait for room in the queue or in the hot file";
    FILE = Gauge "millstream_storage_hot_file" in Bytes ["shard"] "Length of the hot file";
    HOT = Gauge "millstream_storage_hot" in Bytes ["shard"] "Bytes that records take in the hot file";
    UNSEALED = Gauge "millstream_storage_unsealed" in Bytes ["shard"] "How many of those no segment holds yet";
    LAG = Gauge "millstream_storage_seal_lag" in Bytes ["shard"] "By how many of those the sealer is behind";
    SEGMENTS = Gauge "millstream_storage_segments" ["shard"] "Segments in use";
    SEALED = Gauge "millstream_storage_sealed" in Bytes ["shard"] "Length of their files";
    LIVE = Gauge "millstream_storage_live" in Bytes ["shard"] "Bytes in them that are wanted";
    GARBAGE = Gauge "millstream_storage_garbage" in Bytes ["shard"] "Bytes in them that are not wanted any more";
    APPENDED = Counter "millstream_storage_appended" in Bytes ["shard"] "Bytes of records appended, by whoever";
    HOT_WRITTEN = Counter "millstream_storage_hot_written" in Bytes ["shard"] "Bytes written to the hot file; with the next, divided by those appended, the write amplification";
    SEGMENT_WRITTEN = Counter "millstream_storage_segment_written" in Bytes ["shard"] "Bytes written to segments";
    OPENING = Gauge "millstream_storage_opening" in Seconds ["shard"] "How long the last start took to open the store, recovery included";
    CALLS = Counter "millstream_plugin_calls" ["tenant"] "Calls of plugins, by the tenant they run for";
    HANDED = Counter "millstream_plugin_records" ["tenant"] "Records handed to plugins";
    PLUGIN_CPU = Counter "millstream_plugin_cpu" in Seconds ["tenant"] "CPU time of plugins, starts included";
    STARTS = Counter "millstream_plugin_starts" ["tenant"] "Instances of plugins made";
    FAILURES = Counter "millstream_plugin_failures" ["tenant", "reason"] "Calls and starts of plugins that failed, by reason: `trap`, `limit`, what the plugin asked for, `engine` for the broker's own";
    DROPPED_LINES = Counter "millstream_plugin_dropped_log_lines" ["tenant"] "Lines of plugins over the rate of their log, by the tenant that owns the plugin";
    FREE_INSTANCES = Gauge "millstream_plugin_free_instances" [] "Places left for instances of plugins";
    PIPELINES = Gauge "millstream_pipelines" ["tenant", "state"] "Pipelines, by state";
    PIPELINE_LAG = Gauge "millstream_pipeline_lag_records" ["tenant"] "Records of their inputs that pipelines have not read yet";
}
