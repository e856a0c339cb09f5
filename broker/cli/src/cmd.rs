//! The commands, one module each: its arguments, its help and its work.

pub(crate) mod completion;
pub(crate) mod pki;
pub(crate) mod plugin;
