//! Crash tests: a broker in a process of its own is killed with SIGKILL again and again while
//! producers, a pipeline and consumers go on, and [`history`] says whether what is found at the
//! end follows from what everybody was told.
//!
//! Absent: power cuts. What a disk does to writes that were not synced is tested beside the
//! store, where its writes can be held back one by one.

pub mod backups;
pub mod child;
pub mod drill;
pub mod full;
pub mod history;
pub mod load;
pub mod quake;
pub mod rig;
