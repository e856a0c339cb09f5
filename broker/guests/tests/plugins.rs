//! What the useful examples do to records, run natively: the same code that is in the components.

use enrich_header::EnrichHeader;
use filter_field::FilterField;
use filter_json::FilterJson;
use millstream_guest::{
    Batch, BatchBuilder, BatchTransform, Emitted, Emitter, Filter, Init, Partitioner, Transform,
    Verdict,
};
use quake_regions::Region;
use redact::Redact;
use route_by_region::RouteByRegion;
use split_alerts::SplitAlerts;

const NONE: u32 = u32::MAX;

fn values(values: &[&[u8]]) -> Batch {
    values
        .iter()
        .fold(BatchBuilder::new(), |b, value| {
            b.record(Some(b"k"), Some(value))
        })
        .build()
}

fn verdicts<F: Filter>(config: &[(&str, &str)], batch: &Batch) -> Vec<Verdict> {
    let mut filter = F::init(&configured(config)).expect("the configuration is right");
    batch
        .records()
        .map(|record| filter.filter(&record))
        .collect()
}

fn configured(config: &[(&str, &str)]) -> Init {
    config
        .iter()
        .fold(Init::new("module"), |init, (key, value)| {
            init.config(key, value)
        })
}

fn transformed<T: Transform>(
    init: &Init,
    batch: &Batch,
) -> Result<Emitted, millstream_guest::Error> {
    let mut transform = <T as Transform>::init(init).expect("the configuration is right");
    let mut out = Emitter::default();
    BatchTransform::transform(&mut transform, batch, &mut out)?;
    Ok(out.finish())
}

/// The value of each new record: none if it is kept from the input.
fn new_values(emitted: &Emitted) -> Vec<Option<String>> {
    let value = |row: &[u32; 9]| {
        let bytes = &emitted.data[row[5] as usize..][..row[6] as usize];
        String::from_utf8(bytes.to_vec()).expect("a text")
    };
    let rows = emitted.spans.as_chunks::<9>().0.iter();
    rows.map(|row| (row[5] != NONE).then(|| value(row)))
        .collect()
}

mod filter_field_plugin {
    use super::*;
    use Verdict::{Drop, Keep};

    fn check(kind: &str, op: &str, value: &str, expected: [Verdict; 4]) {
        let batch = values(&[b"x\x05\x00", b"x\x06\x00", b"x\xff\xff", b"x\x07"]);
        let config = [
            ("offset", "1"),
            ("type", kind),
            ("op", op),
            ("value", value),
        ];
        let seen = verdicts::<FilterField>(&config, &batch);
        assert_eq!(seen, expected, "{kind} {op} {value}");
    }

    #[test]
    fn integers_of_every_kind_compare() {
        check("u16", ">=", "6", [Drop, Keep, Keep, Drop]);
        check("u16", ">", "6", [Drop, Drop, Keep, Drop]);
        check("u16", "<", "6", [Keep, Drop, Drop, Drop]);
        check("u16", "<=", "6", [Keep, Keep, Drop, Drop]);
        check("u16", "==", "6", [Drop, Keep, Drop, Drop]);
        check("u16", "!=", "6", [Keep, Drop, Keep, Drop]);
        check("i16", "<", "0", [Drop, Drop, Keep, Drop]);
        check("i16", ">=", "-1", [Keep, Keep, Keep, Drop]);
        check("u16-be", "==", "1280", [Keep, Drop, Drop, Drop]);
        check("u8", "==", "7", [Drop, Drop, Drop, Keep]);
        check("i8", "==", "-1", [Drop, Drop, Keep, Drop]);
        check("u32", ">=", "0", [Drop; 4]);
    }

    #[test]
    fn the_ends_of_the_range_work() {
        let batch = values(&[&u64::MAX.to_le_bytes(), &i64::MIN.to_le_bytes()]);
        let config = |kind, op, value| [("type", kind), ("op", op), ("value", value)];
        let max = u64::MAX.to_string();
        let seen = verdicts::<FilterField>(&config("u64", "==", &max), &batch);
        assert_eq!(seen, [Keep, Drop]);
        let min = i64::MIN.to_string();
        let seen = verdicts::<FilterField>(&config("i64", "<=", &min), &batch);
        assert_eq!(seen, [Drop, Keep]);
    }

