//! Runs Millstream plugins: sandboxed, metered, replaceable
