//! Records in, records out.

use millstream::Record;
use millstream_e2e::{TestBroker, topic};
use millstream_proto::topic::{StartAt, TopicConfig};

#[tokio::test]
async fn records_come_out_as_they_went_in_also_after_a_restart() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let name = topic("acme/events");
    let config = TopicConfig {
        partitions: 4,
        ..TopicConfig::default()
    };
    client.create_topic(name.clone(), config).await.unwrap();
    let producer = client.producer(name.clone()).build().await.unwrap();
    let mut deliveries = Vec::new();
    for i in 0..1000u32 {
        let (key, value) = (format!("k{}", i % 17), format!("value {i}"));
        let record = Record::value(value.as_bytes())
            .key(key.as_bytes())
            .headers(&[("n", b"1")]);
        deliveries.push(producer.send(&record).await.unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.close().await.unwrap();
    for restarted in [false, true] {
        if restarted {
            broker.restart().await;
        }
        let client = broker.client("acme", "reader").await;
        let mut consumer = client
            .consumer(name.clone())
            .start(StartAt::Earliest)
            .until_end(true)
            .build()
            .await
            .unwrap();
        let mut by_key = std::collections::HashMap::<Vec<u8>, Vec<u32>>::new();
        while let Some(message) = consumer.next_message().await {
            let message = message.unwrap();
            let value = String::from_utf8(message.value.unwrap().to_vec()).unwrap();
            let i: u32 = value.strip_prefix("value ").unwrap().parse().unwrap();
            assert_eq!(
                message.key.as_deref().unwrap(),
                format!("k{}", i % 17).as_bytes()
            );
            assert_eq!(message.headers.len(), 1);
            by_key
                .entry(message.key.unwrap().to_vec())
                .or_default()
                .push(i);
        }
        assert_eq!(by_key.values().map(Vec::len).sum::<usize>(), 1000);
        assert!(
            by_key.values().all(|seen| seen.is_sorted()),
            "order within a key"
        );
    }
    broker.stop().await;
}
