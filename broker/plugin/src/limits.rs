//! Every cap on a guest and on what it can make the broker do.
//!
//! What an operator may tune is a field of [`Limits`]; what is part of the design is a constant.
//! Caps that clients must know too (the size of an upload, of a batch) are in
//! `millstream_proto::limits`.

use std::time::Duration;

use millstream_proto::limits::{MAX_BATCH_RECORDS, MAX_BODY_BYTES, MAX_HEADER_NAME_BYTES};
use millstream_proto::pipeline::PluginKind;

/// How often running guests give way to the other tasks of their thread.
pub const TICK: Duration = Duration::from_millis(5);
/// Largest linear memory that the instance pool can hold, in bytes: the ceiling of
/// [`Limits::memory_bytes`].
pub const MAX_MEMORY_BYTES: usize = 256 << 20;
/// Ceiling of [`Limits::table_elements`].
pub const MAX_TABLE_ELEMENTS: usize = 100_000;
/// Most core instances in one component. A guest written against std has 3.
pub const MAX_CORE_INSTANCES: u32 = 16;
/// Most linear memories in one component.
pub const MAX_MEMORIES: u32 = 1;
/// Most tables in one component. A guest written against std has 2.
pub const MAX_TABLES: u32 = 4;
/// Largest bookkeeping structure of one instance, in bytes.
pub const MAX_INSTANCE_BYTES: usize = 1 << 20;
/// Most live instances over all plugins, unless configured otherwise.
pub const DEFAULT_INSTANCES: u32 = 256;
/// Most live instances that may be configured: each takes about four mappings, and Linux allows
/// a process 65,530 of them by default.
pub const MAX_INSTANCES: u32 = 4_000;
/// Stack of a guest, in bytes; deeper recursion is a trap.
pub const WASM_STACK_BYTES: usize = 512 << 10;
/// Stack on which a guest and the host functions under it run, in bytes.
pub const FIBER_STACK_BYTES: usize = 1 << 20;
/// Memory that a returned pool slot keeps for its next use, in bytes.
pub const KEEP_RESIDENT_BYTES: usize = 1 << 20;
/// Pool slots that keep that memory while nobody uses them.
pub const KEEP_SLOTS: u32 = 16;
/// How long a runner waits for a free place in the pool.
pub const POOL_WAIT: Duration = Duration::from_secs(2);

/// Guests of one tenant that are in a call at the same time; more would not be faster, since they
/// share a thread, and take its time from other tenants. Two, so that one that takes long does not
/// hold up all others of its tenant.
pub const TENANT_CALLS: usize = 2;

/// Tenants whose use of plugins is counted apart; all further ones are counted together.
pub const MAX_COUNTED_TENANTS: usize = 1000;

/// Most functions in one upload, over all its core modules.
pub const MAX_FUNCTIONS: u32 = 100_000;
/// Largest body of one function, in bytes: compiling takes more than linear time in it.
pub const MAX_FUNCTION_BYTES: usize = 1 << 20;
/// Most core modules and nested components in one upload.
pub const MAX_NESTED: u32 = 64;
/// Largest sum of compiled artifacts kept on disk, in bytes.
pub const MAX_CACHE_BYTES: u64 = 2 << 30;
/// Largest compiled artifact that is read back, in bytes.
pub const MAX_ARTIFACT_BYTES: u64 = 512 << 20;

/// Most host objects (streams, pollables) that one instance can hold.
pub const MAX_RESOURCES: usize = 256;
/// Most random bytes in one call.
pub const MAX_RANDOM_BYTES: u64 = 64 << 10;
/// Most bytes that a guest may write to its output streams at once.
pub const MAX_STREAM_WRITE_BYTES: usize = 4 << 10;
/// Longest text of a guest that is put into an error or a log line, in bytes.
pub const MAX_TEXT_BYTES: usize = 1 << 10;
/// Most frames of a guest's backtrace.
pub const MAX_FRAMES: usize = 8;
/// Most counter names of one plugin.
pub const MAX_COUNTERS: usize = 64;
/// Longest counter name, in bytes.
pub const MAX_COUNTER_NAME_BYTES: usize = 64;

/// What one runner may use. The defaults suit a filter or transform of one partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// CPU time of one call.
    pub call_cpu: Duration,
    /// CPU time of making an instance, `init` included.
    pub init_cpu: Duration,
    /// Linear memory in bytes, at most [`MAX_MEMORY_BYTES`].
    pub memory_bytes: usize,
    /// An instance whose memory has grown to this many bytes is replaced after the call.
    pub high_water_bytes: usize,
    /// Elements of all tables, at most [`MAX_TABLE_ELEMENTS`].
    pub table_elements: usize,
    /// Bytes that one transform call may make, kept pieces counted as often as they are kept.
    pub output_bytes: usize,
    /// Records that one transform call may make.
    pub output_records: usize,
    /// Share of one core that the runner may use in the long run, above 0 and at most 1. By default
    /// see [`default_cpu_share`].
    pub cpu_share: f64,
    /// CPU time that may be used at once before `cpu_share` holds.
    pub cpu_burst: Duration,
    /// After a trap or a limit the next call waits this many times the CPU time that the failed
    /// call used: 19 keeps a plugin that always fails at 5% of a core.
    pub penalty_factor: u32,
    /// Longest such wait.
    pub penalty_cap: Duration,
}

