//! The only reader of the clock in this crate, and the way times are written.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, in milliseconds since the Unix epoch.
#[allow(clippy::disallowed_methods, reason = "this module is the clock")]
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Now, for measuring how long something takes.
#[allow(clippy::disallowed_methods, reason = "this module is the clock")]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

/// Now, as a date.
pub(crate) fn now() -> OffsetDateTime {
    from_ms(now_ms()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn from_ms(ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()
}

/// Milliseconds since the Unix epoch as RFC 3339 in UTC; a number outside its years as it is.
pub(crate) fn rfc3339(ms: i64) -> String {
    from_ms(ms)
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{ms} ms"))
}

/// The milliseconds since the Unix epoch that an RFC 3339 text means.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_both_ways() {
        assert_eq!(rfc3339(1_517_363_399_650), "2018-01-31T01:49:59.65Z");
        assert_eq!(
            parse_rfc3339("2018-01-31T01:49:59.65Z"),
            Some(1_517_363_399_650)
        );
        assert_eq!(
            parse_rfc3339("2018-01-31T02:49:59.65+01:00"),
            Some(1_517_363_399_650)
        );
        assert_eq!(parse_rfc3339("1969-12-31T23:59:59.9995Z"), Some(-1));
        assert_eq!(parse_rfc3339("yesterday"), None);
        assert_eq!(rfc3339(i64::MAX), format!("{} ms", i64::MAX));
    }

    #[test]
    fn the_clock_is_later_than_this_code() {
        assert!(now_ms() > 1_700_000_000_000 && now().year() > 2022);
    }
}
