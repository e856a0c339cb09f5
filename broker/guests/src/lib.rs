//! The example plugins, compiled
