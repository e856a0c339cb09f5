//! Pipelines with real plugins on a store in memory.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::time::Duration;

use millstream_guests::{BAD_FILTER, FILTER_FIELD, REDACT, SPLIT_ALERTS};
use millstream_proto::pipeline::{ErrorPolicy, PluginUse};
use millstream_proto::topic::TopicConfig;
use millstream_proto::{Codec, PartitionId};

use super::*;
use crate::guests::fixture::{
    Rec, World, batch_of, contents, dead_letter, encoded, guests, me, using,
};
use crate::guests::{ERROR_HEADER, SOURCE_HEADER};
use crate::log::Append;

/// A broker's pipelines; dropped and opened again on the same world they have restarted.
struct Running {
    pipelines: Pipelines,
    gate: Gate,
    _directory: Arc<dyn Directory>,
}

async fn open(world: &Arc<World>) -> Running {
    let (pipelines, gate, directory) = (Pipelines::default(), Gate::default(), world.directory());
    let context = Context {
        store: Arc::clone(&world.store),
        guests: guests(),
        gate: gate.clone(),
        directory: Arc::downgrade(&directory),
    };
    pipelines.open(context).await.unwrap();
    Running {
        pipelines,
        gate,
        _directory: directory,
    }
}

impl Running {
    async fn shutdown(self) {
        self.gate.close();
        self.gate.empty().await;
    }

    fn info(&self) -> PipelineInfo {
        self.pipelines.show(&me(), &name()).unwrap()
    }

    async fn apply(&self, steps: Vec<PluginUse>, outputs: &[&str]) -> PipelineInfo {
        self.pipelines
            .apply(&me(), spec(steps, outputs))
            .await
            .unwrap()
    }

    /// Waits until the pipeline has read everything there is.
    async fn caught_up(&self) {
        let caught_up = |info: &PipelineInfo| info.progress.iter().all(|p| p.position == p.end);
        self.until(caught_up).await;
    }

    async fn failed(&self) -> String {
        self.until(|info| matches!(info.state, PipelineState::Failed(_)))
            .await;
        let PipelineState::Failed(why) = self.info().state else {
            panic!("it has failed")
        };
        why
    }

