//! A processor, which brokers do not run yet: a well-made component of a kind that must be refused
//! by name. It counts the records it has seen.

#[allow(missing_docs, unsafe_code, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "processor-module" });
}

use bindings::exports::millstream::plugin::lifecycle::{self, InitContext, Needs};
use bindings::exports::millstream::plugin::processor::{self, DueTimers};
use bindings::millstream::plugin::outputs::OutBatch;
use bindings::millstream::plugin::state::Store;
use bindings::millstream::plugin::timers;
use bindings::millstream::plugin::types::{Batch, Error};

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(_: InitContext) -> Result<Needs, String> {
        Ok(Needs::empty())
    }
}

impl processor::Guest for Plugin {
    fn process(batch: Batch) -> Result<OutBatch, Error> {
        let counts = Store::open("counts").map_err(Error::Fatal)?;
        let seen = counts.get(b"seen").and_then(|bytes| bytes.try_into().ok());
        let seen = seen.map_or(0, u64::from_le_bytes) + (batch.spans.len() / 6) as u64;
        counts.put(b"seen", &seen.to_le_bytes());
        let at = timers::now() + 1_000;
        let clock = timers::Clock::ProcessingTime;
        timers::set(&timers::Timer {
            clock,
            at,
            key: b"seen".to_vec(),
            tag: 0,
        });
        Ok(nothing())
    }

    fn on_timers(_: DueTimers) -> Result<OutBatch, Error> {
        Ok(nothing())
    }
}

fn nothing() -> OutBatch {
    OutBatch {
        data: vec![],
        timestamps: vec![],
        spans: vec![],
        headers: vec![],
    }
}

#[allow(unsafe_code)]
mod export {
    use super::{Plugin, bindings};

    bindings::export!(Plugin with_types_in bindings);
}
