//! `cargo xtask check`: the laws of ARCHITECTURE.md, from `cargo metadata` and the text of the code.
//!
//! A law is a name, a sentence and a function from the `House` to faults; each has an example in
//! `tests.rs` that breaks it. `floors.rs` holds what may depend on what, `words.rs` what may be said
//! where, `shape.rs` sizes, headers and the fence around `unsafe`.

mod floors;
mod shape;
#[cfg(test)]
mod tests;
mod words;

use crate::source::{self, Source};
use anyhow::{Result, ensure};
use floors::Package;
use std::collections::BTreeMap;
use std::path::Path;

/// What the laws look at.
#[derive(Default)]
pub(crate) struct House {
    packages: Vec<Package>,
    sources: Vec<Source>,
    /// Unsafe blocks that each crate may hold, from `unsafe-budget.txt`.
    unsafe_budget: BTreeMap<String, usize>,
}

/// One breach of a law.
#[derive(Debug, PartialEq)]
pub(crate) struct Fault {
    /// Path and line, or a crate.
    place: String,
    /// What was found, what the law wants.
    what: String,
}

impl Fault {
    fn at(source: &Source, line: usize, what: impl Into<String>) -> Self {
        Fault { place: format!("{}:{line}", source.path), what: what.into() }
    }

    fn on(place: impl Into<String>, what: impl Into<String>) -> Self {
        Fault { place: place.into(), what: what.into() }
    }
}

/// A rule that the whole workspace keeps.
struct Law {
    name: &'static str,
    says: &'static str,
    faults: fn(&House) -> Vec<Fault>,
}

#[rustfmt::skip]
const LAWS: &[Law] = &[
    Law { name: "floors", says: "crates depend downward only; testkit is for tests; xtask stands alone", faults: floors::floors },
    Law { name: "no-async-no-http", says: "below floor 4 no async runtime, HTTP or rayon; hub may do HTTP", faults: floors::runtimes },
    Law { name: "no-environment", says: "below floor 4 no environment variables; hub may", faults: words::environment },
    Law { name: "no-printing", says: "below floor 4 nothing prints", faults: words::printing },
    Law { name: "no-family-names", says: "core, files, cpu, engine and model outside families/ name no model family", faults: words::families },
    Law { name: "isa-names", says: "instruction sets are named in cpu and in one file of cli", faults: words::isas },
    Law { name: "dialect-names", says: "API dialects are named in server/src/dialects; the command line may tell of them", faults: words::dialects },
    Law { name: "file-length", says: "a file has at most 1,000 lines of product code; tables and tests are exempt", faults: shape::length },
    Law { name: "header", says: "every file opens with //! lines for a newcomer", faults: shape::headers },
    Law { name: "unsafe-places", says: "unsafe stands only in the named places", faults: shape::unsafe_places },
    Law { name: "unsafe-forbidden", says: "crate roots forbid unsafe_code; those with a named place deny it", faults: shape::unsafe_forbidden },
    Law { name: "unsafe-explained", says: "each unsafe block has a SAFETY comment", faults: shape::unsafe_explained },
    Law { name: "unsafe-budget", says: "the count of unsafe blocks only goes down", faults: shape::unsafe_budget },
];

/// Options of `cargo xtask check`.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Show the change in size since this revision
    #[arg(long, default_value = "HEAD~1")]
    since: String,
    /// Lower unsafe-budget.txt to what the code holds (never raises it)
    #[arg(long)]
    lower_budget: bool,
}

/// Checks every law, prints faults, warnings and sizes; an error if any law is broken.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let mut house = House {
        packages: floors::packages(root)?,
        sources: source::read_all(root)?,
        unsafe_budget: shape::read_budget(root)?,
    };
    if options.lower_budget {
        house.unsafe_budget = shape::lower_budget(root, &house)?;
    }
    let mut broken = 0;
    for law in LAWS {
        let faults = (law.faults)(&house);
        if !faults.is_empty() {
            println!("law {}: {}", law.name, law.says);
        }
        for fault in &faults {
            println!("  {}: {}", fault.place, fault.what);
        }
        broken += faults.len();
    }
    for warning in shape::warnings(&house) {
        println!("warning: {}: {}", warning.place, warning.what);
    }
    print!("{}", shape::sizes(&house, &shape::changes(root, &options.since)));
    ensure!(broken == 0, "{broken} breaches of the house's laws");
    println!("{} laws hold", LAWS.len());
    Ok(())
}
