//! What the hostile plugins do, and what becomes of it.

use std::time::Duration;

use millstream_guests::{self as guests, Guest, acts};

use crate::error::{Fault, GuestFault, LimitHit, RunError};
use crate::limits::{Limits, MAX_COUNTERS};
use crate::output::{OutputFault, Verdict};
use crate::registry::Plugin;
use crate::testing::{self, TestBatch, engine, limits, plugin, quakes, runner, spec, value};
use crate::{Columns, Runner};

const KINDS: [Guest; 3] = [
    guests::BAD_FILTER,
    guests::BAD_PARTITIONER,
    guests::BAD_TRANSFORM,
];

/// Calls whatever the plugin is, and forgets what it says.
async fn call(runner: &mut Runner, columns: &Columns<'_>) -> Result<(), RunError> {
    use millstream_proto::pipeline::PluginKind;
    match runner.kind() {
        PluginKind::Filter => runner.filter(columns).await.map(drop),
        PluginKind::Partitioner => runner.assign(columns, 4).await.map(drop),
        _ => runner.transform(columns).await.map(drop),
    }
}

async fn fault(guest: Guest, mode: &str, limits: Limits) -> Fault {
    let spec = spec(&[("mode", mode)], limits);
    let mut runner = Runner::new(engine(), plugin(guest), spec).unwrap();
    let batch = quakes();
    let error = call(&mut runner, &batch.columns()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("plugin acme/plugin version 1 at "),
        "{error}"
    );
    // The next call gets a new instance and comes to the same end.
    let again = call(&mut runner, &batch.columns()).await.unwrap_err();
    assert_eq!(error.to_string(), again.to_string());
    assert_eq!(runner.usage().failures(), 2);
    error.fault
}

fn short() -> Limits {
    let time = Duration::from_millis(20);
    Limits {
        call_cpu: time,
        init_cpu: time,
        ..limits()
    }
}

