//! The records of the load, and natively what the example plugins make of them.
//!
//! A record is determined by who sends it and its number, so whatever comes out can be compared
//! byte for byte with what must have gone in. They look like earthquakes, for the plugins' sake.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use json_field::Condition;
use millstream::{PluginName, PluginUse};
use millstream_proto::partition::key_partition;
use quake_regions::Region;
use split_alerts::AlertShape;

use crate::history::Item;

/// Keys of one source.
const KEYS: u64 = 11;
/// The filter keeps this magnitude and above.
const LEAST: &str = "1.5";
/// The transform makes alerts from this magnitude on.
const ALERT: &str = "4.5";
/// Longest filler, so that records and batches differ in size.
const FILLER: usize = 300;
/// What makes a record heavy.
const HEAVY_FILLER: usize = 3_000;

/// SplitMix64 (Steele, Lea and Flood, 2014): well mixed bits of a number.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Record `number` of source `source`.
#[must_use]
pub fn quake(source: u32, number: u64) -> Item {
    let bits = mix(u64::from(source) << 40 | number);
    let (whole, tenth) = (bits % 8, bits / 8 % 10);
    let longitude = i64::from(bits as u8 as i8) * 180 / 128;
    let latitude = i64::from((bits >> 8) as u8 as i8) * 90 / 128;
    let filler = "~".repeat((bits >> 16) as usize % FILLER);
    let value = format!(
        "{{\"id\":\"s{source}-{number}\",\"mag\":{whole}.{tenth},\"place\":\"{filler}\",\
         \"time\":{number},\"tsunami\":0,\"lon\":{longitude},\"lat\":{latitude}}}"
    );
    let key = format!("s{source}-k{}", number % KEYS);
    Item {
        key: Some(key.into()),
        value: Some(value.into()),
    }
}

/// Record `number` of source `source`, as [`quake`]; much longer than those.
#[must_use]
pub fn heavy_quake(source: u32, number: u64) -> Item {
    let mut item = quake(source, number);
    let filler = "~".repeat(HEAVY_FILLER + number as usize % FILLER);
    item.value = item
        .value
        .map(|value| [&value, filler.as_bytes()].concat().into());
    item
}

fn value(item: &Item) -> &[u8] {
    item.value.as_deref().unwrap_or_default()
}

/// Whether [`filter`] lets a record pass.
#[must_use]
pub fn passes(item: &Item) -> bool {
    static CONDITION: LazyLock<Condition> = LazyLock::new(|| {
        let path = "mag".parse().expect("a name is a path");
        let operator = ">=".parse().expect("an operator");
        Condition::new(path, operator, LEAST).expect("numbers have an order")
    });
    CONDITION.holds(value(item)).expect("quakes are JSON")
}

/// The plugin that keeps what [`passes`].
#[must_use]
pub fn filter(plugin: PluginName) -> PluginUse {
    configured(plugin, &[("field", "mag"), ("op", ">="), ("value", LEAST)])
}

/// The alert that [`split`] makes of a record, if it is strong enough.
#[must_use]
pub fn alert(item: &Item) -> Option<Item> {
    static SHAPE: LazyLock<AlertShape> =
        LazyLock::new(|| AlertShape::new(ALERT.parse().expect("a number")));
    let alert = SHAPE.alert(value(item)).expect("quakes are JSON")?;
    Some(Item {
        key: alert.key.map(Bytes::from),
        value: Some(alert.value.into()),
    })
}

/// The plugin that makes alerts, and passes every record on to a log.
#[must_use]
pub fn split(plugin: PluginName) -> PluginUse {
    configured(plugin, &[("threshold", ALERT)])
}

/// The partition of a record's region.
#[must_use]
pub fn region(item: &Item, partitions: u32) -> u32 {
    let region = Region::of_json(value(item)).expect("quakes are JSON");
    region.expect("quakes have a place").partition(partitions)
}

/// The partition of a record's key.
#[must_use]
pub fn by_key(item: &Item, partitions: u32) -> u32 {
    key_partition(item.key.as_deref().unwrap_or_default(), partitions).0
}

fn configured(plugin: PluginName, config: &[(&str, &str)]) -> PluginUse {
    let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let config: BTreeMap<_, _> = config.iter().map(entry).collect();
    PluginUse {
        config,
        ..PluginUse::new(plugin)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn records_differ_and_reach_every_branch() {
        let quakes: Vec<Item> = (0..3)
            .flat_map(|s| (0..500).map(move |n| quake(s, n)))
            .collect();
        let distinct: BTreeSet<&[u8]> = quakes.iter().map(value).collect();
        assert_eq!(distinct.len(), quakes.len());
        let passing = quakes.iter().filter(|q| passes(q)).count();
        let alerts = quakes.iter().filter_map(alert).count();
        assert!((300..1400).contains(&passing), "{passing} pass");
        assert!((300..1200).contains(&alerts), "{alerts} alerts");
        let of = |place: fn(&Item, u32) -> u32| -> BTreeSet<u32> {
            quakes.iter().map(|q| place(q, 4)).collect()
        };
        assert_eq!((of(region).len(), of(by_key).len()), (4, 4));
    }
}
