//! The spaces a store is divided into: separate key orders under one atomic commit.

use std::fmt;

/// One ordered key space. A key means nothing outside its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Space {
    /// Facts about the shard itself.
    Meta = 0,
    /// Record batches, by topic, partition and base offset.
    Records = 1,
    /// One row per partition: where its log starts, how large it is.
    Partitions = 2,
    /// One row per producer of a topic: what a retry is compared with.
    Producers = 3,
    /// Committed offsets of named consumers.
    Offsets = 4,
    /// Pipelines: definition, position, state.
    Pipelines = 5,
    /// Topics, access rules, plugin versions and attachments.
    Catalog = 6,
    /// Large immutable values, such as uploaded plugins.
    Blobs = 7,
}

impl Space {
    /// Every space, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Meta,
        Self::Records,
        Self::Partitions,
        Self::Producers,
        Self::Offsets,
        Self::Pipelines,
        Self::Catalog,
        Self::Blobs,
    ];

    /// How many spaces there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The name used in errors and in the file. Never changes: it is part of the file format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Records => "records",
            Self::Partitions => "partitions",
            Self::Producers => "producers",
            Self::Offsets => "offsets",
            Self::Pipelines => "pipelines",
            Self::Catalog => "catalog",
            Self::Blobs => "blobs",
        }
    }

    /// Its place in [`Space::ALL`], and its number in checksums.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_the_place_in_all() {
        for (place, space) in Space::ALL.into_iter().enumerate() {
            assert_eq!(space.index(), place, "{space}");
        }
    }
}
