//! Grants a guest memory and tables up to its limits; past them, growing is a trap.
//!
//! A trap rather than a failed `memory.grow`, because std turns the failure into an abort anyway
//! and then the cause would be lost. The limiter remembers what was asked for.

use wasmtime::ResourceLimiter;

use crate::error::LimitHit;
use crate::limits::{Limits, MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_TABLES};

/// The limits of one instance and how far it has gone.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_limit: usize,
    memory: usize,
    table_limit: usize,
    elements: usize,
    hit: Option<LimitHit>,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory_limit: limits.memory_bytes,
            memory: 0,
            table_limit: limits.table_elements,
            elements: 0,
            hit: None,
        }
    }

    /// Linear memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// The limit that ended a call, if one did.
    pub(crate) fn hit(&self) -> Option<LimitHit> {
        self.hit.clone()
    }

    fn refuse(&mut self, hit: LimitHit) -> wasmtime::Result<bool> {
        self.hit = Some(hit.clone());
        Err(wasmtime::Error::new(hit))
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self.memory.saturating_add(desired.saturating_sub(current));
        if wanted > self.memory_limit {
            return self.refuse(LimitHit::Memory {
                wanted,
                limit: self.memory_limit,
            });
        }
        self.memory = wanted;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self
            .elements
            .saturating_add(desired.saturating_sub(current));
        if wanted > self.table_limit {
            return self.refuse(LimitHit::Table {
                wanted,
                limit: self.table_limit,
            });
        }
        self.elements = wanted;
        Ok(true)
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES as usize
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES as usize
    }

    fn tables(&self) -> usize {
        MAX_TABLES as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_summed_and_the_refusal_is_remembered() {
        let limits = Limits {
            memory_bytes: 100,
            table_elements: 10,
            ..Limits::default()
        };
        let mut limiter = Limiter::new(&limits);
        assert!(
            limiter
                .memory_growing(0, 60, None)
                .is_ok_and(|granted| granted)
        );
        assert!(limiter.memory_growing(0, 41, None).is_err());
        assert_eq!(
            limiter.hit(),
            Some(LimitHit::Memory {
                wanted: 101,
                limit: 100
            })
        );
        assert_eq!(limiter.memory(), 60);
        assert!(
            limiter
                .memory_growing(60, 100, None)
                .is_ok_and(|granted| granted)
        );
        assert!(limiter.table_growing(0, 11, None).is_err());
        assert_eq!(
            limiter.hit(),
            Some(LimitHit::Table {
                wanted: 11,
                limit: 10
            })
        );
    }
}
