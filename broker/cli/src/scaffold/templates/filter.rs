//! Keeps records whose value contains a text.
//!
//! Configuration: `contains`, the text.

use millstream_guest::{Filter, Init, Needs, Record, Verdict};

/// The plugin: one instance for each place it is used at.
pub struct Plugin {
    contains: Vec<u8>,
}

impl Filter for Plugin {
    // Columns that are not asked for are not sent, which is what makes a plugin fast.
    const NEEDS: Needs = Needs::VALUES;

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&["contains"])?;
        let contains: String = init.require("contains")?;
        if contains.is_empty() {
            return Err("contains is empty: every record would be kept".to_owned());
        }
        Ok(Self {
            contains: contains.into_bytes(),
        })
    }

    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        let Some(value) = record.value() else {
            return Verdict::Drop;
        };
        let mut windows = value.windows(self.contains.len());
        Verdict::keep_if(windows.any(|window| window == self.contains))
    }
}

millstream_guest::filter!(Plugin);

#[cfg(test)]
mod tests {
    use millstream_guest::BatchBuilder;

    use super::*;

    #[test]
    fn only_records_with_the_text_are_kept() {
        let mut plugin = Plugin::init(&Init::new("test").config("contains", "err")).unwrap();
        let batch = BatchBuilder::new()
            .record(None, Some(b"an error"))
            .record(None, Some(b"all is well"))
            .record(None, None)
            .build();
        let verdicts: Vec<Verdict> = batch
            .records()
            .map(|record| plugin.filter(&record))
            .collect();
        assert_eq!(verdicts, [Verdict::Keep, Verdict::Drop, Verdict::Drop]);
    }

    #[test]
    fn the_text_must_be_given() {
        assert!(Plugin::init(&Init::new("test")).is_err());
    }
}
