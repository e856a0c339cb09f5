//! A limit on bytes per second.

use std::time::Duration;

use tokio::time::Instant;

/// Lets bytes pass at a rate, without saving up for bursts.
pub(super) struct Throttle {
    rate: Option<u64>,
    /// When the bytes that have passed so far are paid for.
    due: Instant,
}

impl Throttle {
    /// At most so many bytes a second; as fast as it goes if there is no limit.
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self {
            rate: rate.map(|rate| rate.max(1)),
            due: Instant::now(),
        }
    }

    /// Waits until `bytes` more may pass.
    pub(super) async fn take(&mut self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.due = self.due.max(Instant::now()) + cost;
        tokio::time::sleep_until(self.due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(1 << 20));
        for _ in 0..8 {
            throttle.take(512 << 10).await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(4));
        Throttle::new(None).take(u64::MAX).await;
        assert_eq!(start.elapsed(), Duration::from_secs(4));
    }
}
