//! The table of limits in the documentation is the one in the code.
//!
//! Limits are constants with short arithmetic: numbers, `<<`, `+`, `-`, parentheses and other
//! limits. That much is computed here; anything else is reported, so that a limit never drops out
//! of the comparison in silence.

use std::collections::BTreeMap;

use crate::Finding;
use crate::tree::File;

/// The value of each `pub const` of a file, or why it could not be computed.
pub type Limits = BTreeMap<String, Result<u64, String>>;

/// Computes the limits that `source` defines.
#[must_use]
pub fn limits(source: &File) -> Limits {
    let mut limits = Limits::new();
    for line in source.text.lines() {
        let Some((name, rest)) = line
            .strip_prefix("pub const ")
            .and_then(|l| l.split_once(':'))
        else {
            continue;
        };
        let expression = rest
            .split_once('=')
            .map_or("", |(_, e)| e)
            .trim()
            .trim_end_matches(';');
        let value = compute(expression, &limits);
        limits.insert(name.to_owned(), value.ok_or_else(|| expression.to_owned()));
    }
    limits
}

/// Left to right, which is right for what limits say; parentheses go first.
fn compute(expression: &str, known: &Limits) -> Option<u64> {
    let words = expression.replace('(', " ( ").replace(')', " ) ");
    let mut words = words.split_whitespace();
    let value = sum(&mut words, known)?;
    words.next().is_none().then_some(value)
}

fn sum<'a>(words: &mut impl Iterator<Item = &'a str>, known: &Limits) -> Option<u64> {
    let mut value = term(words, known)?;
    loop {
        value = match words.next() {
            None | Some(")") => return Some(value),
            Some("<<") => value.checked_shl(u32::try_from(term(words, known)?).ok()?)?,
            Some("+") => value.checked_add(term(words, known)?)?,
            Some("-") => value.checked_sub(term(words, known)?)?,
            Some(_) => return None,
        };
    }
}

fn term<'a>(words: &mut impl Iterator<Item = &'a str>, known: &Limits) -> Option<u64> {
    match words.next()? {
        "(" => sum(words, known),
        word => match known.get(word) {
            Some(value) => value.clone().ok(),
            None => word.replace('_', "").parse().ok(),
        },
    }
}

/// The rows of the table: the limit's name and its value for people.
#[must_use]
pub fn rows(limits: &Limits) -> Vec<String> {
    let row = |name: &str, value: &Result<u64, String>| match value {
        Ok(value) => format!("| `{name}` | {} |", shown(name, *value)),
        Err(expression) => format!("| `{name}` | ? {expression} ? |"),
    };
    limits
        .iter()
        .map(|(name, value)| row(name, value))
        .collect()
}

/// Bytes in the largest unit that fits without a remainder worth mentioning, all else as a number.
fn shown(name: &str, value: u64) -> String {
    const MIB: u64 = 1 << 20;
    const KIB: u64 = 1 << 10;
    if !name.ends_with("_BYTES") {
        return grouped(value);
    }
    match (value / MIB, value % MIB) {
        (0, _) if value >= KIB && value.is_multiple_of(KIB) => format!("{} KiB", value / KIB),
        (0, _) => format!("{} bytes", grouped(value)),
        (mib, 0) => format!("{mib} MiB"),
        (mib, rest) => format!("{mib} MiB + {} bytes", grouped(rest)),
    }
}

fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}

/// Compares the first two columns of the table in `page` with [`rows`].
#[must_use]
pub fn table(page: &File, rows: &[String]) -> Vec<Finding> {
    let written: Vec<(usize, String)> = page
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| is_row(line))
        .map(|(i, line)| {
            (
                i + 1,
                line.split('|').take(3).collect::<Vec<_>>().join("|") + "|",
            )
        })
        .collect();
    let finding = |line, what| Finding {
        rule: "limits",
        path: page.path.clone(),
        line,
        what,
        advice: "Make docs/protocol.md and sdk/proto/src/limits.rs agree; the code decides.",
    };
    let missing = rows
        .iter()
        .filter(|row| !written.iter().any(|(_, line)| line == *row))
        .map(|row| finding(1, format!("this row is missing:\n    {row} what it is |")));
    let wrong = written
        .iter()
        .filter(|(_, line)| !rows.contains(line))
        .map(|(i, line)| finding(*i, format!("no such limit, or another value: {line}")));
    missing.chain(wrong).collect()
}

/// `| `MAX_THINGS` | ...`: a row about one constant.
fn is_row(line: &str) -> bool {
    let name = line
        .strip_prefix("| `")
        .and_then(|rest| rest.split('`').next())
        .unwrap_or("");
    let shouted = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.contains('_') && name.chars().all(shouted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "/// Doc.\npub const MAX_A_BYTES: usize = 16 << 20;\n\
        pub const B_BYTES: usize = (64 << 10) - 256;\npub const MAX_C: u32 = 1_000;\n\
        pub const MAX_D_BYTES: usize = MAX_A_BYTES + 64;\nconst _: () = {};\n\
        pub const MAX_E_BYTES: usize = 256 << 10;\npub const MAX_F_BYTES: usize = 63;\n";

    const ROWS: [&str; 6] = [
        "| `B_BYTES` | 65,280 bytes |",
        "| `MAX_A_BYTES` | 16 MiB |",
        "| `MAX_C` | 1,000 |",
        "| `MAX_D_BYTES` | 16 MiB + 64 bytes |",
        "| `MAX_E_BYTES` | 256 KiB |",
        "| `MAX_F_BYTES` | 63 bytes |",
    ];

    fn check(lines: &[&str], findings: usize) {
        let rows = rows(&limits(&File::new("limits.rs", SOURCE)));
        let text: String = lines
            .iter()
            .map(|line| format!("{line} what it is |\n"))
            .collect();
        let found = table(&File::new("docs/protocol.md", &text), &rows);
        assert_eq!(found.len(), findings, "{found:?}");
    }

    #[test]
    fn limits_are_computed() {
        assert_eq!(rows(&limits(&File::new("limits.rs", SOURCE))), ROWS);
    }

    #[test]
    fn what_cannot_be_computed_is_said() {
        let source = File::new("limits.rs", "pub const MAX_G: usize = size_of::<u64>();\n");
        assert_eq!(
            rows(&limits(&source)),
            ["| `MAX_G` | ? size_of::<u64>() ? |"]
        );
    }

    #[test]
    fn the_table_is_the_code() {
        check(&ROWS, 0);
        check(&ROWS[1..], 1);
        check(
            &[&ROWS[..], &["| `MAX_GONE` | 3 |", "| `Other` | 3 |"]].concat(),
            1,
        );
        let changed = ["| `B_BYTES` | 65,281 bytes |"];
        check(&[&changed[..], &ROWS[1..]].concat(), 2);
    }
}
