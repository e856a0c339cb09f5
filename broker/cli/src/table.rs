//! Columns for people: left-aligned text, right-aligned numbers, two spaces between.
//!
//! Absent: colours, borders and wrapping; a table that is too wide is the terminal's business.

use std::fmt;

/// Where the text stands in its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns. A heading that ends in `#` (which is not shown) is a column of
    /// numbers.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        let columns = headings
            .iter()
            .map(|heading| match heading.strip_suffix('#') {
                Some(name) => (name, Align::Right),
                None => (*heading, Align::Left),
            });
        Self {
            columns: columns.collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Missing cells are empty, further ones are left out.
    pub(crate) fn row<I, S>(&mut self, cells: I)
    where
        I: IntoIterator<Item = S>,
        S: ToString,
    {
        let mut row: Vec<String> = cells
            .into_iter()
            .map(|cell| one_line(&cell.to_string()))
            .collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    fn widths(&self) -> Vec<usize> {
        let cells = |i: usize| self.rows.iter().map(move |row| width(&row[i]));
        let columns = self.columns.iter().enumerate();
        columns
            .map(|(i, (name, _))| cells(i).max().unwrap_or(0).max(width(name)))
            .collect()
    }
}

/// A cell comes from names, places and messages that others wrote: control characters would
/// break the table or drive the terminal.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let headings: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        for (n, row) in std::iter::once(&headings).chain(&self.rows).enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            let cells = row.iter().zip(&self.columns).zip(&widths);
            let line: Vec<String> = cells
                .map(|((cell, (_, align)), &width)| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                })
                .collect();
            f.write_str(line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_left_numbers_are_right() {
        let mut table = Table::new(&["TOPIC", "RECORDS#"]);
        table.row(["acme/quakes", "7"]);
        table.row(["a/b", "12345678"]);
        let lines = [
            "TOPIC         RECORDS",
            "acme/quakes         7",
            "a/b          12345678",
        ];
        assert_eq!(table.to_string(), lines.join("\n"));
    }

    #[test]
    fn what_others_wrote_cannot_drive_the_terminal() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["x\u{1b}[31m\n", "ü"]);
        assert_eq!(table.to_string(), "A        B\nx [31m   ü");
    }

    #[test]
    fn short_rows_are_filled() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["only"]);
        assert_eq!(table.to_string(), "A     B\nonly");
    }
}
