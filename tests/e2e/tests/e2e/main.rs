//! End-to-end tests: real QUIC, real certificates, real redb files, real guests.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

mod backups;
mod bad_requests;
mod chains;
mod doors;
mod doors_flood;
mod doors_identity;
mod doors_reload;
mod doors_resume;
mod metrics;
mod pipelines;
mod plugins;
mod policies;
mod producers;
mod quakes;
mod records;
mod shutdown;
mod storage;
mod topics;
