//! What becomes of records and of the chain when a plugin fails: stop, skip, dead letters.

use super::*;

#[tokio::test]
async fn stop_stops_for_good_and_names_plugin_version_and_cause() {
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    for guest in [BAD_FILTER, BAD_TRANSFORM, BAD_PARTITIONER] {
        let uses = [bad(guest, "trap-on-poison", ErrorPolicy::Stop)];
        let chain = attach(&world, &topic, &uses).await.unwrap();
        let fine = batch_of(&[Rec::new("k", "fine")]);
        assert_eq!(
            chain
                .run(fine.clone(), None, &topic)
                .await
                .unwrap()
                .appends
                .len(),
            1
        );
        assert_eq!(chain.stopped(), None);
        let poison = batch_of(&[Rec::new("k", "poison")]);
        let error = chain.run(poison, None, &topic).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::PluginFailed, "{error}");
        for part in [guest.name, "version 2", "topic acme/t", "attached again"] {
            assert!(error.message.contains(part), "{part} in {error}");
        }
        // Even for records that would have passed.
        let error = chain.run(fine, None, &topic).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::PluginFailed);
        assert!(chain.stopped().unwrap().contains(guest.name));
    }
}

#[tokio::test]
async fn skip_leaves_out_the_call_and_goes_on() {
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    for guest in [BAD_FILTER, BAD_TRANSFORM, BAD_PARTITIONER] {
        let uses = [bad(guest, "trap-on-poison", ErrorPolicy::Skip)];
        let chain = attach(&world, &topic, &uses).await.unwrap();
        let poison = batch_of(&[Rec::new("k", "fine"), Rec::new("k", "poison")]);
        let passed = chain.run(poison, None, &topic).await.unwrap();
        assert_eq!((passed.appends.len(), passed.dropped), (0, 2), "{guest:?}");
        let fine = chain
            .run(batch_of(&[Rec::new("k", "fine")]), None, &topic)
            .await
            .unwrap();
        assert_eq!((fine.appends.len(), fine.dropped), (1, 0), "{guest:?}");
    }
}

#[tokio::test]
async fn dead_letters_are_part_of_the_same_commit() {
    for guest in [BAD_FILTER, BAD_TRANSFORM, BAD_PARTITIONER] {
        let world = World::new();
        let (topic, dead) = (world.topic("acme/t", 1), world.topic("acme/dead", 1));
        let uses = [bad(guest, "bad-record-on-poison", dead_letter("acme/dead"))];
        let chain = attach(&world, &topic, &uses).await.unwrap();
        let own = Rec {
            headers: vec![("h".into(), b"1".to_vec())],
            ..Rec::new("k", "poison 1")
        };
        let records = [
            Rec::new("k", "a"),
            own,
            Rec::new("k", "b"),
            Rec::new("k", "poison 2"),
        ];
        let passed = chain.run(batch_of(&records), None, &topic).await.unwrap();
        assert_eq!((passed.appends.len(), passed.dropped), (2, 2));
        world.commit(passed.appends).await;
        let texts = |records: &[Rec]| records.iter().map(Rec::value_text).collect::<Vec<_>>();
        assert_eq!(
            texts(&contents(&topic).await[0]),
            ["a", "b"],
            "only the bad are left out"
        );
        let dead = &contents(&dead).await[0];
        assert_eq!(texts(dead), ["poison 1", "poison 2"]);
        assert_eq!(dead[0].header("h").as_deref(), Some("1"));
        assert!(dead[1].header(ERROR_HEADER).unwrap().contains("told to"));
        let plugin = format!("acme/{} version 2", guest.name);
        assert_eq!(dead[1].header(PLUGIN_HEADER), Some(plugin));
        assert_eq!(dead[1].header(SOURCE_HEADER).as_deref(), Some("acme/t"));
    }
}

#[tokio::test]
async fn a_plugin_that_calls_everything_bad_is_not_asked_for_ever() {
    let world = World::new();
    let (topic, dead) = (world.topic("acme/t", 1), world.topic("acme/dead", 1));
    let uses = [bad(BAD_FILTER, "bad-record", dead_letter("acme/dead"))];
    let chain = attach(&world, &topic, &uses).await.unwrap();
    let records = vec![Rec::new("k", "v"); 100 + MAX_BAD_RECORDS];
    let passed = chain.run(batch_of(&records), None, &topic).await.unwrap();
    assert_eq!(passed.dropped as usize, records.len());
    world.commit(passed.appends).await;
    assert_eq!(contents(&dead).await[0].len(), records.len());
}

#[tokio::test]
async fn a_filters_dead_letters_need_a_topic_or_are_dropped() {
    let config = [("field", "mag"), ("op", ">"), ("value", "1")];
    let world = World::new();
    let (topic, dead) = (world.topic("acme/t", 1), world.topic("acme/dead", 1));
    let records = [
        quake("a", 2.0, 1.0, 1.0),
        Rec::new("b", "{mag}"),
        quake("c", 0.5, 1.0, 1.0),
    ];
    for (policy, expected) in [(dead_letter("acme/dead"), 1), (ErrorPolicy::Stop, 0)] {
        let before = contents(&dead).await[0].len();
        let uses = [using(FILTER_JSON, &config, policy)];
        let chain = attach(&world, &topic, &uses).await.unwrap();
        let passed = chain.run(batch_of(&records), None, &topic).await.unwrap();
        assert_eq!(passed.dropped, 2);
        world.commit(passed.appends).await;
        assert_eq!(contents(&dead).await[0].len() - before, expected);
    }
}

#[tokio::test]
async fn a_dead_letter_topic_that_is_gone_stops_the_chain() {
    let world = World::new();
    let (topic, _) = (world.topic("acme/t", 1), world.topic("acme/dead", 1));
    let uses = [bad(
        BAD_FILTER,
        "bad-record-on-poison",
        dead_letter("acme/dead"),
    )];
    let chain = attach(&world, &topic, &uses).await.unwrap();
    world.forget_topic("acme/dead");
    let poison = batch_of(&[Rec::new("k", "poison")]);
    let error = chain.run(poison, None, &topic).await.unwrap_err();
    assert!(
        error.message.contains("acme/dead does not exist"),
        "{error}"
    );
}

#[tokio::test]
async fn retry_is_handed_to_the_producer_and_fatal_stops_whatever_the_policy() {
    let world = World::new();
    let topic = world.topic("acme/t", 1);
    let batch = batch_of(&[Rec::new("k", "v")]);
    let uses = [bad(BAD_FILTER, "retry", ErrorPolicy::Skip)];
    let chain = attach(&world, &topic, &uses).await.unwrap();
    let error = chain.run(batch.clone(), None, &topic).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PluginRetry);
    assert!(error.retry_after_ms.is_some());
    assert_eq!(chain.stopped(), None);
    let uses = [bad(BAD_FILTER, "fatal", ErrorPolicy::Skip)];
    let chain = attach(&world, &topic, &uses).await.unwrap();
    let error = chain.run(batch, None, &topic).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PluginFailed);
    assert!(chain.stopped().unwrap().contains("gave up: told to"));
}
