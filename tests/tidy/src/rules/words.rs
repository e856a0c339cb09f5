//! Rules about words that may not stand in Rust code, or only in named places.
//!
//! For each [`Ban`] there is an example below of what it forbids, and a test that it is found: a
//! rule that cannot fail would be noticed.

use crate::Finding;
use crate::source::{Source, Word};

/// In which code a ban holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Everywhere,
    OutsideTests,
    InTests,
}

/// A sequence of words that may not occur outside of its homes.
struct Ban {
    rule: &'static str,
    /// The words, one behind the other, separated by spaces.
    words: &'static str,
    place: Where,
    /// Where it is allowed: beginnings of paths, or with `/` in front any part of a path.
    homes: &'static [&'static str],
    advice: &'static str,
}

/// Modules that may say `unsafe`, each with the proof beside it.
const UNSAFE_HOMES: &[&str] = &["broker/plugin/src/trusted.rs"];
/// The only readers of the clocks, besides code that works with tokio's `Instant`, which tests can
/// hold. Everything else gets the time as an argument.
const CLOCK_HOMES: &[&str] = &[
    // Examples that measure.
    "/examples/",
    // Measuring is what it does.
    "broker/cli/src/bench/",
    "broker/cli/src/clock.rs",
    // The time a guest has used up, around each poll of its call.
    "broker/plugin/src/run.rs",
    "broker/server/src/clock.rs",
    // How fast a check may read, and how long opening took.
    "broker/store/src/pace.rs",
    // How long a commit may be put off, and how long closing waits.
    "broker/store/src/queue.rs",
    "broker/store/src/writer.rs",
    // A guest that tries to see the real time, and must not.
    "guest-examples/hostile/peek/",
    "sdk/client/src/ambient.rs",
];
const NO_STUB: &str = "Write it, or leave the feature out; an open end is an issue, not code.";
const FINISH_OR_DELETE: &str = "Mend the test or delete it: a test that does not run says nothing.";
const CLOCK: &str = "Take the time as an argument, or use the crate's clock module; \
    if this is a new home for the clock, list it in tests/tidy/src/rules/words.rs.";
const WAIT_FOR_THE_EVENT: &str = "Wait for the event itself (a channel, a watch, an answer), or pause \
    tokio's clock with start_paused = true: sleeping makes tests slow and flaky.";
const PROOF: &str = "Do it without, or in a module of its own that proves why it is sound; \
    list that module in tests/tidy/src/rules/words.rs.";
const SEAM: &str = "Only the crate behind the seam may name it; use the seam's own types.";

const BANS: &[Ban] = &[
    Ban {
        rule: "ignored-test",
        words: "# [ ignore",
        place: Where::Everywhere,
        homes: &[],
        advice: FINISH_OR_DELETE,
    },
    Ban {
        rule: "stub",
        words: "todo !",
        place: Where::Everywhere,
        homes: &[],
        advice: NO_STUB,
    },
    Ban {
        rule: "stub",
        words: "unimplemented !",
        place: Where::Everywhere,
        homes: &[],
        advice: NO_STUB,
    },
    Ban {
        rule: "debug-print",
        words: "dbg !",
        place: Where::Everywhere,
        homes: &[],
        advice: "Remove it, or log with tracing and fields.",
    },
    Ban {
        rule: "unsafe",
        words: "unsafe",
        place: Where::Everywhere,
        homes: UNSAFE_HOMES,
        advice: PROOF,
    },
    Ban {
        rule: "clock",
        words: "SystemTime : : now",
        place: Where::OutsideTests,
        homes: CLOCK_HOMES,
        advice: CLOCK,
    },
    Ban {
        rule: "clock",
        words: "Instant : : now",
        place: Where::OutsideTests,
        homes: CLOCK_HOMES,
        advice: CLOCK,
    },
    Ban {
        rule: "sleeping-test",
        words: "thread : : sleep",
        place: Where::InTests,
        homes: &[],
        advice: WAIT_FOR_THE_EVENT,
    },
    Ban {
        rule: "sleeping-test",
        words: "time : : sleep",
        place: Where::InTests,
        homes: &[],
        advice: WAIT_FOR_THE_EVENT,
    },
    Ban {
        rule: "unbounded-queue",
        words: "unbounded_channel",
        place: Where::Everywhere,
        homes: &[],
        advice: "Every queue has a named limit: use a bounded channel and say what happens when it is full.",
    },
    Ban {
        rule: "engine-behind-the-seam",
        words: "redb : :",
        place: Where::Everywhere,
        homes: &["broker/store/", "tests/crash/"],
        advice: SEAM,
    },
    Ban {
        rule: "engine-behind-the-seam",
        words: "wasmtime : :",
        place: Where::Everywhere,
        homes: &["broker/plugin/"],
        advice: SEAM,
    },
];