#[tokio::test]
async fn a_spinning_guest_is_cut_at_its_cpu_deadline() {
    for guest in KINDS {
        let fault = fault(
            guest,
            "spin",
            Limits {
                init_cpu: limits().init_cpu,
                ..short()
            },
        )
        .await;
        assert!(
            matches!(fault, Fault::Limit(LimitHit::CallCpu(_))),
            "{fault}"
        );
        let fault = self::fault(guest, "spin-in-init", short()).await;
        assert!(
            matches!(fault, Fault::Limit(LimitHit::InitCpu(_))),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn eating_memory_hits_the_limit() {
    for guest in KINDS {
        for mode in ["eat-memory", "eat-memory-in-init"] {
            let fault = fault(guest, mode, limits()).await;
            let limit = limits().memory_bytes;
            assert!(
                matches!(&fault, Fault::Limit(LimitHit::Memory { wanted, limit: l }) if *l == limit && *wanted > limit),
                "{fault}"
            );
        }
    }
}

#[tokio::test]
async fn a_leak_is_mended_at_the_high_water_mark() {
    let mut runner = runner(guests::BAD_FILTER, &[("mode", "leak")]);
    let batch = quakes();
    for _ in 0..40 {
        assert_eq!(
            runner.filter(&batch.columns()).await.unwrap(),
            [Verdict::Keep; 3]
        );
    }
    let starts = runner.usage().starts();
    // 4 MiB with each call: 48 MiB are full after at most twelve.
    assert!((4..=10).contains(&starts), "{starts}");
}

#[tokio::test]
async fn recursion_and_traps_end_the_instance_alone() {
    for guest in KINDS {
        let deep = fault(guest, "recurse", limits()).await;
        let stack = matches!(deep, Fault::Limit(LimitHit::Stack(_)));
        assert!(
            stack || matches!(deep, Fault::Guest(GuestFault::Trap(_))),
            "{deep}"
        );
        for mode in ["trap", "trap-in-init"] {
            let Fault::Guest(GuestFault::Trap(trapped)) = fault(guest, mode, limits()).await else {
                panic!("{mode} is not a trap");
            };
            assert!(trapped.cause.contains("unreachable"), "{trapped}");
            assert!((1..=8).contains(&trapped.backtrace.len()), "{trapped}");
        }
    }
}

#[tokio::test]
async fn a_panic_is_explained_and_logged() {
    let spec = spec(&[("mode", "panic")], limits());
    let log = std::sync::Arc::clone(&spec.log);
    let mut runner = Runner::new(engine(), plugin(guests::BAD_TRANSFORM), spec).unwrap();
    let error = runner
        .transform(&quakes().columns())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("this plugin panics because it was told to"),
        "{error}"
    );
    let (lines, _) = log.read(0, 100);
    let logged = lines
        .iter()
        .any(|line| line.message.contains("because it was told to"));
    assert!(logged, "{lines:?}");
}

#[tokio::test]
async fn floods_of_logs_and_counters_are_thinned() {
    for mode in ["flood-logs", "flood-logs-in-init", "flood-counters"] {
        let spec = spec(&[("mode", mode)], limits());
        let (log, counters) = (spec.log.clone(), spec.counters.clone());
        let mut runner = Runner::new(engine(), plugin(guests::BAD_FILTER), spec).unwrap();
        assert_eq!(
            runner.filter(&quakes().columns()).await.unwrap(),
            [Verdict::Keep; 3]
        );
        let (lines, _) = log.read(0, 100_000);
        assert!(lines.len() < 200, "{}", lines.len());
        assert!(counters.snapshot().len() <= MAX_COUNTERS);
        let refused = if mode == "flood-counters" {
            counters.refused()
        } else {
            log.dropped()
        };
        assert!(refused > 19_000, "{mode}: {refused}");
    }
}

#[tokio::test]
async fn what_a_plugin_reports_is_told_apart() {
    for guest in KINDS {
        let fault = async |mode| fault(guest, mode, limits()).await;
        let retry = fault("retry").await;
        assert!(matches!(&retry, Fault::Guest(GuestFault::Retry(why)) if why == "told to"));
        let fatal = fault("fatal").await;
        assert!(matches!(&fatal, Fault::Guest(GuestFault::Fatal(why)) if why == "told to"));
        let bad = fault("bad-record").await;
        assert!(
            matches!(&bad, Fault::Guest(GuestFault::BadRecord { index: 0, .. })),
            "{bad}"
        );
        let range = fault("bad-record-out-of-range").await;
        let expected = OutputFault::BadIndex {
            index: 18,
            records: 3,
        };
        assert!(
            matches!(&range, Fault::Guest(GuestFault::Output(f)) if *f == expected),
            "{range}"
        );
        let init = fault("init-fails").await;
        assert!(matches!(&init, Fault::Guest(GuestFault::Init(_))), "{init}");
        let huge = fault("huge-error").await;
        assert!(huge.to_string().len() < 2000, "{}", huge.to_string().len());
    }
}

#[tokio::test]
async fn an_instance_outlives_what_it_reports_but_not_a_trap() {
    let batch = quakes();
    let poisoned = TestBatch::new([value("fine"), value("poison")]);
    for (mode, starts) in [("bad-record-on-poison", 1), ("trap-on-poison", 2)] {
        let mut runner = runner(guests::BAD_FILTER, &[("mode", mode)]);
        assert!(runner.filter(&batch.columns()).await.is_ok());
        let error = runner.filter(&poisoned.columns()).await.unwrap_err();
        if let Fault::Guest(GuestFault::BadRecord { index, .. }) = error.fault {
            assert_eq!(index, 1);
        }
        assert!(
            runner.filter(&batch.columns()).await.is_ok(),
            "{mode} does not stick"
        );
        assert_eq!(runner.usage().starts(), starts, "{mode}");
    }
}

#[tokio::test]
async fn nonsense_is_refused() {
    let of = [
        (guests::BAD_FILTER, acts::FILTER.as_slice()),
        (guests::BAD_PARTITIONER, &acts::PARTITIONER),
        (guests::BAD_TRANSFORM, &acts::TRANSFORM),
    ];
    for (guest, modes) in of {
        for mode in modes {
            let fault = fault(guest, mode, limits()).await;
            let expected = match *mode {
                "flood-output" => matches!(fault, Fault::Limit(LimitHit::Crossing(_))),
                "flood-records" => matches!(fault, Fault::Limit(LimitHit::OutputRecords { .. })),
                "flood-bytes" => matches!(fault, Fault::Limit(LimitHit::OutputBytes(_))),
                // 48 MiB of data and what it was made of do not fit in 64 MiB of memory.
                "oversized-record" => matches!(
                    fault,
                    Fault::Limit(LimitHit::Memory { .. })
                        | Fault::Guest(GuestFault::Output(OutputFault::RecordSize { .. }))
                ),
                _ => matches!(
                    &fault,
                    Fault::Guest(GuestFault::Output(f)) if !matches!(f, OutputFault::Malformed(_))
                ),
            };
            assert!(expected, "{} {mode}: {fault}", guest.name);
        }
    }
}

#[tokio::test]
async fn every_deed_has_an_end() {
    // The control keeps everything, and no deed that is not tested by name is left out.
    for guest in KINDS {
        let mut runner = runner(guest, &[("mode", acts::BEHAVE)]);
        call(&mut runner, &quakes().columns()).await.unwrap();
        for mode in acts::ACTS.into_iter().chain(acts::IN_INIT) {
            let spec = spec(
                &[("mode", mode)],
                Limits {
                    call_cpu: short().call_cpu,
                    ..limits()
                },
            );
            let spec = testing_init(spec, mode);
            let mut runner = Runner::new(engine(), plugin(guest), spec).unwrap();
            let _ = call(&mut runner, &quakes().columns()).await;
        }
    }
}

/// Only one deed needs a short time to start.
fn testing_init(mut spec: crate::RunnerSpec, mode: &str) -> crate::RunnerSpec {
    if mode == "spin-in-init" {
        spec.limits.init_cpu = short().init_cpu;
    }
    spec
}

#[tokio::test]
async fn a_guest_sees_nothing_of_its_host() {
    let spec = spec(&[], limits());
    let log = spec.log.clone();
    let mut runner = Runner::new(engine(), plugin(guests::PEEK), spec).unwrap();
    runner.needs().await.unwrap();
    let (lines, _) = log.read(0, 100);
    let lines: Vec<_> = lines.into_iter().map(|line| line.message).collect();
    assert!(lines.contains(&"found 0".to_owned()), "{lines:?}");
    assert!(
        lines.contains(&"time passes: false".to_owned()),
        "{lines:?}"
    );
    assert!(
        !lines.iter().any(|line| line.starts_with("got ")),
        "{lines:?}"
    );
}

/// A filter in text, for what no compiler would write. `$body` is the core function that answers
/// a batch; it returns the address of a result.
fn by_hand(body: &str) -> std::sync::Arc<Plugin> {
    let types = include_str!("by_hand.wat");
    let wasm = wat::parse_str(types.replace("(; body ;)", body)).unwrap();
    testing::load(&wasm)
}

#[tokio::test]
async fn claims_of_gigabytes_cost_nothing() {
    // ok(list at 0, so many bytes): far beyond the memory, beyond the limit, and unaligned.
    for (address, len) in [(0, u32::MAX), (16, 60_000), (u32::MAX, 4)] {
        let body = format!(
            "(i32.store8 (i32.const 8) (i32.const 0))
             (i32.store (i32.const 12) (i32.const {}))
             (i32.store (i32.const 16) (i32.const {}))
             (i32.const 8)",
            address.cast_signed(),
            len.cast_signed()
        );
        let plugin = by_hand(&body);
        let mut runner = Runner::new(engine(), plugin, spec(&[], limits())).unwrap();
        let error = runner.filter(&quakes().columns()).await.unwrap_err();
        assert!(
            matches!(
                error.fault,
                Fault::Guest(GuestFault::Output(_)) | Fault::Limit(LimitHit::Crossing(_))
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_guest_that_sleeps_is_cut_at_once() {
    // An hour, then nothing at all: giving way is no waiting.
    let sleep = |ns: u64| {
        format!(
            "(call $block (call $subscribe (i64.const {ns})))
             (i32.store8 (i32.const 8) (i32.const 0))
             (i32.store (i32.const 16) (i32.const 3))
             (i32.const 8)"
        )
    };
    let batch = quakes();
    let hour = by_hand(&sleep(3_600_000_000_000));
    let mut runner = Runner::new(engine(), hour, spec(&[], limits())).unwrap();
    let error = runner.filter(&batch.columns()).await.unwrap_err();
    assert!(
        matches!(error.fault, Fault::Guest(GuestFault::Waited)),
        "{error}"
    );
    let nothing = by_hand(&sleep(0));
    let mut runner = Runner::new(engine(), nothing, spec(&[], limits())).unwrap();
    assert_eq!(
        runner.filter(&batch.columns()).await.unwrap(),
        [Verdict::Drop; 3]
    );
}
