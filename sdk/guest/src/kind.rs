//! The kinds of plugin: for each, a trait for one record at a time and one for whole batches.
//!
//! Absent: processors, which need state and timers.

use std::ops::BitOr;

use crate::{Batch, Emitter, Init, Record};

/// Which columns of a batch a plugin looks at. The others are not sent, which costs less than
/// anything a plugin can do about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Needs(u8);

impl Needs {
    /// Nothing but the number of records.
    pub const NOTHING: Self = Self(0);
    /// The keys.
    pub const KEYS: Self = Self(1);
    /// The values.
    pub const VALUES: Self = Self(1 << 1);
    /// The headers.
    pub const HEADERS: Self = Self(1 << 2);
    /// The timestamps.
    pub const TIMESTAMPS: Self = Self(1 << 3);
    /// The offsets.
    pub const OFFSETS: Self = Self(1 << 4);

    /// These and `other`; for constants, where `|` cannot be used.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags in the order of the WIT, the first in the lowest bit.
    #[doc(hidden)]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

impl BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

/// Why a batch was not processed. The text reaches the plugin's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Something passing was in the way: the batch comes again later.
    Retry(String),
    /// The plugin cannot go on: the broker stops it.
    Fatal(String),
    /// One record cannot be processed: the broker applies the plugin's policy to it and calls
    /// again with the others.
    BadRecord {
        /// Its index in the batch.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// What becomes of a record.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes no further.
    Drop = 0,
    /// It goes on.
    Keep = 1,
    /// It goes to the dead letters.
    DeadLetter = 2,
}

impl Verdict {
    /// [`Verdict::Keep`] if `keep`, else [`Verdict::Drop`].
    #[inline]
    #[must_use]
    pub const fn keep_if(keep: bool) -> Self {
        if keep { Self::Keep } else { Self::Drop }
    }
}

/// Decides record by record which ones go on. Named to [`filter!`](crate::filter).
pub trait Filter: Sized {
    /// The columns it looks at.
    const NEEDS: Needs;

    /// Makes an instance; called once, before any record.
    ///
    /// # Errors
    /// What is wrong with the configuration. The plugin then does not run.
    fn init(init: &Init) -> Result<Self, String>;

    /// Decides about one record.
    fn filter(&mut self, record: &Record<'_>) -> Verdict;
}

/// Decides about whole batches. Every [`Filter`] is one.
pub trait BatchFilter: Sized {
    /// The columns it looks at.
    const NEEDS: Needs;

    /// Makes an instance; called once, before any batch.
    ///
    /// # Errors
    /// What is wrong with the configuration. The plugin then does not run.
    fn init(init: &Init) -> Result<Self, String>;

    /// One verdict for each record.
    ///
    /// # Errors
    /// Why the batch was not processed.
    fn filter(&mut self, batch: &Batch) -> Result<Vec<Verdict>, Error>;
}

impl<T: Filter> BatchFilter for T {
    const NEEDS: Needs = <T as Filter>::NEEDS;

    fn init(init: &Init) -> Result<Self, String> {
        <T as Filter>::init(init)
    }

    #[inline]
    fn filter(&mut self, batch: &Batch) -> Result<Vec<Verdict>, Error> {
        Ok(batch
            .records()
            .map(|record| <T as Filter>::filter(self, &record))
            .collect())
    }
}

/// Makes none, one or many records of each record. Named to [`transform!`](crate::transform).
///
/// What it makes may depend only on the record and the configuration: after a crash a broker
/// offers records again.
pub trait Transform: Sized {
    /// The columns it looks at. What it keeps from a record it need not look at.
    const NEEDS: Needs;

    /// Makes an instance; called once, before any record.
    ///
    /// # Errors
    /// What is wrong with the configuration or the outputs. The plugin then does not run.
    fn init(init: &Init) -> Result<Self, String>;

    /// Emits what comes of one record.
    ///
    /// # Errors
    /// Why this record cannot be processed. The broker applies the plugin's policy to it and
    /// goes on with the others.
    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter) -> Result<(), String>;
}

/// Makes records of whole batches. Every [`Transform`] is one.
pub trait BatchTransform: Sized {
    /// The columns it looks at. What it keeps from a record it need not look at.
    const NEEDS: Needs;

    /// Makes an instance; called once, before any batch.
    ///
    /// # Errors
    /// What is wrong with the configuration or the outputs. The plugin then does not run.
    fn init(init: &Init) -> Result<Self, String>;

