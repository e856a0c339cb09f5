//! The names under which consumers commit.

use super::*;
use crate::limits::MAX_CONSUMERS;

fn name(number: usize) -> millstream_proto::ConsumerName {
    format!("c{number}").parse().unwrap()
}

fn commit(number: usize, partition: u32) -> Request {
    Request::CommitOffsets {
        topic: topic("acme/a"),
        consumer: name(number),
        offsets: vec![(PartitionId(partition), Offset(0))],
    }
}

fn forget(number: usize) -> Request {
    Request::ForgetConsumer {
        topic: topic("acme/a"),
        consumer: name(number),
    }
}

#[tokio::test]
async fn a_topic_has_so_many_consumers_and_no_more_until_one_is_forgotten() {
    let dir = good();
    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    topic_info(&admin, create("acme/a", 2)).await;
    topic_info(&admin, create("acme/b", 1)).await;
    let all = (0..MAX_CONSUMERS).map(|number| ask(&admin, commit(number, 0)));
    for committed in futures_util::future::join_all(all).await {
        assert_eq!(committed, Ok(Response::Done));
    }
    let error = ask(&admin, commit(MAX_CONSUMERS, 0)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidConfig);
    assert!(error.message.contains("--forget"), "{error}");
    // The same name in another partition is no other, and other topics have their own.
    assert_eq!(ask(&admin, commit(0, 1)).await, Ok(Response::Done));
    let elsewhere = Request::CommitOffsets {
        topic: topic("acme/b"),
        consumer: name(MAX_CONSUMERS),
        offsets: vec![(PartitionId(0), Offset(0))],
    };
    assert_eq!(ask(&admin, elsewhere).await, Ok(Response::Done));
    drop(admin);
    running.shutdown().await;

    let running = start(&dir).await;
    let admin = peer(&running, ADMIN);
    let refused_still = refused(&admin, commit(MAX_CONSUMERS, 0)).await;
    assert_eq!(refused_still, ErrorCode::InvalidConfig);
    assert_eq!(ask(&admin, forget(0)).await, Ok(Response::Done));
    let fetch = Request::FetchOffsets {
        topic: topic("acme/a"),
        consumer: name(0),
    };
    assert_eq!(ask(&admin, fetch).await, Ok(Response::Offsets(Vec::new())));
    let stranger = peer(&running, STRANGER);
    let not_theirs = refused(&stranger, forget(1)).await;
    assert_eq!(not_theirs, ErrorCode::NotAuthorized);
    assert_eq!(
        ask(&admin, commit(MAX_CONSUMERS, 0)).await,
        Ok(Response::Done)
    );
    assert_eq!(
        refused(&admin, commit(0, 0)).await,
        ErrorCode::InvalidConfig
    );
    running.shutdown().await;
}
