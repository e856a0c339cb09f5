//! Prints the records of a topic of the current context, from the oldest on:
//! `cargo run -p millstream --example consume -- acme/quakes`

use std::error::Error;
use std::io::Write;

use futures_util::StreamExt;
use millstream::{Client, Contexts, StartAt, TopicName};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let topic: TopicName = std::env::args()
        .nth(1)
        .ok_or("usage: consume tenant/topic")?
        .parse()?;
    let file = Contexts::default_path()?;
    let contexts = Contexts::load(&file)?;
    let (_, context) = contexts.choose(None)?;
    let client = Client::connect(context.client_config(&file)).await?;
    let mut consumer = client
        .consumer(topic)
        .start(StartAt::Earliest)
        .build()
        .await?;
    let mut messages = consumer.messages();
    let mut out = std::io::stdout().lock();
    while let Some(message) = messages.next().await {
        let message = message?;
        write!(out, "{}/{} ", message.partition, message.offset)?;
        out.write_all(message.value.as_deref().unwrap_or(b"(no value)"))?;
        writeln!(out)?;
    }
    Ok(())
}
