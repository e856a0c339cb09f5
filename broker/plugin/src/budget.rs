//! How soon a runner may run again: a token bucket of CPU time, and a penalty after failures.
//!
//! Pure: `now` is an argument. The bucket keeps a plugin at its share of a core in the long run;
//! the penalty keeps one that only burns its deadline or dies at a small share, so that a broken
//! plugin costs its neighbours little.

use std::time::{Duration, Instant};

use crate::limits::Limits;

/// The CPU budget of one runner.
#[derive(Debug)]
pub(crate) struct Budget {
    share: f64,
    burst: f64,
    penalty_factor: u32,
    penalty_cap: Duration,
    /// Seconds of CPU time that may be used at `filled`; below 0 is a debt.
    balance: f64,
    filled: Instant,
    barred_until: Instant,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        let burst = limits.cpu_burst.as_secs_f64();
        Self {
            share: limits.cpu_share,
            burst,
            penalty_factor: limits.penalty_factor,
            penalty_cap: limits.penalty_cap,
            balance: burst,
            filled: now,
            barred_until: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.filled).as_secs_f64() * self.share;
        self.balance = (self.balance + earned).min(self.burst);
        self.filled = self.filled.max(now);
    }

    /// How long the next call must wait.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let debt = if self.balance < 0.0 {
            -self.balance / self.share
        } else {
            0.0
        };
        let barred = self.barred_until.saturating_duration_since(now);
        barred.max(Duration::try_from_secs_f64(debt).unwrap_or(self.penalty_cap))
    }

    /// Accounts a call that used `cpu` and has just ended; `failed` by a trap or a limit.
    pub(crate) fn spend(&mut self, now: Instant, cpu: Duration, failed: bool) {
        self.fill(now);
        self.balance -= cpu.as_secs_f64();
        if failed {
            let penalty = cpu
                .saturating_mul(self.penalty_factor)
                .min(self.penalty_cap);
            self.barred_until = self.barred_until.max(now + penalty);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn budget() -> (Budget, Instant) {
        let limits = Limits {
            cpu_share: 0.5,
            cpu_burst: 100 * MS,
            penalty_factor: 19,
            penalty_cap: 1000 * MS,
            ..Limits::default()
        };
        let start = Instant::now();
        (Budget::new(&limits, start), start)
    }

    /// Runs calls of 10 ms back to back for 10 s of pretended time; the share of it they got.
    fn share(failed: bool) -> f64 {
        let (mut budget, start) = budget();
        let mut now = start;
        let mut used = Duration::ZERO;
        while now - start < 10_000 * MS {
            now += budget.wait(now) + 10 * MS;
            used += 10 * MS;
            budget.spend(now, 10 * MS, failed);
        }
        used.as_secs_f64() / (now - start).as_secs_f64()
    }

    #[test]
    fn long_run_share_is_kept() {
        let share = share(false);
        assert!((0.49..0.53).contains(&share), "{share}");
    }

    #[test]
    fn failing_calls_get_a_twentieth() {
        let share = share(true);
        assert!((0.04..0.055).contains(&share), "{share}");
    }

    #[test]
    fn a_burst_runs_without_waiting() {
        let (mut budget, start) = budget();
        for _ in 0..10 {
            assert_eq!(budget.wait(start), Duration::ZERO);
            budget.spend(start, 10 * MS, false);
        }
        budget.spend(start, 10 * MS, false);
        assert_eq!(budget.wait(start).as_millis(), 20);
        assert_eq!(budget.wait(start + 20 * MS), Duration::ZERO);
    }

    #[test]
    fn a_penalty_is_capped() {
        let (mut budget, start) = budget();
        budget.spend(start, 100 * MS, true);
        assert_eq!(budget.wait(start), 1000 * MS);
        assert_eq!(budget.wait(start + 1000 * MS), Duration::ZERO);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_called_when_the_share_is_kept(
            calls in proptest::collection::vec((0u64..200, 0u64..80, proptest::bool::ANY), 1..60)
        ) {
            let (mut budget, start) = budget();
            let mut now = start;
            let (mut used, mut last) = (Duration::ZERO, Duration::ZERO);
            for (pause, cpu, failed) in calls {
                now += Duration::from_millis(pause);
                let wait = budget.wait(now);
                now += wait;
                proptest::prop_assert_eq!(budget.wait(now).as_millis(), 0);
                // Before a call, all earlier ones are paid for: by the burst and the time since.
                let earned = 0.1 + 0.5 * (now - start).as_secs_f64();
                proptest::prop_assert!(used.as_secs_f64() <= earned + 1e-6, "{:?} {:?}", used, last);
                last = Duration::from_millis(cpu);
                used += last;
                now += last;
                budget.spend(now, last, failed);
            }
        }
    }
}
