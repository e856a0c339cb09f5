//! Sends earthquakes of one region of the world to one partition.
//!
//! The value is JSON with the numbers `lon` and `lat`; where it is not, the record goes where its
//! key says, so that no record is lost and equal keys stay together. No configuration.

use millstream_guest::{Init, Needs, Partitioner, Record, stable_hash};
use quake_regions::Region;

/// The plugin.
pub struct RouteByRegion;

impl Partitioner for RouteByRegion {
    const NEEDS: Needs = Needs::KEYS.and(Needs::VALUES);

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&[])?;
        Ok(Self)
    }

    fn partition(&mut self, record: &Record<'_>, partitions: u32) -> u32 {
        let region = record
            .value()
            .and_then(|json| Region::of_json(json).ok().flatten());
        region.map_or_else(
            || {
                let hash = stable_hash(record.key().unwrap_or_default());
                (hash % u64::from(partitions.max(1))) as u32
            },
            |region| region.partition(partitions),
        )
    }
}

millstream_guest::partitioner!(RouteByRegion);
