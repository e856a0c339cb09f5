//! Makes an alert of each strong earthquake, and passes every record on to a log.
//!
//! Outputs: `alerts` and `log`. Configuration:
//!
//! - `threshold`: the magnitude from which on an earthquake is an alert; 4.5 unless given.
//!
//! An alert is a JSON object with `id`, `severity`, `mag`, `place`, `time` and `tsunami`, keyed by
//! the id. Values are copied as they stand in the record; missing ones are null.

use json_field::{Malformed, Path, find_each, number, string};
use millstream_guest::{Emitter, Init, Needs, Output, Record, Transform};

/// The fields that an alert takes over: the magnitude first, and the id last.
const FIELDS: [&str; 5] = ["mag", "place", "time", "tsunami", "id"];

/// The plugin.
pub struct SplitAlerts {
    shape: AlertShape,
    alerts: Output,
    log: Output,
}

/// Makes alerts of records.
pub struct AlertShape {
    threshold: f64,
    fields: [Path; 5],
}

/// An alert: its key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The earthquake's id; none if it has none.
    pub key: Option<Vec<u8>>,
    /// The JSON text.
    pub value: Vec<u8>,
}

impl AlertShape {
    /// Alerts from this magnitude on.
    #[must_use]
    pub fn new(threshold: f64) -> Self {
        let path = |name: &str| name.parse::<Path>().expect("a name is a path");
        Self {
            threshold,
            fields: FIELDS.map(path),
        }
    }

    /// The alert for an earthquake; none if it is not strong enough or has no magnitude.
    ///
    /// # Errors
    /// If the text is not JSON, as far as it had to be read.
    pub fn alert(&self, json: &[u8]) -> Result<Option<Alert>, Malformed> {
        let magnitude = self.fields[0].find(json)?.and_then(number);
        let Some(magnitude) = magnitude.filter(|&magnitude| magnitude >= self.threshold) else {
            return Ok(None);
        };
        let [copied @ .., id] = find_each(&self.fields, json)?;
        let mut value = Vec::with_capacity(200);
        value.extend_from_slice(b"{\"id\":");
        value.extend_from_slice(id.unwrap_or(b"null"));
        value.extend_from_slice(b",\"severity\":\"");
        value.extend_from_slice(severity(magnitude).as_bytes());
        value.push(b'"');
        for (name, field) in FIELDS.iter().zip(copied) {
            value.extend_from_slice(b",\"");
            value.extend_from_slice(name.as_bytes());
            value.extend_from_slice(b"\":");
            value.extend_from_slice(field.unwrap_or(b"null"));
        }
        value.push(b'}');
        Ok(Some(Alert {
            key: id.and_then(string).map(|id| id.into_owned()),
            value,
        }))
    }
}

/// The usual names of magnitudes.
#[must_use]
pub fn severity(magnitude: f64) -> &'static str {
    match magnitude {
        m if m >= 8.0 => "great",
        m if m >= 7.0 => "major",
        m if m >= 6.0 => "strong",
        m if m >= 5.0 => "moderate",
        _ => "light",
    }
}

impl Transform for SplitAlerts {
    const NEEDS: Needs = Needs::VALUES;

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&["threshold"])?;
        let threshold: f64 = init.parse_or("threshold", 4.5)?;
        if !threshold.is_finite() {
            return Err(format!(
                "threshold = {threshold}: a magnitude is a number like 4.5"
            ));
        }
        let shape = AlertShape::new(threshold);
        Ok(Self {
            shape,
            alerts: init.output("alerts")?,
            log: init.output("log")?,
        })
    }

    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter) -> Result<(), String> {
        out.emit(self.log);
        let Some(json) = record.value() else {
            return Ok(());
        };
        if let Some(alert) = self.shape.alert(json).map_err(|error| error.to_string())? {
            let mut draft = out.emit(self.alerts);
            draft.value(&alert.value);
            if let Some(key) = alert.key {
                draft.key(&key);
            }
        }
        Ok(())
    }
}

millstream_guest::transform!(SplitAlerts);
