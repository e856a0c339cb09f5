//! JSON pointers (RFC 6901), by which `produce` finds a record's key and time.

use std::str::FromStr;

use serde_json::Value;

/// A checked pointer. The empty text points at the whole document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    text: String,
}

impl FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && !text.starts_with('/') {
            return Err(format!(
                "{text:?} is not a JSON pointer: it begins with '/', as in /id"
            ));
        }
        // A tilde stands only in ~0 (a tilde) and ~1 (a slash).
        let mut rest = text;
        while let Some(at) = rest.find('~') {
            rest = &rest[at + 1..];
            if !rest.starts_with(['0', '1']) {
                return Err(format!("{text:?} is not a JSON pointer: '~' is written ~0"));
            }
        }
        Ok(Self {
            text: text.to_owned(),
        })
    }
}

impl Pointer {
    /// What it points at, if that is there.
    pub(crate) fn find<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        document.pointer(&self.text)
    }

    /// The pointer as typed.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// The bytes of a key: a text as it is, any other value as compact JSON, null as no key.
pub(crate) fn key_bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone().into_bytes()),
        other => Some(other.to_string().into_bytes()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(pointer: &str, document: &Value, expected: Option<Value>) {
        let pointer: Pointer = pointer.parse().unwrap();
        assert_eq!(pointer.find(document).cloned(), expected, "{pointer:?}");
    }

    /// The examples of RFC 6901, section 5.
    #[test]
    fn the_examples_of_the_rfc() {
        let document = json!({
            "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3,
            "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8
        });
        check("", &document, Some(document.clone()));
        check("/foo", &document, Some(json!(["bar", "baz"])));
        check("/foo/0", &document, Some(json!("bar")));
        check("/", &document, Some(json!(0)));
        check("/a~1b", &document, Some(json!(1)));
        check("/c%d", &document, Some(json!(2)));
        check("/ ", &document, Some(json!(7)));
        check("/m~0n", &document, Some(json!(8)));
        check("/foo/2", &document, None);
        check("/foo/01", &document, None);
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for bad in ["id", "/a~", "/a~2"] {
            assert!(bad.parse::<Pointer>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_plain_text() {
        assert_eq!(key_bytes(&json!("x")), Some(b"x".to_vec()));
        assert_eq!(key_bytes(&json!(7)), Some(b"7".to_vec()));
        assert_eq!(key_bytes(&json!(null)), None);
    }

    proptest! {
        #[test]
        fn an_escaped_name_finds_its_value(name in "\\PC{0,12}") {
            let escaped = name.replace('~', "~0").replace('/', "~1");
            let pointer: Pointer = format!("/{escaped}").parse().unwrap();
            let document = json!({ name: 1 });
            prop_assert_eq!(pointer.find(&document), Some(&json!(1)));
        }
    }
}
