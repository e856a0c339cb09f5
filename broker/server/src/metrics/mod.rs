//! Figures for whoever watches the broker, in the text format of OpenMetrics.
//!
//! `counters` is what is counted as the broker goes along. `families` is the list of what is
//! exported, `gather` reads it all together when somebody asks, and `endpoint` is who answers:
//! over plain HTTP on the machine itself, to administrators over mutual TLS elsewhere.
//!
//! Absent: series for each topic, plugin or principal, since nobody bounds how many there are (the
//! command line shows each of them), lags of consumers, whose positions are in the store and would
//! have to be read for it, and anything that is pushed.

mod counters;
mod endpoint;
mod families;
mod gather;
mod page;
#[cfg(test)]
mod tests;

pub use counters::{Amount, Counters, Refusal, StreamKind, Traffic};
pub use endpoint::MetricsError;
pub(crate) use endpoint::{Endpoint, Listener};
pub use families::{FAMILIES, Family, Kind, Unit};