    async fn until(&self, done: impl Fn(&PipelineInfo) -> bool) {
        let waiting = async {
            while !done(&self.info()) {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        waited.unwrap_or_else(|_| panic!("it stands at {:?}", self.info()));
    }
}

fn name() -> PipelineName {
    "acme/p".parse().unwrap()
}

fn spec(steps: Vec<PluginUse>, outputs: &[&str]) -> PipelineSpec {
    PipelineSpec {
        name: name(),
        input: "acme/in".parse().unwrap(),
        from_latest: false,
        steps,
        outputs: outputs
            .iter()
            .map(|output| {
                (
                    (*output).to_owned(),
                    format!("acme/{output}").parse().unwrap(),
                )
            })
            .collect(),
    }
}

fn below(bound: u8) -> PluginUse {
    let bound = bound.to_string();
    let config = [("type", "u8"), ("op", "<"), ("value", bound.as_str())];
    using(FILTER_FIELD, &config, ErrorPolicy::Stop)
}

fn bad(mode: &str, on_error: ErrorPolicy) -> PluginUse {
    using(BAD_FILTER, &[("mode", mode)], on_error)
}

fn texts(records: &[Rec]) -> Vec<String> {
    records.iter().map(Rec::value_text).collect()
}

fn quakes(from: u32, count: u32) -> Vec<Rec> {
    let quake = |n| {
        let value = format!(r#"{{"id":"q{n}","mag":{}}}"#, f64::from(n % 10));
        Rec {
            timestamp: 5,
            ..Rec::new(&format!("k{n}"), &value)
        }
    };
    (from..from + count).map(quake).collect()
}

#[tokio::test]
async fn a_split_writes_to_both_outputs_and_goes_on_after_a_restart() {
    let world = World::new();
    let input = world.topic("acme/in", 3);
    let (alerts, log) = (world.topic("acme/alerts", 1), world.topic("acme/log", 2));
    let steps = vec![using(
        SPLIT_ALERTS,
        &[("threshold", "7")],
        ErrorPolicy::Stop,
    )];
    let mut running = open(&world).await;
    let info = running.apply(steps, &["alerts", "log"]).await;
    assert_eq!(
        info.spec.steps[0].version,
        Some(2),
        "versions are filled in"
    );
    assert_eq!(info.state, PipelineState::Running);
    for round in 0..6u32 {
        for partition in 0..3 {
            world
                .write(
                    &input,
                    partition,
                    &quakes(round * 300 + partition * 100, 100),
                )
                .await;
        }
        if round % 2 == 0 {
            // Whatever it is doing just now.
            running.shutdown().await;
            running = open(&world).await;
        }
    }
    running.caught_up().await;
    let mut ids: Vec<_> = contents(&log)
        .await
        .concat()
        .iter()
        .map(Rec::value_text)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(contents(&log).await.concat().len(), 1_800, "each once");
    assert_eq!(ids.len(), 1_800);
    let alerts = contents(&alerts).await.concat();
    assert_eq!(alerts.len(), 540);
    assert!(
        alerts
            .iter()
            .all(|alert| alert.value_text().contains("severity"))
    );
    // The order within an input partition is that of its output.
    for records in contents(&log).await {
        for partition in 0..3 {
            let number = |rec: &Rec| {
                let key = String::from_utf8(rec.key.clone().unwrap()).unwrap();
                key[1..].parse::<u32>().unwrap()
            };
            let own = |n: &u32| n / 100 % 3 == partition;
            assert!(records.iter().map(number).filter(own).is_sorted());
        }
    }
    running.shutdown().await;
}

#[tokio::test]
async fn without_plugins_it_copies_and_the_batches_are_the_same() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    let batch = encoded(&quakes(0, 200), Codec::Lz4);
    world
        .commit(vec![
            Append::to(&input, PartitionId(0), batch.clone()).unwrap(),
        ])
        .await;
    let running = open(&world).await;
    running.apply(Vec::new(), &["out"]).await;
    running.caught_up().await;
    let stored = out.partitions()[0]
        .read(millstream_proto::Offset(0), 1)
        .await
        .unwrap();
    assert_eq!(stored[0].batch, batch);
    let info = running.info();
    assert_eq!((info.records_in, info.records_out), (200, 200));
    running.shutdown().await;
}

#[tokio::test]
async fn small_batches_are_put_together_and_nothing_of_them_is_lost() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    let mut expected = Vec::new();
    for n in 0..50u8 {
        let headers = vec![("n".to_owned(), vec![n])];
        let headers = if n % 3 == 0 { headers } else { Vec::new() };
        let timestamp = i64::from(n) * 10;
        let record = Rec {
            key: Some(vec![n]),
            value: Some(vec![n]),
            headers,
            timestamp,
            offset: 0,
        };
        let batch = match n % 4 {
            0 => encoded(std::slice::from_ref(&record), Codec::Zstd),
            _ => batch_of(std::slice::from_ref(&record)),
        };
        world
            .commit(vec![Append::to(&input, PartitionId(0), batch).unwrap()])
            .await;
        if n < 40 {
            expected.push(Rec {
                offset: u64::from(n),
                ..record
            });
        }
    }
    let running = open(&world).await;
    running.apply(vec![below(40)], &["out"]).await;
    running.caught_up().await;
    assert_eq!(contents(&out).await, [expected]);
    let stored = out.partitions()[0]
        .read(millstream_proto::Offset(0), 1)
        .await
        .unwrap();
    assert_eq!(stored[0].batch.count(), 40, "as one batch");
    running.shutdown().await;
}

#[tokio::test]
async fn a_failure_is_remembered_and_resuming_goes_on_from_there() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    let running = open(&world).await;
    running
        .apply(vec![bad("trap-on-poison", ErrorPolicy::Stop)], &["out"])
        .await;
    world.write(&input, 0, &[Rec::new("k", "fine")]).await;
    running.caught_up().await;
    world.write(&input, 0, &[Rec::new("k", "poison")]).await;
    let why = running.failed().await;
    for part in [
        "acme/bad-filter version 2",
        "pipeline acme/p",
        "partition 0",
        "offset 1",
    ] {
        assert!(why.contains(part), "{part} in {why}");
    }
    running.shutdown().await;
    // Still so after a restart, and nothing runs.
    let running = open(&world).await;
    assert_eq!(running.failed().await, why);
    running.pipelines.resume_one(&me(), &name()).await.unwrap();
    assert!(
        running.failed().await.contains("offset 1"),
        "the poison is still there"
    );
    running
        .apply(vec![bad("trap-on-poison", ErrorPolicy::Skip)], &["out"])
        .await;
    running.caught_up().await;
    world.write(&input, 0, &[Rec::new("k", "fine too")]).await;
    running.caught_up().await;
    assert_eq!(texts(&contents(&out).await[0]), ["fine", "fine too"]);
    assert_eq!(running.info().skipped, 1);
    running.shutdown().await;
}

