//! How long to wait before trying again, and when to give up.
//!
//! Pure: time and randomness are arguments. Nothing here sleeps.

use std::time::Duration;

use tokio::time::Instant;

/// Exponential backoff with jitter.
///
/// The delay before attempt *n* lies between half of and the whole of
/// `first * 2^n`, never above `max`. The jitter keeps clients that lost the same
/// broker from coming back in the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first delay.
    pub first: Duration,
    /// Upper bound of every delay.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            max: Duration::from_secs(2),
        }
    }
}

impl Backoff {
    /// The delay before retry number `attempt`, counted from 0. `random` is any
    /// evenly distributed number.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX);
        let whole = self.first.saturating_mul(factor).min(self.max);
        let half = whole / 2;
        // The upper 32 bits as a fraction of one.
        let fraction = (random >> 32) as f64 / f64::from(u32::MAX);
        half + (whole - half).mul_f64(fraction)
    }
}

/// One operation's attempts until a deadline.
#[derive(Clone, Debug)]
pub(crate) struct Attempts {
    backoff: Backoff,
    deadline: Duration,
    since: Option<Instant>,
    attempt: u32,
}

impl Attempts {
    /// Attempts that end `deadline` after the first failure.
    pub(crate) fn new(backoff: Backoff, deadline: Duration) -> Self {
        Self {
            backoff,
            deadline,
            since: None,
            attempt: 0,
        }
    }

    /// Something failed at `now`: how long to wait before the next attempt, or
    /// `None` when the deadline leaves no time for one. A hint of the broker
    /// counts as the least to wait.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        hint_ms: Option<u32>,
        random: u64,
    ) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let own = self.backoff.delay(self.attempt, random);
        let hint = Duration::from_millis(u64::from(hint_ms.unwrap_or(0)));
        let delay = own.max(hint);
        self.attempt = self.attempt.saturating_add(1);
        let spent = now.saturating_duration_since(since);
        (spent + delay <= self.deadline).then_some(delay)
    }

    /// Something succeeded: the next failure starts anew.
    pub(crate) fn progressed(&mut self) {
        self.since = None;
        self.attempt = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_lie_between_half_and_whole(
            attempt in 0u32..100, random: u64, first_ms in 1u64..1000, max_ms in 1u64..60_000,
        ) {
            let backoff = Backoff {
                first: Duration::from_millis(first_ms),
                max: Duration::from_millis(max_ms),
            };
            let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX);
            let whole = backoff.first.saturating_mul(factor).min(backoff.max);
            let delay = backoff.delay(attempt, random);
            prop_assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
        }

        #[test]
        fn attempts_end_by_the_deadline(
            randoms in proptest::collection::vec(any::<u64>(), 1..50),
            hint in proptest::option::of(0u32..3000),
        ) {
            let deadline = Duration::from_secs(10);
            let mut attempts = Attempts::new(Backoff::default(), deadline);
            let start = Instant::now();
            let mut now = start;
            for random in randoms {
                match attempts.failed(now, hint, random) {
                    Some(delay) => {
                        prop_assert!(delay >= Duration::from_millis(u64::from(hint.unwrap_or(0))));
                        now += delay;
                        prop_assert!(now - start <= deadline);
                    }
                    None => break,
                }
            }
        }
    }

    #[test]
    fn progress_starts_anew() {
        let mut attempts = Attempts::new(Backoff::default(), Duration::from_secs(1));
        let start = Instant::now();
        let first = attempts.failed(start, None, u64::MAX).unwrap();
        let later = start + Duration::from_secs(5);
        assert_eq!(attempts.failed(later, None, u64::MAX), None);
        attempts.progressed();
        assert_eq!(attempts.failed(later, None, u64::MAX), Some(first));
    }
}
