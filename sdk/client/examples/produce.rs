//! Produces the lines of standard input to a topic of the current context:
//! `cargo run -p millstream --example produce -- acme/quakes < lines.txt`

use std::error::Error;
use std::io::BufRead;
use std::time::Duration;

use millstream::{Client, Contexts, Record, TopicName};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let topic: TopicName = std::env::args()
        .nth(1)
        .ok_or("usage: produce tenant/topic")?
        .parse()?;
    let file = Contexts::default_path()?;
    let contexts = Contexts::load(&file)?;
    let (_, context) = contexts.choose(None)?;
    let client = Client::connect(context.client_config(&file)).await?;
    let producer = client
        .producer(topic)
        .linger(Duration::from_millis(5))
        .build()
        .await?;
    let mut deliveries = Vec::new();
    for line in std::io::stdin().lock().lines() {
        deliveries.push(producer.send(&Record::value(line?.as_bytes())).await?);
    }
    producer.close().await?;
    for delivery in deliveries {
        delivery.await?;
    }
    client.close().await;
    Ok(())
}
