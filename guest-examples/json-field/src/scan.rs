//! Walking over JSON: where strings, numbers and nested values end.
//!
//! Bytes are looked at eight at a time in a `u64`, since a loop over single bytes is the most
//! expensive thing a sandboxed guest can do. Each test sets the high bit of every byte that
//! matches. A borrow can set it wrongly, but only in bytes above a match, so the lowest set bit
//! is always right and the only one used.

const EACH: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;
/// Bytes of a word.
const WORD: usize = 8;

/// The text is not JSON: an unexpected byte, or an end in the middle of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the value is not well-formed JSON")
    }
}

impl std::error::Error for Malformed {}

/// One member of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The name as it stands between the quotes, escapes and all.
    pub name: &'a [u8],
    /// The value as it stands, a string with its quotes.
    pub value: &'a [u8],
    /// Where the value begins, in bytes from the beginning of the text.
    pub start: usize,
}

/// The members of an object, in order. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Members<'a> {
    json: &'a [u8],
    at: usize,
    /// The byte that must come before a name: `{` first, then `,`; 0 when done.
    before: u8,
}

impl<'a> Members<'a> {
    /// The members of the object that begins at byte `at` of `json`, spaces before it allowed. A
    /// value that is not an object is an error at the first step.
    #[must_use]
    pub fn new(json: &'a [u8], at: usize) -> Self {
        Self {
            json,
            at: skip_space(json, at),
            before: b'{',
        }
    }

    /// After the last member: where the text behind the object's brace begins.
    #[must_use]
    pub fn end(&self) -> usize {
        self.at
    }

    /// The next member; none after the last.
    #[inline]
    fn step(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        let json = self.json;
        let byte = *json.get(self.at).ok_or(Malformed)?;
        if byte == b'}' && self.before == b',' {
            self.at += 1;
            return Ok(None);
        }
        if byte != self.before {
            return Err(Malformed);
        }
        let mut at = skip_space(json, self.at + 1);
        if self.before == b'{' && json.get(at) == Some(&b'}') {
            self.at = at + 1;
            return Ok(None);
        }
        if json.get(at) != Some(&b'"') {
            return Err(Malformed);
        }
        let close = string_end(json, at + 1)?;
        let name = &json[at + 1..close];
        at = skip_space(json, close + 1);
        if json.get(at) != Some(&b':') {
            return Err(Malformed);
        }
        let start = skip_space(json, at + 1);
        let end = value_end(json, start)?;
        self.at = skip_space(json, end);
        self.before = b',';
        Ok(Some(Member {
            name,
            value: &json[start..end],
            start,
        }))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.before == 0 {
            return None;
        }
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.before = 0;
        }
        step.transpose()
    }
}

/// Where the element with this index of the array at `at` begins and ends; none if there are
/// fewer.
pub(crate) fn element(
    json: &[u8],
    at: usize,
    index: usize,
) -> Result<Option<(usize, usize)>, Malformed> {
    let mut at = skip_space(json, at + 1);
    if json.get(at) == Some(&b']') {
        return Ok(None);
    }
    for passed in 0.. {
        let end = value_end(json, at)?;
        if passed == index {
            return Ok(Some((at, end)));
        }
        at = skip_space(json, end);
        match json.get(at) {
            Some(b',') => at = skip_space(json, at + 1),
            Some(b']') => return Ok(None),
            _ => return Err(Malformed),
        }
    }
    Ok(None)
}

/// The first byte at or after `at` that is not a space.
#[inline]
pub(crate) fn skip_space(json: &[u8], mut at: usize) -> usize {
    while matches!(json.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// The end of the value that begins at `at`.
#[inline]
pub(crate) fn value_end(json: &[u8], at: usize) -> Result<usize, Malformed> {
    match json.get(at) {
        Some(b'"') => Ok(string_end(json, at + 1)? + 1),
        Some(b'{' | b'[') => container_end(json, at),
        Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Ok(scalar_end(json, at)),
        _ => Err(Malformed),
    }
}

/// The closing quote of the string whose first byte is at `at`.
#[inline]
fn string_end(json: &[u8], mut at: usize) -> Result<usize, Malformed> {
    loop {
        let word = word(json, at)?;
        let found = equal(word, b'"') | equal(word, b'\\');
        if found == 0 {
            at += WORD;
            continue;
        }
        at += first(found);
        match json.get(at) {
            Some(b'"') => return Ok(at),
            // Whatever is escaped cannot close the string.
            Some(b'\\') => at += 2,
            _ => return Err(Malformed),
        }
    }
}

/// The end of a number or a word: a comma, a closing bracket, a space or the end of the text.
#[inline]
fn scalar_end(json: &[u8], mut at: usize) -> usize {
    while let Ok(word) = word(json, at) {
        // Setting bit 5 makes `]` and `}` one byte, and touches no other that ends a value.
        let closing = equal(word | (EACH * 0x20), b'}');
        // Below 0x21: the spaces, and the zeros past the end of the text.
        let space = word.wrapping_sub(EACH * 0x21) & !word & HIGH;
        let found = equal(word, b',') | closing | space;
        if found != 0 {
            return (at + first(found)).min(json.len());
        }
        at += WORD;
    }
    json.len()
}

/// The end of the object or array that begins at `at`.
fn container_end(json: &[u8], mut at: usize) -> Result<usize, Malformed> {
    let mut depth = 0usize;
    loop {
        let word = word(json, at)?;
        let folded = word | (EACH * 0x20);
        let found = equal(folded, b'{') | equal(folded, b'}') | equal(word, b'"');
        if found == 0 {
            at += WORD;
            continue;
        }
        at += first(found);
        match json.get(at) {
            Some(b'"') => at = string_end(json, at + 1)?,
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => return Err(Malformed),
        }
        at += 1;
    }
}

/// The eight bytes at `at`, the first in the lowest; zeros past the end. An error if `at` itself
/// is past the end.
#[inline]
fn word(json: &[u8], at: usize) -> Result<u64, Malformed> {
    let rest = json.get(at..).unwrap_or_default();
    match rest.first_chunk::<WORD>() {
        Some(bytes) => Ok(u64::from_le_bytes(*bytes)),
        None => last_word(rest),
    }
}

#[cold]
fn last_word(rest: &[u8]) -> Result<u64, Malformed> {
    if rest.is_empty() {
        return Err(Malformed);
    }
    let mut bytes = [0; WORD];
    bytes[..rest.len()].copy_from_slice(rest);
    Ok(u64::from_le_bytes(bytes))
}

/// Marks the bytes of `word` that equal `byte`, and perhaps some above the first of them.
#[inline]
fn equal(word: u64, byte: u8) -> u64 {
    let differing = word ^ (EACH * u64::from(byte));
    differing.wrapping_sub(EACH) & !differing & HIGH
}

/// The index of the lowest marked byte.
#[inline]
fn first(found: u64) -> usize {
    (found.trailing_zeros() / 8) as usize
}
