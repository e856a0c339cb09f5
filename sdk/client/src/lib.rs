//! The Millstream client: producers, consumers, administration.
//!
//! A [`Client`] is one connection over QUIC with mutual TLS 1.3, shared by all
//! that is made from it and made anew when it is lost. From it come
//! [producers](Client::producer), [consumers](Client::consumer) and a method for
//! each administrative request. Everything runs inside the caller's tokio
//! runtime.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use millstream::{Client, Contexts, Record, StartAt};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let file = Contexts::default_path()?;
//! let contexts = Contexts::load(&file)?;
//! let (_, context) = contexts.choose(None)?;
//! let client = Client::connect(context.client_config(&file)).await?;
//!
//! let producer = client.producer("acme/quakes".parse()?).build().await?;
//! producer.send(&Record::value(b"4.7 Mw")).await?.await?;
//! producer.close().await?;
//!
//! let mut consumer = client
//!     .consumer("acme/quakes".parse()?)
//!     .start(StartAt::Earliest)
//!     .until_end(true)
//!     .build()
//!     .await?;
//! let mut messages = consumer.messages();
//! while let Some(message) = messages.next().await {
//!     println!("{:?}", message?.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Absent on purpose: session resumption and 0-RTT, with which a revoked
//! certificate would live on; blocking calls; consumer groups.

mod admin;
mod ambient;
mod config;
mod connect;
mod consumer;
mod contexts;
mod control;
mod error;
mod liveness;
mod producer;
mod record;
mod retry;
mod stream;
pub mod transport;
mod upload;

pub use config::{ClientConfig, ConfigError, Identity, Pem};
pub use connect::Client;
pub use consumer::{ConsumedBatch, Consumer, ConsumerBuilder, MAX_GAPS, OnSetback};
pub use contexts::{Context, ContextError, Contexts};
pub use error::{ConnectError, ConsumeError, ProduceError, RequestError, UploadError};
pub use producer::{
    BatchDelivery, BatchPlaced, Delivery, MAX_IN_FLIGHT, Placed, Producer, ProducerBuilder,
};
pub use record::{Message, Record};
pub use retry::Backoff;
pub use transport::TransportSettings;

/// The protocol: names, batches, messages, error codes and limits.
pub use millstream_proto as proto;
pub use millstream_proto::message::{Gap, GapCause};
pub use millstream_proto::pipeline::PluginUse;
pub use millstream_proto::topic::{StartAt, TopicConfig};
pub use millstream_proto::{
    Codec, ConsumerName, ErrorClass, ErrorCode, Offset, PartitionId, PipelineName, PluginName,
    Principal, RecordRef, Tenant, TopicName, WireError,
};
