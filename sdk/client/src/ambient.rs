//! The process's surroundings: the wall clock and entropy, read here and
//! nowhere else. Monotonic time comes from tokio, so tests can turn it.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use tokio::time::Instant;

/// Both clocks, as one who gathers records asks for them: seldom, so that they
/// are read only where needed.
pub(crate) trait Clock {
    /// Monotonic time, for waiting.
    fn instant(&self) -> Instant;
    /// Wall time in milliseconds since the Unix epoch, for timestamps.
    fn millis(&self) -> i64;
}

/// The clocks as they are at each question.
pub(crate) struct Running;

impl Clock for Running {
    fn instant(&self) -> Instant {
        Instant::now()
    }

    fn millis(&self) -> i64 {
        now_ms()
    }
}

/// The clocks as they were once.
#[derive(Clone, Copy)]
pub(crate) struct Stopped {
    pub(crate) instant: Instant,
    pub(crate) millis: i64,
}

impl Stopped {
    /// At this moment.
    pub(crate) fn now() -> Self {
        Self {
            instant: Instant::now(),
            millis: now_ms(),
        }
    }
}

impl Clock for Stopped {
    fn instant(&self) -> Instant {
        self.instant
    }

    fn millis(&self) -> i64 {
        self.millis
    }
}

/// Milliseconds since the Unix epoch; 0 on a clock that stands before it.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// A number that nobody can foresee, from the TLS library's generator.
///
/// Where that generator fails, which leaves no TLS connection either, the
/// randomly keyed hasher of the standard library stands in.
pub(crate) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};

    let mut bytes = [0; 8];
    match aws_lc_rs::default_provider().secure_random.fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => RandomState::new().build_hasher().finish(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random_u64(), random_u64());
    }

    #[test]
    fn the_clock_stands_in_this_century() {
        assert!(now_ms() > 1_600_000_000_000);
    }
}
