//! The harness of the end-to-end tests: real certificates, a real broker on a
//! port that the system chooses, real redb files in a directory that goes away.

mod broker;
mod openmetrics;
mod pki;
mod raw;
mod records;

pub use broker::{Setup, TestBroker, allow, topic};
pub use openmetrics::{Labels, MetricFamily, MetricsPage};
pub use pki::{Pki, Purpose, Subject};
pub use raw::{RawConnection, RawStream};
pub use records::{
    batch, end, eventually, header, partitions, plugin, produce, read, text, texts, upload, using,
};