/// Banned words of one file.
#[must_use]
pub fn banned(source: &Source) -> Vec<Finding> {
    BANS.iter().flat_map(|ban| ban.find(source)).collect()
}

impl Ban {
    fn find(&self, source: &Source) -> Vec<Finding> {
        if self.homes.iter().any(|home| is_at(&source.path, home)) {
            return Vec::new();
        }
        let words: Vec<&str> = self.words.split(' ').collect();
        let forgiven = match self.rule {
            "sleeping-test" => source.words.iter().any(|w| w.text == "start_paused"),
            "clock" if words[0] == "Instant" => {
                imports(source, "tokio", "Instant") && !imports(source, "std", "Instant")
            }
            _ => false,
        };
        let matches = |window: &[Word]| {
            window
                .iter()
                .zip(&words)
                .all(|(w, expected)| w.text == *expected)
                && self.place.includes(&window[0])
        };
        source
            .words
            .windows(words.len())
            .filter(|window| matches(window) && !forgiven)
            .map(|window| Finding {
                rule: self.rule,
                path: source.path.clone(),
                line: window[0].line,
                what: format!("`{}`", self.words.replace(' ', "")),
                advice: self.advice,
            })
            .collect()
    }
}

/// Whether a `use` of this crate names `name`.
fn imports(source: &Source, krate: &str, name: &str) -> bool {
    let texts: Vec<&str> = source.words.iter().map(|w| w.text.as_str()).collect();
    texts
        .split(|text| *text == ";")
        .filter_map(|statement| {
            let start = statement.iter().rposition(|text| *text == "use")?;
            statement[start + 1..].split_first()
        })
        .any(|(first, rest)| *first == krate && rest.contains(&name))
}

fn is_at(path: &str, home: &str) -> bool {
    path.starts_with(home) || home.starts_with('/') && path.contains(home)
}

impl Where {
    fn includes(self, word: &Word) -> bool {
        match self {
            Where::Everywhere => true,
            Where::OutsideTests => !word.in_test,
            Where::InTests => word.in_test,
        }
    }
}

/// Exceptions that were granted to single files; those of whole crates stay without being used.
const GRANTED: [&str; 2] = ["clock", "unsafe"];

/// Homes that no longer need to be one: nothing is there, or nothing there uses the exception.
#[must_use]
pub fn stale_homes(sources: &[Source]) -> Vec<String> {
    let used = |home: &str, rule: &str| {
        BANS.iter()
            .filter(|b| b.rule == rule && b.homes.contains(&home))
            .any(|ban| {
                let open = Ban { homes: &[], ..*ban };
                sources
                    .iter()
                    .filter(|s| is_at(&s.path, home))
                    .any(|s| !open.find(s).is_empty())
            })
    };
    let homes = BANS
        .iter()
        .filter(|b| GRANTED.contains(&b.rule))
        .flat_map(|b| b.homes.iter().map(|h| (b.rule, *h)));
    let mut stale: Vec<String> = homes
        .filter(|(rule, home)| !used(home, rule))
        .map(|(rule, home)| format!("{home} has an exception from {rule} and does not use it"))
        .collect();
    stale.dedup();
    stale
}

