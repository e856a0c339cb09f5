//! The JSON scanner of the examples against a complete JSON library.

use std::ops::Range;

use json_field::{
    Condition, Malformed, Members, Operator, Path, find_all, find_each, number, string, unescape,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn path(text: &str) -> Path {
    text.parse().expect("a path")
}

fn all_of(field: &str, json: &[u8]) -> Result<Vec<Range<usize>>, Malformed> {
    let mut found = Vec::new();
    find_all(&[path(field)], json, &mut found).map(|()| found)
}

fn check_found(field: &str, json: &str, expected: Option<&str>) {
    let found = path(field).find(json.as_bytes()).expect("it is JSON");
    assert_eq!(found, expected.map(str::as_bytes), "{field} in {json}");
}

#[test]
fn a_field_is_found_among_others() {
    check_found("a", r#"{"a":1}"#, Some("1"));
    check_found(
        "b",
        r#" { "a" : [1,{"b":2}] , "b" : "x\"y" } "#,
        Some(r#""x\"y""#),
    );
    check_found("b", r#"{"a":"\"b\":1","b":null}"#, Some("null"));
    check_found("b", r#"{"a":{"b":1}}"#, None);
    check_found("/a/b", r#"{"a":{"b":1}}"#, Some("1"));
    check_found("/a/1", r#"{"a":[10,20]}"#, Some("20"));
    check_found("/a/2", r#"{"a":[10,20]}"#, None);
    check_found("/a/01", r#"{"a":[10,20]}"#, None);
    check_found("/0", "[]", None);
    check_found("/a~1b/~0", r#"{"a/b":{"~":7}}"#, Some("7"));
    check_found("/", r#"{"":true}"#, Some("true"));
    check_found("é", r#"{"\u00e9":1}"#, Some("1"));
    // A backslash is written as two: the first name is one backslash, the second is two.
    check_found(r"\\", r#"{"\\":1,"\\\\":2}"#, Some("2"));
    check_found("a", "{}", None);
    check_found("a", "17", None);
    check_found("a", r#"{"a":1,"a":2}"#, Some("1"));
}

#[test]
fn what_is_not_a_path_is_refused() {
    for text in ["", "/a~2", "/~"] {
        assert!(text.parse::<Path>().is_err(), "{text}");
    }
}

#[test]
fn what_is_not_json_is_an_error() {
    let broken = [
        "",
        "{",
        r#"{"b"}"#,
        r#"{"b":}"#,
        r#"{"b":1"#,
        r#"{"b":1 "c":2}"#,
        r#"{b:1}"#,
    ];
    let more = [
        r#"{"b":"x}"#,
        r#"{"b":"x\"}"#,
        r#"{"b":[1}"#,
        r#"{"b":1,}"#,
        r#"{,"b":1}"#,
        "x",
    ];
    for json in broken.into_iter().chain(more) {
        assert_eq!(all_of("a", json.as_bytes()), Err(Malformed), "{json}");
    }
}

#[test]
fn every_occurrence_is_found_where_all_are_wanted() {
    let json = r#"{"a":{"s":1},"s":2,"a":{"s":3,"s":"4"}}"#;
    let found = all_of("/a/s", json.as_bytes()).expect("it is JSON");
    let texts: Vec<_> = found.into_iter().map(|range| &json[range]).collect();
    assert_eq!(texts, ["1", "3", "\"4\""]);
    assert_eq!(all_of("s", b"{} {}"), Err(Malformed));
    assert_eq!(all_of("s", b"1 {}"), Err(Malformed));
}

fn holds(field: &str, operator: &str, constant: &str, json: &str) -> bool {
    let operator: Operator = operator.parse().expect("an operator");
    let condition = Condition::new(path(field), operator, constant).expect("a condition");
    condition.holds(json.as_bytes()).expect("it is JSON")
}

#[test]
fn conditions_compare_by_the_type_of_the_constant() {
    let json = r#"{"mag":4.5,"place":"Fiji","felt":null,"live":true,"n":"4.5"}"#;
    for (operator, expected) in [
        ("==", true),
        ("!=", false),
        ("<", false),
        ("<=", true),
        (">", false),
        (">=", true),
    ] {
        assert_eq!(holds("mag", operator, "4.50", json), expected, "{operator}");
        assert_eq!(
            holds("place", operator, "Fiji", json),
            expected,
            "{operator}"
        );
    }
    assert!(holds("mag", "<", "5", json) && holds("mag", "gt", "-1e3", json));
    assert!(holds("place", "<", "Tonga", json) && holds("place", "contains", "ij", json));
    assert!(!holds("place", "contains", "Fijis", json));
    assert!(holds("felt", "==", "null", json) && holds("live", "!=", "false", json));
    // Another type, and a missing field, never match: not even "not equal".
    assert!(!holds("n", ">=", "1", json) && holds("n", "==", "\"4.5\"", json));
    assert!(!holds("place", "!=", "1", json) && !holds("mag", "!=", "x", json));
    assert!(!holds("gone", "!=", "1", json));
}

#[test]
fn a_condition_that_can_never_hold_is_refused() {
    for (operator, constant) in [("<", "true"), ("contains", "4"), ("contains", "null")] {
        let operator: Operator = operator.parse().expect("an operator");
        assert!(
            Condition::new(path("a"), operator, constant).is_err(),
            "{constant}"
        );
    }
    assert!("~".parse::<Operator>().is_err());
}

#[test]
fn numbers_that_json_does_not_have_are_none() {
    for text in [
        "", "-", ".5", "1.", "+1", "nan", "inf", "1e", "0x1", "1_0", "\"1\"", "1.2.3",
    ] {
        assert_eq!(number(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn escapes_that_json_does_not_have_are_none() {
    for text in [
        r"\",
        r"\x",
        r"\u12",
        r"\ud800",
        r"\ud800\u0041",
        r"\udc00",
        r"\u+123",
    ] {
        assert_eq!(unescape(text.as_bytes()), None, "{text}");
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Eighths, because the library rounds longer numbers by itself when it reads them.
        any::<i32>().prop_map(|number| json!(f64::from(number) / 8.0)),
        any::<String>().prop_map(Value::from),
        r#"[\\"{}\[\],: é]{0,20}"#.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(r#"[a-d\\"}\n]{0,10}"#, inner, 0..5)
                .prop_map(|members| Value::Object(Map::from_iter(members))),
        ]
    })
}

/// Every pointer to a value inside `value`, with that value.
fn pointers(value: &Value, at: String, all: &mut Vec<(String, Value)>) {
    all.push((at.clone(), value.clone()));
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointers(item, format!("{at}/{index}"), all);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let step = name.replace('~', "~0").replace('/', "~1");
                pointers(member, format!("{at}/{step}"), all);
            }
        }
        _ => {}
    }
}

/// The same text with every character of strings that is not ASCII, and some that are, escaped.
fn escaped(text: &str) -> String {
    let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
    format!("\"{}\"", units.collect::<String>())
}

proptest! {
    #[test]
    fn every_value_of_every_text_is_found(value in values(), pretty: bool) {
        let text = if pretty {
            serde_json::to_string_pretty(&value).expect("a value")
        } else {
            value.to_string()
        };
        let mut all = Vec::new();
        pointers(&value, String::new(), &mut all);
        for (pointer, expected) in all.into_iter().skip(1) {
            let raw = path(&pointer).find(text.as_bytes()).expect("it is JSON").expect("it is there");
            let read: Value = serde_json::from_slice(raw).expect("a value");
            prop_assert_eq!(&read, &expected, "{} in {}", pointer, text);
            let found = all_of(&pointer, text.as_bytes()).expect("it is JSON");
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&text.as_bytes()[found[0].clone()], raw);
        }
    }

    #[test]
    fn fields_found_together_are_those_found_alone(
        value in values(),
        picks in prop::array::uniform4(any::<prop::sample::Index>()),
    ) {
        let text = value.to_string();
        let mut all = Vec::new();
        pointers(&value, String::new(), &mut all);
        all.push(("/gone".to_owned(), Value::Null));
        all.push(("/a/gone".to_owned(), Value::Null));
        let paths = picks.map(|pick| path(&all[1..][pick.index(all.len() - 1)].0));
        let together = find_each(&paths, text.as_bytes()).expect("it is JSON");
        let alone = paths.map(|path| path.find(text.as_bytes()).expect("it is JSON"));
        prop_assert_eq!(together, alone, "{}", text);
    }

    #[test]
    fn members_are_those_of_the_object(value in values()) {
        let Value::Object(expected) = &value else { return Ok(()) };
        let text = value.to_string();
        let mut read = Map::new();
        for member in Members::new(text.as_bytes(), 0) {
            let member = member.expect("it is JSON");
            let name = unescape(member.name).expect("a name").into_owned();
            let name = String::from_utf8(name).expect("UTF-8");
            read.insert(name, serde_json::from_slice(member.value).expect("a value"));
        }
        prop_assert_eq!(&read, expected);
    }

    #[test]
    fn numbers_are_what_the_standard_library_reads(
        text in prop_oneof![
            any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| n.to_string()),
            any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
            any::<i64>().prop_map(|n| n.to_string()),
            "-?[0-9]{1,22}(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?",
        ],
    ) {
        let expected: f64 = text.parse().expect("a number");
        prop_assert_eq!(number(text.as_bytes()).map(f64::to_bits), Some(expected.to_bits()), "{}", text);
    }

    #[test]
    fn strings_mean_what_was_written(text: String) {
        for json in [serde_json::to_string(&text).expect("a string"), escaped(&text)] {
            let read = string(json.as_bytes()).expect("a string");
            prop_assert_eq!(&*read, text.as_bytes(), "{}", json);
        }
    }

    #[test]
    fn nothing_makes_the_scanner_panic(
        bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(br#"{}[]",:\ 1eu"#.to_vec())], 0..60,
        ),
    ) {
        let mut found = Vec::new();
        for field in ["a", "/0/1", "/a/b"] {
            let _ = path(field).find(&bytes);
            let _ = find_all(&[path(field)], &bytes, &mut found);
            let _ = find_each(&["c", field].map(path), &bytes);
        }
        prop_assert!(found.iter().all(|range| range.end <= bytes.len()));
        // One more for the error at the end.
        prop_assert!(Members::new(&bytes, 0).count() <= bytes.len() + 1);
        let _ = (number(&bytes), string(&bytes), unescape(&bytes));
    }

    #[test]
    fn a_text_cut_short_is_an_error(value in values(), cut in any::<prop::sample::Index>()) {
        let text = Value::Array(vec![value]).to_string();
        let cut = &text.as_bytes()[..cut.index(text.len())];
        prop_assert_eq!(all_of("a", cut), Err(Malformed));
    }
}
