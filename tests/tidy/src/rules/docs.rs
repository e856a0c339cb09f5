//! Rules about the documentation: links lead somewhere, every page is in the book, and the table
//! of error codes is the one in the code.

use crate::Finding;
use crate::tree::File;

/// Where the book's table of contents is.
const SUMMARY: &str = "docs/SUMMARY.md";

/// Relative links of a page that lead nowhere, and anchors that are not headings.
///
/// `exists` says whether a path from the root of the repository is there.
#[must_use]
pub fn links(page: &File, pages: &[File], exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, link) in link_targets(&page.text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let target = if path.is_empty() {
            Some(page.path.clone())
        } else {
            join(&page.path, path)
        };
        let found = target.as_deref().is_some_and(exists);
        let anchored = anchor.is_empty()
            || pages
                .iter()
                .find(|p| Some(&p.path) == target.as_ref())
                .is_some_and(|p| headings(&p.text).iter().any(|h| h == anchor));
        if !found || !anchored {
            findings.push(Finding {
                rule: "link",
                path: page.path.clone(),
                line,
                what: format!("{link} leads nowhere"),
                advice: "Mend the path or the #anchor; paths are relative to the page.",
            });
        }
    }
    findings
}

/// Pages of the book that its table of contents does not name.
#[must_use]
pub fn summary(pages: &[File]) -> Vec<Finding> {
    let Some(summary) = pages.iter().find(|p| p.path == SUMMARY) else {
        return vec![Finding {
            rule: "summary",
            path: SUMMARY.to_owned(),
            line: 1,
            what: "the book has no table of contents".to_owned(),
            advice: "Write it; mdBook shows only what it names.",
        }];
    };
    let named: Vec<String> = link_targets(&summary.text)
        .into_iter()
        .filter_map(|(_, link)| join(SUMMARY, &link))
        .collect();
    pages
        .iter()
        .filter(|p| p.path.starts_with("docs/") && p.path != SUMMARY && !named.contains(&p.path))
        .map(|p| Finding {
            rule: "summary",
            path: p.path.clone(),
            line: 1,
            what: format!("{SUMMARY} does not name this page"),
            advice: "Add it there: mdBook shows only what it names.",
        })
        .collect()
}

/// The rows of the table of error codes, as `docs/protocol.md` must have them, read from the
/// source of the codes: number, name, class and meaning.
#[must_use]
pub fn code_rows(source: &str) -> Vec<String> {
    let mut meaning = String::new();
    let mut rows = Vec::new();
    for line in source.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            meaning = format!("{meaning} {}", doc.trim()).trim().to_owned();
            continue;
        }
        if let Some((name, number, class)) = code(line) {
            rows.push(format!("| {number} | `{name}` | {class} | {meaning} |"));
        }
        meaning.clear();
    }
    rows
}

/// `NotAuthorized = 201, Fix;` in its parts.
fn code(line: &str) -> Option<(&str, u16, &'static str)> {
    let (name, rest) = line.strip_suffix(';')?.split_once(" = ")?;
    let (number, class) = rest.split_once(", ")?;
    let class = match class {
        "Retry" => "retry",
        "Fix" => "fix the request",
        "Fatal" => "fatal",
        _ => return None,
    };
    Some((name, number.parse().ok()?, class))
}

/// Compares the table in the page with the rows of [`code_rows`].
#[must_use]
pub fn code_table(page: &File, rows: &[String]) -> Vec<Finding> {
    let advice = "Make docs/protocol.md and sdk/proto/src/code.rs agree; the code decides.";
    let finding = |line, what| Finding {
        rule: "codes",
        path: page.path.clone(),
        line,
        what,
        advice,
    };
    let is_row = |line: &str| {
        let first = line.split('|').nth(1).unwrap_or("").trim();
        first.len() == 3 && first.parse::<u16>().is_ok()
    };
    let written: Vec<(usize, &str)> = page
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('|') && is_row(line))
        .map(|(i, line)| (i + 1, line))
        .collect();
    let missing = rows
        .iter()
        .filter(|row| !written.iter().any(|(_, line)| line == row))
        .map(|row| finding(1, format!("this row is missing:\n    {row}")));
    let wrong = written
        .iter()
        .filter(|(_, line)| !rows.iter().any(|row| row == line))
        .map(|(i, line)| finding(*i, format!("no such code: {line}")));
    missing.chain(wrong).collect()
}

