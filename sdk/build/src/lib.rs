//! Compiles Millstream plugins for wasm32-wasip2
