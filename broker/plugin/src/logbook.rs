//! The lines a plugin leaves for its owner: a bounded ring, rate-limited, readable by sequence.
//!
//! One book serves all runners of one plugin. A flood costs the plugin its own lines and nothing
//! else: what is over the rate is counted and shown as one line. Nothing here is durable.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Label, tame};
use crate::meter::Usage;

/// Reads the time in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// For whoever looks for a fault.
    Debug,
    /// Worth knowing.
    Info,
    /// Not as it should be.
    Warn,
    /// Something failed.
    Error,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        })
    }
}

/// One line of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Counts the lines of this book from 0; a gap means that older lines were overwritten.
    pub sequence: u64,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// How much it matters.
    pub level: LogLevel,
    /// Which version wrote it, and where it ran.
    pub from: Arc<Label>,
    /// The text: bounded, one line, no control characters.
    pub message: String,
}

impl From<LogLine> for millstream_proto::message::LogLine {
    fn from(line: LogLine) -> Self {
        Self {
            sequence: line.sequence,
            time_ms: line.time_ms,
            level: line.level.to_string(),
            place: line.from.full_place(),
            version: line.from.version,
            message: line.message,
        }
    }
}

/// Caps of one book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Lines that are kept.
    pub lines: usize,
    /// Bytes of text that are kept.
    pub bytes: usize,
    /// Lines per second in the long run; three times as many may come at once.
    pub lines_per_second: u32,
    /// Bytes of text per second in the long run; three times as many may come at once.
    pub bytes_per_second: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            lines: 1000,
            bytes: 256 << 10,
            lines_per_second: 50,
            bytes_per_second: 16 << 10,
        }
    }
}

/// Seconds of the long-run rate that may be used at once.
const BURST_SECONDS: i64 = 3;

/// Tokens in thousandths, so that a millisecond of any rate is a whole number of them.
#[derive(Debug)]
struct Bucket {
    per_second: i64,
    milli: i64,
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        let per_second = i64::from(per_second);
        Self {
            per_second,
            milli: per_second * BURST_SECONDS * 1000,
        }
    }

    fn fill(&mut self, elapsed_ms: i64) {
        let full = self.per_second * BURST_SECONDS * 1000;
        self.milli = self
            .milli
            .saturating_add(elapsed_ms.saturating_mul(self.per_second))
            .min(full);
    }

    fn has(&self, amount: usize) -> bool {
        i64::try_from(amount).is_ok_and(|amount| self.milli >= amount.saturating_mul(1000))
    }

    fn take(&mut self, amount: usize) {
        let amount = i64::try_from(amount).unwrap_or(i64::MAX);
        self.milli = self.milli.saturating_sub(amount.saturating_mul(1000));
    }
}

struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    next: u64,
    filled_ms: Option<i64>,
    line_rate: Bucket,
    byte_rate: Bucket,
    /// Lines dropped since the last note of it, and who wrote the latest.
    dropped: Option<(u64, Arc<Label>)>,
    dropped_total: u64,
}

/// The lines of one plugin.
pub struct LogBook {
    limits: LogLimits,
    clock: Clock,
    ring: Mutex<Ring>,
    /// Where dropped lines are counted besides.
    usage: Option<Arc<Usage>>,
}

impl fmt::Debug for LogBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = self.ring();
        f.debug_struct("LogBook")
            .field("next", &ring.next)
            .finish_non_exhaustive()
    }
}

impl LogBook {
    /// An empty book.
    #[must_use]
    pub fn new(limits: LogLimits, clock: Clock) -> Self {
        let ring = Ring {
            lines: VecDeque::new(),
            bytes: 0,
            next: 0,
            filled_ms: None,
            line_rate: Bucket::new(limits.lines_per_second),
            byte_rate: Bucket::new(limits.bytes_per_second),
            dropped: None,
            dropped_total: 0,
        };
        Self {
            limits,
            clock,
            ring: Mutex::new(ring),
            usage: None,
        }
    }

