//! What plugins cost: per record from host to guest and back, per instance, per upload.
//!
//! `cargo run --release -p millstream-plugin --example plugin_bench [filter]`. Times are per
//! record unless a unit is given; medians over many calls, so run it on a quiet machine.

#![allow(clippy::print_stdout)] // a table is what it makes
#![allow(clippy::unwrap_used)] // a bench that cannot go on stops

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use json_field::Condition;
use millstream_guests::{self as guests, Guest};
use millstream_plugin::{
    Columns, EngineConfig, Label, Limits, LogBook, LogLimits, Outlet, PluginEngine, Registry,
    Runner, RunnerSpec, Verdict,
};

/// How long each figure is measured.
const TIME: Duration = Duration::from_millis(700);

/// Median and tenths of a set of times.
struct Times(Vec<f64>);

impl Times {
    fn at(&self, tenths: usize) -> f64 {
        self.0[(self.0.len() - 1) * tenths / 10]
    }
}

/// Times `work` again and again; nanoseconds per unit of `units`.
fn time(units: usize, mut work: impl FnMut()) -> Times {
    for _ in 0..20 {
        work();
    }
    let begun = Instant::now();
    let mut times = Vec::new();
    while begun.elapsed() < TIME || times.len() < 5 {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_secs_f64() * 1e9 / units as f64);
    }
    times.sort_by(f64::total_cmp);
    Times(times)
}

fn row(what: &str, times: &Times) {
    let [low, median, high] = [1, 5, 9].map(|tenths| times.at(tenths));
    println!("{what:<58} {low:>10.1} {median:>10.1} {high:>10.1}");
}

/// A batch of records with 16-byte keys.
struct Batch {
    data: Vec<u8>,
    spans: Vec<u32>,
    values: Vec<Vec<u8>>,
}

fn batch(records: usize, value: impl Fn(usize) -> Vec<u8>) -> Batch {
    let mut batch = Batch {
        data: vec![],
        spans: vec![],
        values: vec![],
    };
    for index in 0..records {
        let value = value(index);
        let at = u32::try_from(batch.data.len()).unwrap();
        let len = u32::try_from(value.len()).unwrap();
        batch
            .data
            .extend_from_slice(format!("key-{index:012}").as_bytes());
        batch.data.extend_from_slice(&value);
        batch.spans.extend([at, 16, at + 16, len, 0, 0]);
        batch.values.push(value);
    }
    batch
}

impl Batch {
    fn columns(&self) -> Columns<'_> {
        Columns {
            data: &self.data,
            spans: &self.spans,
            ..Columns::default()
        }
    }
}

