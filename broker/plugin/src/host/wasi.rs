//! WASI 0.2 over nothing.
//!
//! A guest written against std imports these interfaces whether it uses them or not, so they must
//! link; the context behind them is empty, and time and randomness are the runner's, so that the
//! same batch gives the same result again. Sockets link for programs that contain `std::net`, and
//! are refused before the operating system hears of them. Absent: HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::ChaCha8Rng;
use wasmtime::component::Linker;
use wasmtime_wasi::p2::add_to_linker_async;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView};

use crate::host::stdio::LineWriter;
use crate::host::{HostState, Surroundings};
use crate::limits::MAX_RANDOM_BYTES;

/// The WASI version that is linked; imports of other 0.2 versions resolve to it.
pub(crate) const VERSION: &str = "0.2";

/// Every WASI interface that is linked, by package.
pub(crate) const LINKED: &[(&str, &[&str])] = &[
    (
        "wasi:cli",
        &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    ("wasi:clocks", &["monotonic-clock", "wall-clock"]),
    ("wasi:filesystem", &["preopens", "types"]),
    ("wasi:io", &["error", "poll", "streams"]),
    ("wasi:random", &["insecure", "insecure-seed", "random"]),
    (
        "wasi:sockets",
        &[
            "instance-network",
            "ip-name-lookup",
            "network",
            "tcp",
            "tcp-create-socket",
            "udp",
            "udp-create-socket",
        ],
    ),
];

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// Defines what [`LINKED`] names.
pub(crate) fn link(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    add_to_linker_async(linker)
}

/// A context that grants nothing. The builder's defaults are closed input, no arguments, no
/// environment, no directories; here its real clocks and randomness are replaced too.
pub(crate) fn context(around: &Surroundings, stdout: LineWriter, stderr: LineWriter) -> WasiCtx {
    let rng = |stream| {
        let mut rng = ChaCha8Rng::from_seed(around.seed);
        rng.set_stream(stream);
        rng
    };
    let mut insecure_seed = [0; 16];
    insecure_seed.copy_from_slice(&around.seed[..16]);
    WasiCtx::builder()
        .stdout(stdout)
        .stderr(stderr)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .secure_random(rng(0))
        .insecure_random(rng(1))
        .insecure_random_seed(u128::from_le_bytes(insecure_seed))
        .max_random_size(MAX_RANDOM_BYTES)
        .wall_clock(BatchClock(Arc::clone(&around.now_ms)))
        .monotonic_clock(StoppedClock)
        .build()
}

/// A wall clock that the runner moves between calls and that stands still within one.
struct BatchClock(Arc<AtomicI64>);

impl HostWallClock for BatchClock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        let ms = self.0.load(Ordering::Relaxed);
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }
}

/// A stopwatch that always shows zero: how long a guest takes is not the guest's to know.
struct StoppedClock;

impl HostMonotonicClock for StoppedClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}