/// A fifth of a machine with so many cores, but no more than 0.8 of a core.
///
/// A plugin that never fails and never stops computing is held by this alone. Measured on two
/// cores, which a producer at full speed uses up by itself: beside a plugin held to 0.8 of a core
/// that producer keeps two thirds of its rate, beside one held to 0.4 more than four fifths.
#[must_use]
pub fn default_cpu_share(cores: usize) -> f64 {
    (cores as f64 / 5.0).min(0.8)
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            call_cpu: Duration::from_millis(100),
            init_cpu: Duration::from_millis(250),
            memory_bytes: 64 << 20,
            high_water_bytes: 48 << 20,
            table_elements: 20_000,
            output_bytes: 2 * MAX_BODY_BYTES,
            output_records: MAX_BATCH_RECORDS as usize,
            cpu_share: default_cpu_share(
                std::thread::available_parallelism().map_or(1, usize::from),
            ),
            cpu_burst: Duration::from_millis(200),
            penalty_factor: 19,
            penalty_cap: Duration::from_secs(5),
        }
    }
}

/// A limit that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("plugin limit {name} is {given}, but must be {expected}")]
pub struct BadLimit {
    /// The field of [`Limits`].
    pub name: &'static str,
    /// Its value.
    pub given: String,
    /// The range.
    pub expected: String,
}

impl Limits {
    /// Says whether the engine can honour these limits.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<(), BadLimit> {
        let bad = |name, given: String, expected: String| {
            Err(BadLimit {
                name,
                given,
                expected,
            })
        };
        let range = |name, given: usize, max: usize| match given {
            0 => bad(name, given.to_string(), format!("1 to {max}")),
            _ if given > max => bad(name, given.to_string(), format!("1 to {max}")),
            _ => Ok(()),
        };
        range("memory_bytes", self.memory_bytes, MAX_MEMORY_BYTES)?;
        range("high_water_bytes", self.high_water_bytes, self.memory_bytes)?;
        range("table_elements", self.table_elements, MAX_TABLE_ELEMENTS)?;
        range("output_bytes", self.output_bytes, MAX_MEMORY_BYTES)?;
        range(
            "output_records",
            self.output_records,
            MAX_BATCH_RECORDS as usize,
        )?;
        for (name, time) in [("call_cpu", self.call_cpu), ("init_cpu", self.init_cpu)] {
            if time < TICK {
                return bad(
                    name,
                    format!("{time:?}"),
                    format!("at least {TICK:?}, one tick"),
                );
            }
        }
        if !(self.cpu_share > 0.0 && self.cpu_share <= 1.0) {
            return bad(
                "cpu_share",
                self.cpu_share.to_string(),
                "above 0 and at most 1".into(),
            );
        }
        Ok(())
    }

    /// Bytes that may cross from guest to host in one call: the output and its columns, or a
    /// number for every record. wasmtime stops a list that claims more before allocating it.
    pub(crate) fn crossing_bytes(&self, kind: PluginKind) -> usize {
        let result = match kind {
            PluginKind::Partitioner | PluginKind::Filter => MAX_BATCH_RECORDS as usize * 4,
            PluginKind::Transform | PluginKind::Processor => {
                let columns = self.output_records.saturating_mul(BYTES_PER_OUTPUT_RECORD);
                self.output_bytes.saturating_add(columns)
            }
        };
        result + MAX_TEXT_BYTES
    }
}

/// Nine 32-bit columns, a timestamp, and one header of four columns.
const BYTES_PER_OUTPUT_RECORD: usize = 9 * 4 + 8 + 4 * 4;

const _: () = {
    assert!(WASM_STACK_BYTES < FIBER_STACK_BYTES);
    assert!(MAX_HEADER_NAME_BYTES <= MAX_TEXT_BYTES);
    assert!(MAX_BODY_BYTES <= MAX_MEMORY_BYTES);
    assert!(DEFAULT_INSTANCES <= MAX_INSTANCES);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_share_is_a_part_of_the_machine() {
        for (cores, share) in [(1, 0.2), (2, 0.4), (4, 0.8), (64, 0.8)] {
            assert!((default_cpu_share(cores) - share).abs() < 1e-9, "{cores}");
        }
    }

    #[test]
    fn defaults_are_in_range() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[test]
    fn a_limit_out_of_range_is_named() {
        let check = |limits: Limits, name: &str| {
            let error = limits.check().expect_err("out of range");
            assert_eq!(error.name, name);
        };
        let good = Limits::default;
        check(
            Limits {
                memory_bytes: MAX_MEMORY_BYTES + 1,
                ..good()
            },
            "memory_bytes",
        );
        check(
            Limits {
                high_water_bytes: 65 << 20,
                ..good()
            },
            "high_water_bytes",
        );
        check(
            Limits {
                table_elements: 0,
                ..good()
            },
            "table_elements",
        );
        check(
            Limits {
                output_records: usize::MAX,
                ..good()
            },
            "output_records",
        );
        check(
            Limits {
                call_cpu: Duration::ZERO,
                ..good()
            },
            "call_cpu",
        );
        check(
            Limits {
                cpu_share: f64::NAN,
                ..good()
            },
            "cpu_share",
        );
        check(
            Limits {
                cpu_share: 0.0,
                ..good()
            },
            "cpu_share",
        );
    }
}