/// 100 bytes that do not compress, with a counter at the front.
fn binary(index: usize) -> Vec<u8> {
    let mut state = index as u64;
    let mut value = state.to_le_bytes().to_vec();
    value.resize_with(100, || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    value
}

/// About 100 bytes of JSON, the field wanted in the middle.
fn json(index: usize) -> Vec<u8> {
    let magnitude = index % 90;
    format!(
        r#"{{"id":"us{index:08}","time":17000{index:08},"mag":{}.{},"place":"{} km off the coast","depth":{}.5}}"#,
        magnitude / 10,
        magnitude % 10,
        index % 300,
        index % 70,
    )
    .into_bytes()
}

/// An earthquake as the demo has them: about 300 bytes.
fn quake(index: usize) -> Vec<u8> {
    format!(
        r#"{{"id":"us{index:08}","time":17000{index:08},"lat":{}.25,"lon":-{}.75,"depth":10.5,"mag":{}.{},"magType":"ml","place":"{} km SSW of somewhere, far away","status":"reviewed","tsunami":0,"sig":{},"net":"us","nst":17,"dmin":0.1,"rms":0.4,"gap":90,"type":"earthquake"}}"#,
        index % 90,
        index % 180,
        index % 9,
        index % 10,
        index % 300,
        index % 1000,
    )
    .into_bytes()
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    registry: Registry,
    wanted: String,
}

impl Bench {
    fn wants(&self, what: &str) -> bool {
        what.contains(&self.wanted)
    }

    fn runner(&self, guest: Guest, config: &[(&str, &str)]) -> Runner {
        let outlet = |name: &str| Outlet {
            name: name.into(),
            partitions: 8,
        };
        let spec = RunnerSpec {
            label: Label {
                plugin: "bench/plugin".parse().unwrap(),
                version: 1,
                place: "bench".into(),
                partition: None,
            },
            tenant: "bench".parse().unwrap(),
            inputs: vec!["bench/in".into()],
            outputs: vec![outlet("alerts"), outlet("log")],
            config: config
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            limits: Limits {
                cpu_share: 1.0,
                cpu_burst: Duration::from_secs(1000),
                penalty_factor: 0,
                ..Limits::default()
            },
            log: Arc::new(LogBook::new(LogLimits::default(), Arc::new(|| 0))),
            counters: Arc::default(),
        };
        let plugin = self.registry.load(guest.wasm).unwrap();
        Runner::new(self.registry.engine(), plugin, spec).unwrap()
    }

    fn filter(&self, what: &str, runner: &mut Runner, batch: &Batch) {
        if self.wants(what) {
            let columns = batch.columns();
            let times = self.runtime.block_on(async {
                let mut times = vec![];
                let begun = Instant::now();
                while begun.elapsed() < TIME {
                    let start = Instant::now();
                    black_box(runner.filter(&columns).await.unwrap());
                    times.push(start.elapsed().as_secs_f64() * 1e9 / batch.values.len() as f64);
                }
                times.sort_by(f64::total_cmp);
                Times(times)
            });
            row(what, &times);
        }
    }

    fn other(&self, what: &str, runner: &mut Runner, batch: &Batch, transform: bool) {
        if self.wants(what) {
            let columns = batch.columns();
            let times = time(batch.values.len(), || {
                self.runtime.block_on(async {
                    if transform {
                        black_box(runner.transform(&columns).await.unwrap());
                    } else {
                        black_box(runner.assign(&columns, 8).await.unwrap());
                    }
                });
            });
            row(what, &times);
        }
    }
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let engine = PluginEngine::new(EngineConfig::default()).unwrap();
    let started = begun.elapsed();
    let registry = Registry::open(engine.clone(), directory.path().to_owned()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let bench = Bench {
        runtime,
        registry,
        wanted,
    };
    println!("engine start {started:?}");
    println!(
        "{:<58} {:>10} {:>10} {:>10}",
        "ns per record", "p10", "median", "p90"
    );
    loads(&bench, &engine, directory.path());
    filters(&bench);
    json_filters(&bench);
    others(&bench);
    starts(&bench);
}

/// What an upload costs until it can run, with and without its artifact.
fn loads(bench: &Bench, engine: &PluginEngine, directory: &std::path::Path) {
    for guest in [
        guests::FILTER_FIELD,
        guests::FILTER_JSON,
        guests::SPLIT_ALERTS,
    ] {
        let what = format!("load {} ({} KiB)", guest.name, guest.wasm.len() / 1024);
        if bench.wants(&what) {
            let begun = Instant::now();
            drop(bench.registry.load(guest.wasm).unwrap());
            let compiled = begun.elapsed();
            let fresh = Registry::open(engine.clone(), directory.to_owned()).unwrap();
            let times = time(1, || drop(black_box(fresh.load(guest.wasm).unwrap())));
            println!("{what}: compile {compiled:?}");
            row(&format!("{what}: from its artifact, ns each"), &times);
        }
    }
}

fn filters(bench: &Bench) {
    let config = [
        ("offset", "0"),
        ("type", "u64"),
        ("op", ">="),
        ("value", "500"),
    ];
    let mut runner = bench.runner(guests::FILTER_FIELD, &config);
    for records in [1, 10, 100, 1000, 10_000] {
        let batch = batch(records, binary);
        bench.filter(
            &format!("field filter, {records} x 100 B"),
            &mut runner,
            &batch,
        );
    }
    let batch = batch(1000, binary);
    if bench.wants("field filter, native") {
        let times = time(1000, || {
            let batch = black_box(&batch);
            let verdicts = batch.spans.as_chunks::<6>().0.iter().map(|span| {
                let value = &batch.data[span[2] as usize..][..span[3] as usize];
                let number = value
                    .first_chunk()
                    .map_or(0, |bytes| u64::from_le_bytes(*bytes));
                if number >= 500 {
                    Verdict::Keep
                } else {
                    Verdict::Drop
                }
            });
            black_box(verdicts.collect::<Vec<_>>());
        });
        row("field filter, native, 1000 x 100 B", &times);
    }
}

fn json_filters(bench: &Bench) {
    let config = [("field", "mag"), ("op", ">="), ("value", "4.5")];
    let condition = Condition::new("mag".parse().unwrap(), ">=".parse().unwrap(), "4.5").unwrap();
    let mut runner = bench.runner(guests::FILTER_JSON, &config);
    for (name, value) in [("100 B", json as fn(usize) -> Vec<u8>), ("300 B", quake)] {
        let batch = batch(1000, value);
        bench.filter(&format!("json filter, 1000 x {name}"), &mut runner, &batch);
        if bench.wants("json filter, native") {
            let times = time(1000, || {
                let batch = black_box(&batch);
                let verdicts = batch.spans.as_chunks::<6>().0.iter().map(|span| {
                    let value = &batch.data[span[2] as usize..][..span[3] as usize];
                    match condition.holds(value) {
                        Ok(true) => Verdict::Keep,
                        Ok(false) => Verdict::Drop,
                        Err(_) => Verdict::DeadLetter,
                    }
                });
                black_box(verdicts.collect::<Vec<_>>());
            });
            row(&format!("json filter, native, 1000 x {name}"), &times);
        }
    }
}

fn others(bench: &Bench) {
    let small = batch(1000, binary);
    let quakes = batch(1000, quake);
    let mut behave = bench.runner(guests::BAD_PARTITIONER, &[]);
    bench.other(
        "partitioner that chooses 0, 1000 x 100 B",
        &mut behave,
        &small,
        false,
    );
    let mut route = bench.runner(guests::ROUTE_BY_REGION, &[]);
    bench.other(
        "partitioner by region, 1000 x 300 B",
        &mut route,
        &quakes,
        false,
    );
    let mut behave = bench.runner(guests::BAD_TRANSFORM, &[]);
    bench.other(
        "transform that keeps all, 1000 x 100 B",
        &mut behave,
        &small,
        true,
    );
    let mut redact = bench.runner(guests::REDACT, &[("fields", "place,net")]);
    bench.other(
        "transform that redacts two fields, 1000 x 300 B",
        &mut redact,
        &quakes,
        true,
    );
    let mut split = bench.runner(guests::SPLIT_ALERTS, &[]);
    bench.other(
        "transform that makes alerts, 1000 x 300 B",
        &mut split,
        &quakes,
        true,
    );
}

fn starts(bench: &Bench) {
    let config = [("field", "mag"), ("op", ">="), ("value", "4.5")];
    let mut runner = bench.runner(guests::FILTER_JSON, &config);
    let what = "instance with init, ns each";
    if bench.wants(what) {
        let times = time(1, || {
            runner.release();
            bench.runtime.block_on(runner.needs()).unwrap();
        });
        row(what, &times);
    }
    let mut runner = bench.runner(guests::BAD_FILTER, &[("mode", "trap")]);
    let what = "trap and new instance, ns each";
    if bench.wants(what) {
        let batch = batch(10, binary);
        let times = time(1, || {
            let columns = batch.columns();
            let call = runner.filter(&columns);
            assert!(bench.runtime.block_on(call).is_err());
        });
        row(what, &times);
    }
}
