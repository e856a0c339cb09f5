//! JSON strings: what stands between the quotes, and what it means.

use std::borrow::Cow;

/// The text of a JSON value that is a string, with escapes resolved; none if the value is not a
/// string or an escape is wrong.
#[must_use]
pub fn string(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    unescape(value.strip_prefix(b"\"")?.strip_suffix(b"\"")?)
}

/// What the bytes between two quotes mean; none if an escape is wrong. Copies only if there are
/// escapes.
#[must_use]
pub fn unescape(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !raw.contains(&b'\\') {
        return Some(Cow::Borrowed(raw));
    }
    let mut text = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        let (&escaped, after) = rest.split_first()?;
        rest = after;
        match escaped {
            b'"' | b'\\' | b'/' => text.push(escaped),
            b'b' => text.push(0x08),
            b'f' => text.push(0x0c),
            b'n' => text.push(b'\n'),
            b'r' => text.push(b'\r'),
            b't' => text.push(b'\t'),
            b'u' => {
                let decoded = code_point(&mut rest)?;
                text.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return None,
        }
    }
    Some(Cow::Owned(text))
}

/// Whether a member's name, as it stands between the quotes, means `wanted`.
#[inline]
pub(crate) fn means(raw: &[u8], wanted: &[u8]) -> bool {
    if raw.len() != wanted.len() {
        return raw.len() > wanted.len() && unescape(raw).is_some_and(|text| *text == *wanted);
    }
    // Names are short and differ early: a loop costs a guest less than a call. A backslash is the
    // beginning of an escape, so it never stands for itself.
    raw.iter().zip(wanted).all(|(a, b)| a == b && *a != b'\\')
}

/// The character of a `\u` escape, of two if the first is half of a pair.
fn code_point(rest: &mut &[u8]) -> Option<char> {
    let high = u32::from(code_unit(rest)?);
    if !(0xd800..0xdc00).contains(&high) {
        return char::from_u32(high);
    }
    *rest = rest.strip_prefix(b"\\u")?;
    let low = u32::from(code_unit(rest)?);
    if !(0xdc00..0xe000).contains(&low) {
        return None;
    }
    char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
}

fn code_unit(rest: &mut &[u8]) -> Option<u16> {
    let (digits, after) = rest.split_at_checked(4)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    *rest = after;
    u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}