#[tokio::test]
async fn dead_letters_name_topic_partition_and_offset() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 2), world.topic("acme/out", 1));
    let dead = world.topic("acme/dead", 1);
    let running = open(&world).await;
    let steps = vec![bad("bad-record-on-poison", dead_letter("acme/dead"))];
    running.apply(steps, &["out"]).await;
    world
        .write(
            &input,
            1,
            &[
                Rec::new("k", "a"),
                Rec::new("k", "poison"),
                Rec::new("k", "b"),
            ],
        )
        .await;
    running.caught_up().await;
    assert_eq!(texts(&contents(&out).await[0]), ["a", "b"]);
    let dead = contents(&dead).await.remove(0);
    assert_eq!(
        dead[0].header(SOURCE_HEADER).as_deref(),
        Some("acme/in/1/1")
    );
    assert!(dead[0].header(ERROR_HEADER).unwrap().contains("told to"));
    let info = running.info();
    assert_eq!(
        (info.records_in, info.records_out, info.dead_letters),
        (3, 2, 1)
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_paused_pipeline_reads_nothing_and_stays_paused() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    let running = open(&world).await;
    running.apply(vec![below(200)], &["out"]).await;
    let paused = running.pipelines.pause(&me(), &name()).await.unwrap();
    assert_eq!(paused.state, PipelineState::Paused);
    world.write(&input, 0, &[Rec::new("k", "v")]).await;
    running.shutdown().await;
    let running = open(&world).await;
    let info = running.apply(vec![below(201)], &["out"]).await;
    assert_eq!(info.state, PipelineState::Paused);
    assert_eq!(
        (info.progress[0].position.0, info.progress[0].end.0),
        (0, 1)
    );
    assert_eq!(contents(&out).await[0], []);
    running.pipelines.resume_one(&me(), &name()).await.unwrap();
    running.caught_up().await;
    assert_eq!(contents(&out).await[0].len(), 1);
    running.shutdown().await;
}

#[tokio::test]
async fn a_deleted_pipeline_leaves_its_output_and_begins_anew() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    world.write(&input, 0, &[Rec::new("k", "v")]).await;
    let running = open(&world).await;
    for round in 1..=2 {
        running.apply(Vec::new(), &["out"]).await;
        running.caught_up().await;
        assert_eq!(contents(&out).await[0].len(), round);
        running.pipelines.delete(&me(), &name()).await.unwrap();
    }
    let error = running.pipelines.show(&me(), &name()).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownPipeline);
    running.shutdown().await;
    let running = open(&world).await;
    assert_eq!(running.pipelines.list(&me(), None, None).unwrap(), []);
    running.shutdown().await;
}

#[tokio::test]
async fn it_begins_where_it_was_told_and_reads_new_partitions_whole() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    world.write(&input, 0, &[Rec::new("k", "before")]).await;
    let running = open(&world).await;
    let latest = PipelineSpec {
        from_latest: true,
        ..spec(Vec::new(), &["out"])
    };
    running.pipelines.apply(&me(), latest).await.unwrap();
    world.write(&input, 0, &[Rec::new("k", "after")]).await;
    running.caught_up().await;
    input.set_config(TopicConfig {
        partitions: 2,
        ..TopicConfig::default()
    });
    world.write(&input, 1, &[Rec::new("k", "grown")]).await;
    running.caught_up().await;
    assert_eq!(texts(&contents(&out).await[0]), ["after", "grown"]);
    running.shutdown().await;
}

