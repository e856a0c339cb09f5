use millstream_proto::storage::Finding;

use super::*;

#[test]
fn a_report_is_cut_to_fit_a_message() {
    let finding = |n: usize| Finding {
        file: "f".repeat(200),
        place: format!("place {n}"),
        what: "w".repeat(500),
        segment: Some(1),
        records: Vec::new(),
    };
    let report = CheckReport {
        findings: (0..2000).map(finding).collect(),
        leftovers: vec!["l".repeat(300); 1000],
        ..CheckReport::default()
    };
    let fitted = fitted(report);
    assert!(fitted.findings.len() > 100 && fitted.findings_left_out > 0);
    let kept = fitted.findings.len() as u64;
    assert_eq!(kept + fitted.findings_left_out, 2000);
    let len = postcard::to_allocvec(&Response::Check(fitted))
        .unwrap()
        .len();
    assert!(len <= PAGE_BYTES, "{len}");
}
