//! Who reads the figures at the same time: so many, and not all of them from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::door::network;
use crate::limits::{METRICS_CONNECTIONS, METRICS_CONNECTIONS_PER_ADDRESS};

/// How many there are of each address; none is there without any.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The turns that there are.
pub(super) struct Turns {
    free: Arc<Semaphore>,
    counts: Counts,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(METRICS_CONNECTIONS)),
            counts: Counts::default(),
        }
    }
}

impl Turns {
    /// Waits for a turn that is free.
    pub(super) async fn next(&self) -> Turn {
        let permit = Arc::clone(&self.free).acquire_owned().await;
        Turn {
            _permit: permit.expect("nobody closes the semaphore"),
            counts: Arc::clone(&self.counts),
            of: None,
        }
    }
}

/// One turn, until it is dropped.
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
    counts: Counts,
    of: Option<IpAddr>,
}

impl Turn {
    /// Gives the turn, which is nobody's yet, to an address, unless that has its share already:
    /// whether it got it.
    pub(super) fn give(&mut self, to: IpAddr) -> bool {
        let of = network(to);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(of).or_default();
        if *count >= METRICS_CONNECTIONS_PER_ADDRESS {
            return false;
        }
        *count += 1;
        self.of = Some(of);
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(of) = self.of else {
            return;
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&of) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&of);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A turn for an address, if there is one for it; `None` if there is none for anybody.
    fn take(turns: &Turns, address: &str) -> Option<Result<Turn, ()>> {
        let mut turn = turns.next().now_or_never()?;
        let given = turn.give(address.parse().unwrap());
        Some(given.then_some(turn).ok_or(()))
    }

    #[test]
    fn one_address_does_not_have_all_of_them() {
        let turns = Turns::default();
        let mut held = Vec::new();
        while let Some(Ok(turn)) = take(&turns, "192.0.2.1") {
            held.push(turn);
        }
        assert_eq!(held.len(), METRICS_CONNECTIONS_PER_ADDRESS);
        // The same in the form that a listener for both families sees.
        assert!(matches!(take(&turns, "::ffff:192.0.2.1"), Some(Err(()))));
        for host in 2..10 {
            match take(&turns, &format!("192.0.2.{host}")) {
                Some(turn) => held.push(turn.unwrap()),
                None => break,
            }
        }
        assert_eq!(held.len(), METRICS_CONNECTIONS);
        assert!(take(&turns, "192.0.2.99").is_none());
        // What is given back can be had again, by the same address too.
        held.remove(0);
        assert!(matches!(take(&turns, "192.0.2.1"), Some(Ok(_))));
        held.clear();
        assert!(turns.counts.lock().unwrap().is_empty());
    }
}
