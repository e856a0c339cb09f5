//! Keeps records together whose keys begin alike: the part before a separator chooses.
//!
//! Configuration: `separator`, one text; `:` unless given.

use millstream_guest::{Init, Needs, Partitioner, Record, stable_hash};

/// The plugin: one instance for each place it is used at.
pub struct Plugin {
    separator: Vec<u8>,
}

impl Partitioner for Plugin {
    const NEEDS: Needs = Needs::KEYS;

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&["separator"])?;
        let separator: String = init.parse_or("separator", ":".to_owned())?;
        if separator.is_empty() {
            return Err("separator is empty".to_owned());
        }
        Ok(Self {
            separator: separator.into_bytes(),
        })
    }

    fn partition(&mut self, record: &Record<'_>, partitions: u32) -> u32 {
        let key = record.key().unwrap_or_default();
        let mut windows = key.windows(self.separator.len());
        let end = windows
            .position(|window| window == self.separator)
            .unwrap_or(key.len());
        // The same hash in every version, so that equal keys stay together for good.
        (stable_hash(&key[..end]) % u64::from(partitions)) as u32
    }
}

millstream_guest::partitioner!(Plugin);

#[cfg(test)]
mod tests {
    use millstream_guest::BatchBuilder;

    use super::*;

    #[test]
    fn keys_that_begin_alike_stay_together() {
        let mut plugin = Plugin::init(&Init::new("test")).unwrap();
        let batch = BatchBuilder::new()
            .record(Some(b"user7:login"), None)
            .record(Some(b"user7:logout"), None)
            .record(None, None)
            .build();
        let chosen: Vec<u32> = batch
            .records()
            .map(|record| plugin.partition(&record, 8))
            .collect();
        assert_eq!(chosen[0], chosen[1]);
        assert!(chosen.iter().all(|&partition| partition < 8));
    }
}
