//! Puts a text in front of each value.
//!
//! Configuration: `prefix`, the text.

use millstream_guest::{Emitter, Init, Needs, Output, Record, Transform};

/// The plugin: one instance for each place it is used at.
pub struct Plugin {
    prefix: Vec<u8>,
    output: Output,
}

impl Transform for Plugin {
    // Key and headers are kept without being looked at, so they are not asked for.
    const NEEDS: Needs = Needs::VALUES;

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&["prefix"])?;
        let prefix: String = init.require("prefix")?;
        Ok(Self {
            prefix: prefix.into_bytes(),
            output: init.first_output()?,
        })
    }

    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter) -> Result<(), String> {
        // A tombstone stays one: it is emitted as it is.
        let mut draft = out.emit(self.output);
        if let Some(value) = record.value() {
            draft.value_with(|new| {
                new.extend_from_slice(&self.prefix);
                new.extend_from_slice(value);
            });
        }
        Ok(())
    }
}

millstream_guest::transform!(Plugin);

#[cfg(test)]
mod tests {
    use millstream_guest::{BatchBuilder, BatchTransform};

    use super::*;

    #[test]
    fn every_record_comes_out_with_the_prefix() {
        let init = Init::new("test")
            .with_output("next")
            .config("prefix", "seen:");
        let mut plugin = <Plugin as Transform>::init(&init).unwrap();
        let batch = BatchBuilder::new()
            .record(None, Some(b"a"))
            .record(None, None)
            .build();
        let mut out = Emitter::default();
        BatchTransform::transform(&mut plugin, &batch, &mut out).unwrap();
        assert_eq!(out.len(), 2);
        assert_eq!(out.finish().data, b"seen:a");
    }

    #[test]
    fn the_prefix_must_be_given() {
        assert!(<Plugin as Transform>::init(&Init::new("test").with_output("next")).is_err());
    }
}
