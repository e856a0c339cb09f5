//! A partitioner that does what it is told to, all of it bad.
//!
//! Configuration: `mode`, one of the deeds in `hostile-acts`; `behave` unless given, which sends
//! every record to partition 0. Written against the bindings, since the SDK has no way to say such
//! things.

#[allow(missing_docs, unsafe_code, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "partitioner-module" });
}

use bindings::exports::millstream::plugin::lifecycle::{self, InitContext, Needs};
use bindings::exports::millstream::plugin::partitioner;
use bindings::millstream::plugin::types::{Batch, Error};
use bindings::millstream::plugin::{config, logging, metrics};

struct Plugin;

impl partitioner::Guest for Plugin {
    fn assign(batch: Batch, partitions: u32) -> Result<Vec<u32>, Error> {
        let mode = mode();
        act(&mode, &batch)?;
        let records = batch.spans.len() / 6;
        Ok(match mode.as_str() {
            "too-few" => vec![0; records.saturating_sub(1)],
            "too-many" => vec![0; records + 1],
            "partition-out-of-range" => vec![partitions; records],
            "flood-output" => vec![0; 8 << 20],
            _ => vec![0; records],
        })
    }
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
        if !hostile_acts::knows(&mode, &hostile_acts::PARTITIONER) {
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
