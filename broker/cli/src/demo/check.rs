//! Compares what came out with what must come out.
//!
//! Two kinds of evidence: what consumers saw live, across the kill, and what a fresh read of the
//! topics finds in the end. A record that was lost, doubled, changed, misplaced or moved shows in
//! at least one of the checks; the tests below tamper with each to see that it does.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::expect::{Expected, PARTITIONS, Quake};

/// Names in the words of an error at most.
const NAMED: usize = 3;

/// A record that came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Where.
    pub(super) partition: u32,
    /// Its position there.
    pub(super) offset: u64,
    /// Its key.
    pub(super) key: Option<Bytes>,
    /// Its value.
    pub(super) value: Option<Bytes>,
}

/// Everything that came out.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// The earthquakes as the live consumer saw them.
    pub(super) live: Vec<Seen>,
    /// The earthquakes as they are stored.
    pub(super) stored: Vec<Seen>,
    /// The filtered subscription.
    pub(super) strong: Vec<Seen>,
    /// The alerts as the live consumer saw them.
    pub(super) live_alerts: Vec<Seen>,
    /// The alerts as they are stored.
    pub(super) alerts: Vec<Seen>,
    /// The log as it is stored.
    pub(super) log: Vec<Seen>,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// What was checked.
    pub(super) check: &'static str,
    /// Whether it holds.
    pub(super) passed: bool,
    /// How much was compared, or what is wrong.
    pub(super) detail: String,
}

fn verdict(check: &'static str, outcome: Result<String, String>) -> Verdict {
    let (passed, detail) = match outcome {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Verdict {
        check,
        passed,
        detail,
    }
}

/// All checks.
pub(super) fn check(expected: &Expected, evidence: &Evidence) -> Vec<Verdict> {
    let Evidence {
        live,
        stored,
        strong,
        live_alerts,
        alerts,
        log,
    } = evidence;
    vec![
        verdict(
            "every record is stored exactly once",
            once(&expected.quakes, stored),
        ),
        verdict(
            "each in the partition of its region, in order",
            in_order(expected, stored),
        ),
        verdict(
            "values are stored as they were produced",
            unchanged(&expected.quakes, stored),
        ),
        verdict(
            "the live consumer saw the same, across the kill",
            same(stored, live),
        ),
        verdict(
            "the filter passed the strong ones only",
            filtered(expected, strong),
        ),
        verdict(
            "every alert is right and there once",
            by_key(&expected.alerts, alerts),
        ),
        verdict(
            "alerts arrived live, across the kill",
            same(alerts, live_alerts),
        ),
        verdict("the log is right and complete", by_key(&expected.log, log)),
    ]
}

fn text(key: Option<&Bytes>) -> String {
    key.map_or("a record without a key".to_owned(), |key| {
        String::from_utf8_lossy(key).into_owned()
    })
}

/// Names a few of many.
fn few(names: &[String]) -> String {
    let shown = names
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().checked_sub(NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

fn count_keys(seen: &[Seen]) -> BTreeMap<Option<&Bytes>, usize> {
    let mut counts = BTreeMap::new();
    for one in seen {
        *counts.entry(one.key.as_ref()).or_default() += 1;
    }
    counts
}

/// Every key once, and no other.
fn once(quakes: &[Quake], stored: &[Seen]) -> Result<String, String> {
    let mut counts = count_keys(stored);
    let missing: Vec<String> = quakes
        .iter()
        .filter(|quake| counts.remove(&Some(&quake.id)).is_none())
        .map(|quake| text(Some(&quake.id)))
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "{} of {} are missing: {}",
            missing.len(),
            quakes.len(),
            few(&missing)
        ));
    }
    if let Some((key, _)) = counts.first_key_value() {
        return Err(format!("{} was never produced", text(*key)));
    }
    let doubled = stored.len().saturating_sub(quakes.len());
    if doubled > 0 {
        let names = count_keys(stored).into_iter().filter(|(_, n)| *n > 1);
        let names: Vec<String> = names.map(|(key, _)| text(key)).collect();
        return Err(format!("{doubled} too many: {}", few(&names)));
    }
    Ok(format!("{} records", stored.len()))
}

