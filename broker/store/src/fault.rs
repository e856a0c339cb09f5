//! Faulty disks.
