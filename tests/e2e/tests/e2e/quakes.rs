//! A week of earthquakes, and what can be computed of them without a broker.

use std::sync::LazyLock;

/// The file that the repository ships, by line.
pub(crate) static QUAKES: LazyLock<Vec<Quake>> = LazyLock::new(|| {
    let file = include_str!("../../../../broker/cli/data/earthquakes.ndjson");
    file.lines().map(Quake::new).collect()
});

pub(crate) struct Quake {
    pub(crate) line: &'static str,
    pub(crate) id: String,
    pub(crate) magnitude: Option<f64>,
    pub(crate) net: String,
    pub(crate) region: u32,
}

impl Quake {
    fn new(line: &'static str) -> Self {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let number = |name: &str| json[name].as_f64();
        let (lon, lat) = (number("lon").unwrap(), number("lat").unwrap());
        Self {
            line,
            id: json["id"].as_str().unwrap().to_owned(),
            magnitude: number("mag"),
            net: json["net"].as_str().unwrap().to_owned(),
            region: quake_regions::Region::of(lon, lat).number(),
        }
    }

    pub(crate) fn is_at_least(&self, magnitude: f64) -> bool {
        self.magnitude.is_some_and(|own| own >= magnitude)
    }
}
