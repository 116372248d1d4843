//! Problems that can be given away: a procedural generator with exact verifiers, from a seed.
//!
//! Start at [`Generator`]: a sample is a pure function of (mix, split, seed, index). A sample's problem
//! comes from a [`kinds`] file, its wording from a [`grammar`], its worked reasoning from the writer in
//! [`steps`], and `check` evaluates that reasoning again from its printed text. `split` keeps held-out
//! problems and held-out phrasings apart by hash. The crate knows nothing of models, tokens or training;
//! `reward` scores text and `words` lists the pieces a tokenizer should hold whole.
#![forbid(unsafe_code)]

mod check;
mod dress;
mod expr;
mod generate;
pub mod grammar;
pub mod kinds;
mod lang;
mod prose;
pub mod reward;
mod sample;
mod split;
pub mod steps;
mod words;

pub use check::{StepFault, check_steps};
pub use expr::Expr;
pub use generate::{Generator, Mix};
pub use kinds::{KINDS, Kind, Problem};
pub use lang::Lang;
pub use prose::refuses;
pub use sample::{Sample, write_jsonl};
pub use split::Split;
pub use words::{pieces, word_list};

/// What can be wrong with what a caller or a data file asks for.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum TasksError {
    /// A mix names a kind that does not exist.
    #[error("no kind of problem is called `{name}`: the kinds are {known}")]
    UnknownKind {
        /// The name asked for.
        name: String,
        /// All names, comma-separated.
        known: String,
    },
    /// A share or weight outside its range.
    #[error("{what} is {found}, it must lie in {range}")]
    Range {
        /// Which setting.
        what: String,
        /// The value found.
        found: String,
        /// What is allowed.
        range: &'static str,
    },
    /// A split holds nothing of this kind (facts and refusals have no numbers to hold out).
    #[error("kind `{kind}` has no samples in split `{split}`: ask for `train` or `phrasing`")]
    EmptySplit {
        /// The kind asked for.
        kind: String,
        /// The split asked for.
        split: &'static str,
    },
    /// A phrasing that the grammar's notation does not allow.
    #[error("phrasing `{line}`: {fault} at byte {at}")]
    Grammar {
        /// The line of the grammar.
        line: String,
        /// Byte offset in the line.
        at: usize,
        /// What is wrong there.
        fault: String,
    },
    /// A data file that does not hold what it should.
    #[error("{file}: {fault}")]
    Data {
        /// The file, inside the crate.
        file: &'static str,
        /// What is wrong.
        fault: String,
    },
}
