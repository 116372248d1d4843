//! Sizes, headers, and the fence around `unsafe`.
//!
//! The fence has four rails: the files that may hold `unsafe`, the attribute in every crate root,
//! a SAFETY comment at each block, and a budget per crate (`unsafe-budget.txt`) that review may
//! raise and nothing else.

use super::{Fault, House};
use crate::source::{Line, Source};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// A file should stay below this many lines of product code.
const AIM: usize = 600;

/// A file must stay below this many lines of product code.
const LIMIT: usize = 1000;

/// Path prefixes of the files that may hold `unsafe`.
const UNSAFE_PLACES: &[&str] = &[
    "crates/cpu/src/simd",
    "crates/cpu/src/pool",
    "crates/files/src/map.rs",
    "crates/cuda/src/driver",
    "crates/testkit/src/alloc",
];

/// How far above an `unsafe` its SAFETY comment may stand (clippy holds the exact rule outside macros).
const SAFETY_REACH: usize = 6;

const BUDGET: &str = "crates/xtask/unsafe-budget.txt";

/// Law: no file over the limit.
pub(super) fn length(house: &House) -> Vec<Fault> {
    longer_than(house, LIMIT)
}

/// Files over the aim, not over the limit.
pub(super) fn warnings(house: &House) -> Vec<Fault> {
    let mut long = longer_than(house, AIM);
    let broken = longer_than(house, LIMIT);
    long.retain(|f| !broken.iter().any(|b| b.place == f.place));
    long
}

fn longer_than(house: &House, limit: usize) -> Vec<Fault> {
    let table = |s: &Source| s.header().iter().any(|l| *l == "table" || l.starts_with("table:"));
    let mut faults = vec![];
    for source in house.sources.iter().filter(|s| !table(s)) {
        let lines = source.product_lines().count();
        if lines > limit {
            faults.push(Fault::on(&source.path, format!("{lines} lines of product code, more than {limit}")));
        }
    }
    faults
}

/// Law: every file says what it is.
pub(super) fn headers(house: &House) -> Vec<Fault> {
    let silent = house.sources.iter().filter(|s| s.header().iter().all(|l| l.is_empty()));
    silent.map(|s| Fault::at(s, 1, "does not open with //! lines")).collect()
}

/// Law: `unsafe` only in the named places.
pub(super) fn unsafe_places(house: &House) -> Vec<Fault> {
    let mut faults = vec![];
    for source in house.sources.iter().filter(|s| !may_hold_unsafe(&s.path)) {
        for (number, line) in source.all_lines() {
            if unsafe_count(line) > 0 {
                faults.push(Fault::at(source, number, "unsafe outside the named places"));
            }
        }
    }
    faults
}

/// Law: the attribute in each crate root.
pub(super) fn unsafe_forbidden(house: &House) -> Vec<Fault> {
    let mut faults = vec![];
    for source in house.sources.iter().filter(|s| s.is_crate_root()) {
        let home = format!("crates/{}/", source.krate());
        let fenced = UNSAFE_PLACES.iter().any(|p| p.starts_with(&home));
        let wanted = if fenced { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        let stricter = "#![forbid(unsafe_code)]";
        if !source.lines.iter().any(|l| [wanted, stricter].contains(&l.bare.trim())) {
            faults.push(Fault::at(source, 1, format!("lacks {wanted}")));
        }
    }
    faults
}

/// Law: each block says why it is sound.
pub(super) fn unsafe_explained(house: &House) -> Vec<Fault> {
    let mut faults = vec![];
    for source in &house.sources {
        for (number, line) in source.all_lines().filter(|(_, l)| unsafe_count(l) > 0) {
            let from = number.saturating_sub(1 + SAFETY_REACH);
            let near = &source.lines[from..number];
            if !near.iter().any(|l| l.comment.contains("SAFETY:") || l.comment.contains("# Safety")) {
                let text = line.code.trim();
                faults.push(Fault::at(source, number, format!("no SAFETY comment at `{text}`")));
            }
        }
    }
    faults
}

/// Law: the count only goes down.
pub(super) fn unsafe_budget(house: &House) -> Vec<Fault> {
    let mut faults = vec![];
    let counts = count_unsafe(house);
    let names: std::collections::BTreeSet<_> = counts.keys().chain(house.unsafe_budget.keys()).collect();
    for name in names {
        let count = counts.get(name).copied().unwrap_or(0);
        let budget = house.unsafe_budget.get(name).copied().unwrap_or(0);
        if count > budget {
            faults.push(Fault::on(
                name,
                format!("{count} unsafe blocks, the budget is {budget}: write it without, or raise {BUDGET} in review"),
            ));
        } else if count < budget {
            faults.push(Fault::on(
                name,
                format!("{count} unsafe blocks, the budget is {budget}: run `cargo xtask check --lower-budget`"),
            ));
        }
    }
    faults
}

fn may_hold_unsafe(path: &str) -> bool {
    UNSAFE_PLACES.iter().any(|p| path.starts_with(p))
}

/// Uses of the keyword on a line that a reader must justify: blocks, functions, impls.
fn unsafe_count(line: &Line) -> usize {
    let words = line.bare.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|w| *w == "unsafe").count()
}

