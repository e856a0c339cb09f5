//! Runners with the example plugins, good and hostile.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod fair;
mod good;
mod hostile;
