//! One Rust file as the laws see it: each line split into code, code without literals, and comment.
//!
//! The laws speak about code, so a comment that names a paper must not trip them and a string that
//! says "unsafe" is not unsafe. This is a lexer of comments, strings and `#[cfg(test)]` items only;
//! everything else of the language passes through untouched.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// A line of a file, taken apart.
#[derive(Default, Clone, Debug)]
pub(crate) struct Line {
    /// The line without its comments; literals stay.
    pub(crate) code: String,
    /// The line without comments and without what stands inside string and character literals.
    pub(crate) bare: String,
    /// The comment text on the line, markers included.
    pub(crate) comment: String,
    /// Whether the line belongs to a `#[cfg(test)]` item or to a test, bench or example file.
    pub(crate) test: bool,
}

/// A `.rs` file of the workspace.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Path from the workspace root, with `/`.
    pub(crate) path: String,
    /// The lines in order.
    pub(crate) lines: Vec<Line>,
    /// Files that `#[cfg(test)] mod name;` declares: path stems from the root.
    test_modules: Vec<String>,
}

impl Source {
    /// Takes `text` apart; `path` is relative to the workspace root.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let mut lines = split(text);
        let test_modules = mark_tests(path, &mut lines);
        if is_test_path(path) {
            lines.iter_mut().for_each(|l| l.test = true);
        }
        Source { path: path.into(), lines, test_modules }
    }

    /// The crate's directory name (`core` for `crates/core/src/lib.rs`), else the first path part.
    pub(crate) fn krate(&self) -> &str {
        let mut parts = self.path.split('/');
        match parts.next() {
            Some("crates") => parts.next().unwrap_or_default(),
            first => first.unwrap_or_default(),
        }
    }

    /// Lines that are not test code, with their numbers from 1.
    pub(crate) fn product_lines(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.all_lines().filter(|(_, l)| !l.test)
    }

    /// Every line with its number from 1.
    pub(crate) fn all_lines(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate().map(|(i, l)| (i + 1, l))
    }

    /// The `//!` lines that the file opens with, after attributes and blank lines.
    pub(crate) fn header(&self) -> Vec<&str> {
        self.lines
            .iter()
            .skip_while(|l| l.comment.is_empty() && (l.code.trim().is_empty() || l.code.starts_with("#!")))
            .map_while(|l| l.comment.strip_prefix("//!").map(str::trim))
            .collect()
    }

    /// Whether this file is the root of a library or binary target.
    pub(crate) fn is_crate_root(&self) -> bool {
        let in_crate = self.path.splitn(3, '/').nth(2).unwrap_or_default();
        matches!(in_crate, "src/lib.rs" | "src/main.rs") || in_crate.starts_with("src/bin/")
    }
}

/// Reads every `.rs` file below `crates/` and `fuzz/`, sorted by path.
pub(crate) fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for top in ["crates", "fuzz"] {
        walk(root, &root.join(top), &mut sources)?;
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let stems: Vec<String> = sources.iter().flat_map(|s| s.test_modules.clone()).collect();
    for source in &mut sources {
        let in_test_module =
            |stem: &String| source.path == format!("{stem}.rs") || source.path.starts_with(&format!("{stem}/"));
        if stems.iter().any(in_test_module) {
            source.lines.iter_mut().for_each(|l| l.test = true);
        }
    }
    Ok(sources)
}

fn walk(root: &Path, dir: &Path, into: &mut Vec<Source>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "corpus", "artifacts"].contains(&name.as_str()) {
            walk(root, &path, into)?;
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let relative = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
            into.push(Source::new(&relative, &text));
        }
    }
    Ok(())
}

fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| ["tests", "benches", "examples", "tests.rs"].contains(&part))
}

/// Where the lexer stands between two characters.
enum State {
    Code,
    LineComment,
    BlockComment(usize),
    /// A string; `Some(n)` is a raw one closed by a quote and n hashes.
    Text(Option<usize>),
}

