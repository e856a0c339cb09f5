//! Millstream's decisions: state machines without IO, clock or threads.
//!
//! Everything here takes its inputs as arguments, `now` included, and returns
//! what should happen. Nothing here waits, reads a clock or touches a disk.

pub mod acl;
pub mod dedup;
pub mod pipeline;
