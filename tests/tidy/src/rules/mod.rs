//! The rules, by what they look at.

pub mod crates;
pub mod docs;
pub mod limits;
pub mod shape;
pub mod words;