/// Commands that a page shows: lines of fenced `sh` code, without comments.
#[must_use]
pub fn commands(page: &File) -> Vec<String> {
    let mut in_shell = false;
    let mut commands = Vec::new();
    for line in page.text.lines() {
        if let Some(fence) = line.strip_prefix("```") {
            in_shell = !in_shell && fence == "sh";
        } else if in_shell {
            let command = line.split(" #").next().unwrap_or(line).trim();
            commands.push(command.to_owned());
        }
    }
    commands
}

/// Targets of `[text](target)` outside of code, with their lines.
fn link_targets(text: &str) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    for (i, line) in prose(text) {
        // Every second piece between backticks is code.
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for piece in plain.split("](").skip(1) {
            let target = piece.split([')', ' ']).next().unwrap_or(piece);
            targets.push((i, target.to_owned()));
        }
    }
    targets
}

/// Lines outside of fenced code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push((i + 1, line));
        }
    }
    lines
}

/// The anchors of a page: its headings in lower case, spaces as `-`, without other punctuation.
fn headings(text: &str) -> Vec<String> {
    let anchor = |heading: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        heading
            .to_lowercase()
            .chars()
            .filter(kept)
            .collect::<String>()
            .trim()
            .replace(' ', "-")
    };
    prose(text)
        .into_iter()
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

/// `path` as seen from the file `from`; none if it leaves the repository.
fn join(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_links(text: &str, expected: &[usize]) {
        let page = File::new("docs/a.md", text);
        let pages = [
            page.clone(),
            File::new("docs/b.md", "# One\n## Two & `three`\n"),
        ];
        let exists = |path: &str| pages.iter().any(|p| p.path == path) || path == "wit/plugin.wit";
        let lines: Vec<usize> = links(&page, &pages, &exists)
            .iter()
            .map(|f| f.line)
            .collect();
        assert_eq!(lines, expected, "{text}");
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        check_links(
            "[b](b.md) [w](../wit/plugin.wit) [b](./b.md#one) [x](https://x.org/y)",
            &[],
        );
        check_links("# Here\n[h](#here) [t](b.md#two--three)", &[]);
        check_links("x\n[b](c.md)", &[2]);
        check_links(
            "[b](b.md#four)\n[h](#nowhere)\n[out](../../x.md)",
            &[1, 2, 3],
        );
    }

    #[test]
    fn code_is_not_prose() {
        check_links("`[b](c.md)`\n```\n[b](c.md)\n# Not a heading\n```\n", &[]);
        check_links("```\n# Not\n```\n[h](#not)", &[4]);
    }

    #[test]
    fn every_page_is_in_the_book() {
        let contents = File::new(SUMMARY, "- [A](a.md)\n- [B](decisions/b.md)\n");
        let page = |path| File::new(path, "");
        let good = [
            contents.clone(),
            page("docs/a.md"),
            page("docs/decisions/b.md"),
            page("x.md"),
        ];
        assert_eq!(summary(&good), []);
        assert_eq!(summary(&[contents, page("docs/c.md")]).len(), 1);
        assert_eq!(summary(&[page("docs/a.md")]).len(), 1);
    }

    #[test]
    fn commands_are_lines_of_shell_code() {
        let page = File::new(
            "a.md",
            "x\n```sh\nmake it   # now\nrun\n```\n```rust\nno\n```\n`nor this`\n",
        );
        assert_eq!(commands(&page), ["make it", "run"]);
    }

    #[test]
    fn the_table_is_the_code() {
        let rows = code_rows(
            "    /// Not\n    /// this one.\n    fn f() { let x = 3; }\n    /// A frame that\n    \
             /// is bad.\n    Bad = 100, Fatal;\n    /// Again.\n    Again = 200, Retry;\n",
        );
        let good = [
            "| 100 | `Bad` | fatal | A frame that is bad. |",
            "| 200 | `Again` | retry | Again. |",
        ];
        assert_eq!(rows, good);
        let page = |lines: &[&str]| File::new("docs/protocol.md", &lines.join("\n"));
        assert_eq!(code_table(&page(&good), &rows), []);
        assert_eq!(code_table(&page(&good[..1]), &rows).len(), 1);
        let extra = [good[0], good[1], "| 300 | `Gone` | fatal | Nothing. |"];
        assert_eq!(code_table(&page(&extra), &rows).len(), 1);
        let other = [good[0], "| 200 | `Again` | fatal | Again. |"];
        assert_eq!(code_table(&page(&other), &rows).len(), 2);
    }
}
