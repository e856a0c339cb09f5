//! Chains with real plugins.