    #[test]
    fn wrong_configuration_is_explained() {
        let good = [("type", "u8"), ("op", "=="), ("value", "1")];
        assert!(FilterField::init(&configured(&good)).is_ok());
        for (key, text) in [
            ("type", "u7"),
            ("op", "~"),
            ("value", "256"),
            ("value", "x"),
        ] {
            let config = good.map(|(name, value)| (name, if name == key { text } else { value }));
            let error = FilterField::init(&configured(&config))
                .err()
                .expect("it is wrong");
            assert!(error.contains(key) && error.contains(text), "{error}");
        }
    }
}

mod filter_json_plugin {
    use super::*;

    #[test]
    fn records_are_kept_dropped_or_set_aside() {
        let batch = values(&[br#"{"mag":5}"#, br#"{"mag":4}"#, br#"{"m":5}"#, b"{"]);
        let config = [("field", "mag"), ("op", ">="), ("value", "4.5")];
        let expected = [
            Verdict::Keep,
            Verdict::Drop,
            Verdict::Drop,
            Verdict::DeadLetter,
        ];
        assert_eq!(verdicts::<FilterJson>(&config, &batch), expected);
        let lenient = [config[0], config[1], config[2], ("malformed", "keep")];
        assert_eq!(verdicts::<FilterJson>(&lenient, &batch)[3], Verdict::Keep);
        let tombstone = BatchBuilder::new().record(None, None).build();
        assert_eq!(verdicts::<FilterJson>(&config, &tombstone), [Verdict::Drop]);
    }

    #[test]
    fn wrong_configuration_is_explained() {
        for (config, hint) in [
            (vec![("op", "=="), ("value", "1")], "field is missing"),
            (
                vec![("field", "a"), ("op", "=~"), ("value", "1")],
                "operator",
            ),
            (vec![("feild", "a")], "unknown key"),
        ] {
            let error = FilterJson::init(&configured(&config))
                .err()
                .expect("it is wrong");
            assert!(error.contains(hint), "{error}");
        }
    }
}

mod redact_plugin {
    use super::*;

    fn check(fields: &str, json: &str, expected: Option<&str>) {
        let init = configured(&[("fields", fields), ("with", "\"***\"")]).with_output("out");
        let emitted = transformed::<Redact>(&init, &values(&[json.as_bytes()]));
        let emitted = emitted.expect("it is JSON");
        assert_eq!(
            new_values(&emitted),
            [expected.map(str::to_owned)],
            "{fields} in {json}"
        );
    }

    #[test]
    fn fields_are_blanked_wherever_they_are() {
        check(
            "b",
            r#"{"a":1,"b":"secret","c":3}"#,
            Some(r#"{"a":1,"b":"***","c":3}"#),
        );
        check(
            "b, /a/x",
            r#"{"a":{"x":[1]},"b":2}"#,
            Some(r#"{"a":{"x":"***"},"b":"***"}"#),
        );
        check("b", r#"{"b":1,"b":2}"#, Some(r#"{"b":"***","b":"***"}"#));
        check("b", r#"{"\u0062":1}"#, Some(r#"{"\u0062":"***"}"#));
        check("/b/c,b", r#"{"b":{"c":1}}"#, Some(r#"{"b":"***"}"#));
        check("b", r#"{"a":1}"#, None);
    }

    #[test]
    fn what_cannot_be_read_is_not_passed_on() {
        let init = configured(&[("fields", "b")]).with_output("out");
        for json in [r#"{"b":1"#, r#"{"a":1} {"b":"secret"}"#, "secret"] {
            let batch = values(&[b"{}", json.as_bytes()]);
            let error = transformed::<Redact>(&init, &batch).expect_err("it is not JSON");
            let bad = matches!(error, millstream_guest::Error::BadRecord { index: 1, .. });
            assert!(bad, "{error:?}");
        }
    }
}

mod split_alerts_plugin {
    use super::*;

    #[test]
    fn strong_earthquakes_are_alerts_and_all_are_logged() {
        let init = Init::new("m").with_output("log").with_output("alerts");
        let strong = br#"{"id":"us1","time":5,"mag":6.1,"place":"37km \"N\"","tsunami":1,"x":0}"#;
        let batch = values(&[
            br#"{"id":"a","mag":1.2}"#,
            strong,
            br#"{"id":"b","mag":null}"#,
        ]);
        let emitted = transformed::<SplitAlerts>(&init, &batch).expect("it is JSON");
        let alert = concat!(
            r#"{"id":"us1","severity":"strong","mag":6.1,"place":"37km \"N\"","#,
            r#""time":5,"tsunami":1}"#
        );
        assert_eq!(
            new_values(&emitted),
            [None, None, Some(alert.to_owned()), None]
        );
        let rows = emitted.spans.as_chunks::<9>().0;
        let routes: Vec<_> = rows.iter().map(|row| (row[0], row[1])).collect();
        assert_eq!(routes, [(0, 0), (1, 0), (1, 1), (2, 0)]);
        assert_eq!(
            &emitted.data[rows[2][3] as usize..][..rows[2][4] as usize],
            b"us1"
        );
    }

    #[test]
    fn the_threshold_is_part_of_an_alert() {
        let init = Init::new("m")
            .with_output("log")
            .with_output("alerts")
            .config("threshold", "2");
        let batch = values(&[br#"{"mag":2.0}"#, br#"{"mag":1.99}"#]);
        let emitted = transformed::<SplitAlerts>(&init, &batch).expect("it is JSON");
        assert_eq!(emitted.spans.len(), 27);
    }

    #[test]
    fn missing_outputs_are_named() {
        let error = <SplitAlerts as Transform>::init(&Init::new("m").with_output("log")).err();
        assert!(error.expect("it is missing").contains("alerts"));
    }
}

mod enrich_header_plugin {
    use super::*;

    #[test]
    fn fields_become_headers_beside_those_there() {
        let init = configured(&[
            ("header.net", "net"),
            ("header.mag", "mag"),
            ("header.no", "no"),
        ]);
        let batch = BatchBuilder::new()
            .record(None, Some(br#"{"mag":1.5,"net":"uw"}"#))
            .header("old", b"1")
            .build();
        let emitted = transformed::<EnrichHeader>(&init.with_output("out"), &batch);
        let emitted = emitted.expect("it is JSON");
        let text = |at: u32, length: u32| &emitted.data[at as usize..][..length as usize];
        let headers = emitted.headers.as_chunks::<4>().0.iter();
        let read: Vec<_> = headers
            .map(|h| (text(h[0], h[1]), text(h[2], h[3])))
            .collect();
        assert_eq!(
            read,
            [(&b"old"[..], &b"1"[..]), (b"net", b"uw"), (b"mag", b"1.5")]
        );
        assert_eq!(emitted.spans[5..], [NONE, 0, 0, 3]);
    }
}

mod route_by_region_plugin {
    use super::*;

    fn partitions(records: &[&[u8]], of: u32) -> Vec<u32> {
        let mut plugin = RouteByRegion::init(&Init::new("m")).expect("no configuration");
        values(records)
            .records()
            .map(|record| plugin.partition(&record, of))
            .collect()
    }

    #[test]
    fn a_region_is_a_partition() {
        let alaska = br#"{"lon":-150.1,"lat":61.2}"#;
        let fiji = br#"{"mag":1,"lat":-17.8,"lon":-178.0}"#;
        assert_eq!(partitions(&[alaska, fiji, alaska], 8), [1, 7, 1]);
        assert_eq!(partitions(&[alaska, fiji], 3), [1, 1]);
        assert_eq!(partitions(&[alaska, fiji], 1), [0, 0]);
    }

    #[test]
    fn what_is_no_earthquake_goes_by_its_key() {
        let seen = partitions(&[b"{}", b"not json", br#"{"lon":"x","lat":1}"#], 8);
        assert!(
            seen.iter()
                .all(|&partition| partition == seen[0] && partition < 8),
            "{seen:?}"
        );
    }

    #[test]
    fn regions_and_their_numbers_never_change() {
        let places = [
            (-122.2, 46.2, Region::WestCoast),
            (-112.5, 44.8, Region::NorthAmerica),
            (-66.0, 18.0, Region::NorthAmerica),
            (172.0, 52.0, Region::Alaska),
            (-155.3, 19.4, Region::Hawaii),
            (140.0, 38.0, Region::Asia),
            (-71.0, -30.0, Region::SouthAmerica),
            (13.0, 42.0, Region::EuropeAfrica),
            (174.0, -41.0, Region::Oceans),
            (f64::NAN, 0.0, Region::Oceans),
        ];
        for (longitude, latitude, region) in places {
            assert_eq!(
                Region::of(longitude, latitude),
                region,
                "{longitude} {latitude}"
            );
        }
        for (number, region) in Region::ALL.into_iter().enumerate() {
            assert_eq!(region.number() as usize, number);
        }
    }
}
