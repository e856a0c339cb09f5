//! The numbers a plugin counts for its owner: few names, never reset while the broker runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::limits::{MAX_COUNTER_NAME_BYTES, MAX_COUNTERS};

/// The counters of one plugin, shared by its runners.
#[derive(Debug, Default)]
pub struct Counters {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    values: BTreeMap<String, u64>,
    refused: u64,
}

impl Counters {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Valid after every statement; see LogBook.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to a counter. A name that is too long, not printable ASCII, or one too many is
    /// refused and counted as such.
    pub fn add(&self, name: &str, by: u64) {
        let mut inner = self.inner();
        if let Some(value) = inner.values.get_mut(name) {
            *value = value.saturating_add(by);
            return;
        }
        let valid = (1..=MAX_COUNTER_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic());
        if valid && inner.values.len() < MAX_COUNTERS {
            inner.values.insert(name.to_owned(), by);
        } else {
            inner.refused = inner.refused.saturating_add(1);
        }
    }

    /// All counters by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, u64)> {
        self.inner()
            .values
            .iter()
            .map(|(name, value)| (name.clone(), *value))
            .collect()
    }

    /// How often a name was refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.inner().refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_name_and_refuses_too_many() {
        let counters = Counters::default();
        for index in 0..MAX_COUNTERS + 5 {
            counters.add(&format!("name{index}"), 1);
        }
        counters.add("name0", u64::MAX);
        counters.add("", 1);
        counters.add("a b", 1);
        counters.add(&"x".repeat(MAX_COUNTER_NAME_BYTES + 1), 1);
        assert_eq!(counters.snapshot().len(), MAX_COUNTERS);
        assert_eq!(counters.snapshot()[0], ("name0".into(), u64::MAX));
        assert_eq!(counters.refused(), 8);
    }
}
