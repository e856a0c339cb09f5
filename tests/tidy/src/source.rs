//! A Rust file as the rules see it: words with their lines, and which of them are test code.
//!
//! The words come from rustc's own lexer, so what stands in a comment or in a string is not a
//! word. Test code is what stands under `#[test]` or `#[cfg(test)]`, in a `tests` directory, or in
//! a file that was declared by a `#[cfg(test)] mod`.
//!
//! Absent: types and paths. A rule that needs to know what a name refers to belongs to clippy.

use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::tree::File;

/// One identifier, literal, delimiter or punctuation character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// As written.
    pub text: String,
    /// Its line, from 1.
    pub line: usize,
    /// Whether only tests are compiled with it.
    pub in_test: bool,
}

/// A function with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its name, from 1.
    pub line: usize,
    /// Lines from its name to the end of its body.
    pub lines: usize,
}

/// A Rust file, cut into words.
#[derive(Clone, Debug)]
pub struct Source {
    /// From the root of the repository.
    pub path: String,
    /// Its words in order.
    pub words: Vec<Word>,
    /// Its functions in order of their beginnings.
    pub functions: Vec<Function>,
    /// Whether it begins with `//!`.
    pub has_header: bool,
    /// Files and directories (without `.rs`) of modules that are declared for tests only.
    test_modules: Vec<String>,
}

impl Source {
    /// Cuts a file into words.
    ///
    /// # Errors
    /// When it is not Rust.
    pub fn parse(file: &File) -> Result<Self, String> {
        let stream = TokenStream::from_str(&file.text)
            .map_err(|e| format!("{}: not Rust: {e}", file.path))?;
        let mut source = Self {
            path: file.path.clone(),
            words: Vec::new(),
            functions: Vec::new(),
            has_header: begins_with_doc(&stream),
            test_modules: Vec::new(),
        };
        let in_test = file.path.split('/').any(|dir| dir == "tests") || file.name() == "tests.rs";
        source.walk(stream, in_test);
        Ok(source)
    }

    fn walk(&mut self, stream: TokenStream, in_test: bool) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        // Set by a test attribute, until the item that it stands on ends.
        let mut item_in_test = false;
        for (i, tree) in trees.iter().enumerate() {
            let test = in_test || item_in_test;
            match tree {
                TokenTree::Group(group) => {
                    let attribute = follows_hash(&trees[..i]);
                    self.group(group, test);
                    if attribute && is_test_attribute(group) {
                        item_in_test = true;
                    } else if group.delimiter() == Delimiter::Brace {
                        item_in_test = false;
                    }
                }
                TokenTree::Punct(punct) => {
                    self.word(punct.as_char().to_string(), tree, test);
                    if punct.as_char() == ';' {
                        item_in_test = false;
                    }
                }
                TokenTree::Ident(ident) => {
                    self.word(ident.to_string(), tree, test);
                    match (ident.to_string().as_str(), &trees[i + 1..]) {
                        ("fn", rest) => self.function(rest),
                        ("mod", [TokenTree::Ident(name), TokenTree::Punct(end), ..])
                            if item_in_test && end.as_char() == ';' =>
                        {
                            self.test_modules
                                .push(module_path(&self.path, &name.to_string()));
                        }
                        _ => {}
                    }
                }
                TokenTree::Literal(literal) => self.word(literal.to_string(), tree, test),
            }
        }
    }

    fn group(&mut self, group: &Group, in_test: bool) {
        let (open, close) = match group.delimiter() {
            Delimiter::Brace => ("{", "}"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::None => ("", ""),
        };
        let at = |line| {
            move |text: &str| Word {
                text: text.to_owned(),
                line,
                in_test,
            }
        };
        self.words.push(at(group.span_open().start().line)(open));
        self.walk(group.stream(), in_test);
        self.words.push(at(group.span_close().end().line)(close));
    }

    fn word(&mut self, text: String, tree: &TokenTree, in_test: bool) {
        let line = tree.span().start().line;
        self.words.push(Word {
            text,
            line,
            in_test,
        });
    }

    /// `rest` is what follows `fn`: a name, then anything, then a body or a semicolon.
    fn function(&mut self, rest: &[TokenTree]) {
        let Some(TokenTree::Ident(name)) = rest.first() else {
            return;
        };
        for tree in &rest[1..] {
            match tree {
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    let line = name.span().start().line;
                    let lines = body.span_close().end().line + 1 - line;
                    self.functions.push(Function {
                        name: name.to_string(),
                        line,
                        lines,
                    });
                    return;
                }
                TokenTree::Punct(end) if end.as_char() == ';' => return,
                _ => {}
            }
        }
    }
}

/// Cuts every Rust file into words and carries `#[cfg(test)] mod x;` over to the file of `x`.
///
/// # Errors
/// When a file that ends in `.rs` is not Rust.
pub fn parse_all(files: &[File]) -> Result<Vec<Source>, String> {
    let mut sources = files
        .iter()
        .filter(|f| f.is("rs"))
        .map(Source::parse)
        .collect::<Result<Vec<_>, _>>()?;
    let modules: Vec<String> = sources
        .iter()
        .flat_map(|s| s.test_modules.clone())
        .collect();
    for source in &mut sources {
        let below = |module: &String| {
            source
                .path
                .strip_prefix(module.as_str())
                .is_some_and(|r| r == ".rs" || r.starts_with('/'))
        };
        if modules.iter().any(below) {
            source.words.iter_mut().for_each(|w| w.in_test = true);
        }
    }
    Ok(sources)
}