    /// Emits what comes of a batch. Call [`Emitter::from`] before emitting.
    ///
    /// # Errors
    /// Why the batch was not processed; what was emitted is then forgotten.
    fn transform(&mut self, batch: &Batch, out: &mut Emitter) -> Result<(), Error>;
}

impl<T: Transform> BatchTransform for T {
    const NEEDS: Needs = <T as Transform>::NEEDS;

    fn init(init: &Init) -> Result<Self, String> {
        <T as Transform>::init(init)
    }

    #[inline]
    fn transform(&mut self, batch: &Batch, out: &mut Emitter) -> Result<(), Error> {
        for record in batch.records() {
            let index = record.index();
            <T as Transform>::transform(self, &record, out.from(&record))
                .map_err(|why| Error::BadRecord { index, why })?;
        }
        Ok(())
    }
}

/// Chooses the partition of each record. Named to [`partitioner!`](crate::partitioner).
pub trait Partitioner: Sized {
    /// The columns it looks at.
    const NEEDS: Needs;

    /// Makes an instance; called once, before any record.
    ///
    /// # Errors
    /// What is wrong with the configuration. The plugin then does not run.
    fn init(init: &Init) -> Result<Self, String>;

    /// The partition of one record, smaller than `partitions`, which is at least 1.
    fn partition(&mut self, record: &Record<'_>, partitions: u32) -> u32;
}

/// Chooses the partitions of whole batches. Every [`Partitioner`] is one.
pub trait BatchPartitioner: Sized {
    /// The columns it looks at.
    const NEEDS: Needs;

    /// Makes an instance; called once, before any batch.
    ///
    /// # Errors
    /// What is wrong with the configuration. The plugin then does not run.
    fn init(init: &Init) -> Result<Self, String>;

    /// One partition for each record, each smaller than `partitions`, which is at least 1.
    ///
    /// # Errors
    /// Why the batch was not processed.
    fn assign(&mut self, batch: &Batch, partitions: u32) -> Result<Vec<u32>, Error>;
}

impl<T: Partitioner> BatchPartitioner for T {
    const NEEDS: Needs = <T as Partitioner>::NEEDS;

    fn init(init: &Init) -> Result<Self, String> {
        <T as Partitioner>::init(init)
    }

    #[inline]
    fn assign(&mut self, batch: &Batch, partitions: u32) -> Result<Vec<u32>, Error> {
        Ok(batch
            .records()
            .map(|record| self.partition(&record, partitions))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BatchBuilder;

    /// Refuses records without a value.
    struct Strict;

    impl Transform for Strict {
        const NEEDS: Needs = Needs::VALUES;

        fn init(_: &Init) -> Result<Self, String> {
            Ok(Self)
        }

        fn transform(&mut self, record: &Record<'_>, out: &mut Emitter) -> Result<(), String> {
            record.value().ok_or("no value")?;
            out.emit(crate::Output(0));
            Ok(())
        }
    }

    #[test]
    fn an_error_about_a_record_names_its_index() {
        let batch = BatchBuilder::new()
            .record(None, Some(b"v"))
            .record(None, None)
            .build();
        let error = BatchTransform::transform(&mut Strict, &batch, &mut Emitter::default());
        let why = "no value".to_owned();
        assert_eq!(error, Err(Error::BadRecord { index: 1, why }));
    }

    #[test]
    fn each_emitted_record_comes_from_the_record_in_hand() {
        let batch = BatchBuilder::new()
            .record(None, Some(b"v"))
            .record(None, Some(b"w"))
            .build();
        let mut out = Emitter::default();
        BatchTransform::transform(&mut Strict, &batch, &mut out).expect("both have values");
        let spans = out.finish().spans;
        assert_eq!((spans[0], spans[9], spans.len()), (0, 1, 18));
    }

    /// The order of the WIT's flags.
    #[test]
    fn flags_have_the_bits_of_the_wit() {
        let flags = ["keys", "values", "headers", "timestamps", "offsets"];
        let wit = include_str!("../../../wit/plugin.wit");
        let body = wit
            .split("flags needs {")
            .nth(1)
            .and_then(|rest| rest.split('}').next());
        let listed: Vec<_> = body.expect("the flags").split(',').map(str::trim).collect();
        assert_eq!(listed[..5], flags);
        let bits = [
            Needs::KEYS,
            Needs::VALUES,
            Needs::HEADERS,
            Needs::TIMESTAMPS,
            Needs::OFFSETS,
        ];
        assert_eq!(bits.map(Needs::bits), [1, 2, 4, 8, 16]);
        assert_eq!((Needs::KEYS | Needs::VALUES).bits(), 3);
    }
}
