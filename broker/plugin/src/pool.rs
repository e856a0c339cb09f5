//! One live instance: made from the pool, kept between calls, thrown away after a fault.
//!
//! A trap poisons everything in a wasmtime store, so a store holds exactly one instance and is
//! dropped whole. A new one costs some microseconds.

use millstream_proto::pipeline::PluginKind;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;

use crate::bindings::exports::millstream::plugin::{filter, lifecycle, partitioner, transform};
use crate::columns::Needs;
use crate::engine::PluginEngine;
use crate::error::{EngineFault, Fault, GuestFault, LimitHit, Trapped, tame};
use crate::host::{HostState, Surroundings};
use crate::limits::{Limits, MAX_FRAMES, WASM_STACK_BYTES};
use crate::output::OutputFault;
use crate::registry::{Entry, Plugin};
use lifecycle::InitContext;

/// The entry points of a live instance.
pub(crate) enum Exports {
    Partitioner(partitioner::Guest),
    Filter(filter::Guest),
    Transform(transform::Guest),
}

/// A live instance and its place in the pool. The fields are dropped in this order, so that the
/// place is free only when the memory is.
pub(crate) struct Live {
    pub(crate) store: Store<HostState>,
    pub(crate) exports: Exports,
    _place: OwnedSemaphorePermit,
}

/// An instance that is being made.
pub(crate) struct Unborn {
    pub(crate) store: Store<HostState>,
    place: OwnedSemaphorePermit,
}

impl Unborn {
    /// Takes a place in the pool and prepares a store with its limits.
    pub(crate) async fn new(
        engine: &PluginEngine,
        around: &Surroundings,
        limits: &Limits,
        kind: PluginKind,
    ) -> Result<Self, EngineFault> {
        let place = engine.place().await?;
        let crossing = limits.crossing_bytes(kind);
        let mut store = Store::new(engine.engine(), HostState::new(around, limits, crossing));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(crossing);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(Self { store, place })
    }

    /// Instantiates the component and calls `init`. Runs guest code, so it must be metered.
    pub(crate) async fn start(
        &mut self,
        plugin: &Plugin,
        context: InitContext<'_>,
    ) -> Result<(Exports, Result<Needs, String>), StartError> {
        let store = &mut self.store;
        let instance = plugin
            .pre
            .instantiate_async(&mut *store)
            .await
            .map_err(StartError::Make)?;
        let exports = match &plugin.entry {
            Entry::Partitioner(entry) => {
                entry.load(&mut *store, &instance).map(Exports::Partitioner)
            }
            Entry::Filter(entry) => entry.load(&mut *store, &instance).map(Exports::Filter),
            Entry::Transform(entry) => entry.load(&mut *store, &instance).map(Exports::Transform),
        };
        let exports = exports.map_err(StartError::Type)?;
        let lifecycle = plugin
            .lifecycle
            .load(&mut *store, &instance)
            .map_err(StartError::Type)?;
        let needs = lifecycle
            .call_init(&mut *store, context)
            .await
            .map_err(StartError::Init)?;
        Ok((exports, needs.map(needs_of)))
    }

    pub(crate) fn born(self, exports: Exports) -> Live {
        Live {
            store: self.store,
            exports,
            _place: self.place,
        }
    }
}

fn needs_of(flags: lifecycle::Needs) -> Needs {
    Needs {
        keys: flags.contains(lifecycle::Needs::KEYS),
        values: flags.contains(lifecycle::Needs::VALUES),
        headers: flags.contains(lifecycle::Needs::HEADERS),
        timestamps: flags.contains(lifecycle::Needs::TIMESTAMPS),
        offsets: flags.contains(lifecycle::Needs::OFFSETS),
    }
}

/// Where making an instance failed.
pub(crate) enum StartError {
    /// Instantiation: the pool, or a start function.
    Make(wasmtime::Error),
    /// An export has another type than the interface says.
    Type(wasmtime::Error),
    /// `init`.
    Init(wasmtime::Error),
}

impl StartError {
    pub(crate) fn fault(&self, state: &HostState) -> Fault {
        match self {
            Self::Make(error) => code_fault(error, state)
                .unwrap_or_else(|| EngineFault::Instantiate(tame(&format!("{error:#}"))).into()),
            Self::Type(error) => malformed(error),
            Self::Init(error) => call_fault(error, state),
        }
    }
}

fn malformed(error: &wasmtime::Error) -> Fault {
    GuestFault::Output(OutputFault::Malformed(tame(&format!("{error:#}")))).into()
}

/// Whose fault it is that a call ended in an error. What is neither a limit nor a trap is a value
/// that does not fit its type.
pub(crate) fn call_fault(error: &wasmtime::Error, state: &HostState) -> Fault {
    code_fault(error, state).unwrap_or_else(|| malformed(error))
}

/// wasmtime's words for a list or text that is larger than the hostcall fuel; its type is private.
const FUEL_EXHAUSTED: &str = "fuel allocated for hostcalls has been exhausted";

/// The fault, if guest code or a limit ended the call.
fn code_fault(error: &wasmtime::Error, state: &HostState) -> Option<Fault> {
    if let Some(hit) = state.limiter.hit() {
        return Some(hit.into());
    }
    if error.root_cause().to_string().ends_with(FUEL_EXHAUSTED) {
        return Some(LimitHit::Crossing(state.crossing_bytes()).into());
    }
    let cause = match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::StackOverflow) => {
            return Some(LimitHit::Stack(WASM_STACK_BYTES).into());
        }
        Some(trap) => trap.to_string(),
        None => match error.downcast_ref::<wasmtime_wasi::I32Exit>() {
            Some(exit) => format!("the plugin ended itself with exit code {}", exit.0),
            None => return None,
        },
    };
    let trapped = Trapped {
        cause,
        stderr: state.last_stderr(),
        backtrace: backtrace(error),
    };
    Some(GuestFault::Trap(trapped).into())
}

fn backtrace(error: &wasmtime::Error) -> Vec<String> {
    let Some(trace) = error.downcast_ref::<wasmtime::WasmBacktrace>() else {
        return Vec::new();
    };
    let frames = trace.frames().iter().take(MAX_FRAMES);
    let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
        Some(name) => tame(name),
        None => format!("function {}", frame.func_index()),
    };
    frames.map(name).collect()
}
