//! A word of up to nine letters, read backwards.

use super::{Problem, no_slot, put, words};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Reverse(String);

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    Arc::new(Reverse(words::draw(rng, 9)))
}

impl Problem for Reverse {
    fn key(&self) -> String {
        self.0.clone()
    }

    fn fill(&self, name: &str, _: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "w" => put!(out, "{}", self.0),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        self.0.chars().rev().collect()
    }

    /// Numbers the letters, then reads them from the last number down.
    fn solve(&self, _: Lang, steps: &mut Steps) {
        let mut numbered: Vec<String> = self.0.chars().zip(1..).map(|(c, n)| format!("{n}{c}")).collect();
        steps.line(numbered.join(" "));
        numbered.reverse();
        steps.line(numbered.join(" "));
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    reverse[:] (\"{w}\"|'{w}'|{w})[.]
    backwards[:] (\"{w}\"|'{w}'|{w})[.]
    (\"{w}\"|'{w}'|{w}) (backwards|reversed|in reverse)[?| please]
    [please ](reverse|flip|mirror|invert|turn around) [the word |the letters of |the text |the letters in ](\"{w}\"|'{w}'|{w})[ for me].
    [please ](write|spell|read|say|type) [the word |the text ](\"{w}\"|'{w}'|{w}) (backwards|in reverse|from back to front|from right to left|from the end)[ for me].
    (can|could|would|will) you [please ](write|spell|read|say) [the word ](\"{w}\"|'{w}'|{w}) (backwards|in reverse)?
    (can|could|would|will) you [please ](reverse|flip) [the word |the letters of ](\"{w}\"|'{w}'|{w})?
    (what|how) (is|does|would) [the word ](\"{w}\"|'{w}'|{w}) (backwards|reversed|in reverse|read backwards|look backwards)?
    how do (you|i) (spell|write|read) [the word ](\"{w}\"|'{w}'|{w}) (backwards|in reverse)?
    what (is|do i get) (if|when) i (reverse|flip|turn around) (\"{w}\"|'{w}'|{w})?
    ",
    "
    (umdrehen|umkehren|rückwärts)[:] (\"{w}\"|'{w}'|{w})[.]
    (\"{w}\"|'{w}'|{w}) (rückwärts|umgedreht|von hinten)[?| bitte]
    drehe[ bitte] [das Wort |die Buchstaben von |den Text ](\"{w}\"|'{w}'|{w}) um[ für mich].
    (kehre|kehr)[ bitte] [das Wort |die Buchstaben von |den Text ](\"{w}\"|'{w}'|{w}) um.
    [bitte ](schreibe|schreib|buchstabiere|lies|sag|spiegle) [mir ][das Wort |den Text ](\"{w}\"|'{w}'|{w}) (rückwärts|von hinten|von hinten nach vorn|von rechts nach links|in umgekehrter Reihenfolge).
    (kannst|könntest|würdest) du[ mir][ bitte] [das Wort ](\"{w}\"|'{w}'|{w}) (rückwärts|von hinten) (schreiben|buchstabieren|lesen|sagen)?
    (kannst|könntest|würdest) du[ mir][ bitte] [das Wort ](\"{w}\"|'{w}'|{w}) (umdrehen|umkehren)?
    (was|wie) (ist|heißt|lautet|liest man) [das Wort ](\"{w}\"|'{w}'|{w}) (rückwärts|umgedreht|von hinten)?
    wie (schreibt|buchstabiert|liest) man [das Wort ](\"{w}\"|'{w}'|{w}) (rückwärts|von hinten)?
    was (kommt heraus|bekomme ich), wenn ich (\"{w}\"|'{w}'|{w}) (umdrehe|umkehre|rückwärts lese)?
    ",
]];