/// Partition by partition the expected keys in the expected order, at gapless offsets.
fn in_order(expected: &Expected, stored: &[Seen]) -> Result<String, String> {
    for partition in 0..PARTITIONS {
        let found = stored.iter().filter(|seen| seen.partition == partition);
        let mut wanted = expected.in_partition(partition);
        for (offset, seen) in (0..).zip(found) {
            if seen.offset != offset {
                return Err(format!(
                    "partition {partition} has offset {} at {offset}",
                    seen.offset
                ));
            }
            match wanted.next() {
                Some(quake) if Some(&quake.id) == seen.key.as_ref() => {}
                Some(quake) => {
                    let (is, should) = (text(seen.key.as_ref()), text(Some(&quake.id)));
                    return Err(format!("{partition}:{offset} is {is} instead of {should}"));
                }
                None => return Err(format!("partition {partition} has too many records")),
            }
        }
        if let Some(quake) = wanted.next() {
            return Err(format!(
                "partition {partition} lacks {}",
                text(Some(&quake.id))
            ));
        }
    }
    if let Some(seen) = stored.iter().find(|seen| seen.partition >= PARTITIONS) {
        return Err(format!("there is a partition {}", seen.partition));
    }
    Ok(format!("{PARTITIONS} partitions, offsets without gaps"))
}

fn unchanged(quakes: &[Quake], stored: &[Seen]) -> Result<String, String> {
    let lines: BTreeMap<&Bytes, &Bytes> = quakes
        .iter()
        .map(|quake| (&quake.id, &quake.line))
        .collect();
    let mut bytes = 0;
    for seen in stored {
        let line = seen.key.as_ref().and_then(|key| lines.get(key).copied());
        if line.is_none() || line != seen.value.as_ref() {
            return Err(format!("{} has another value", text(seen.key.as_ref())));
        }
        bytes += line.map_or(0, Bytes::len);
    }
    if stored.len() < quakes.len() {
        return Err(format!(
            "only {} of {} are there to compare",
            stored.len(),
            quakes.len()
        ));
    }
    Ok(format!("{bytes} bytes compared"))
}

/// The same records, by partition in the same order.
fn same(stored: &[Seen], live: &[Seen]) -> Result<String, String> {
    let by_partition = |seen: &[Seen]| {
        let mut by: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
        for one in seen {
            by.entry(one.partition).or_default().push(one.clone());
        }
        by
    };
    if live.len() != stored.len() {
        return Err(format!("{} came, {} are stored", live.len(), stored.len()));
    }
    if by_partition(stored) == by_partition(live) {
        return Ok(format!("{} records, none twice, none missing", live.len()));
    }
    let odd = live.iter().find(|seen| !stored.contains(seen));
    let what = odd.map_or("their order".to_owned(), |seen| text(seen.key.as_ref()));
    Err(format!("what came differs from what is stored in {what}"))
}

fn filtered(expected: &Expected, strong: &[Seen]) -> Result<String, String> {
    for partition in 0..PARTITIONS {
        let found = strong.iter().filter(|seen| seen.partition == partition);
        let found: Vec<&Bytes> = found.filter_map(|seen| seen.key.as_ref()).collect();
        let wanted: Vec<&Bytes> = expected
            .strong_in(partition)
            .map(|quake| &quake.id)
            .collect();
        if found != wanted {
            let (found, wanted) = (found.len(), wanted.len());
            return Err(format!(
                "partition {partition}: {found} passed, {wanted} should have"
            ));
        }
    }
    Ok(format!(
        "{} of {} crossed the network",
        strong.len(),
        expected.quakes.len()
    ))
}

