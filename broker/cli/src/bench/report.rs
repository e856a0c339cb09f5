//! What comes out: a table for people, the same numbers as JSON.

use serde::Serialize;

use super::BenchArgs;
use crate::table::Table;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    /// What was measured.
    pub(super) what: String,
    /// The median.
    pub(super) value: f64,
    /// Its unit.
    pub(super) unit: &'static str,
    /// The floor taken in turn with it, in the same unit.
    pub(super) floor: Option<f64>,
    /// What the floor is.
    pub(super) floor_is: Option<&'static str>,
    /// The median of the figure divided by its floor, round by round.
    pub(super) ratio: Option<f64>,
    /// What else there is to say.
    pub(super) note: String,
}

/// All figures of a run and what it was made with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    rounds: u32,
    value_bytes: usize,
    key_bytes: usize,
    batch_bytes: usize,
    in_flight: usize,
    partitions: u32,
    mtu: u16,
    figures: Vec<Figure>,
}

/// The middle of `values`; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value that `share` of the sorted `values` do not exceed; 0 of none.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

impl Report {
    pub(super) fn new(args: &BenchArgs) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            rounds: args.rounds,
            value_bytes: args.value_bytes,
            key_bytes: args.key_bytes,
            batch_bytes: args.batch_bytes,
            in_flight: args.in_flight,
            partitions: args.partitions,
            mtu: args.mtu,
            figures: Vec::new(),
        }
    }

    /// Adds a figure without a floor.
    pub(super) fn plain(&mut self, what: &str, unit: &'static str, values: &[f64], note: String) {
        let (what, value) = (what.to_owned(), median(values));
        let figure = Figure {
            what,
            value,
            unit,
            floor: None,
            floor_is: None,
            ratio: None,
            note,
        };
        self.figures.push(figure);
    }

    /// Adds a figure with its floor; both have one value per round.
    pub(super) fn against(
        &mut self,
        what: &str,
        unit: &'static str,
        pairs: &[(f64, f64)],
        floor_is: &'static str,
        note: String,
    ) {
        let (values, floors): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        let ratios: Vec<f64> = pairs.iter().map(|(v, f)| v / f).collect();
        self.figures.push(Figure {
            what: what.to_owned(),
            value: median(&values),
            unit,
            floor: Some(median(&floors)),
            floor_is: Some(floor_is),
            ratio: Some(median(&ratios)),
            note,
        });
    }

    /// The figures as a table.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(&[
            "FIGURE", "MEDIAN", "UNIT", "FLOOR", "RATIO", "FLOOR IS", "NOTE",
        ]);
        let number = |n: f64| match n {
            n if n.abs() >= 100.0 => format!("{n:.0}"),
            n => format!("{n:.2}"),
        };
        for f in &self.figures {
            let ratio = f.ratio.map_or_else(String::new, |r| format!("{r:.2}"));
            table.row([
                f.what.clone(),
                number(f.value),
                f.unit.to_owned(),
                f.floor.map_or_else(String::new, number),
                ratio,
                f.floor_is.unwrap_or_default().to_owned(),
                f.note.clone(),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_tail() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        let hundred: Vec<f64> = (0..100).map(f64::from).collect();
        assert!((percentile(&hundred, 0.99) - 99.0).abs() < f64::EPSILON);
        assert!((percentile(&hundred, 0.5) - 50.0).abs() < f64::EPSILON);
    }
}