    /// Counts dropped lines there too, such as on the account of the plugin's tenant.
    #[must_use]
    pub fn counting(self, usage: Arc<Usage>) -> Self {
        Self {
            usage: Some(usage),
            ..self
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A ring is valid after every statement that changes it, so a panic elsewhere that
        // poisoned the lock does not make it unusable.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a line, or counts it as dropped when the plugin is over its rate.
    pub fn write(&self, level: LogLevel, from: &Arc<Label>, message: &str) {
        let now = (self.clock)();
        let mut ring = self.ring();
        ring.fill(now);
        // Rated before it is copied, so that a flood costs little; the copy is bounded by `tame`.
        let weight = message.len().min(crate::limits::MAX_TEXT_BYTES);
        if !ring.line_rate.has(1) || !ring.byte_rate.has(weight) {
            let before = ring.dropped.take().map_or(0, |(count, _)| count);
            ring.dropped = Some((before + 1, Arc::clone(from)));
            ring.dropped_total += 1;
            if let Some(usage) = &self.usage {
                usage.count_dropped_line();
            }
            return;
        }
        ring.line_rate.take(1);
        ring.byte_rate.take(weight);
        ring.note_dropped(now, &self.limits);
        ring.push(now, level, from, tame(message), &self.limits);
    }

    /// At most `max` lines from sequence `since` on, and the sequence to ask for next. A sequence
    /// that this book has not come to yet is one of an earlier book, from before a restart: all of
    /// this one is new then.
    #[must_use]
    pub fn read(&self, since: u64, max: usize) -> (Vec<LogLine>, u64) {
        let mut ring = self.ring();
        ring.note_dropped((self.clock)(), &self.limits);
        let since = if since > ring.next { 0 } else { since };
        let lines: Vec<_> = ring
            .lines
            .iter()
            .skip_while(|line| line.sequence < since)
            .take(max)
            .cloned()
            .collect();
        let next = lines.last().map_or(since, |line| line.sequence + 1);
        (lines, next)
    }

    /// Lines dropped for being over the rate since the book was opened.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.ring().dropped_total
    }
}

impl Ring {
    fn fill(&mut self, now: i64) {
        // A clock that was set back earns nothing until it has caught up.
        let elapsed = now.saturating_sub(self.filled_ms.unwrap_or(now)).max(0);
        self.filled_ms = Some(self.filled_ms.unwrap_or(now).max(now));
        self.line_rate.fill(elapsed);
        self.byte_rate.fill(elapsed);
    }

    fn note_dropped(&mut self, now: i64, limits: &LogLimits) {
        if let Some((dropped, from)) = self.dropped.take() {
            let message = format!(
                "{dropped} lines dropped: the plugin logs more than {} lines or {} bytes per second",
                limits.lines_per_second, limits.bytes_per_second
            );
            self.push(now, LogLevel::Warn, &from, message, limits);
        }
    }