fn begins_with_doc(stream: &TokenStream) -> bool {
    let start: Vec<String> = stream
        .clone()
        .into_iter()
        .take(3)
        .map(|t| t.to_string())
        .collect();
    matches!(start.as_slice(), [hash, bang, doc] if hash == "#" && bang == "!" && doc.contains("doc"))
}

fn follows_hash(before: &[TokenTree]) -> bool {
    matches!(before, [.., TokenTree::Punct(hash)] if hash.as_char() == '#')
}

/// `#[test]`, `#[tokio::test]`, `#[cfg(test)]`, `#[cfg(all(test, ..))]`; not `#[cfg(not(test))]`.
fn is_test_attribute(group: &Group) -> bool {
    let trees: Vec<TokenTree> = group.stream().into_iter().collect();
    let is = |tree: &TokenTree, word: &str| matches!(tree, TokenTree::Ident(i) if i == word);
    match trees.as_slice() {
        [cfg, TokenTree::Group(condition)] if is(cfg, "cfg") => {
            let words = condition.stream().to_string();
            let mut words = words.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.clone().any(|w| w == "test") && words.all(|w| w != "not")
        }
        [.., last, TokenTree::Group(_)] | [.., last] => is(last, "test"),
        [] => false,
    }
}

/// Where the module `name` of the file `path` lies, without `.rs`.
fn module_path(path: &str, name: &str) -> String {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    match file.trim_end_matches(".rs") {
        "lib" | "main" | "mod" => format!("{dir}/{name}"),
        stem => format!("{dir}/{stem}/{name}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(&File::new("broker/x/src/a.rs", text)).unwrap()
    }

    fn tested(text: &str) -> Vec<String> {
        let words = parse(text).words.into_iter();
        words
            .filter(|w| w.in_test && w.text.len() > 3)
            .map(|w| w.text)
            .collect()
    }

    #[test]
    fn comments_and_strings_are_not_words() {
        let source = parse("// alpha\nfn f() { g(\"beta\") } /* gamma */");
        let words: Vec<&str> = source.words.iter().map(|w| w.text.as_str()).collect();
        assert_eq!(
            words,
            ["fn", "f", "(", ")", "{", "g", "(", "\"beta\"", ")", "}"]
        );
    }

    #[test]
    fn a_test_attribute_reaches_to_the_end_of_its_item() {
        assert_eq!(
            tested("fn real() {} #[test] fn probe() { inner(); } fn later() {}"),
            ["probe", "inner"]
        );
        assert_eq!(
            tested("#[cfg(test)] #[allow(x)] mod m { fn deep() {} } fn outer() {}"),
            ["allow", "deep"]
        );
        assert_eq!(
            tested("#[cfg(test)] use probe::it; fn outer() {}"),
            ["probe"]
        );
        assert_eq!(
            tested("#[tokio::test(start_paused = true)] async fn probe() {}"),
            ["async", "probe"]
        );
        assert!(tested("#[cfg(not(test))] fn real() {} #[derive(Debug)] struct Thing;").is_empty());
    }

    #[test]
    fn a_file_declared_for_tests_is_test_code() {
        let files = [
            File::new("a/src/lib.rs", "#[cfg(test)] mod suite; mod real;"),
            File::new("a/src/suite.rs", "fn probe() {}"),
            File::new("a/src/suite/more.rs", "fn probe() {}"),
            File::new("a/src/real.rs", "fn probe() {}"),
            File::new("a/src/suite_two.rs", "fn probe() {}"),
        ];
        let sources = parse_all(&files).unwrap();
        let tests: Vec<bool> = sources
            .iter()
            .map(|s| s.words.iter().all(|w| w.in_test))
            .collect();
        assert_eq!(tests, [false, true, true, false, false]);
    }

    #[test]
    fn files_in_test_directories_are_test_code() {
        for (path, expected) in [
            ("sdk/x/tests/y.rs", true),
            ("sdk/x/src/y/tests.rs", true),
            ("tests/e2e/src/lib.rs", true),
            ("sdk/x/src/tests_of_time.rs", false),
        ] {
            let source = Source::parse(&File::new(path, "fn f() {}")).unwrap();
            assert!(source.words.iter().all(|w| w.in_test == expected), "{path}");
        }
    }

    #[test]
    fn a_function_counts_from_its_name_to_its_end() {
        let source = parse("fn one() {}\ntrait T { fn none(); }\nfn three(\n) -> u8 {\n}");
        let lines: Vec<(&str, usize)> = source
            .functions
            .iter()
            .map(|f| (f.name.as_str(), f.lines))
            .collect();
        assert_eq!(lines, [("one", 1), ("three", 3)]);
    }

    #[test]
    fn a_header_is_an_inner_doc_comment_at_the_very_start() {
        assert!(parse("//! What for.\nfn f() {}").has_header);
        assert!(!parse("/// Not this.\nfn f() {}").has_header);
        assert!(!parse("use x;\n").has_header);
        assert!(!parse("#![allow(dead_code)]\n//! Late.").has_header);
    }

    #[test]
    fn what_is_not_rust_is_said() {
        assert!(
            Source::parse(&File::new("x.rs", "fn ("))
                .unwrap_err()
                .starts_with("x.rs")
        );
    }
}
