//! Whether the broker still hears us.
//!
//! QUIC's idle timeout takes its time, and a broker that was killed sends no
//! goodbye. But a sender whose packets are not confirmed probes again and again:
//! probing that goes unanswered for [`SILENCE`] means that nobody is there.

use std::time::Duration;

use quinn::{Connection, VarInt};
use tokio::time::Instant;

/// Unanswered probing after which the broker counts as gone.
const SILENCE: Duration = Duration::from_secs(3);
/// How often to look.
const TICK: Duration = Duration::from_millis(500);
/// Ticks with something sent and nothing heard that it takes. One or two may be
/// mere confirmations, which nobody answers.
const PROBED_TICKS: u32 = 3;

/// What was sent and heard up to the last look.
#[derive(Debug)]
struct Silence {
    sent: u64,
    heard: u64,
    heard_at: Instant,
    probed_ticks: u32,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self {
            sent: 0,
            heard: 0,
            heard_at: now,
            probed_ticks: 0,
        }
    }

    /// Takes in how many packets were sent and heard so far; whether the broker
    /// counts as gone.
    fn look(&mut self, now: Instant, sent: u64, heard: u64) -> bool {
        if heard != self.heard {
            (self.heard_at, self.probed_ticks) = (now, 0);
        } else if sent != self.sent {
            self.probed_ticks += 1;
        }
        (self.sent, self.heard) = (sent, heard);
        self.probed_ticks >= PROBED_TICKS && now - self.heard_at >= SILENCE
    }
}

/// Watches a connection until it ends, and ends it when the broker is gone.
pub(crate) async fn watch(connection: Connection) {
    let mut silence = Silence::new(Instant::now());
    let ended = connection.closed();
    tokio::pin!(ended);
    while tokio::time::timeout(TICK, &mut ended).await.is_err() {
        let stats = connection.stats();
        let (sent, heard) = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
        if silence.look(Instant::now(), sent, heard) {
            tracing::debug!("the broker does not answer; connecting anew");
            connection.close(VarInt::from_u32(0), b"no answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once per tick at (sent, heard); returns the tick of the verdict.
    fn gone_at(looks: impl IntoIterator<Item = (u64, u64)>) -> Option<usize> {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let mut now = start;
        looks.into_iter().position(|(sent, heard)| {
            now += TICK;
            silence.look(now, sent, heard)
        })
    }

    #[test]
    fn unanswered_probes_end_a_connection() {
        // Heard in the first tick, then a probe in every other tick.
        let looks = (0..20).map(|i| (1 + i / 2, 1));
        assert_eq!(gone_at(looks), Some(6));
    }

    #[test]
    fn an_idle_connection_lives() {
        // The last confirmation goes out a tick after the last thing heard.
        let looks = (0..100).map(|i| (1 + u64::from(i > 0), 1));
        assert_eq!(gone_at(looks), None);
    }

    #[test]
    fn an_answer_now_and_then_is_enough() {
        let looks = (0..100).map(|i| (i, i / 5));
        assert_eq!(gone_at(looks), None);
    }
}
