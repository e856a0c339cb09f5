//! What the useful plugins do, through the runner.

use millstream_guests as guests;
use millstream_proto::pipeline::PluginKind;

use crate::error::{EngineFault, Fault, GuestFault};
use crate::output::{HeaderPiece, Piece, Verdict};
use crate::testing::{Rec, TestBatch, quakes, runner, value};
use crate::{Columns, Needs, Runner};

fn assert_send<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn filter_json() {
    let mut runner = runner(
        guests::FILTER_JSON,
        &[("field", "mag"), ("op", ">="), ("value", "4")],
    );
    assert_eq!(
        runner.needs().await.unwrap(),
        Needs {
            values: true,
            ..Needs::default()
        }
    );
    let batch = quakes();
    let verdicts = assert_send(runner.filter(&batch.columns())).await.unwrap();
    assert_eq!(verdicts, [Verdict::Drop, Verdict::Keep, Verdict::Keep]);
    let batch = TestBatch::new([value("{"), Rec::default()]);
    let verdicts = runner.filter(&batch.columns()).await.unwrap();
    assert_eq!(verdicts, [Verdict::DeadLetter, Verdict::Drop]);
    assert_eq!(runner.filter(&Columns::default()).await.unwrap(), []);
    let usage = runner.usage();
    assert_eq!(
        (
            usage.calls(),
            usage.records(),
            usage.starts(),
            usage.failures()
        ),
        (3, 5, 1, 0)
    );
    assert!(!usage.cpu().is_zero());
}

#[tokio::test]
async fn filter_field() {
    let config = [
        ("offset", "2"),
        ("type", "u16-be"),
        ("op", ">"),
        ("value", "255"),
    ];
    let mut runner = runner(guests::FILTER_FIELD, &config);
    let batch = TestBatch::new([value([0, 0, 1, 0]), value([9, 9, 0, 255]), value([1])]);
    let verdicts = runner.filter(&batch.columns()).await.unwrap();
    assert_eq!(verdicts, [Verdict::Keep, Verdict::Drop, Verdict::Drop]);
}

#[tokio::test]
async fn route_by_region() {
    let mut runner = runner(guests::ROUTE_BY_REGION, &[]);
    let batch = quakes();
    let assigned = assert_send(runner.assign(&batch.columns(), 8))
        .await
        .unwrap();
    // Alaska, the west coast, Hawaii.
    assert_eq!(assigned, [1, 0, 3]);
    assert_eq!(runner.assign(&batch.columns(), 1).await.unwrap(), [0; 3]);
}

#[tokio::test]
async fn split_alerts() {
    let mut runner = runner(guests::SPLIT_ALERTS, &[("threshold", "5")]);
    let batch = quakes();
    let output = assert_send(runner.transform(&batch.columns()))
        .await
        .unwrap();
    let of = |output| move |record: &crate::NewRecord<'_>| record.output == output;
    let log: Vec<_> = output.iter().filter(of(1)).collect();
    assert_eq!(
        log.iter().map(|record| record.input).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert!(log.iter().all(|record| record.value == Piece::Keep));
    let alerts: Vec<_> = output.iter().filter(of(0)).collect();
    assert_eq!((alerts.len(), alerts[0].key), (1, Piece::New(b"b")));
    let Piece::New(alert) = alerts[0].value else {
        panic!("not a new value")
    };
    let alert = std::str::from_utf8(alert).unwrap();
    assert!(
        alert.contains(r#""severity":"strong","mag":6.5"#),
        "{alert}"
    );
}

#[tokio::test]
async fn redact() {
    let mut runner = runner(guests::REDACT, &[("fields", "id,place"), ("with", "\"x\"")]);
    let batch = quakes();
    let output = runner.transform(&batch.columns()).await.unwrap();
    let second = output.iter().nth(1).unwrap();
    let expected = r#"{"id":"x","mag":6.5,"lon":-118.0,"lat":34.0,"place":"x"}"#;
    assert_eq!(second.value, Piece::New(expected.as_bytes()));
    assert_eq!(
        (second.key, second.headers),
        (Piece::Keep, HeaderPiece::Keep)
    );
}

#[tokio::test]
async fn enrich_header() {
    let mut runner = runner(guests::ENRICH_HEADER, &[("header.magnitude", "mag")]);
    let batch = quakes();
    let output = runner.transform(&batch.columns()).await.unwrap();
    let second = output.iter().nth(1).unwrap();
    let HeaderPiece::New(headers) = second.headers else {
        panic!("kept")
    };
    let headers: Vec<_> = headers.iter().collect();
    assert_eq!(
        headers,
        [("source", b"us".as_slice()), ("magnitude", b"6.5")]
    );
    assert_eq!(second.value, Piece::Keep);
}

#[tokio::test]
async fn a_plugin_refuses_its_configuration() {
    let mut runner = runner(guests::FILTER_JSON, &[("field", "mag")]);
    let error = runner.needs().await.unwrap_err();
    assert!(
        matches!(error.fault, Fault::Guest(GuestFault::Init(_))),
        "{error}"
    );
    let start = "plugin acme/plugin version 1 at topic acme/quakes: refused its configuration: ";
    assert!(error.to_string().starts_with(start), "{error}");
}

#[tokio::test]
async fn the_wrong_call_and_malformed_columns_are_our_fault() {
    let mut redact: Runner = runner(guests::REDACT, &[("fields", "id")]);
    let error = redact.filter(&Columns::default()).await.unwrap_err();
    let expected = EngineFault::WrongKind {
        actual: PluginKind::Transform,
        wanted: PluginKind::Filter,
    };
    assert!(
        matches!(&error.fault, Fault::Engine(fault) if *fault == expected),
        "{error}"
    );
    let error = redact
        .transform(&Columns {
            spans: &[1],
            ..Columns::default()
        })
        .await;
    assert!(matches!(
        error.unwrap_err().fault,
        Fault::Engine(EngineFault::BadColumns(_))
    ));
}

#[tokio::test]
async fn an_instance_is_kept_until_it_is_released() {
    let mut runner = runner(
        guests::FILTER_FIELD,
        &[("type", "u8"), ("op", "=="), ("value", "7")],
    );
    let batch = TestBatch::new([value([7])]);
    for starts in [1, 1, 2, 2] {
        assert_eq!(
            runner.filter(&batch.columns()).await.unwrap(),
            [Verdict::Keep]
        );
        if runner.usage().calls() == 2 {
            runner.release();
        }
        assert_eq!(runner.usage().starts(), starts);
    }
}