fn split(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut lines = vec![];
    let mut line = Line::default();
    let mut state = State::Code;
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '\n' {
            lines.push(std::mem::take(&mut line));
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            i += 1;
            continue;
        }
        // How many characters this turn consumes, and where they go.
        let (taken, to_code, to_bare) = match state {
            State::Code if c == '/' && at(i + 1) == '/' => {
                state = State::LineComment;
                (2, false, false)
            }
            State::Code if c == '/' && at(i + 1) == '*' => {
                state = State::BlockComment(1);
                (2, false, false)
            }
            State::Code if c == '"' => {
                let word: String = line.bare.chars().rev().take_while(|c| c.is_alphanumeric() || *c == '#').collect();
                let hashes = word.chars().take_while(|&c| c == '#').count();
                let prefix: String = word.chars().skip(hashes).collect();
                let raw = ["r", "rb", "rc"].contains(&prefix.as_str());
                state = State::Text(raw.then_some(hashes));
                (1, true, true)
            }
            State::Code if c == '\'' && at(i + 1) == '\\' => {
                let end = (i + 3..chars.len()).find(|&j| chars[j] == '\'').unwrap_or(i + 2);
                (end + 1 - i, true, false)
            }
            State::Code if c == '\'' && at(i + 2) == '\'' => (3, true, false),
            State::Code => (1, true, true),
            State::LineComment => (1, false, false),
            State::BlockComment(depth) if c == '*' && at(i + 1) == '/' => {
                state = if depth == 1 { State::Code } else { State::BlockComment(depth - 1) };
                (2, false, false)
            }
            State::BlockComment(depth) if c == '/' && at(i + 1) == '*' => {
                state = State::BlockComment(depth + 1);
                (2, false, false)
            }
            State::BlockComment(_) => (1, false, false),
            State::Text(None) if c == '\\' && at(i + 1) != '\n' => (2, true, false),
            State::Text(hashes) if c == '"' && (0..hashes.unwrap_or(0)).all(|k| at(i + 1 + k) == '#') => {
                state = State::Code;
                (1 + hashes.unwrap_or(0), true, true)
            }
            State::Text(_) => (1, true, false),
        };
        for &c in &chars[i..(i + taken).min(chars.len())] {
            let target = if to_code { &mut line.code } else { &mut line.comment };
            target.push(c);
            if to_bare {
                line.bare.push(c);
            }
        }
        i += taken;
    }
    if !line.code.is_empty() || !line.comment.is_empty() {
        lines.push(line);
    }
    lines
}

/// Marks the item after each `#[cfg(test)]`; returns the files of out-of-line test modules, without `.rs`.
fn mark_tests(path: &str, lines: &mut [Line]) -> Vec<String> {
    let mut modules = vec![];
    let mut i = 0;
    while i < lines.len() {
        if !lines[i].bare.trim_start().starts_with("#[cfg(test)]") {
            i += 1;
            continue;
        }
        let (mut depth, mut opened) = (0i32, false);
        loop {
            lines[i].test = true;
            for c in lines[i].bare.chars() {
                depth += i32::from(c == '{') - i32::from(c == '}');
                opened |= c == '{';
            }
            let ends = lines[i].bare.trim_end().ends_with(';');
            let done = (opened && depth <= 0) || (!opened && ends);
            if done && !opened {
                let words: Vec<&str> = lines[i].bare.split_whitespace().collect();
                if let Some(k) = words.iter().position(|&w| w == "mod") {
                    let name = words.get(k + 1).map_or("", |w| w.trim_end_matches(';'));
                    modules.push(module_stem(path, name));
                }
            }
            i += 1;
            if done || i == lines.len() {
                break;
            }
        }
    }
    modules
}

/// Where `mod name;` in the file `path` lies, without `.rs`.
fn module_stem(path: &str, name: &str) -> String {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    match file {
        "lib.rs" | "main.rs" | "mod.rs" => format!("{dir}/{name}"),
        _ => format!("{dir}/{}/{name}", file.trim_end_matches(".rs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Line {
        Source::new("crates/x/src/a.rs", text).lines.remove(0)
    }

    #[test]
    fn comments_leave_and_literals_stay_in_code_only() {
        let l = one(r#"let a = "qwen // no"; // llama"#);
        assert_eq!(l.code.trim_end(), r#"let a = "qwen // no";"#);
        assert_eq!(l.bare.trim_end(), r#"let a = "";"#);
        assert_eq!(l.comment, "// llama");
    }

    #[test]
    fn raw_strings_chars_and_lifetimes() {
        let l = one(r###"f::<'a>(r#"x " unsafe"#, '"', '\'', b"\"y", 'z') // c"###);
        assert_eq!(l.bare.trim_end(), r###"f::<'a>(r#""#, , , b"", )"###);
        assert_eq!(l.comment, "// c");
    }

    #[test]
    fn nested_block_comment_spans_lines() {
        let s = Source::new("crates/x/src/a.rs", "a /* 1 /* 2 */\nstill */ b\n");
        assert_eq!(s.lines[0].bare, "a ");
        assert_eq!(s.lines[1].bare, " b");
    }

    #[test]
    fn cfg_test_marks_its_item_and_no_more() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod far;\nfn d() {}\n";
        let s = Source::new("crates/x/src/a.rs", text);
        let test: Vec<bool> = s.lines.iter().map(|l| l.test).collect();
        assert_eq!(test, [false, true, true, true, true, false, true, true, false]);
        assert_eq!(s.test_modules, ["crates/x/src/a/far"]);
    }

    #[test]
    fn header_follows_attributes() {
        let s = Source::new("crates/x/src/lib.rs", "#![forbid(unsafe_code)]\n//! one\n//! table\nfn a() {}\n//! no\n");
        assert_eq!(s.header(), ["one", "table"]);
        assert!(s.is_crate_root());
    }
}