/// Each expected key once, with the expected JSON.
fn by_key(wanted: &BTreeMap<Bytes, Value>, found: &[Seen]) -> Result<String, String> {
    let mut left: BTreeMap<&Bytes, &Value> = wanted.iter().collect();
    for seen in found {
        let name = text(seen.key.as_ref());
        let Some(should) = seen.key.as_ref().and_then(|key| left.remove(key)) else {
            let known = seen
                .key
                .as_ref()
                .is_some_and(|key| wanted.contains_key(key));
            let why = if known { "there twice" } else { "not expected" };
            return Err(format!("{name} is {why}"));
        };
        let is = seen
            .value
            .as_ref()
            .map(|value| serde_json::from_slice::<Value>(value));
        if !matches!(&is, Some(Ok(is)) if is == should) {
            return Err(format!("{name} is not what it should be"));
        }
    }
    if !left.is_empty() {
        let missing: Vec<String> = left.into_keys().map(|key| text(Some(key))).collect();
        return Err(format!(
            "{} of {} are missing: {}",
            missing.len(),
            wanted.len(),
            few(&missing)
        ));
    }
    Ok(format!("{} records", found.len()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::super::expect::EARTHQUAKES;
    use super::*;

    fn seen(partition: u32, offset: u64, key: &Bytes, value: Bytes) -> Seen {
        Seen {
            partition,
            offset,
            key: Some(key.clone()),
            value: Some(value),
        }
    }

    /// What comes out when all goes well.
    fn good() -> (Expected, Evidence) {
        let expected = Expected::of(EARTHQUAKES).unwrap();
        let mut evidence = Evidence::default();
        for partition in 0..PARTITIONS {
            for (offset, quake) in (0..).zip(expected.in_partition(partition)) {
                let one = seen(partition, offset, &quake.id, quake.line.clone());
                if quake.is_strong() {
                    evidence.strong.push(one.clone());
                }
                evidence.stored.push(one);
            }
        }
        evidence.live = evidence.stored.clone();
        let json = |(offset, (key, value)): (u64, (&Bytes, &Value))| {
            seen(0, offset, key, value.to_string().into())
        };
        evidence.alerts = (0..).zip(&expected.alerts).map(json).collect();
        evidence.log = (0..).zip(&expected.log).map(json).collect();
        evidence.live_alerts = evidence.alerts.clone();
        (expected, evidence)
    }

    /// The checks that find what `tamper` did.
    fn found(tamper: impl FnOnce(&mut Evidence)) -> Vec<&'static str> {
        let (expected, mut evidence) = good();
        tamper(&mut evidence);
        let verdicts = check(&expected, &evidence);
        verdicts
            .into_iter()
            .filter(|v| !v.passed)
            .map(|v| v.check)
            .collect()
    }

    #[test]
    fn a_good_run_passes() {
        assert_eq!(found(|_| {}), [""; 0]);
    }

    #[test]
    fn a_lost_record_is_found() {
        assert!(
            found(|e| drop(e.stored.remove(700))).contains(&"every record is stored exactly once")
        );
        let lost = found(|e| drop(e.live.remove(700)));
        assert_eq!(lost, ["the live consumer saw the same, across the kill"]);
        let lost = found(|e| drop(e.live_alerts.pop()));
        assert_eq!(lost, ["alerts arrived live, across the kill"]);
        assert_eq!(
            found(|e| drop(e.log.pop())),
            ["the log is right and complete"]
        );
        assert_eq!(
            found(|e| drop(e.strong.pop())),
            ["the filter passed the strong ones only"]
        );
    }

    #[test]
    fn a_doubled_record_is_found() {
        let double = |list: &mut Vec<Seen>| {
            let again = list[20].clone();
            list.push(again);
        };
        assert!(found(|e| double(&mut e.stored)).contains(&"every record is stored exactly once"));
        assert!(found(|e| double(&mut e.alerts)).contains(&"every alert is right and there once"));
        assert!(!found(|e| double(&mut e.live)).is_empty());
        assert!(!found(|e| double(&mut e.log)).is_empty());
    }

    #[test]
    fn a_changed_record_is_found() {
        let change = |list: &mut Vec<Seen>| list[7].value = Some(Bytes::from_static(b"{}"));
        assert!(
            found(|e| change(&mut e.stored)).contains(&"values are stored as they were produced")
        );
        assert!(found(|e| change(&mut e.alerts)).contains(&"every alert is right and there once"));
        assert!(found(|e| change(&mut e.log)).contains(&"the log is right and complete"));
        let other = |list: &mut Vec<Seen>| list[7].key = Some(Bytes::from_static(b"other"));
        assert!(found(|e| other(&mut e.stored)).contains(&"every record is stored exactly once"));
    }

    #[test]
    fn a_moved_record_is_found() {
        let order = "each in the partition of its region, in order";
        assert!(found(|e| e.stored.swap(3, 4)).contains(&order));
        assert!(found(|e| e.stored[3].partition = PARTITIONS - 1).contains(&order));
        assert!(found(|e| e.stored[3].offset = 1 << 20).contains(&order));
        let swapped = found(|e| {
            // Keys and values trade places, offsets stay: only the order is wrong.
            let (a, b) = (e.stored[3].clone(), e.stored[4].clone());
            (e.stored[3].key, e.stored[3].value) = (b.key, b.value);
            (e.stored[4].key, e.stored[4].value) = (a.key, a.value);
            e.live = e.stored.clone();
        });
        assert_eq!(swapped, [order]);
    }

    #[test]
    fn nothing_at_all_fails_everything() {
        let failed = found(|e| *e = Evidence::default());
        // Two empty lists are the same: the other checks catch that.
        assert_eq!(failed.len(), 6, "{failed:?}");
    }
}
