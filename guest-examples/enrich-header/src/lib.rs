//! Copies fields of JSON values to headers, so that later readers need not look inside.
//!
//! Configuration: one key for each header, `header.<name>`, whose value is the field, a name or a
//! JSON pointer. A string is copied without its quotes, all else as it stands; a missing field
//! adds nothing. Headers that a record has already are kept.

use json_field::{Path, string};
use millstream_guest::{Emitter, Init, Needs, Output, Record, Transform};

/// The plugin.
pub struct EnrichHeader {
    headers: Vec<(String, Path)>,
    output: Output,
}

impl Transform for EnrichHeader {
    const NEEDS: Needs = Needs::VALUES.and(Needs::HEADERS);

    fn init(init: &Init) -> Result<Self, String> {
        let mut headers = Vec::new();
        for key in init.keys() {
            let name = key
                .strip_prefix("header.")
                .filter(|name| !name.is_empty())
                .ok_or_else(|| format!("unknown key {key:?}; keys are header.<name>"))?;
            headers.push((name.to_owned(), init.require(key)?));
        }
        if headers.is_empty() {
            return Err("add at least one header.<name> = <field>".to_owned());
        }
        Ok(Self {
            headers,
            output: init.first_output()?,
        })
    }

    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter) -> Result<(), String> {
        let mut draft = out.emit(self.output);
        let Some(json) = record.value() else {
            return Ok(());
        };
        draft.headers_of(record);
        for (name, field) in &self.headers {
            if let Some(value) = field.find(json).map_err(|error| error.to_string())? {
                draft.header(name, &string(value).unwrap_or(value.into()));
            }
        }
        Ok(())
    }
}

millstream_guest::transform!(EnrichHeader);
