//! Every guest there is, by what it is here for. One that is not named does not compile.

use millstream_guests::{self as guests, Guest, acts, for_each_guest};

/// What a guest is here for.
pub(crate) enum Role {
    /// Does what it is told to, all of it bad.
    Hostile {
        /// The nonsense of its kind.
        nonsense: &'static [&'static str],
        /// Whether it may stand on subscriptions and in pipelines.
        everywhere: bool,
    },
    /// Must not even be uploaded; the refusal says this.
    Refused(&'static str),
    /// Does its work; others test that it does it well.
    Useful,
}

pub(crate) fn cast() -> Vec<(Guest, Role)> {
    let mut cast = Vec::new();
    macro_rules! part {
        (bad_filter) => {
            let nonsense = &acts::FILTER;
            cast.push((
                guests::BAD_FILTER,
                Role::Hostile {
                    nonsense,
                    everywhere: true,
                },
            ))
        };
        (bad_partitioner) => {
            let nonsense = &acts::PARTITIONER;
            cast.push((
                guests::BAD_PARTITIONER,
                Role::Hostile {
                    nonsense,
                    everywhere: false,
                },
            ))
        };
        (bad_transform) => {
            let nonsense = &acts::TRANSFORM;
            cast.push((
                guests::BAD_TRANSFORM,
                Role::Hostile {
                    nonsense,
                    everywhere: true,
                },
            ))
        };
        (foreign_imports) => {
            cast.push((guests::FOREIGN_IMPORTS, Role::Refused("acme:vault/secrets")))
        };
        (no_exports) => {
            cast.push((guests::NO_EXPORTS, Role::Refused("greet")))
        };
        (early_processor) => {
            cast.push((guests::EARLY_PROCESSOR, Role::Refused("processor")))
        };
        (peek) => {
            cast.push((guests::PEEK, Role::Useful))
        };
        (enrich_header) => {
            cast.push((guests::ENRICH_HEADER, Role::Useful))
        };
        (filter_field) => {
            cast.push((guests::FILTER_FIELD, Role::Useful))
        };
        (filter_json) => {
            cast.push((guests::FILTER_JSON, Role::Useful))
        };
        (redact) => {
            cast.push((guests::REDACT, Role::Useful))
        };
        (route_by_region) => {
            cast.push((guests::ROUTE_BY_REGION, Role::Useful))
        };
        (split_alerts) => {
            cast.push((guests::SPLIT_ALERTS, Role::Useful))
        };
    }
    for_each_guest!(part);
    cast
}

/// What a deed must come to, whatever the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No harm done.
    Passes,
    /// Refused when it is put to use, with this in the error, or one of these between bars.
    Refused(&'static str),
    /// Stopped when records come, with this in the error, or one of these between bars.
    Stopped(&'static str),
    /// Harmless, but perhaps too slow on a busy machine.
    PassesOrIsSlow,
    /// Asks for the records again.
    Waits,
}

/// Every deed of a guest, with its fate.
pub(crate) fn deeds(nonsense: &'static [&'static str]) -> Vec<(&'static str, Fate)> {
    let common = [
        &acts::ACTS[..],
        &acts::IN_INIT,
        &acts::ERRORS,
        &[acts::BEHAVE],
    ]
    .concat();
    let common = common.into_iter().map(|mode| (mode, fate(mode)));
    let nonsense = nonsense.iter().map(|mode| (*mode, nonsense_fate(mode)));
    common.chain(nonsense).collect()
}

fn fate(mode: &str) -> Fate {
    match mode {
        "spin" => Fate::Stopped("CPU time in one call"),
        "eat-memory" => Fate::Stopped("bytes of memory"),
        // A guest keeps a stack of its own in its memory, which may end first.
        "recurse" => Fate::Stopped("recursed deeper than its stack|out of bounds memory access"),
        "trap" | "trap-on-poison" => Fate::Stopped("wasm trap"),
        "panic" => Fate::Stopped("panics because it was told to"),
        "huge-error" => Fate::Stopped(""),
        "fatal" => Fate::Stopped("gave up: told to"),
        "bad-record" | "bad-record-on-poison" => Fate::Stopped("told to"),
        "bad-record-out-of-range" => Fate::Stopped("invalid result"),
        "init-fails" => Fate::Refused("told to fail in init"),
        "spin-in-init" => Fate::Refused("CPU time to start"),
        "trap-in-init" => Fate::Refused("wasm trap"),
        "eat-memory-in-init" => Fate::Refused("bytes of memory"),
        "flood-logs" | "flood-counters" | "flood-logs-in-init" => Fate::PassesOrIsSlow,
        "retry" => Fate::Waits,
        "leak" | "behave" => Fate::Passes,
        other => panic!("{other} has no fate here"),
    }
}

fn nonsense_fate(mode: &str) -> Fate {
    match mode {
        "flood-output" | "flood-records" | "flood-bytes" => Fate::Stopped("in one call"),
        // Either the record or the memory that it takes is too much.
        "oversized-record" => Fate::Stopped("bytes"),
        _ => Fate::Stopped("invalid result"),
    }
}
