//! What must come out, computed from the file in plain Rust: no broker, no WebAssembly, no batch.
//!
//! The JSON is read whole with serde_json here, where the plugins scan for single fields, so that
//! a mistake in one of the two shows as a difference.

use std::collections::BTreeMap;

use bytes::Bytes;
use quake_regions::Region;
use serde_json::{Value, json};

/// The file: see `data/README.md`.
pub(super) const EARTHQUAKES: &[u8] = include_bytes!("../../data/earthquakes.ndjson");
/// Partitions of the topic of earthquakes. Two regions share one.
pub(super) const PARTITIONS: u32 = 4;
/// Magnitude from which on the pipeline makes an alert.
pub(super) const ALERT_FROM: f64 = 4.5;
/// Magnitude from which on the filtered subscription passes a record.
pub(super) const STRONG_FROM: f64 = 5.0;
/// The kind of record that the pipeline lets pass.
pub(super) const KIND: &str = "earthquake";
/// The field that the pipeline blanks.
pub(super) const REDACTED: &str = "status";

/// One line of the file.
#[derive(Clone, Debug)]
pub(super) struct Quake {
    /// Its key.
    pub(super) id: Bytes,
    /// The line as it is produced.
    pub(super) line: Bytes,
    /// Milliseconds since the Unix epoch.
    pub(super) time: i64,
    /// Where it happened.
    pub(super) region: Region,
    json: Value,
}

impl Quake {
    fn read(line: Bytes) -> Result<Self, String> {
        let json: Value = serde_json::from_slice(&line).map_err(|e| e.to_string())?;
        let number = |name: &str| {
            json[name]
                .as_f64()
                .ok_or_else(|| format!("no number {name:?}"))
        };
        let id = json["id"].as_str().ok_or("no text \"id\"")?;
        let time = json["time"].as_i64().ok_or("no time")?;
        let region = Region::of(number("lon")?, number("lat")?);
        Ok(Self {
            id: Bytes::copy_from_slice(id.as_bytes()),
            line,
            time,
            region,
            json,
        })
    }

    /// The partition that it must be in.
    pub(super) fn partition(&self) -> u32 {
        self.region.partition(PARTITIONS)
    }

    fn magnitude(&self) -> Option<f64> {
        self.json["mag"].as_f64()
    }

    fn is_earthquake(&self) -> bool {
        self.json["kind"] == KIND
    }

    /// Whether the filtered subscription passes it.
    pub(super) fn is_strong(&self) -> bool {
        self.magnitude()
            .is_some_and(|magnitude| magnitude >= STRONG_FROM)
    }

    /// What the pipeline logs of it: itself with one field blanked, if it is an earthquake.
    fn logged(&self) -> Option<Value> {
        let mut logged = self.json.clone();
        if let Some(field) = logged.get_mut(REDACTED) {
            *field = Value::Null;
        }
        self.is_earthquake().then_some(logged)
    }

    /// The alert that the pipeline makes of it, if it is a strong enough earthquake.
    fn alert(&self) -> Option<Value> {
        let magnitude = self
            .magnitude()
            .filter(|&magnitude| magnitude >= ALERT_FROM)?;
        let severity = match magnitude {
            m if m < 5.0 => "light",
            m if m < 6.0 => "moderate",
            m if m < 7.0 => "strong",
            m if m < 8.0 => "major",
            _ => "great",
        };
        let field = |name: &str| self.json[name].clone();
        self.is_earthquake().then(|| {
            json!({
                "id": field("id"), "severity": severity, "mag": field("mag"),
                "place": field("place"), "time": field("time"), "tsunami": field("tsunami"),
            })
        })
    }
}

/// Everything that must come out.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// The lines in their order.
    pub(super) quakes: Vec<Quake>,
    /// The alerts by key.
    pub(super) alerts: BTreeMap<Bytes, Value>,
    /// The log by key.
    pub(super) log: BTreeMap<Bytes, Value>,
}

impl Expected {
    /// Computes it.
    ///
    /// # Errors
    /// The line that is not an earthquake's record.
    pub(super) fn of(file: &'static [u8]) -> Result<Self, String> {
        let lines = file
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty());
        let quakes = lines
            .enumerate()
            .map(|(i, line)| {
                Quake::read(Bytes::from_static(line))
                    .map_err(|why| format!("line {}: {why}", i + 1))
            })
            .collect::<Result<Vec<Quake>, String>>()?;
        let by_id = |what: fn(&Quake) -> Option<Value>| {
            quakes
                .iter()
                .filter_map(|quake| Some((quake.id.clone(), what(quake)?)))
                .collect()
        };
        Ok(Self {
            alerts: by_id(Quake::alert),
            log: by_id(Quake::logged),
            quakes,
        })
    }

    /// The lines that must be in a partition, in their order.
    pub(super) fn in_partition(&self, partition: u32) -> impl Iterator<Item = &Quake> {
        self.quakes
            .iter()
            .filter(move |quake| quake.partition() == partition)
    }

    /// The lines that the filtered subscription passes, in their order.
    pub(super) fn strong_in(&self, partition: u32) -> impl Iterator<Item = &Quake> {
        self.in_partition(partition)
            .filter(|quake| quake.is_strong())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_file_is_what_its_readme_says() {
        let expected = Expected::of(EARTHQUAKES).unwrap();
        assert_eq!(expected.quakes.len(), 1707);
        let ids: HashSet<&Bytes> = expected.quakes.iter().map(|quake| &quake.id).collect();
        assert_eq!(ids.len(), 1707, "ids are keys: they are distinct");
        assert!(
            expected
                .quakes
                .windows(2)
                .all(|pair| pair[0].time <= pair[1].time)
        );
        let total: usize = (0..PARTITIONS)
            .map(|p| expected.in_partition(p).count())
            .sum();
        assert_eq!(total, 1707);
    }

    /// Counted by hand with another program.
    #[test]
    fn alerts_and_log_have_known_sizes() {
        let expected = Expected::of(EARTHQUAKES).unwrap();
        assert_eq!(expected.log.len(), 1679);
        assert_eq!(expected.alerts.len(), 85);
        let strong: usize = (0..PARTITIONS).map(|p| expected.strong_in(p).count()).sum();
        assert_eq!(strong, 39);
    }

    #[test]
    fn an_alert_has_its_shape() {
        let line = br#"{"id":"a","time":5,"mag":6.4,"place":"x","tsunami":1,"status":"s","lon":0,"lat":0,"kind":"earthquake"}"#;
        let quake = Quake::read(Bytes::from_static(line)).unwrap();
        let alert = json!({
            "id": "a", "severity": "strong", "mag": 6.4, "place": "x", "time": 5, "tsunami": 1
        });
        assert_eq!(quake.alert(), Some(alert));
        assert_eq!(quake.logged().unwrap()["status"], Value::Null);
        assert!(Quake::read(Bytes::from_static(b"{}")).is_err());
    }
}
