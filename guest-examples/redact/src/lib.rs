//! Blanks fields of JSON values: what must not be read is not passed on.
//!
//! Configuration:
//!
//! - `fields`: names or JSON pointers, between commas.
//! - `with`: the JSON that replaces each value; `null` unless given.
//!
//! Every occurrence of a field is blanked. A record that is not JSON is an error and not passed
//! on, since what cannot be read cannot be blanked. A tombstone passes.

use std::ops::Range;

use json_field::{Path, find_all};
use millstream_guest::{Emitter, Init, Needs, Output, Record, Transform};

/// The plugin.
pub struct Redact {
    fields: Vec<Path>,
    with: Vec<u8>,
    output: Output,
    /// Where the values to blank are in the record in hand; kept for its allocation.
    found: Vec<Range<usize>>,
}

impl Transform for Redact {
    const NEEDS: Needs = Needs::VALUES;

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&["fields", "with"])?;
        let parse = |name: &str| {
            name.parse()
                .map_err(|error| format!("fields: {name:?}: {error}"))
        };
        let fields = init
            .list("fields")
            .map(parse)
            .collect::<Result<Vec<_>, _>>()?;
        if fields.is_empty() {
            return Err("fields is missing: name at least one field to blank".to_owned());
        }
        let with = init.get("with").unwrap_or("null").as_bytes().to_vec();
        let output = init.first_output()?;
        Ok(Self {
            fields,
            with,
            output,
            found: Vec::new(),
        })
    }

    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter) -> Result<(), String> {
        self.found.clear();
        if let Some(json) = record.value() {
            find_all(&self.fields, json, &mut self.found).map_err(|error| error.to_string())?;
        }
        let mut draft = out.emit(self.output);
        let Some(json) = record.value().filter(|_| !self.found.is_empty()) else {
            return Ok(());
        };
        self.found.sort_unstable_by_key(|range| range.start);
        draft.value_with(|data| {
            let mut copied = 0;
            // A field inside one that is blanked already is gone with it.
            for range in self.found.iter() {
                if range.start >= copied {
                    data.extend_from_slice(&json[copied..range.start]);
                    data.extend_from_slice(&self.with);
                    copied = range.end;
                }
            }
            data.extend_from_slice(&json[copied..]);
        });
        Ok(())
    }
}

millstream_guest::transform!(Redact);
