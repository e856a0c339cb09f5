//! A reader of OpenMetrics text that accepts nothing but what the format allows.
//!
//! It knows the kinds that the broker uses: gauge, counter, histogram and info.

use std::collections::{BTreeMap, BTreeSet};

/// The labels of a sample, by name.
pub type Labels = BTreeMap<String, String>;

/// One family, as it was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricFamily {
    /// `gauge`, `counter`, `histogram` or `info`.
    pub kind: String,
    /// What it means.
    pub help: String,
    /// What its samples are counted in; empty if they are just numbers.
    pub unit: String,
    /// Samples: what follows the family's name, the labels, the value.
    pub samples: Vec<(String, Labels, f64)>,
}

/// A page of figures, by the families' names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsPage {
    /// The families.
    pub families: BTreeMap<String, MetricFamily>,
}

impl MetricsPage {
    /// Reads a page.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let body = text
            .strip_suffix("# EOF\n")
            .ok_or("it does not end with `# EOF`")?;
        let mut page = Self::default();
        let mut current: Option<String> = None;
        for line in body.split_terminator('\n') {
            let at = |why: String| format!("{why}: {line:?}");
            page.line(line, &mut current).map_err(at)?;
        }
        for (name, family) in &page.families {
            family.check(name).map_err(|why| format!("{name}: {why}"))?;
        }
        Ok(page)
    }

    fn line(&mut self, line: &str, current: &mut Option<String>) -> Result<(), String> {
        let Some(about) = line.strip_prefix("# ") else {
            let name = current.as_ref().ok_or("a sample before any family")?;
            let family = self.families.get_mut(name).ok_or("no such family")?;
            return family.sample(name, line);
        };
        let mut words = about.splitn(3, ' ');
        let (Some(what), Some(name), Some(text)) = (words.next(), words.next(), words.next())
        else {
            return Err("too few words".into());
        };
        check_name(name)?;
        if current.as_deref() != Some(name) {
            if self.families.contains_key(name) {
                return Err("the family was there before".into());
            }
            self.families
                .insert(name.to_owned(), MetricFamily::default());
            *current = Some(name.to_owned());
        }
        let family = self.families.get_mut(name).ok_or("no such family")?;
        if !family.samples.is_empty() {
            return Err("it comes behind samples of its family".into());
        }
        let place = match what {
            "HELP" => &mut family.help,
            "TYPE" => &mut family.kind,
            "UNIT" => &mut family.unit,
            _ => return Err("no such keyword".into()),
        };
        if !place.is_empty() || text.is_empty() {
            return Err("twice, or empty".into());
        }
        text.clone_into(place);
        Ok(())
    }

    /// The samples of a family without suffix (of a counter: its totals) that have these labels
    /// among others, added up; none if there is no such sample.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let family = self.families.get(name)?;
        let wanted = if family.kind == "counter" {
            "_total"
        } else {
            ""
        };
        let has = |own: &Labels| {
            let mut all = labels.iter();
            all.all(|(key, value)| own.get(*key).is_some_and(|v| v == value))
        };
        let mut found = family
            .samples
            .iter()
            .filter(|(suffix, own, _)| suffix == wanted && has(own))
            .map(|(_, _, value)| *value)
            .peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// Every total of every counter, and every bucket, by everything that names it: what may not
    /// become less.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<(String, Labels), f64> {
        let mut totals = BTreeMap::new();
        for (name, family) in &self.families {
            if ["counter", "histogram"].contains(&family.kind.as_str()) {
                for (suffix, labels, value) in &family.samples {
                    totals.insert((format!("{name}{suffix}"), labels.clone()), *value);
                }
            }
        }
        totals
    }
}

impl MetricFamily {
    fn sample(&mut self, name: &str, line: &str) -> Result<(), String> {
        let split = line.find(['{', ' ']).ok_or("no value")?;
        let suffix = line[..split]
            .strip_prefix(name)
            .ok_or("a sample of another family")?;
        let allowed: &[&str] = match self.kind.as_str() {
            "gauge" => &[""],
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => return Err("a family without a kind, or of an unknown one".into()),
        };
        if !allowed.contains(&suffix) {
            return Err(format!("a {} has no samples with this suffix", self.kind));
        }
        let (labels, rest) = match line[split..].strip_prefix('{') {
            Some(inside) => parse_labels(inside)?,
            None => (Labels::new(), &line[split..]),
        };
        let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
        let value = parse_value(value)?;
        if self.kind != "gauge" && !(value.is_finite() && value >= 0.0) {
            return Err("what counts is not negative".into());
        }
        if self.kind == "info" && value.to_bits() != 1f64.to_bits() {
            return Err("an info is 1".into());
        }
        if suffix == "_bucket" && !labels.contains_key("le") {
            return Err("a bucket without `le`".into());
        }
        let is_there = |(own, other, _): &(String, Labels, f64)| own == suffix && *other == labels;
        if self.samples.iter().any(is_there) {
            return Err("the sample was there before".into());
        }
        self.samples.push((suffix.to_owned(), labels, value));
        Ok(())
    }

