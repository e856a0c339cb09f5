//! Plugins by digest: inspected, compiled once, linked, ready to be instantiated.
//!
//! Everything here blocks, for a compilation up to seconds: call it on a blocking thread. Names
//! and versions are the catalog's business; two names for the same bytes share one [`Plugin`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use millstream_proto::message::Digest;
use millstream_proto::pipeline::PluginKind;
use wasmtime::component::{Component, InstancePre};

use crate::artifact::ArtifactCache;
use crate::bindings::exports::millstream::plugin::{filter, lifecycle, partitioner, transform};
use crate::engine::PluginEngine;
use crate::error::tame;
use crate::host::HostState;
use crate::inspect::{Inspection, Refusal, inspect};
use crate::trusted::Verified;

/// A compiled and linked plugin. Instances of it are made by runners.
pub struct Plugin {
    digest: Digest,
    kind: PluginKind,
    pub(crate) pre: InstancePre<HostState>,
    pub(crate) lifecycle: lifecycle::GuestIndices,
    pub(crate) entry: Entry,
}

/// Where the export of a plugin's kind is.
pub(crate) enum Entry {
    Partitioner(partitioner::GuestIndices),
    Filter(filter::GuestIndices),
    Transform(transform::GuestIndices),
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({} {})", self.kind, self.digest)
    }
}

impl Plugin {
    /// SHA-256 of the component.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> PluginKind {
        self.kind
    }

    fn link(
        engine: &PluginEngine,
        component: &Component,
        about: &Inspection,
    ) -> Result<Self, Refusal> {
        let pre = engine.linker().instantiate_pre(component).map_err(unfit)?;
        let entry = match about.kind {
            PluginKind::Partitioner => partitioner::GuestIndices::new(&pre).map(Entry::Partitioner),
            PluginKind::Filter => filter::GuestIndices::new(&pre).map(Entry::Filter),
            PluginKind::Transform => transform::GuestIndices::new(&pre).map(Entry::Transform),
            PluginKind::Processor => return Err(Refusal::ProcessorNotYet),
        };
        let entry = entry.map_err(unfit)?;
        let lifecycle = lifecycle::GuestIndices::new(&pre).map_err(unfit)?;
        Ok(Self {
            digest: about.digest,
            kind: about.kind,
            pre,
            lifecycle,
            entry,
        })
    }
}

fn unfit(error: wasmtime::Error) -> Refusal {
    Refusal::Unfit(tame(&format!("{error:#}")))
}

/// Why the registry cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {} for compiled plugins: {source}; make it writable for the broker", .path.display())]
pub struct OpenError {
    /// The directory.
    pub path: PathBuf,
    /// What the system says.
    pub source: std::io::Error,
}

/// All plugins that are in use, and the artifacts of those that were.
#[derive(Debug)]
pub struct Registry {
    engine: PluginEngine,
    artifacts: ArtifactCache,
    loaded: Mutex<HashMap<Digest, Weak<Plugin>>>,
    /// Held while compiling: one at a time, so that uploads cannot take every core and nothing
    /// is compiled twice.
    compiling: Mutex<()>,
}

impl Registry {
    /// Opens the cache of compiled artifacts in `directory`, which must be this registry's alone.
    ///
    /// # Errors
    /// When the directory cannot be created, made private or read.
    pub fn open(engine: PluginEngine, directory: PathBuf) -> Result<Self, OpenError> {
        let artifacts =
            ArtifactCache::open(directory.clone(), engine.engine()).map_err(|source| {
                OpenError {
                    path: directory,
                    source,
                }
            })?;
        Ok(Self {
            engine,
            artifacts,
            loaded: Mutex::new(HashMap::new()),
            compiling: Mutex::new(()),
        })
    }

    /// The engine that runs these plugins.
    #[must_use]
    pub fn engine(&self) -> &PluginEngine {
        &self.engine
    }

    /// The plugin of an upload: from memory, from the cache, or compiled now. Blocks.
    ///
    /// Types and code are checked here; that it starts is not. [`Runner::needs`](crate::Runner::needs)
    /// makes an instance and answers that.
    ///
    /// # Errors
    /// When the upload is not a plugin that this broker can run.
    pub fn load(&self, wasm: &[u8]) -> Result<Arc<Plugin>, Refusal> {
        let about = inspect(wasm)?;
        if let Some(plugin) = self.get(&about.digest) {
            return Ok(plugin);
        }
        let compiling = self
            .compiling
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = self.get(&about.digest) {
            return Ok(plugin);
        }
        let component = match self.cached(&about.digest) {
            Some(component) => component,
            None => self.compile(&about.digest, wasm)?,
        };
        drop(compiling);
        let plugin = Arc::new(Plugin::link(&self.engine, &component, &about)?);
        let mut loaded = self.loaded();
        loaded.retain(|_, plugin| plugin.strong_count() > 0);
        loaded.insert(about.digest, Arc::downgrade(&plugin));
        Ok(plugin)
    }

    /// The plugin, if somebody has it loaded.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Arc<Plugin>> {
        self.loaded().get(digest).and_then(Weak::upgrade)
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<Digest, Weak<Plugin>>> {
        // A map of weak references is valid after every statement.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, digest: &Digest) -> Option<Component> {
        let artifact = Verified::from_cache(&self.artifacts, digest)?;
        match artifact.deserialize(self.engine.engine()) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(plugin = %digest, error = %format!("{error:#}"), "compiled plugin is not usable; compiling it again");
                None
            }
        }
    }

    fn compile(&self, digest: &Digest, wasm: &[u8]) -> Result<Component, Refusal> {
        let component = Component::new(self.engine.engine(), wasm).map_err(unfit)?;
        let artifact = component.serialize().map_err(unfit)?;
        // Without the file the plugin works and is compiled again after the next start.
        if let Err(error) = self.artifacts.store(digest, &artifact) {
            tracing::warn!(plugin = %digest, %error, "cannot keep a compiled plugin");
        }
        Ok(component)
    }
}

#[cfg(test)]
mod tests;