fn count_unsafe(house: &House) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for source in &house.sources {
        let count: usize = source.lines.iter().map(unsafe_count).sum();
        if count > 0 {
            *counts.entry(source.krate().to_owned()).or_default() += count;
        }
    }
    counts
}

/// Reads the budget: one `crate count` a line, `#` starts a comment.
pub(super) fn read_budget(root: &Path) -> Result<BTreeMap<String, usize>> {
    let text = fs::read_to_string(root.join(BUDGET)).context(BUDGET)?;
    let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    let entry = |line: &str| {
        let (name, count) = line.split_once(' ').with_context(|| format!("{BUDGET}: {line}"))?;
        Ok((name.to_owned(), count.trim().parse().with_context(|| format!("{BUDGET}: {line}"))?))
    };
    lines.map(entry).collect()
}

/// Writes the budget down to the count of each crate, and returns it.
pub(super) fn lower_budget(root: &Path, house: &House) -> Result<BTreeMap<String, usize>> {
    let counts = count_unsafe(house);
    let mut budget = house.unsafe_budget.clone();
    budget.retain(|name, allowed| {
        *allowed = (*allowed).min(counts.get(name).copied().unwrap_or(0));
        *allowed > 0
    });
    let path = root.join(BUDGET);
    let old = fs::read_to_string(&path)?;
    let mut text: String = old.lines().filter(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    for (name, count) in &budget {
        writeln!(text, "{name} {count}")?;
    }
    fs::write(path, text)?;
    Ok(budget)
}

/// Lines of Rust added and removed per crate since a revision; empty if git does not know it.
pub(super) fn changes(root: &Path, since: &str) -> BTreeMap<String, (usize, usize)> {
    let args = ["diff", "--numstat", "--no-renames", since, "--", "*.rs"];
    let mut changes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for line in crate::output(root, "git", &args).unwrap_or_default().lines() {
        let mut fields = line.split('\t');
        let mut number = || fields.next().and_then(|f| f.parse().ok()).unwrap_or(0);
        let (added, removed) = (number(), number());
        let name = Source::new(fields.next().unwrap_or_default(), "").krate().to_owned();
        let change = changes.entry(name).or_default();
        *change = (change.0 + added, change.1 + removed);
    }
    changes
}

/// The size of every crate: lines of product code, of tests, and the change.
pub(super) fn sizes(house: &House, changes: &BTreeMap<String, (usize, usize)>) -> String {
    let mut rows: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for source in &house.sources {
        let product = source.product_lines().count();
        let row = rows.entry(source.krate()).or_default();
        *row = (row.0 + 1, row.1 + product, row.2 + source.lines.len() - product);
    }
    let total = rows.values().fold((0, 0, 0), |t, r| (t.0 + r.0, t.1 + r.1, t.2 + r.2));
    let changed = changes.values().fold((0, 0), |t, c| (t.0 + c.0, t.1 + c.1));
    let mut text = format!("{:<10}{:>6}{:>9}{:>8}   change\n", "crate", "files", "product", "tests");
    let all = rows.iter().map(|(n, r)| (*n, *r, changes.get(*n).copied().unwrap_or_default()));
    for (name, (files, product, tests), (plus, minus)) in all.chain([("total", total, changed)]) {
        let change = if plus + minus == 0 { String::new() } else { format!("+{plus} -{minus}") };
        let row = format!("{name:<10}{files:>6}{product:>9}{tests:>8}   {change}");
        text += row.trim_end();
        text.push('\n');
    }
    text
}
