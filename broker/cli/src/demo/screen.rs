//! What one sees: counts as they grow, alerts as they come. On a terminal lines that move, else
//! plain lines from time to time.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use quake_regions::Region;

use super::expect::PARTITIONS;
use crate::clock;
use crate::output::{Output, complain};
use crate::quantity::show_count;

/// How often plain lines are written.
const PLAIN_EVERY: Duration = Duration::from_secs(3);
/// Over how long throughput is measured.
const RATE_OVER: Duration = Duration::from_secs(1);

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Records in the file.
    pub(super) total: u64,
    /// Records handed to the producer.
    pub(super) sent: u64,
    /// Records acknowledged as durable.
    pub(super) acked: u64,
    /// Records that the live consumer saw, by partition and region.
    seen: [[u64; Region::ALL.len()]; PARTITIONS as usize],
    /// Records that passed the filter in the broker.
    pub(super) strong: u64,
    /// Alerts that arrived.
    pub(super) alerts: u64,
    /// What the broker is doing.
    pub(super) broker: String,
    /// Acknowledged records per second, lately.
    pub(super) rate: f64,
}

impl Counts {
    /// Nothing has happened yet.
    pub(super) fn new(total: u64) -> Self {
        Self {
            total,
            broker: "serving".to_owned(),
            ..Self::default()
        }
    }

    /// Counts a record that arrived.
    pub(super) fn see(&mut self, partition: u32, region: Region) {
        let row = self.seen.get_mut(partition as usize);
        if let Some(n) = row.and_then(|row| row.get_mut(region.number() as usize)) {
            *n += 1;
        }
    }

    /// Records that arrived.
    pub(super) fn arrived(&self) -> u64 {
        self.seen.iter().flatten().sum()
    }

    /// One line for the whole and one for each partition.
    fn lines(&self) -> Vec<String> {
        let Self {
            total,
            acked,
            strong,
            alerts,
            broker,
            rate,
            ..
        } = self;
        let whole = format!(
            "{} of {} stored, {rate:.0}/s, {} arrived, {strong} strong, {alerts} alerts; broker {broker}",
            show_count(*acked),
            show_count(*total),
            show_count(self.arrived()),
        );
        let rows = self.seen.iter().enumerate().map(|(partition, row)| {
            let total: u64 = row.iter().sum();
            let regions: Vec<String> = Region::ALL
                .iter()
                .zip(row)
                .filter(|(_, n)| **n > 0)
                .map(|(region, n)| format!("{} {n}", region.name()))
                .collect();
            format!("partition {partition}  {total:>5}  {}", regions.join(", "))
        });
        std::iter::once(whole).chain(rows).collect()
    }
}

/// The view of the counts.
pub(super) struct Screen {
    out: Output,
    live: Option<Live>,
    plain_at: Instant,
    rate_at: Instant,
    rate_from: u64,
}

struct Live {
    multi: MultiProgress,
    bar: ProgressBar,
    rows: Vec<ProgressBar>,
}

impl Live {
    fn new(total: u64) -> Self {
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let bar = multi.add(ProgressBar::new(total));
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {wide_msg}") {
            bar.set_style(style);
        }
        let row = || {
            let row = multi.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                row.set_style(style);
            }
            row
        };
        let rows = (0..PARTITIONS).map(|_| row()).collect();
        Self { multi, bar, rows }
    }
}

impl Screen {
    /// A screen for so many records.
    pub(super) fn new(out: Output, total: u64) -> Self {
        let live = out.is_live().then(|| Live::new(total));
        let now = clock::monotonic();
        Self {
            out,
            live,
            plain_at: now + PLAIN_EVERY,
            rate_at: now,
            rate_from: 0,
        }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        match &self.live {
            // If the terminal is gone the demo goes on; its result counts.
            Some(live) => drop(live.multi.println(line)),
            None => self.out.note(line),
        }
    }

    /// Shows the counts as they are now.
    pub(super) fn show(&mut self, counts: &mut Counts) {
        let now = clock::monotonic();
        let since = now.duration_since(self.rate_at);
        if since >= RATE_OVER {
            counts.rate = counts.acked.saturating_sub(self.rate_from) as f64 / since.as_secs_f64();
            (self.rate_at, self.rate_from) = (now, counts.acked);
        }
        match &self.live {
            Some(live) => {
                let mut lines = counts.lines().into_iter();
                live.bar.set_position(counts.acked);
                live.bar.set_message(lines.next().unwrap_or_default());
                for (row, line) in live.rows.iter().zip(lines) {
                    row.set_message(line);
                }
            }
            None if now >= self.plain_at && !self.out.quiet => {
                self.plain_at = now + PLAIN_EVERY;
                counts
                    .lines()
                    .iter()
                    .for_each(|line| complain(&format!("  {line}")));
            }
            None => {}
        }
    }

    /// Takes the moving lines away and leaves the last state.
    pub(super) fn finish(self, counts: &Counts) {
        if let Some(live) = self.live {
            live.bar.finish_and_clear();
            live.rows.iter().for_each(ProgressBar::finish_and_clear);
        }
        counts
            .lines()
            .iter()
            .for_each(|line| self.out.note(&format!("  {line}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_by_partition_and_region() {
        let mut counts = Counts {
            acked: 1234,
            ..Counts::new(2000)
        };
        counts.see(1, Region::Alaska);
        counts.see(1, Region::Alaska);
        counts.see(1, Region::SouthAmerica);
        counts.see(PARTITIONS, Region::Alaska);
        assert_eq!(
            counts.arrived(),
            3,
            "a partition that is not there is not counted"
        );
        let lines = counts.lines();
        assert_eq!(lines.len(), 1 + PARTITIONS as usize);
        assert!(
            lines[0].starts_with("1,234 of 2,000 stored"),
            "{}",
            lines[0]
        );
        assert_eq!(lines[2], "partition 1      3  alaska 2, south-america 1");
    }
}
