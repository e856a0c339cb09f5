//! The host's side of `wit/plugin.wit`, generated; nothing else lives here.
//!
//! One world holds every kind of plugin that this broker runs. No component implements all of
//! it: `registry` picks the interface that a plugin exports, so the kinds share their types.
//! The processor world is absent until state and timers exist.

#![allow(missing_docs, unreachable_pub)] // generated code; documented in wit/plugin.wit
#![allow(clippy::all, unused_qualifications)] // generated code is not ours to polish

wasmtime::component::bindgen!({
    inline: "
        package millstream:host;

        world any-module {
            include millstream:plugin/partitioner-module@0.1.0;
            include millstream:plugin/filter-module@0.1.0;
            include millstream:plugin/transform-module@0.1.0;
        }
    ",
    path: "../../wit",
    ownership: Borrowing { duplicate_if_necessary: false },
    exports: { default: async },
});
