//! Polls a guest under a CPU deadline.
//!
//! A running guest yields at every epoch tick. Almost every call ends before the first one, so
//! the first poll is measured by the ordinary clock (20 ns); whoever needs more is measured by the
//! CPU clock of the thread (500 ns), so that neither a busy machine nor the tasks in between count
//! against the guest's deadline. Fuel is not used: it costs a third to a half of guest time and is
//! not time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::error::FaultKind;
use crate::limits::TICK;

/// What a runner has used so far, or all runners of a tenant. Readable at any time.
#[derive(Debug, Default)]
pub struct Usage {
    cpu_ns: AtomicU64,
    calls: AtomicU64,
    records: AtomicU64,
    failures: [AtomicU64; FaultKind::ALL.len()],
    starts: AtomicU64,
    dropped_lines: AtomicU64,
    /// Where the same is counted over all runners.
    whole: Option<Arc<Usage>>,
}

impl Usage {
    /// Of a part: what it counts, `whole` counts too.
    pub(crate) fn within(whole: Arc<Self>) -> Self {
        Self {
            whole: Some(whole),
            ..Self::default()
        }
    }

    fn add(&self, counter: impl Fn(&Self) -> &AtomicU64, by: u64) {
        counter(self).fetch_add(by, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            counter(whole).fetch_add(by, Ordering::Relaxed);
        }
    }

    /// CPU time spent in the guest and in moving its data, starts included.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Calls begun.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Records handed to the plugin.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Calls and starts that ended in an error of any kind.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let counts = self.failures.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How many of them were of this kind.
    #[must_use]
    pub fn failures_of(&self, kind: FaultKind) -> u64 {
        self.failures[kind as usize].load(Ordering::Relaxed)
    }

    /// Instances made.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    /// Log lines dropped for being over the rate.
    #[must_use]
    pub fn dropped_lines(&self) -> u64 {
        self.dropped_lines.load(Ordering::Relaxed)
    }

    pub(crate) fn count_call(&self, records: usize) {
        self.add(|usage| &usage.calls, 1);
        self.add(|usage| &usage.records, records as u64);
    }

    pub(crate) fn count_failure(&self, kind: FaultKind) {
        self.add(|usage| &usage.failures[kind as usize], 1);
    }

    pub(crate) fn count_start(&self) {
        self.add(|usage| &usage.starts, 1);
    }

    pub(crate) fn count_dropped_line(&self) {
        self.add(|usage| &usage.dropped_lines, 1);
    }

    fn add_cpu(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.add(|usage| &usage.cpu_ns, ns);
    }
}

/// The most that the first poll counts towards the deadline. The guest ran for a tick at least;
/// what is beyond two is more likely another process that had the core.
const FIRST_POLL_CAP: Duration = TICK.saturating_mul(2);

/// Reads a clock: the CPU time of the calling thread, or time as it passes.
fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Notes that a guest gave way at a tick. It does not wake the task: `metered` comes back by
/// itself, through the scheduler's queue for tasks that give way. A plain wake would put the task
/// straight back in the run queue, and a current-thread runtime would then look at timers and
/// sockets only every 61 polls.
#[derive(Debug, Default)]
struct Yielded(AtomicBool);

impl Wake for Yielded {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Why a guest was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its CPU time was up.
    Cpu,
    /// It waited for something other than its next turn.
    Waited,
}

/// The waker with which a runner polls its guests.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    yielded: Arc<Yielded>,
    waker: Waker,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let yielded = Arc::new(Yielded::default());
        Self {
            waker: Waker::from(Arc::clone(&yielded)),
            yielded,
        }
    }

    /// Runs `guest` until it ends or has used `deadline`; adds what it used to `usage` and
    /// `spent`.
    pub(crate) async fn run<F: Future>(
        &self,
        guest: F,
        deadline: Duration,
        usage: &Usage,
        spent: &mut Duration,
    ) -> Result<F::Output, Cut> {
        let mut guest = pin!(guest);
        let mut used = Duration::ZERO;
        let mut clock = ClockId::Monotonic;
        let mut cap = FIRST_POLL_CAP;
        loop {
            let step = poll_fn(|_| {
                let begun = read(clock);
                let step = guest.as_mut().poll(&mut Context::from_waker(&self.waker));
                let time = read(clock).saturating_sub(begun).min(cap);
                used += time;
                *spent += time;
                usage.add_cpu(time);
                Poll::Ready(step)
            });
            if let Poll::Ready(output) = step.await {
                return Ok(output);
            }
            if used >= deadline {
                return Err(Cut::Cpu);
            }
            tokio::task::yield_now().await;
            // By now every wake that was on its way has arrived.
            if !self.yielded.0.swap(false, Ordering::Relaxed) {
                return Err(Cut::Waited);
            }
            clock = ClockId::ThreadCPUTime;
            cap = Duration::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(guest: F, deadline: Duration) -> (Result<F::Output, Cut>, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let mut spent = Duration::ZERO;
        let usage = Usage::default();
        let result = runtime.block_on(Meter::new().run(guest, deadline, &usage, &mut spent));
        assert_eq!(usage.cpu(), spent);
        (result, spent)
    }

    #[test]
    fn a_future_that_gives_way_is_resumed() {
        let guest = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            7
        };
        assert_eq!(run(guest, Duration::from_secs(1)).0, Ok(7));
    }

    #[test]
    fn a_future_that_never_ends_is_cut_at_its_cpu_deadline() {
        let guest = async {
            loop {
                std::hint::black_box((0..1000).sum::<u64>());
                tokio::task::yield_now().await;
            }
        };
        let deadline = Duration::from_millis(5);
        let (result, spent): (Result<(), _>, _) = run(guest, deadline);
        assert_eq!(result, Err(Cut::Cpu));
        assert!(
            (deadline..Duration::from_secs(1)).contains(&spent),
            "{spent:?}"
        );
    }

    #[test]
    fn a_future_that_waits_is_cut_at_once() {
        let (result, spent) = run(std::future::pending::<()>(), Duration::from_secs(10));
        assert_eq!(result, Err(Cut::Waited));
        assert!(spent < Duration::from_secs(1), "{spent:?}");
    }
}
