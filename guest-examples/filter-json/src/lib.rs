//! Keeps records whose JSON value has a field that compares with a constant.
//!
//! Configuration:
//!
//! - `field`: a name like `mag`, or a JSON pointer like `/place/country`.
//! - `op`: `==`, `!=`, `<`, `<=`, `>`, `>=` or `contains`.
//! - `value`: a number, `true`, `false`, `null` or a string; a number in quotes is a string.
//! - `malformed`: what becomes of a record that is not JSON: `drop`, `keep` or `dead-letter`,
//!   which it is unless given.
//!
//! A record without the field, or with another type in it, is dropped.

use json_field::Condition;
use millstream_guest::{Filter, Init, Needs, Record, Verdict};

/// The plugin.
pub struct FilterJson {
    condition: Condition,
    malformed: Verdict,
}

impl Filter for FilterJson {
    const NEEDS: Needs = Needs::VALUES;

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&["field", "op", "value", "malformed"])?;
        let value: String = init.require("value")?;
        let condition = Condition::new(init.require("field")?, init.require("op")?, &value)?;
        let malformed = match init.get("malformed") {
            Some("drop") => Verdict::Drop,
            Some("keep") => Verdict::Keep,
            Some("dead-letter") | None => Verdict::DeadLetter,
            Some(other) => {
                return Err(format!(
                    "malformed = {other:?}: one of drop, keep, dead-letter"
                ));
            }
        };
        Ok(Self {
            condition,
            malformed,
        })
    }

    #[inline]
    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        let Some(value) = record.value() else {
            return Verdict::Drop;
        };
        self.condition
            .holds(value)
            .map_or(self.malformed, Verdict::keep_if)
    }
}

millstream_guest::filter!(FilterJson);
