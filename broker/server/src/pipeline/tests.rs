//! Pipelines with real plugins on a store in memory.
