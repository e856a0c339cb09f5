//! Which region of the world an earthquake belongs to.
//!
//! A few rectangles, good enough to spread a week of earthquakes and to count them by name. The
//! numbers of the regions decide partitions of stored records: they never change.

use std::sync::LazyLock;

use json_field::{Malformed, Path, find_each, number};

/// A region; its number is its place in [`Region::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// The west coast of the United States and of southern Canada.
    WestCoast,
    /// Alaska, the Aleutians and the Yukon.
    Alaska,
    /// The rest of North America and the Caribbean.
    NorthAmerica,
    /// Hawaii.
    Hawaii,
    /// Asia and Indonesia.
    Asia,
    /// Central and South America.
    SouthAmerica,
    /// Europe, Africa and the Near East.
    EuropeAfrica,
    /// All else: Oceania, the open oceans, Antarctica.
    Oceans,
}

impl Region {
    /// All regions, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::WestCoast,
        Self::Alaska,
        Self::NorthAmerica,
        Self::Hawaii,
        Self::Asia,
        Self::SouthAmerica,
        Self::EuropeAfrica,
        Self::Oceans,
    ];

    /// The region of a point; longitude and latitude in degrees, east and north positive.
    #[must_use]
    pub fn of(longitude: f64, latitude: f64) -> Self {
        let inside = |west: f64, east: f64, south: f64, north: f64| {
            (west..=east).contains(&longitude) && (south..=north).contains(&latitude)
        };
        if inside(-180.0, -129.0, 50.0, 90.0) || inside(165.0, 180.0, 50.0, 90.0) {
            Self::Alaska
        } else if inside(-162.0, -150.0, 18.0, 30.0) {
            Self::Hawaii
        } else if inside(-130.0, -114.0, 32.0, 50.0) {
            Self::WestCoast
        } else if inside(-129.0, -50.0, 14.5, 90.0) {
            Self::NorthAmerica
        } else if inside(-110.0, -30.0, -60.0, 14.5) {
            Self::SouthAmerica
        } else if inside(-30.0, 60.0, -40.0, 90.0) {
            Self::EuropeAfrica
        } else if inside(60.0, 150.0, -11.0, 90.0) {
            Self::Asia
        } else {
            Self::Oceans
        }
    }

    /// The region of a record: a JSON object with the numbers `lon` and `lat`. None if it has no
    /// such numbers.
    ///
    /// # Errors
    /// If it is not JSON, as far as it had to be read.
    pub fn of_json(json: &[u8]) -> Result<Option<Self>, Malformed> {
        static FIELDS: LazyLock<[Path; 2]> =
            LazyLock::new(|| ["lon", "lat"].map(|name| name.parse().expect("a name is a path")));
        let [longitude, latitude] = find_each(&FIELDS, json)?.map(|value| value.and_then(number));
        Ok(longitude
            .zip(latitude)
            .map(|(longitude, latitude)| Self::of(longitude, latitude)))
    }

    /// Its number, smaller than the number of regions.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The partition of its records in a topic of so many partitions, at least 1.
    #[must_use]
    pub fn partition(self, partitions: u32) -> u32 {
        self.number() % partitions.max(1)
    }

    /// Its name, as in keys and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WestCoast => "west-coast",
            Self::Alaska => "alaska",
            Self::NorthAmerica => "north-america",
            Self::Hawaii => "hawaii",
            Self::Asia => "asia",
            Self::SouthAmerica => "south-america",
            Self::EuropeAfrica => "europe-africa",
            Self::Oceans => "oceans",
        }
    }
}
