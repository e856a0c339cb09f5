//! Reading a JSON number.

/// The largest integer up to which every one is an exact `f64`.
const EXACT: u64 = 1 << 53;
/// The powers of ten that are exact as `f64`.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];
/// Digits that fit a `u64` whatever they are.
const DIGITS: usize = 19;

/// The number that a JSON value is, rounded to the nearest `f64`; none if it is not a number.
#[inline]
#[must_use]
pub fn number(value: &[u8]) -> Option<f64> {
    short(value).or_else(|| any(value))
}

/// A number of few digits without an exponent, nearly every one in practice: an exact integer
/// divided by an exact power of ten is rounded once, hence correctly. None for all others.
#[inline]
fn short(value: &[u8]) -> Option<f64> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    if digits.len() > DIGITS || !digits.first()?.is_ascii_digit() {
        return None;
    }
    let mut mantissa = 0u64;
    let mut point = None;
    for (index, &byte) in digits.iter().enumerate() {
        if byte == b'.' && point.is_none() {
            point = Some(index);
        } else if byte.is_ascii_digit() {
            mantissa = mantissa * 10 + u64::from(byte - b'0');
        } else {
            return None;
        }
    }
    let fraction = point.map_or(0, |point| digits.len() - point - 1);
    if mantissa > EXACT || point == Some(digits.len() - 1) {
        return None;
    }
    let magnitude = mantissa as f64 / POWERS[fraction];
    Some(if negative { -magnitude } else { magnitude })
}

/// Any other number, by the standard library, which also knows names that JSON does not.
#[cold]
fn any(value: &[u8]) -> Option<f64> {
    let known = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let (first, last) = (digits.first()?, digits.last()?);
    if !first.is_ascii_digit() || !last.is_ascii_digit() || !value.iter().all(known) {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok()
}
