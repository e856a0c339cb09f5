//! The commands, one module each: its arguments, its help and its work.

pub(crate) mod acl;
pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod consume;
pub(crate) mod context;
pub(crate) mod pipeline;
pub(crate) mod pki;
pub(crate) mod plugin;
pub(crate) mod produce;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod topic;
