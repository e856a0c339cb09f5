//! The one unsafe step of this crate: turning a compiled artifact back into code.
//!
//! wasmtime does not verify an artifact's machine code, so loading one that somebody else wrote
//! is running their code natively. [`Verified`] can be made in two ways only: from what this
//! process has just compiled, or from a file of the artifact cache whose checksums were compared.

#![allow(unsafe_code)] // deserialize; the proof is at the call

use millstream_proto::message::Digest;
use wasmtime::component::Component;
use wasmtime::{Engine, Result};

use crate::artifact::ArtifactCache;

/// Bytes that [`Component::serialize`] made for this engine's configuration.
pub(crate) struct Verified(Vec<u8>);

impl Verified {
    /// Reads and verifies an artifact; none if it is missing or not what was written.
    pub(crate) fn from_cache(cache: &ArtifactCache, component: &Digest) -> Option<Self> {
        cache.load(component).map(Self)
    }

    /// The component in the artifact.
    ///
    /// # Errors
    /// When the artifact is of another version or configuration of wasmtime: a cache miss.
    pub(crate) fn deserialize(&self, engine: &Engine) -> Result<Component> {
        // SAFETY: the bytes must be the unmodified output of `Component::serialize`.
        // - `ArtifactCache::store`, which only `registry` calls and only with that output, is the
        //   only writer of files in the cache's directory. The directory is created for, and
        //   readable and writable by, the broker's user alone (mode 0700), and no request names a
        //   path in it, so a tenant can neither write nor replace a file there. Whoever can act
        //   as the broker's user could replace the broker as well.
        // - `ArtifactCache::load` returned them, so they have the length and the SHA-256 that
        //   were written with them: a torn write or a flipped bit ends there.
        // - The bytes are owned by `self`, not mapped from the file, so nobody can change them
        //   between that check and this use.
        // wasmtime itself refuses artifacts of another version, target or configuration.
        unsafe { Component::deserialize(engine, &self.0) }
    }
}
