//! Finds one field of a JSON text without reading the rest.
//!
//! A filter that looks at one number of each record has no use for a tree of all the others. Here
//! a text is walked once, eight bytes at a time, over what is not asked for, and left as soon as
//! the field is found. No allocation, no `unsafe`, and the same code natively and in WebAssembly.
//!
//! It finds its way through every valid JSON text. It is not a validator: what is skipped is
//! checked only as far as is needed to find its end.

mod condition;
mod number;
mod path;
mod scan;
mod text;

pub use condition::{Condition, Operator};
pub use number::number;
pub use path::{NotAPath, Path, find_all, find_each};
pub use scan::{Malformed, Member, Members};
pub use text::{string, unescape};
