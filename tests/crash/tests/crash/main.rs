//! Brokers that are killed, and a disk that is full.
//!
//! `MILLSTREAM_CRASH_SEED=<number>` chooses other points to kill at than usual.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
#![allow(
    clippy::print_stdout,
    reason = "shown with a failure: what happened, and how to repeat it"
)]

mod backup;
mod full_disk;
mod kill;
mod reset;
mod rows;

/// The broker.
const PROGRAM: &str = env!("CARGO_BIN_EXE_crash-broker");