    fn push(
        &mut self,
        time_ms: i64,
        level: LogLevel,
        from: &Arc<Label>,
        message: String,
        limits: &LogLimits,
    ) {
        let sequence = self.next;
        self.next += 1;
        self.bytes += message.len();
        let from = Arc::clone(from);
        self.lines.push_back(LogLine {
            sequence,
            time_ms,
            level,
            from,
            message,
        });
        while self.lines.len() > limits.lines || self.bytes > limits.bytes {
            let Some(old) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= old.message.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    fn book(limits: LogLimits) -> (LogBook, Arc<AtomicI64>) {
        let time = Arc::new(AtomicI64::new(1_000));
        let clock = Arc::clone(&time);
        (
            LogBook::new(limits, Arc::new(move || clock.load(Ordering::Relaxed))),
            time,
        )
    }

    fn say(book: &LogBook, text: &str) {
        book.write(LogLevel::Info, &Arc::new(Label::for_test()), text);
    }

    fn messages(book: &LogBook) -> Vec<String> {
        book.read(0, 1000)
            .0
            .into_iter()
            .map(|line| line.message)
            .collect()
    }

    #[test]
    fn lines_are_read_from_a_sequence_on() {
        let (book, _) = book(LogLimits::default());
        for text in ["a", "b", "c"] {
            say(&book, text);
        }
        let (lines, next) = book.read(0, 2);
        assert_eq!(
            lines.iter().map(|l| l.message.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!((next, lines[0].time_ms), (2, 1_000));
        let (lines, next) = book.read(next, 2);
        assert_eq!((lines[0].message.as_str(), lines.len(), next), ("c", 1, 3));
        assert_eq!(book.read(next, 2), (vec![], 3));
    }

    #[test]
    fn the_ring_is_bounded_by_lines_and_bytes() {
        let limits = LogLimits {
            lines: 3,
            bytes: 10,
            ..LogLimits::default()
        };
        let (book, _) = book(limits);
        for text in ["a", "b", "c", "d"] {
            say(&book, text);
        }
        assert_eq!(messages(&book), ["b", "c", "d"]);
        say(&book, "123456789");
        assert_eq!(messages(&book), ["d", "123456789"]);
        assert_eq!(book.read(0, 1).0[0].sequence, 3);
    }

    #[test]
    fn a_flood_is_dropped_and_shown_as_one_line() {
        let (book, time) = book(LogLimits {
            lines_per_second: 2,
            ..LogLimits::default()
        });
        let usage = Arc::<Usage>::default();
        let book = book.counting(Arc::clone(&usage));
        for _ in 0..100 {
            say(&book, "x");
        }
        let read = messages(&book);
        assert_eq!((read.len(), book.dropped()), (7, 94));
        assert_eq!(usage.dropped_lines(), 94);
        assert!(read[6].starts_with("94 lines dropped"), "{read:?}");
        say(&book, "z");
        time.fetch_add(1_000, Ordering::Relaxed);
        say(&book, "y");
        let read = messages(&book);
        assert!(read[7].starts_with("1 lines dropped"), "{read:?}");
        assert_eq!(read[8..], ["y"]);
    }

    #[test]
    fn who_followed_an_earlier_book_reads_this_one_from_its_beginning() {
        let (book, _) = book(LogLimits::default());
        say(&book, "first");
        let (lines, next) = book.read(500, 10);
        assert_eq!((lines.len(), next), (1, 1));
        assert_eq!(book.read(next, 10), (Vec::new(), 1));
    }

    #[test]
    fn long_lines_are_cut_and_charged_by_what_is_kept() {
        let (book, _) = book(LogLimits {
            bytes_per_second: 1000,
            ..LogLimits::default()
        });
        for _ in 0..4 {
            say(&book, &"z".repeat(1 << 20));
        }
        assert_eq!((messages(&book).len(), book.dropped()), (3, 2));
        assert!(messages(&book)[0].ends_with("(cut)"));
    }

    #[test]
    fn a_clock_set_back_does_not_refill() {
        let (book, time) = book(LogLimits {
            lines_per_second: 1,
            ..LogLimits::default()
        });
        for _ in 0..10 {
            time.fetch_sub(1_000, Ordering::Relaxed);
            say(&book, "x");
            time.fetch_add(1_000, Ordering::Relaxed);
            say(&book, "x");
        }
        // Three at once, and one for the one second that the clock has really gone on.
        assert_eq!((messages(&book).len(), book.dropped()), (5, 16));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_logged_the_book_is_bounded_and_in_order(
            lines in proptest::collection::vec((0usize..3000, -50i64..400), 0..200)
        ) {
            let limits = LogLimits { lines: 20, bytes: 5000, lines_per_second: 10, bytes_per_second: 2000 };
            let (book, time) = book(limits);
            let mut earliest = 0;
            for (count, (len, pause)) in lines.iter().enumerate() {
                time.fetch_add(*pause, Ordering::Relaxed);
                say(&book, &"x".repeat(*len));
                let (read, next) = book.read(0, usize::MAX);
                let bytes: usize = read.iter().map(|line| line.message.len()).sum();
                proptest::prop_assert!(read.len() <= 20 && bytes <= 5000);
                let gapless = read.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence);
                proptest::prop_assert!(gapless);
                if let (Some(first), Some(last)) = (read.first(), read.last()) {
                    proptest::prop_assert!(first.sequence >= earliest && last.sequence + 1 == next);
                    earliest = first.sequence;
                }
                proptest::prop_assert!(book.dropped() <= count as u64 + 1);
            }
        }
    }
}
