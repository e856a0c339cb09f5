//! Which field: a name, or a JSON pointer (RFC 6901).

use std::ops::Range;
use std::str::FromStr;

use crate::scan::{Malformed, Members, element, skip_space, value_end};
use crate::text::means;

/// The way to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    steps: Vec<Vec<u8>>,
}

/// A text is not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPath;

impl std::fmt::Display for NotAPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field is a name like mag or a JSON pointer like /place/country")
    }
}

impl std::error::Error for NotAPath {}

impl FromStr for Path {
    type Err = NotAPath;

    /// A name of the outermost object, or, if it begins with `/`, a JSON pointer.
    fn from_str(text: &str) -> Result<Self, NotAPath> {
        if text.is_empty() {
            return Err(NotAPath);
        }
        let Some(pointer) = text.strip_prefix('/') else {
            return Ok(Self {
                steps: vec![text.as_bytes().to_vec()],
            });
        };
        let steps = pointer
            .split('/')
            .map(resolve)
            .collect::<Option<_>>()
            .ok_or(NotAPath)?;
        Ok(Self { steps })
    }
}

/// One step of a pointer: `~1` is a slash, `~0` a tilde, and no other tilde is allowed.
fn resolve(step: &str) -> Option<Vec<u8>> {
    let mut parts = step.split('~');
    let mut resolved = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let rest = match part.as_bytes() {
            [b'0', rest @ ..] => (b'~', rest),
            [b'1', rest @ ..] => (b'/', rest),
            _ => return None,
        };
        resolved.push(rest.0);
        resolved.extend_from_slice(rest.1);
    }
    Some(resolved)
}

impl Path {
    /// The value of this field as it stands in `json`, a string with its quotes; none if it is
    /// not there. The first of several members of one name counts. What comes after the field
    /// is not looked at.
    ///
    /// # Errors
    /// If the text is not JSON, as far as it had to be read.
    #[inline]
    pub fn find<'a>(&self, json: &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
        inside(json, skip_space(json, 0), &self.steps)
    }

    /// Whether the first step of this path is `name`, as it stands between the quotes.
    #[inline]
    fn begins_with(&self, name: &[u8]) -> bool {
        self.steps.first().is_some_and(|step| means(name, step))
    }
}

/// The values of several fields, in the order of `paths`, found in one walk that ends with the
/// last of them. As [`Path::find`] otherwise.
///
/// # Errors
/// If the text is not JSON, as far as it had to be read.
pub fn find_each<'a, const N: usize>(
    paths: &[Path; N],
    json: &'a [u8],
) -> Result<[Option<&'a [u8]>; N], Malformed> {
    let mut values = [None; N];
    let start = skip_space(json, 0);
    if json.get(start) != Some(&b'{') {
        for (value, path) in values.iter_mut().zip(paths) {
            *value = path.find(json)?;
        }
        return Ok(values);
    }
    let mut passed = [false; N];
    for member in Members::new(json, start) {
        let member = member?;
        for (index, path) in paths.iter().enumerate() {
            if !passed[index] && path.begins_with(member.name) {
                passed[index] = true;
                values[index] = match &path.steps[1..] {
                    [] => Some(member.value),
                    steps => inside(json, member.start, steps)?,
                };
            }
        }
        if passed == [true; N] {
            break;
        }
    }
    Ok(values)
}

/// Where the values of these fields are in `json`, added to `found` in no order: all of them, also
/// where a name comes twice, since a reader may take the last. The whole text is read.
///
/// # Errors
/// If the text is not one JSON value from its beginning to its end.
pub fn find_all(
    paths: &[Path],
    json: &[u8],
    found: &mut Vec<Range<usize>>,
) -> Result<(), Malformed> {
    let start = skip_space(json, 0);
    if json.get(start) != Some(&b'{') {
        let end = value_end(json, start)?;
        for path in paths {
            all(json, start..end, &path.steps, found)?;
        }
        return ends(json, end);
    }
    let mut members = Members::new(json, start);
    for member in members.by_ref() {
        let member = member?;
        for path in paths.iter().filter(|path| path.begins_with(member.name)) {
            let value = member.start..member.start + member.value.len();
            all(json, value, &path.steps[1..], found)?;
        }
    }
    ends(json, members.end())
}

/// Nothing but space may follow the outermost value.
fn ends(json: &[u8], at: usize) -> Result<(), Malformed> {
    if skip_space(json, at) == json.len() {
        Ok(())
    } else {
        Err(Malformed)
    }
}

/// The value at the end of `steps`, at least one, which start from the value at `at`.
#[inline]
fn inside<'a>(
    json: &'a [u8],
    mut at: usize,
    steps: &[Vec<u8>],
) -> Result<Option<&'a [u8]>, Malformed> {
    let mut end = at;
    for step in steps {
        let found = match json.get(at) {
            Some(b'{') => member(json, at, step)?,
            Some(b'[') => position(step).map_or(Ok(None), |i| element(json, at, i))?,
            Some(_) => return Ok(None),
            None => return Err(Malformed),
        };
        let Some(range) = found else { return Ok(None) };
        (at, end) = range;
    }
    Ok(Some(&json[at..end]))
}

#[inline]
fn member(json: &[u8], at: usize, name: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    for member in Members::new(json, at) {
        let member = member?;
        if means(member.name, name) {
            return Ok(Some((member.start, member.start + member.value.len())));
        }
    }
    Ok(None)
}

/// The recursion is as deep as the path is long, whatever the text.
fn all(
    json: &[u8],
    value: Range<usize>,
    steps: &[Vec<u8>],
    found: &mut Vec<Range<usize>>,
) -> Result<(), Malformed> {
    let Some((step, rest)) = steps.split_first() else {
        found.push(value);
        return Ok(());
    };
    match json[value.start] {
        b'{' => {
            for member in Members::new(json, value.start) {
                let member = member?;
                if means(member.name, step) {
                    let inner = member.start..member.start + member.value.len();
                    all(json, inner, rest, found)?;
                }
            }
            Ok(())
        }
        b'[' => {
            let Some(index) = position(step) else {
                return Ok(());
            };
            let Some((start, end)) = element(json, value.start, index)? else {
                return Ok(());
            };
            all(json, start..end, rest, found)
        }
        _ => Ok(()),
    }
}

/// The array index that a step names, if it does: digits without a leading zero.
fn position(step: &[u8]) -> Option<usize> {
    let canonical = step == b"0" || (step.first() != Some(&b'0') && !step.is_empty());
    if !canonical || !step.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(step).ok()?.parse().ok()
}
