//! The house rules as a test.
//!
//! Rules that rustc and clippy cannot see: how long a file may grow, which crate may know which,
//! where the clock may be read, whether a link in the documentation leads somewhere. Each rule is
//! a function from a text to [`Finding`]s, so that it can be tried on a small string; the test
//! `tests/house.rs` runs all of them over the tree.
//!
//! Absent: style that rustfmt decides, and anything clippy has a lint for.

pub mod rules;
pub mod source;
pub mod tree;

use std::fmt;

/// One place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule's short name.
    pub rule: &'static str,
    /// The file, from the root of the repository.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// What was found there.
    pub what: String,
    /// What to do about it.
    pub advice: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            path,
            line,
            what,
            advice,
        } = self;
        write!(f, "{path}:{line}: {what} [{rule}]\n    {advice}")
    }
}
