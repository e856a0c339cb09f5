//! A transform that does what it is told to, all of it bad.
//!
//! Configuration: `mode`, one of the deeds in `hostile-acts`; `behave` unless given, which keeps
//! every record as it is. Written against the bindings, since the SDK has no way to say such
//! things.

#[allow(missing_docs, unsafe_code, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "transform-module" });
}

use bindings::exports::millstream::plugin::lifecycle::{self, InitContext, Needs};
use bindings::exports::millstream::plugin::transform;
use bindings::millstream::plugin::outputs::OutBatch;
use bindings::millstream::plugin::types::{Batch, Error};
use bindings::millstream::plugin::{config, logging, metrics};

/// The offset or partition that leaves things as they are, and the length that is absent.
const NONE: u32 = u32::MAX;
/// A record that is kept whole, sent to the first output.
const KEPT: [u32; 9] = [0, 0, NONE, NONE, 0, NONE, 0, NONE, 0];

struct Plugin;

impl transform::Guest for Plugin {
    fn transform(batch: Batch) -> Result<OutBatch, Error> {
        let mode = mode();
        act(&mode, &batch)?;
        let records = u32::try_from(batch.spans.len() / 6).expect("a batch has fewer records");
        let keep = |record| [record, 0, NONE, NONE, 0, NONE, 0, NONE, 0];
        let honest = OutBatch {
            data: Vec::new(),
            timestamps: Vec::new(),
            spans: (0..records).flat_map(keep).collect(),
            headers: Vec::new(),
        };
        if records == 0 {
            return Ok(honest);
        }
        Ok(nonsense(&mode, &honest, records).unwrap_or(honest))
    }
}

/// The honest answer with one thing wrong in it.
fn nonsense(mode: &str, honest: &OutBatch, records: u32) -> Option<OutBatch> {
    let row = |column: usize, value: u32| {
        let mut spans = honest.spans.clone();
        spans[column] = value;
        OutBatch {
            data: b"data".to_vec(),
            timestamps: vec![],
            spans,
            headers: vec![],
        }
    };
    let span = |column: usize, offset: u32, length: u32| {
        let mut out = row(column, offset);
        out.spans[column + 1] = length;
        out
    };
    let header = |data: &[u8], header: [u32; 4]| OutBatch {
        data: data.to_vec(),
        headers: header.to_vec(),
        ..span(7, 0, 1)
    };
    let stamps = |count: u32| OutBatch {
        timestamps: vec![1; count as usize],
        ..row(0, 0)
    };
    Some(match mode {
        "half-a-row" => OutBatch {
            spans: honest.spans[1..].to_vec(),
            ..row(0, 0)
        },
        "half-a-header" => OutBatch {
            headers: vec![0, 1, 0],
            ..row(0, 0)
        },
        "too-few-timestamps" => OutBatch {
            spans: [&honest.spans[..], &KEPT].concat(),
            ..stamps(records)
        },
        "too-many-timestamps" => stamps(records + 1),
        "unknown-output" => row(1, 1_000),
        "unknown-input-record" => row(0, records),
        "partition-out-of-range" => row(2, NONE - 1),
        "key-out-of-bounds" => span(3, 2, 3),
        "value-out-of-bounds" => span(5, 5, 0),
        "value-overflows" => span(5, NONE - 15, 32),
        "headers-out-of-bounds" => span(7, 0, 1),
        "header-count-overflows" => OutBatch {
            headers: vec![0; 4],
            ..span(7, 1, NONE)
        },
        "header-name-out-of-bounds" => header(b"n", [0, 2, 0, 0]),
        "header-name-not-utf8" => header(b"\xff\xfe", [0, 2, 0, 0]),
        "header-name-empty" => header(b"n", [0, 0, 0, 1]),
        "header-value-absent" => header(b"n", [0, 1, 0, NONE]),
        "flood-records" => OutBatch {
            spans: KEPT.repeat(1 << 20),
            ..row(0, 0)
        },
        "flood-bytes" => {
            let value = [0, 0, NONE, NONE, 0, 0, 1 << 20, NONE, 0];
            OutBatch {
                data: vec![b'x'; 1 << 20],
                spans: value.repeat(4_096),
                ..row(0, 0)
            }
        }
        "oversized-record" => OutBatch {
            data: vec![b'x'; 48 << 20],
            ..span(5, 0, 48 << 20)
        },
        _ => return None,
    })
}

struct Owner;

impl hostile_acts::Host for Owner {
    fn log(&self, line: &str) {
        logging::log(logging::Level::Info, line);
    }

    fn count(&self, name: &str) {
        metrics::count(name, 1);
    }
}

impl lifecycle::Guest for Plugin {
    fn init(_: InitContext) -> Result<Needs, String> {
        let mode = mode();
        if mode == "init-fails" {
            return Err("this plugin was told to fail in init".to_owned());
        }
        if !hostile_acts::knows(&mode, &hostile_acts::TRANSFORM) {
            return Err(format!("mode = {mode:?} is not a deed of this plugin"));
        }
        if mode.ends_with("-in-init") {
            hostile_acts::act(&mode, &Owner);
        }
        Ok(Needs::all())
    }
}

fn mode() -> String {
    config::get("mode").unwrap_or_else(|| hostile_acts::BEHAVE.to_owned())
}

/// Does the deeds and reports the errors that are the same in every kind.
fn act(mode: &str, batch: &Batch) -> Result<(), Error> {
    let poison = batch.spans.as_chunks::<6>().0.iter().position(|span| {
        let rest = batch.data.get(span[2] as usize..).unwrap_or_default();
        span[3] != u32::MAX && rest.starts_with(hostile_acts::POISON)
    });
    let bad = |index: usize| {
        let index = u32::try_from(index).expect("a batch has fewer records");
        Err(Error::BadRecord((index, "told to".to_owned())))
    };
    match (mode, poison) {
        ("retry", _) => Err(Error::Retry("told to".to_owned())),
        ("fatal", _) => Err(Error::Fatal("told to".to_owned())),
        ("huge-error", _) => Err(Error::Fatal("e".repeat(16 << 20))),
        ("bad-record", _) => bad(0),
        ("bad-record-out-of-range", _) => bad(batch.spans.len()),
        ("bad-record-on-poison", Some(index)) => bad(index),
        ("trap-on-poison", Some(_)) => {
            hostile_acts::act("trap", &Owner);
            Ok(())
        }
        _ => {
            hostile_acts::act(mode, &Owner);
            Ok(())
        }
    }
}

#[allow(unsafe_code)]
mod export {
    use super::{Plugin, bindings};

    bindings::export!(Plugin with_types_in bindings);
}
