//! The wasmtime engine, the pool of instances, and the thread that makes guests give way.
//!
//! One per broker. The choices here were measured: async support for concurrent calls doubles
//! the cost of a call and is off; the pooling allocator makes an instance in microseconds; 4 GiB
//! reservations spare the guest bounds checks; epochs cost less than fuel and are time.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use millstream_proto::Tenant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig,
};

use crate::error::EngineFault;
use crate::host::{self, HostState};
use crate::limits::{
    DEFAULT_INSTANCES, FIBER_STACK_BYTES, KEEP_RESIDENT_BYTES, KEEP_SLOTS, MAX_CORE_INSTANCES,
    MAX_COUNTED_TENANTS, MAX_FRAMES, MAX_INSTANCE_BYTES, MAX_INSTANCES, MAX_MEMORIES,
    MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS, MAX_TABLES, POOL_WAIT, TENANT_CALLS, TICK,
    WASM_STACK_BYTES,
};
use crate::meter::Usage;

/// How the engine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most live instances over all plugins, 1 to [`MAX_INSTANCES`].
    pub instances: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            instances: DEFAULT_INSTANCES,
        }
    }
}

/// The engine that all plugins share. Cheap to clone.
#[derive(Clone)]
pub struct PluginEngine {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    linker: Linker<HostState>,
    places: Arc<Semaphore>,
    /// Turns of the tenants that have runners.
    tenants: Mutex<HashMap<Tenant, Weak<Semaphore>>>,
    /// What the plugins of each tenant have used.
    usages: Mutex<BTreeMap<Tenant, Arc<Usage>>>,
    /// Of the tenants for which there was no room.
    others: Arc<Usage>,
    instances: u32,
    ticker: Ticker,
}

impl std::fmt::Debug for PluginEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginEngine")
            .field("instances", &self.shared.instances)
            .field("free", &self.shared.places.available_permits())
            .finish_non_exhaustive()
    }
}

impl PluginEngine {
    /// Sets up the engine, reserves address space for the pool, and starts the ticker's thread.
    ///
    /// # Errors
    /// [`EngineFault::Start`] when the configuration is out of range or the system refuses the
    /// address space or the thread.
    pub fn new(config: EngineConfig) -> Result<Self, EngineFault> {
        let instances = config.instances;
        if !(1..=MAX_INSTANCES).contains(&instances) {
            return Err(EngineFault::Start(format!(
                "{instances} plugin instances are configured; expected 1 to {MAX_INSTANCES}"
            )));
        }
        let start = |error: wasmtime::Error| EngineFault::Start(format!("{error:#}"));
        let engine = Engine::new(&wasmtime_config(instances)).map_err(start)?;
        let mut linker = Linker::new(&engine);
        host::link(&mut linker).map_err(start)?;
        let ticker = Ticker::start(engine.weak(), TICK)?;
        let places = Arc::new(Semaphore::new(instances as usize));
        let shared = Shared {
            engine,
            linker,
            places,
            tenants: Mutex::default(),
            usages: Mutex::default(),
            others: Arc::default(),
            instances,
            ticker,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    pub(crate) fn linker(&self) -> &Linker<HostState> {
        &self.shared.linker
    }

    /// Places left in the pool.
    #[must_use]
    pub fn free_instances(&self) -> usize {
        self.shared.places.available_permits()
    }

    /// Waits for a place in the pool.
    pub(crate) async fn place(&self) -> Result<OwnedSemaphorePermit, EngineFault> {
        let places = &self.shared.places;
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(place);
        }
        match tokio::time::timeout(POOL_WAIT, Arc::clone(places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed, so what is left is that time ran out.
            _ => Err(EngineFault::PoolExhausted {
                instances: self.shared.instances,
            }),
        }
    }

    /// The turns of a tenant, which all its runners share: [`TENANT_CALLS`] of its guests run at
    /// a time. Guests of one thread take turns at every tick, so without this a tenant would have
    /// as many turns as it has runners.
    pub(crate) fn turns(&self, tenant: &Tenant) -> Arc<Semaphore> {
        // Valid after every statement.
        let tenants = self.shared.tenants.lock();
        let mut tenants = tenants.unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = tenants.get(tenant).and_then(Weak::upgrade) {
            return turns;
        }
        tenants.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(TENANT_CALLS));
        tenants.insert(tenant.clone(), Arc::downgrade(&turns));
        turns
    }

    /// What the plugins that run for this tenant have used since the engine was started, over all
    /// runners.
    #[must_use]
    pub fn usage_of(&self, tenant: &Tenant) -> Arc<Usage> {
        // Valid after every statement.
        let usages = self.shared.usages.lock();
        let mut usages = usages.unwrap_or_else(PoisonError::into_inner);
        if usages.len() >= MAX_COUNTED_TENANTS && !usages.contains_key(tenant) {
            return Arc::clone(&self.shared.others);
        }
        Arc::clone(usages.entry(tenant.clone()).or_default())
    }

    /// What the plugins of every tenant have used, in order; at the end, without a name, those of
    /// the tenants for which there was no room.
    #[must_use]
    pub fn usages(&self) -> Vec<(Option<Tenant>, Arc<Usage>)> {
        let usages = self.shared.usages.lock();
        let usages = usages.unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = usages
            .iter()
            .map(|(tenant, usage)| (Some(tenant.clone()), Arc::clone(usage)))
            .collect();
        if usages.len() >= MAX_COUNTED_TENANTS {
            all.push((None, Arc::clone(&self.shared.others)));
        }
        all
    }

    /// Keeps the ticker going while a guest runs.
    pub(crate) fn running(&self) -> Running<'_> {
        self.shared.ticker.enter();
        Running(&self.shared.ticker)
    }
}

