//! The Millstream broker: listener, sessions, actors.
//!
//! One current-thread runtime carries the QUIC endpoint and every session; the
//! store has a writer thread of its own, and plugins and pipelines run on a
//! third thread, so that neither the disk nor a guest holds up the network.
//!
//! What is absent: replication, consumer groups with rebalancing, transactions
//! over several producers' batches, and any listener without mutual TLS.

pub mod access;
pub mod backup;
mod broker;
pub mod catalog;
pub mod check;
mod clock;
pub mod config;
pub mod credentials;
mod door;
pub mod gate;
pub mod guests;
pub mod limits;
mod listen;
pub mod log;
pub mod metrics;
pub mod pipeline;
mod refusal;
mod reload;
mod reset;
pub mod route;
mod serve;
mod session;
pub mod sessions;
mod status;
mod stream;
pub mod tls;
mod transport;

pub use broker::{Broker, Running, StartError};
pub use clock::Clock;
pub use config::Config;
