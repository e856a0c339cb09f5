//! How fast background work may go, and how it is told to end.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Measures how long something takes.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A limit on how many bytes a second somebody reads, and a way to end it from another thread.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    stopped: Mutex<bool>,
    told: Condvar,
}

impl Pace {
    /// At most so many bytes a second, or as fast as it goes.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            stopped: Mutex::new(false),
            told: Condvar::new(),
        }
    }

    /// Has whoever keeps this pace end soon.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }

    /// Whether [`Pace::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes`, read since `since`, are within the limit. Says whether to go on.
    pub(crate) fn keep(&self, since: &Stopwatch, bytes: u64) -> bool {
        let due = self.bytes_per_second.map_or(Duration::ZERO, |limit| {
            Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64)
        });
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        while !*stopped {
            let left = due.saturating_sub(since.elapsed());
            if left.is_zero() {
                return true;
            }
            let woken = self.told.wait_timeout(stopped, left);
            stopped = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_and_a_stop_ends_the_waiting() {
        let (pace, watch) = (Pace::new(Some(1 << 20)), Stopwatch::start());
        assert!(pace.keep(&watch, 64 << 10));
        assert!(watch.elapsed() >= Duration::from_millis(62));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pace.keep(&watch, u64::from(u32::MAX) << 20));
            pace.stop();
            assert!(!waiting.join().unwrap_or(true));
        });
        assert!(pace.is_stopped());
        assert!(!Pace::keep(&pace, &watch, 0));
    }
}