#[tokio::test]
async fn a_revoked_right_or_a_deleted_topic_ends_it() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    let running = open(&world).await;
    running.apply(Vec::new(), &["out"]).await;
    running.caught_up().await;
    // Though there is nothing to write to it just now.
    out.delete();
    assert!(running.failed().await.contains("acme/out was deleted"));
    world.write(&input, 0, &[Rec::new("k", "v")]).await;
    world.topic("acme/out", 1);
    running.pipelines.resume_one(&me(), &name()).await.unwrap();
    running.caught_up().await;
    world.deny(Operation::Consume, "acme/in");
    world.write(&input, 0, &[Rec::new("k", "v")]).await;
    assert!(
        running
            .failed()
            .await
            .contains("may not consume topic acme/in")
    );
    let error = running
        .pipelines
        .resume_one(&me(), &name())
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::NotAuthorized);
    running.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_wants_time_gets_it_and_loses_nothing() {
    let world = World::new();
    let (input, out) = (world.topic("acme/in", 1), world.topic("acme/out", 1));
    let running = open(&world).await;
    running
        .apply(vec![bad("retry", ErrorPolicy::Stop)], &["out"])
        .await;
    world.write(&input, 0, &[Rec::new("k", "v")]).await;
    // It waits; meanwhile the plugin is replaced.
    let info = running
        .apply(vec![bad("behave", ErrorPolicy::Stop)], &["out"])
        .await;
    assert_eq!(info.state, PipelineState::Running);
    running.caught_up().await;
    assert_eq!(contents(&out).await[0].len(), 1);
    running.shutdown().await;
}

#[tokio::test]
async fn what_does_not_hold_together_is_refused_and_changes_nothing() {
    let world = World::new();
    world.topic("acme/in", 1);
    world.topic("acme/out", 1);
    world.topic("acme/more", 1);
    let running = open(&world).await;
    let refused = async |spec: PipelineSpec, code: ErrorCode, part: &str| {
        let error = running.pipelines.apply(&me(), spec).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(part), "{part} in {error}");
    };
    let invalid = ErrorCode::InvalidPipeline;
    refused(spec(Vec::new(), &[]), invalid, "0 outputs").await;
    refused(
        spec(vec![below(3)], &["out", "more"]),
        invalid,
        "no transform",
    )
    .await;
    refused(
        spec(Vec::new(), &["nowhere"]),
        ErrorCode::UnknownTopic,
        "acme/nowhere",
    )
    .await;
    let to_input = bad("behave", dead_letter("acme/in"));
    refused(spec(vec![to_input], &["out"]), invalid, "never end").await;
    let redact = using(REDACT, &[], ErrorPolicy::Stop);
    refused(spec(vec![redact], &["out"]), invalid, "fields is missing").await;
    let unknown = PluginUse::new("acme/unknown".parse().unwrap());
    refused(
        spec(vec![unknown], &["out"]),
        ErrorCode::UnknownPlugin,
        "acme/unknown",
    )
    .await;
    world.deny(Operation::Produce, "acme/secret");
    // The right is asked for before the name is looked up.
    refused(
        spec(Vec::new(), &["secret"]),
        ErrorCode::NotAuthorized,
        "acme/secret",
    )
    .await;
    assert_eq!(running.pipelines.list(&me(), None, None).unwrap(), []);
    running.shutdown().await;
}

#[tokio::test]
async fn listing_goes_by_name_tenant_and_right() {
    let world = World::new();
    world.topic("acme/in", 1);
    world.topic("acme/out", 1);
    let running = open(&world).await;
    for name in ["acme/b", "acme/a", "acme/hidden", "other/c"] {
        let name = name.parse().unwrap();
        let spec = PipelineSpec {
            name,
            ..spec(vec![below(9)], &["out"])
        };
        running.pipelines.apply(&me(), spec).await.unwrap();
    }
    world.deny(Operation::Describe, "acme/hidden");
    let list = |tenant: Option<&str>, after: Option<&str>| {
        let tenant = tenant.map(|tenant| tenant.parse::<Tenant>().unwrap());
        let after = after.map(|after| after.parse::<PipelineName>().unwrap());
        let infos = running
            .pipelines
            .list(&me(), tenant.as_ref(), after.as_ref())
            .unwrap();
        infos
            .iter()
            .map(|info| info.spec.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(list(None, None), ["acme/a", "acme/b", "other/c"]);
    assert_eq!(list(Some("acme"), Some("acme/a")), ["acme/b"]);
    let plugin = "acme/filter-field".parse().unwrap();
    assert!(running.pipelines.user_of(&plugin, Some(2)).is_some());
    assert_eq!(running.pipelines.user_of(&plugin, Some(1)), None);
    running.shutdown().await;
}
