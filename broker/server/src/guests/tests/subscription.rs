//! The chain of a subscription.

use super::*;
use crate::log::Stored;

async fn subscribe(world: &Arc<World>, uses: &[PluginUse]) -> SubscriptionChain {
    let (directory, store) = (world.directory(), Arc::clone(&world.store));
    let topic = "acme/t".parse().unwrap();
    guests()
        .subscription_chain(&topic, &me(), uses.to_vec(), directory, store)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_subscription_keeps_the_offsets_of_what_passes() {
    let world = World::new();
    let chain = subscribe(&world, &[below(30)]).await;
    let stored = |batch| Stored {
        base: Offset(1_000),
        batch,
    };
    let whole = stored(batch_of(&numbered(20)));
    let through = chain.run(whole.clone(), PartitionId(2)).await.unwrap();
    let Through::Whole(same) = through else {
        panic!("{through:?}")
    };
    assert_eq!((same.base, same.batch), (whole.base, whole.batch));

    let high = |n: u8| numbered(n + 1).remove(usize::from(n));
    let mixed: Vec<_> = [50, 3, 60, 61, 4, 5, 70].map(high).to_vec();
    let through = chain
        .run(stored(batch_of(&mixed)), PartitionId(2))
        .await
        .unwrap();
    let Through::Made(batches) = through else {
        panic!("{through:?}")
    };
    let got: Vec<_> = batches
        .iter()
        .flat_map(|batch| decoded(batch, None))
        .collect();
    let offsets: Vec<_> = got.iter().map(|rec| rec.offset).collect();
    assert_eq!(offsets, [1_001, 1_004, 1_005]);
    assert_eq!(unplaced(got), [3, 4, 5].map(high));

    let none = chain
        .run(stored(batch_of(&[high(99)])), PartitionId(2))
        .await
        .unwrap();
    assert!(matches!(none, Through::Made(batches) if batches.is_empty()));
}

#[tokio::test]
async fn a_subscription_commits_its_dead_letters_with_their_source() {
    let world = World::new();
    let dead = world.topic("acme/dead", 1);
    let uses = [bad(
        BAD_TRANSFORM,
        "bad-record-on-poison",
        dead_letter("acme/dead"),
    )];
    let chain = subscribe(&world, &uses).await;
    let batch = batch_of(&[Rec::new("k", "fine"), Rec::new("k", "poison")]);
    let through = chain
        .run(
            Stored {
                base: Offset(40),
                batch,
            },
            PartitionId(2),
        )
        .await
        .unwrap();
    assert!(matches!(through, Through::Made(batches) if batches[0].count() == 1));
    let dead = &contents(&dead).await[0][0];
    assert_eq!(dead.header(SOURCE_HEADER).as_deref(), Some("acme/t/2/41"));
}

#[tokio::test]
async fn a_plugin_is_cut_off_when_its_reader_has_gone() {
    let world = World::new();
    let dead = world.topic("acme/dead", 1);
    let chain = subscribe(&world, &[bad(BAD_FILTER, "spin", dead_letter("acme/dead"))]).await;
    let stored = |base| Stored {
        base: Offset(base),
        batch: batch_of(&numbered(1)),
    };
    {
        // The plugin spins for longer, in CPU time: it has begun, and is not finished.
        let gone = chain.run(stored(1), PartitionId(0));
        let waited = tokio::time::timeout(Duration::from_millis(20), gone).await;
        assert!(waited.is_err());
    }
    chain.run(stored(2), PartitionId(0)).await.unwrap();
    let sources: Vec<_> = contents(&dead).await[0]
        .iter()
        .filter_map(|rec| rec.header(SOURCE_HEADER))
        .collect();
    assert_eq!(sources, ["acme/t/0/2"]);
}

#[tokio::test]
async fn a_subscription_ends_with_its_plugin() {
    let world = World::new();
    let chain = subscribe(
        &world,
        &[bad(BAD_FILTER, "trap-on-poison", ErrorPolicy::Stop)],
    )
    .await;
    let stored = |text| Stored {
        base: Offset(0),
        batch: batch_of(&[Rec::new("k", text)]),
    };
    let error = chain
        .run(stored("poison"), PartitionId(0))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::PluginFailed);
    assert!(error.message.contains("subscribe again"), "{error}");
    assert!(chain.run(stored("fine"), PartitionId(0)).await.is_err());
    let route = vec![using(ROUTE_BY_REGION, &[], ErrorPolicy::Stop)];
    let (directory, store) = (world.directory(), Arc::clone(&world.store));
    let topic = "acme/t".parse().unwrap();
    let error = guests()
        .subscription_chain(&topic, &me(), route, directory, store)
        .await;
    assert_eq!(error.unwrap_err().code, ErrorCode::AttachInvalid);
}