fn wasmtime_config(instances: u32) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances * MAX_CORE_INSTANCES)
        .total_memories(instances * MAX_MEMORIES)
        .total_tables(instances * MAX_TABLES)
        .total_stacks(instances)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .max_memories_per_module(MAX_MEMORIES)
        .max_tables_per_module(MAX_TABLES)
        .max_component_instance_size(MAX_INSTANCE_BYTES)
        .max_core_instance_size(MAX_INSTANCE_BYTES)
        .max_memory_size(MAX_MEMORY_BYTES)
        .table_elements(MAX_TABLE_ELEMENTS)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES / 16)
        .max_unused_warm_slots(KEEP_SLOTS)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(MAX_FRAMES))
        // The pool holds one 32-bit memory for each instance, and plugins are single-threaded.
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        // The same batch must give the same records on every CPU.
        .relaxed_simd_deterministic(true)
        // An upload of one tenant must not take both cores from all the others.
        .parallel_compilation(false);
    config
}

/// Counts a guest as running until it is dropped.
pub(crate) struct Running<'a>(&'a Ticker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.shared.active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Advances the engine's epoch while guests run, and sleeps when none does.
struct Ticker {
    shared: Arc<TickerState>,
    thread: Thread,
    /// Dropped to end the thread.
    _stop: SyncSender<()>,
}

#[derive(Debug, Default)]
struct TickerState {
    /// Guests that run or wait for their next turn.
    active: AtomicUsize,
    /// Whether the thread sleeps until somebody unparks it.
    idle: AtomicBool,
    ended: OnceLock<()>,
}

/// Ticks without a guest before the ticker goes to sleep.
const IDLE_TICKS: u32 = 200;
/// How long it sleeps at most: a bound on how late it notices that its engine is gone.
const IDLE_SLEEP: Duration = Duration::from_millis(500);

impl Ticker {
    fn start(engine: EngineWeak, tick: Duration) -> Result<Self, EngineFault> {
        let shared = Arc::new(TickerState::default());
        let (stop, stopped) = mpsc::sync_channel(0);
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("plugin-ticker".into())
            .spawn(move || {
                let mut quiet = 0;
                while matches!(stopped.recv_timeout(tick), Err(RecvTimeoutError::Timeout)) {
                    let Some(engine) = engine.upgrade() else {
                        break;
                    };
                    engine.increment_epoch();
                    drop(engine);
                    quiet = if state.active.load(Ordering::SeqCst) > 0 {
                        0
                    } else {
                        quiet + 1
                    };
                    if quiet > IDLE_TICKS {
                        state.sleep();
                    }
                }
                let _ = state.ended.set(());
            })
            .map_err(|error| EngineFault::Start(format!("no thread for the ticker: {error}")))?;
        Ok(Self {
            shared,
            thread: thread.thread().clone(),
            _stop: stop,
        })
    }

    fn enter(&self) {
        self.shared.active.fetch_add(1, Ordering::SeqCst);
        if self.shared.idle.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl TickerState {
    /// Sleeps unless a guest has begun to run. Either the guest sees `idle` and unparks, or this
    /// sees `active`: both are sequentially consistent, so one of them happens.
    fn sleep(&self) {
        self.idle.store(true, Ordering::SeqCst);
        if self.active.load(Ordering::SeqCst) == 0 {
            std::thread::park_timeout(IDLE_SLEEP);
        }
        self.idle.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_impossible_size_is_refused() {
        for instances in [0, MAX_INSTANCES + 1] {
            let error = PluginEngine::new(EngineConfig { instances }).expect_err("refused");
            assert!(error.to_string().contains("expected 1 to"), "{error}");
        }
    }

    #[test]
    fn tenants_are_counted_apart_up_to_a_limit() {
        let engine = PluginEngine::new(EngineConfig { instances: 1 }).expect("an engine");
        let tenant = |number: usize| format!("t{number}").parse::<Tenant>().expect("a name");
        for number in 0..MAX_COUNTED_TENANTS + 2 {
            Usage::within(engine.usage_of(&tenant(number))).count_call(3);
        }
        Usage::within(engine.usage_of(&tenant(0))).count_call(4);
        let usages = engine.usages();
        assert_eq!(usages.len(), MAX_COUNTED_TENANTS + 1);
        assert_eq!((usages[0].1.calls(), usages[0].1.records()), (2, 7));
        let (name, others) = usages.last().expect("the others");
        assert_eq!((name, others.records()), (&None, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn an_exhausted_pool_says_so_and_recovers() {
        let engine = PluginEngine::new(EngineConfig { instances: 1 }).expect("an engine");
        let place = engine.place().await.expect("a place");
        let error = engine.place().await.expect_err("exhausted");
        assert_eq!(error, EngineFault::PoolExhausted { instances: 1 });
        drop(place);
        assert!(engine.place().await.is_ok());
        assert_eq!(engine.free_instances(), 1);
    }

    #[test]
    fn the_ticker_wakes_for_a_guest_and_ends_with_its_engine() {
        let engine = Engine::new(Config::new().epoch_interruption(true)).expect("an engine");
        let ticker = Ticker::start(engine.weak(), Duration::from_micros(50)).expect("a thread");
        while !ticker.shared.idle.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        ticker.enter();
        while ticker.shared.idle.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let shared = Arc::clone(&ticker.shared);
        drop(ticker);
        while shared.ended.get().is_none() {
            std::thread::yield_now();
        }
    }
}
