//! What rules open, and what those without a rule may learn.

use millstream_proto::pipeline::PipelineSpec;

use super::*;

/// Requests about things of these names.
fn about(topic_name: &str, plugin_name: &str, pipeline: &str) -> Vec<Request> {
    let (topic, plugin) = (topic(topic_name), plugin(plugin_name));
    let pipeline: millstream_proto::PipelineName = pipeline.parse().unwrap();
    let consumer: millstream_proto::ConsumerName = "c".parse().unwrap();
    let spec = PipelineSpec {
        name: pipeline.clone(),
        input: topic.clone(),
        from_latest: false,
        steps: Vec::new(),
        outputs: vec![("out".into(), "acme/out".parse().unwrap())],
    };
    let grant = rule(
        STRANGER,
        &[Operation::Produce],
        ResourceKind::Topic,
        topic_name,
    );
    vec![
        Request::CreateTopic {
            topic: topic.clone(),
            config: TopicConfig::default(),
        },
        Request::AlterTopic {
            topic: topic.clone(),
            change: TopicChange::default(),
        },
        Request::DeleteTopic {
            topic: topic.clone(),
        },
        Request::DescribeTopic {
            topic: topic.clone(),
        },
        Request::CommitOffsets {
            topic: topic.clone(),
            consumer: consumer.clone(),
            offsets: vec![],
        },
        Request::FetchOffsets {
            topic: topic.clone(),
            consumer,
        },
        Request::FindOffsets {
            topic: topic.clone(),
            at: StartAt::Latest,
        },
        Request::DeletePlugin {
            plugin: plugin.clone(),
            version: None,
        },
        Request::PluginLog {
            plugin: plugin.clone(),
            from: 0,
        },
        Request::Attach {
            topic: topic.clone(),
            plugin: PluginUse::new(plugin.clone()),
        },
        Request::Detach { topic, plugin },
        Request::ApplyPipeline(spec),
        Request::ShowPipeline {
            pipeline: pipeline.clone(),
        },
        Request::PausePipeline {
            pipeline: pipeline.clone(),
        },
        Request::ResumePipeline {
            pipeline: pipeline.clone(),
        },
        Request::DeletePipeline { pipeline },
        Request::Grant(grant.clone()),
        Request::Revoke(grant),
        Request::CheckAccess {
            principal: ADMIN.parse().unwrap(),
            operation: Operation::Manage,
            resource: ResourceKind::Topic,
            name: topic_name.to_owned(),
        },
        Request::Status,
    ]
}

#[tokio::test]
async fn who_has_no_right_does_not_learn_what_there_is() {
    let dir = good();
    let running = start(&dir).await;
    let (admin, stranger) = (peer(&running, ADMIN), peer(&running, STRANGER));
    for name in ["acme/is", "acme/out"] {
        topic_info(&admin, create(name, 1)).await;
    }
    store_plugin(&admin, "acme/is", FILTER_FIELD).await;
    let spec = about("acme/is", "acme/is", "acme/is").into_iter();
    let apply = spec
        .filter(|request| matches!(request, Request::ApplyPipeline(_)))
        .last()
        .unwrap();
    ask(&admin, apply).await.unwrap();

    let there = about("acme/is", "acme/is", "acme/is");
    let not_there = about("acme/no", "acme/no", "acme/no");
    for (there, not_there) in there.into_iter().zip(not_there) {
        let what = format!("{there:?}");
        let of_there = ask(&stranger, there).await.unwrap_err();
        let of_not_there = ask(&stranger, not_there).await.unwrap_err();
        assert_eq!(of_there.code, ErrorCode::NotAuthorized, "{what}");
        assert_eq!(
            of_there.message.replace("acme/is", "acme/no"),
            of_not_there.message,
            "{what}"
        );
    }
    assert_eq!(
        ask(&stranger, list(None)).await,
        Ok(Response::Topics(vec![]))
    );
    let plugins = Request::ListPlugins {
        tenant: None,
        after: None,
    };
    assert_eq!(ask(&stranger, plugins).await, Ok(Response::Plugins(vec![])));
    let pipelines = Request::ListPipelines {
        tenant: None,
        after: None,
    };
    assert_eq!(
        ask(&stranger, pipelines).await,
        Ok(Response::Pipelines(vec![]))
    );
    assert_eq!(
        ask(&stranger, Request::ListRules).await,
        Ok(Response::Rules(vec![]))
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_rule_opens_what_it_says_and_revoking_closes_it() {
    let dir = good();
    let running = start(&dir).await;
    let (admin, user) = (peer(&running, ADMIN), peer(&running, STRANGER));
    let manage = rule(
        STRANGER,
        &[Operation::Manage],
        ResourceKind::Topic,
        "acme/*",
    );
    assert_eq!(
        refused(&user, create("acme/a", 1)).await,
        ErrorCode::NotAuthorized
    );
    ask(&admin, Request::Grant(manage.clone())).await.unwrap();
    topic_info(&user, create("acme/a", 1)).await;
    assert_eq!(
        ask(&user, list(None)).await,
        Ok(Response::Topics(vec![topic("acme/a")]))
    );
    assert_eq!(
        refused(&user, create("other/a", 1)).await,
        ErrorCode::NotAuthorized
    );
    let fetch = Request::FetchOffsets {
        topic: topic("acme/a"),
        consumer: "c".parse().unwrap(),
    };
    assert_eq!(refused(&user, fetch).await, ErrorCode::NotAuthorized);
    let question = |operation| Request::CheckAccess {
        principal: STRANGER.parse().unwrap(),
        operation,
        resource: ResourceKind::Topic,
        name: "acme/a".into(),
    };
    let allowed = Response::Decision {
        allowed: true,
        rule: Some(manage.clone()),
    };
    assert_eq!(ask(&user, question(Operation::Describe)).await, Ok(allowed));
    let denied = Response::Decision {
        allowed: false,
        rule: None,
    };
    assert_eq!(ask(&admin, question(Operation::Produce)).await, Ok(denied));
    assert_eq!(
        ask(&admin, Request::ListRules).await,
        Ok(Response::Rules(vec![manage.clone()]))
    );
    ask(&admin, Request::Revoke(manage)).await.unwrap();
    assert_eq!(
        refused(&user, create("acme/b", 1)).await,
        ErrorCode::NotAuthorized
    );
    running.shutdown().await;
}
