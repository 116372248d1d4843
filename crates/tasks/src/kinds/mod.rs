//! The kinds of problem, one file each, alike: a struct of numbers or words, how it is drawn, how its
//! slots read in both languages, its answer, its worked reasoning, and its phrasings.
//!
//! To add a kind: write its file after the model of `add.rs` and give it a line in [`KINDS`]; the tests
//! of the crate then hold it to the house's rules (forms, splits, checked steps, unique answers).

mod add;
mod base;
mod chain;
mod compare;
mod count;
mod countdown;
mod deduce;
mod div;
mod gcd;
mod mul;
mod reverse;
mod sort;
mod sub;
mod time;
mod unit;
mod week;
mod word;
pub(crate) mod words;

use crate::Lang;
use crate::steps::Steps;
use fathom_core::rng::Rng;
use std::fmt::Debug;
use std::sync::Arc;

/// One problem: typed values that know their answer and how to get there.
pub trait Problem: Debug + Send + Sync {
    /// Identity within the kind: equal for the same task, whatever the wording or the order of operands.
    fn key(&self) -> String;

    /// Which of the kind's phrasing grammars asks for this problem.
    fn form(&self) -> usize {
        0
    }

    /// Writes what stands in slot `name` of a phrasing.
    ///
    /// # Panics
    /// If the kind has no such slot.
    fn fill(&self, name: &str, lang: Lang, rng: &mut Rng, out: &mut String);

    /// The answer, without `Answer:`.
    fn answer(&self, lang: Lang) -> String;

    /// Writes the reasoning.
    fn solve(&self, lang: Lang, steps: &mut Steps);

    /// Whether `text` is a right answer, however it is formatted.
    fn verify(&self, lang: Lang, text: &str) -> bool {
        plain(text) == plain(&self.answer(lang))
    }
}

/// A kind of problem.
#[derive(Debug)]
pub struct Kind {
    /// Its name in samples, mixes and tables.
    pub name: &'static str,
    /// Draws a problem.
    pub draw: fn(&mut Rng) -> Arc<dyn Problem>,
    /// Phrasing grammars by form, `[english, german]`.
    pub phrasings: &'static [[&'static str; 2]],
    /// Share of this kind in the default mix: more where a trial learned slowly.
    pub weight: f64,
}

#[rustfmt::skip]
/// All computed kinds.
pub const KINDS: &[Kind] = &[
    Kind { name: "add", draw: add::draw, phrasings: add::PHRASINGS, weight: 1.0 },
    Kind { name: "sub", draw: sub::draw, phrasings: sub::PHRASINGS, weight: 1.5 },
    Kind { name: "mul", draw: mul::draw, phrasings: mul::PHRASINGS, weight: 1.0 },
    Kind { name: "div", draw: div::draw, phrasings: div::PHRASINGS, weight: 1.0 },
    Kind { name: "chain", draw: chain::draw, phrasings: chain::PHRASINGS, weight: 1.0 },
    Kind { name: "compare", draw: compare::draw, phrasings: compare::PHRASINGS, weight: 1.0 },
    Kind { name: "sort", draw: sort::draw, phrasings: sort::PHRASINGS, weight: 1.5 },
    Kind { name: "count", draw: count::draw, phrasings: count::PHRASINGS, weight: 1.0 },
    Kind { name: "reverse", draw: reverse::draw, phrasings: reverse::PHRASINGS, weight: 0.7 },
    Kind { name: "base", draw: base::draw, phrasings: base::PHRASINGS, weight: 1.0 },
    Kind { name: "gcd", draw: gcd::draw, phrasings: gcd::PHRASINGS, weight: 1.0 },
    Kind { name: "time", draw: time::draw, phrasings: time::PHRASINGS, weight: 1.5 },
    Kind { name: "week", draw: week::draw, phrasings: week::PHRASINGS, weight: 0.7 },
    Kind { name: "unit", draw: unit::draw, phrasings: unit::PHRASINGS, weight: 1.5 },
    Kind { name: "word", draw: word::draw, phrasings: word::PHRASINGS, weight: 1.5 },
    Kind { name: "countdown", draw: countdown::draw, phrasings: countdown::PHRASINGS, weight: 1.5 },
    Kind { name: "deduce", draw: deduce::draw, phrasings: deduce::PHRASINGS, weight: 1.0 },
];

/// A text without the differences that are only formatting: case, spaces, a final mark, kind of minus and comma.
pub(crate) fn plain(text: &str) -> String {
    let text = text.trim().trim_end_matches(['.', '!']).to_lowercase();
    let kept = text.chars().filter(|c| !c.is_whitespace() && !"\"'*$".contains(*c));
    kept.map(|c| if "−–".contains(c) { '-' } else { c }).collect()
}

/// The whole numbers in a text, in order.
pub(crate) fn numbers(text: &str) -> Vec<u64> {
    let digits = text.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|d| d.parse().ok()).collect()
}

/// A number of 1 to `digits` digits, every length equally likely.
pub(crate) fn number(rng: &mut Rng, digits: u32) -> u64 {
    let top = 10_u32.pow(1 + rng.below(digits));
    let low = if top == 10 { 1 } else { top / 10 };
    u64::from(low + rng.below(top - low))
}

/// What a problem says to a slot that it does not have.
pub(crate) fn no_slot(name: &str) -> ! {
    panic!("invariant: the kind fills every slot of its phrasings, not {{{name}}}")
}

/// Writes to a slot.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write;
        write!($out, $($arg)*).expect("invariant: a string takes any text")
    }};
}
pub(crate) use put;