/// Notes about work left undone, in any text file.
#[must_use]
pub fn notes(path: &str, text: &str) -> Vec<Finding> {
    // Written apart, or this file would find itself.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let is_mark = |word: &str| marks.contains(&word);
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.split(|c: char| !c.is_alphanumeric()).any(is_mark))
        .map(|(i, line)| Finding {
            rule: "note",
            path: path.to_owned(),
            line: i + 1,
            what: format!("`{}`", line.trim()),
            advice: NO_STUB,
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;
    use crate::tree::File;

    /// Code that breaks a rule, for the words of each ban.
    const EXAMPLES: [(&str, &str); 12] = [
        ("# [ ignore", "#[test] #[ignore = \"slow\"] fn t() {}"),
        ("todo !", "fn f() { todo!() }"),
        ("unimplemented !", "fn f() { unimplemented!(\"later\") }"),
        ("dbg !", "fn f() { dbg!(x); }"),
        ("unsafe", "fn f() { unsafe { g() } }"),
        (
            "SystemTime : : now",
            "fn f() { let t = std::time::SystemTime::now(); }",
        ),
        (
            "Instant : : now",
            "fn f() { x.get_or_insert_with(Instant::now); }",
        ),
        (
            "thread : : sleep",
            "#[test] fn t() { std::thread::sleep(LONG); }",
        ),
        (
            "time : : sleep",
            "#[tokio::test] async fn t() { tokio::time::sleep(LONG).await; }",
        ),
        (
            "unbounded_channel",
            "fn f() { let (a, b) = tokio::sync::mpsc::unbounded_channel(); }",
        ),
        ("redb : :", "fn f(db: redb::Database) {}"),
        ("wasmtime : :", "use wasmtime::Engine;"),
    ];

    fn check(path: &str, text: &str, expected: &[(&str, usize)]) {
        let found = banned(&Source::parse(&File::new(path, text)).unwrap());
        let found: Vec<(&str, usize)> = found.iter().map(|f| (f.rule, f.line)).collect();
        assert_eq!(found, expected, "{path}: {text}");
    }

    fn example(ban: &Ban) -> &'static str {
        let (_, code) = EXAMPLES
            .iter()
            .find(|(words, _)| *words == ban.words)
            .unwrap();
        code
    }

    #[test]
    fn every_ban_finds_its_example_and_spares_comments_and_strings() {
        for ban in BANS {
            let example = example(ban);
            check("sdk/new/src/a.rs", example, &[(ban.rule, 1)]);
            let comment = format!("// {example}\n/* {example} */ fn f() {{}}");
            check("sdk/new/src/a.rs", &comment, &[]);
            check(
                "sdk/new/src/a.rs",
                &format!("fn f() {{ g({example:?}) }}"),
                &[],
            );
        }
    }

    #[test]
    fn every_home_is_spared() {
        for ban in BANS {
            for home in ban.homes {
                check(&format!("{home}/a.rs"), example(ban), &[]);
            }
        }
    }

    #[test]
    fn some_bans_hold_in_tests_only_and_some_outside_only() {
        check("sdk/x/src/a.rs", "#[test] fn t() { Instant::now(); }", &[]);
        check(
            "sdk/x/src/a.rs",
            "fn f() {\n Instant::now(); }",
            &[("clock", 2)],
        );
        check(
            "sdk/x/src/a.rs",
            "async fn f() { time::sleep(LONG).await; }",
            &[],
        );
        check(
            "sdk/x/tests/a.rs",
            "async fn f() { time::sleep(LONG).await; }",
            &[("sleeping-test", 1)],
        );
    }

    #[test]
    fn a_paused_clock_may_be_slept_on() {
        let text = "#[tokio::test(start_paused = true)] async fn t() { time::sleep(LONG).await; }";
        check("sdk/x/src/a.rs", text, &[]);
    }

    #[test]
    fn tokio_s_clock_can_be_held_and_may_be_read() {
        let file = "sdk/x/src/a.rs";
        let read = "fn f() { Instant::now(); }";
        check(file, &format!("use tokio::time::Instant; {read}"), &[]);
        check(
            file,
            &format!("use x::y; use tokio::time::{{Instant, sleep}}; {read}"),
            &[],
        );
        check(
            file,
            &format!("use tokio::time::sleep; {read}"),
            &[("clock", 1)],
        );
        let both = format!("use tokio::time; use std::time::{{Duration, Instant}}; {read}");
        check(file, &both, &[("clock", 1)]);
        let wall = "use tokio::time::Instant; fn f() { SystemTime::now(); }";
        check(file, wall, &[("clock", 1)]);
    }

    #[test]
    fn an_exception_without_use_is_stale() {
        let clock = "broker/server/src/clock.rs";
        let stale_with = |text| {
            let stale = stale_homes(&[Source::parse(&File::new(clock, text)).unwrap()]);
            stale.iter().any(|s| s.starts_with(clock))
        };
        assert!(!stale_with("fn now() { SystemTime::now(); }"));
        assert!(stale_with("fn now() {}"));
    }

    #[test]
    fn notes_are_whole_words() {
        let mark = concat!("TO", "DO");
        assert_eq!(notes("a.rs", &format!("x\n// {mark}: later")).len(), 1);
        assert_eq!(
            notes("a.rs", &format!("// {mark}S are fine, and so is todo")),
            []
        );
    }
}
