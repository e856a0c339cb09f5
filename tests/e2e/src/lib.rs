//! The harness of the end-to-end tests: real certificates, a real broker on a
//! port that the system chooses, real redb files in a directory that goes away.

mod broker;
mod pki;

pub use broker::{TestBroker, topic};
pub use pki::{Pki, Subject};
