//! Shutdown: refuse who wants in, wait for who is inside.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

/// Number of permits that stands for "everybody is out".
const ALL: u32 = 1 << 20;

/// Lets tasks in until it is closed, then waits until they are out.
#[derive(Clone, Debug)]
pub struct Gate {
    closing: watch::Sender<bool>,
    inside: Arc<Semaphore>,
}

/// Whoever holds it is inside.
#[derive(Debug)]
pub struct Inside {
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            closing: watch::Sender::new(false),
            inside: Arc::new(Semaphore::new(ALL as usize)),
        }
    }
}

impl Gate {
    /// Enters; `None` when the gate is closing.
    #[must_use]
    pub fn enter(&self) -> Option<Inside> {
        if self.is_closing() {
            return None;
        }
        let permit = Arc::clone(&self.inside).try_acquire_owned().ok()?;
        Some(Inside { _permit: permit })
    }

    /// Whether shutdown has begun.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Resolves when shutdown begins.
    pub async fn closing(&self) {
        let mut closing = self.closing.subscribe();
        // The sender lives as long as `self`.
        let _ = closing.wait_for(|c| *c).await;
    }

    /// Begins shutdown.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Resolves when everybody is out. Call [`Gate::close`] first.
    pub async fn empty(&self) {
        let _ = self.inside.acquire_many(ALL).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_gate_lets_nobody_in_and_waits() {
        let gate = Gate::default();
        let inside = gate.enter().unwrap();
        gate.close();
        assert!(gate.enter().is_none());
        gate.closing().await;
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.empty().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(inside);
        waiting.await.unwrap();
    }
}
