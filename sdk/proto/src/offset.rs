//! Positions and identities of records: small integers with a meaning each.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// The plain number.
            #[must_use]
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Position of a record in its partition. The first record of a partition has offset 0;
    /// offsets are gapless in the order of commit.
    Offset(u64)
}
number! {
    /// Number of a partition in its topic, from 0.
    PartitionId(u32)
}
number! {
    /// Identity of a producer, chosen at random by the client; 0 means "not idempotent".
    ProducerId(u64)
}
number! {
    /// Generation of a producer. A higher epoch fences off the lower ones with the same id.
    ProducerEpoch(u16)
}
number! {
    /// Number of a batch on its producer's stream to one topic, from 0, without gaps.
    Sequence(u64)
}

impl Offset {
    /// This offset moved on by `records`; saturates at the end of the number range.
    #[must_use]
    pub const fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(records))
    }
}

impl ProducerId {
    /// The id of producers that do not ask for duplicate detection.
    pub const NONE: Self = Self(0);
}
