//! Keeps records whose value has an integer at a fixed offset that compares with a constant.
//!
//! The cheapest filter that is of use: for binary records whose layout is known. Configuration:
//!
//! - `offset`: where the integer begins in the value, in bytes; 0 unless given.
//! - `type`: `u8`, `u16`, `u32`, `u64`, `i8`, `i16`, `i32` or `i64`; little-endian unless followed
//!   by `-be`, as in `u32-be`.
//! - `op`: `==`, `!=`, `<`, `<=`, `>` or `>=`.
//! - `value`: a decimal integer of that type.
//!
//! A record whose value is too short to have the integer is dropped.

use millstream_guest::{Filter, Init, Needs, Record, Verdict};

/// Integers are compared as unsigned ones of 64 bits: adding half of the range to a signed one
/// keeps the order, and every comparison is then one range and whether to be inside it.
pub struct FilterField {
    offset: usize,
    integer: Integer,
    least: u64,
    width: u64,
    inside: bool,
}

/// How the bytes are read.
#[derive(Clone, Copy)]
struct Integer {
    bytes: usize,
    big_endian: bool,
    /// What makes a signed integer's order that of an unsigned one.
    bias: u64,
}

impl Integer {
    fn parse(text: &str) -> Option<Self> {
        let (name, big_endian) = match text.strip_suffix("-be") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let (kind, bits) = name.split_at_checked(1)?;
        let bytes = match bits {
            "8" => 1,
            "16" => 2,
            "32" => 4,
            "64" => 8,
            _ => return None,
        };
        let bias = match kind {
            "u" => 0,
            "i" => 1 << (bytes * 8 - 1),
            _ => return None,
        };
        Some(Self {
            bytes,
            big_endian,
            bias,
        })
    }

    fn max(self) -> u64 {
        u64::MAX >> (64 - self.bytes * 8)
    }

    /// The constant as it is compared; none if it is not of this type.
    fn constant(self, text: &str) -> Option<u64> {
        let value = text.parse::<i128>().ok()? + i128::from(self.bias);
        u64::try_from(value)
            .ok()
            .filter(|&value| value <= self.max())
    }

    #[inline]
    fn read(self, value: &[u8], offset: usize) -> Option<u64> {
        let at = value.get(offset..)?;
        let integer = match (self.bytes, self.big_endian) {
            (1, _) => u64::from(*at.first()?),
            (2, false) => u64::from(u16::from_le_bytes(*at.first_chunk()?)),
            (2, true) => u64::from(u16::from_be_bytes(*at.first_chunk()?)),
            (4, false) => u64::from(u32::from_le_bytes(*at.first_chunk()?)),
            (4, true) => u64::from(u32::from_be_bytes(*at.first_chunk()?)),
            (_, false) => u64::from_le_bytes(*at.first_chunk()?),
            (_, true) => u64::from_be_bytes(*at.first_chunk()?),
        };
        Some(integer ^ self.bias)
    }
}

impl Filter for FilterField {
    const NEEDS: Needs = Needs::VALUES;

    fn init(init: &Init) -> Result<Self, String> {
        init.config_only(&["offset", "type", "op", "value"])?;
        let name: String = init.require("type")?;
        let integer = Integer::parse(&name)
            .ok_or_else(|| format!("type = {name:?}: one of u8 to u64 and i8 to i64, or u32-be"))?;
        let text: String = init.require("value")?;
        let value = integer
            .constant(&text)
            .ok_or_else(|| format!("value = {text:?} is not an integer of type {name}"))?;
        let max = integer.max();
        let operator: String = init.require("op")?;
        let (least, greatest, inside) = match operator.as_str() {
            "==" => (value, value, true),
            "!=" => (value, value, false),
            "<" => (value, max, false),
            "<=" => (0, value, true),
            ">" => (0, value, false),
            ">=" => (value, max, true),
            _ => return Err(format!("op = {operator:?}: one of == != < <= > >=")),
        };
        let offset = init.parse_or("offset", 0)?;
        Ok(Self {
            offset,
            integer,
            least,
            width: greatest - least,
            inside,
        })
    }

    #[inline]
    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        let integer = record
            .value()
            .and_then(|value| self.integer.read(value, self.offset));
        Verdict::keep_if(
            integer.is_some_and(|integer| {
                (integer.wrapping_sub(self.least) <= self.width) == self.inside
            }),
        )
    }
}

millstream_guest::filter!(FilterField);