    fn check(&self, name: &str) -> Result<(), String> {
        if self.kind.is_empty() || self.help.is_empty() {
            return Err("no type or no help".into());
        }
        if !self.unit.is_empty() && !name.ends_with(&format!("_{}", self.unit)) {
            return Err(format!("the name does not end with the unit {}", self.unit));
        }
        if self.kind == "histogram" {
            self.check_histograms()?;
        }
        Ok(())
    }

    fn check_histograms(&self) -> Result<(), String> {
        let without_edge = |labels: &Labels| {
            let mut labels = labels.clone();
            labels.remove("le");
            labels
        };
        let of: BTreeSet<Labels> = self
            .samples
            .iter()
            .map(|(_, l, _)| without_edge(l))
            .collect();
        for labels in of {
            let own = |wanted: &'static str| {
                let labels = &labels;
                self.samples.iter().filter(move |(suffix, other, _)| {
                    suffix == wanted && without_edge(other) == *labels
                })
            };
            let count = own("_count").next().ok_or("no count")?.2;
            own("_sum").next().ok_or("no sum")?;
            let (mut edge, mut below) = (f64::NEG_INFINITY, 0.0);
            for (_, labels, value) in own("_bucket") {
                let next = labels.get("le").map(String::as_str).unwrap_or_default();
                let next = parse_value(next)?;
                if next <= edge || *value < below {
                    return Err(format!("the bucket up to {next} is out of order"));
                }
                (edge, below) = (next, *value);
            }
            if edge.is_finite() || below.to_bits() != count.to_bits() {
                return Err("the last bucket does not hold everything".into());
            }
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    let valid = name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit());
    valid
        .then_some(())
        .ok_or_else(|| format!("{name:?} is no name"))
}

/// What stands between braces, from behind the first one, and what follows the second.
fn parse_labels(mut text: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    loop {
        let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
        check_name(name)?;
        if name.contains(':') {
            return Err("a colon in a label's name".into());
        }
        let (value, rest) = parse_text(rest)?;
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label {name} twice"));
        }
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        text = rest.strip_prefix(',').ok_or("no comma between labels")?;
    }
}

/// A text up to its closing quote, and what follows.
fn parse_text(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => value.push('\n'),
                Some(c @ ('"' | '\\')) => value.push(c),
                _ => return Err("an unknown escape".into()),
            },
            c => value.push(c),
        }
    }
    Err("a text that does not end".into())
}

fn parse_value(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        // Rust reads more than the format allows: words.
        _ if text.contains(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E') => {
            Err(format!("{text:?} is no value"))
        }
        _ => text.parse().map_err(|_| format!("{text:?} is no value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_bytes Text with = and \"\".\n# TYPE a_bytes gauge\n\
        # UNIT a_bytes bytes\na_bytes{x=\"1\",y=\"a\\\"b\\n\"} 3\na_bytes -1.5e-7\n\
        # HELP b B\n# TYPE b counter\nb_total{k=\"\"} 7\n\
        # HELP c C\n# TYPE c histogram\nc_sum 3\nc_count 2\nc_bucket{le=\"1e-5\"} 1\n\
        c_bucket{le=\"+Inf\"} 2\n# HELP d D\n# TYPE d info\nd_info{v=\"1\"} 1\n# EOF\n";

    #[test]
    fn what_is_written_well_is_read() {
        let page = MetricsPage::parse(GOOD).expect("a good page");
        assert_eq!(page.sum("a_bytes", &[("y", "a\"b\n")]), Some(3.0));
        assert_eq!(page.sum("a_bytes", &[("y", "b")]), None);
        assert_eq!(page.sum("b", &[]), Some(7.0));
        assert_eq!(page.families["a_bytes"].unit, "bytes");
        assert_eq!(page.totals().len(), 5);
    }

    #[test]
    fn what_is_not_is_refused() {
        for (from, to) in [
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\n\n"),
            ("# EOF\n", "\n# EOF\n"),
            ("# UNIT a_bytes bytes", "# UNIT a_bytes seconds"),
            ("# TYPE b counter\n", ""),
            ("# HELP b B\n", ""),
            ("b_total", "b"),
            ("b_total{k=\"\"} 7", "b_total{k=\"\"} -7"),
            ("b_total{k=\"\"} 7", "b_total{k=\"\"} seven"),
            ("b_total{k=\"\"} 7", "b_total{k=\"\"} inf"),
            ("b_total{k=\"\"} 7", "b_total{k=\"\"}7"),
            ("b_total{k=\"\"} 7", "b_total{k=\"\"} 7\nb_total{k=\"\"} 7"),
            ("x=\"1\",y", "x=\"1\",x"),
            ("x=\"1\",y", "x=\"1\"y"),
            ("a\\\"b", "a\\b"),
            ("c_bucket{le=\"1e-5\"} 1", "c_bucket{le=\"1e-5\"} 3"),
            ("c_bucket{le=\"+Inf\"} 2", "c_bucket{le=\"9\"} 2"),
            ("c_count 2", "c_count 3"),
            ("c_sum 3\n", ""),
            ("d_info{v=\"1\"} 1", "d_info{v=\"1\"} 2"),
            ("# HELP d D", "# HELP b D"),
            ("# TYPE d info", "# TYPE d gauge"),
            ("# TYPE d info", "# KIND d info"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let bad = GOOD.replacen(from, to, 1);
            assert!(MetricsPage::parse(&bad).is_err(), "{from:?} to {to:?}");
        }
    }
}
