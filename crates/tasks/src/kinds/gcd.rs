//! The greatest common divisor of two numbers below 100, by repeated subtraction.

use super::{Problem, no_slot, put};
use crate::{Lang, expr, grammar::between, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Gcd {
    a: u64,
    b: u64,
}

/// Most subtractions a problem may take.
const LONGEST: usize = 7;

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    loop {
        let g = between(rng, 1, 25);
        let (a, b) = (g * between(rng, 1, 99 / g), g * between(rng, 1, 99 / g));
        let problem = Gcd { a: a as u64, b: b as u64 };
        if a != b && problem.pairs().len() <= LONGEST {
            return Arc::new(problem);
        }
    }
}

impl Gcd {
    /// The pairs on the way, larger number first, up to equal numbers.
    fn pairs(&self) -> Vec<(u64, u64)> {
        let (mut a, mut b) = (self.a.max(self.b), self.a.min(self.b));
        let mut pairs = vec![];
        while a != b {
            pairs.push((a, b));
            (a, b) = (b.max(a - b), b.min(a - b));
        }
        pairs
    }
}

impl Problem for Gcd {
    fn key(&self) -> String {
        format!("{} {}", self.a.min(self.b), self.a.max(self.b))
    }

    fn fill(&self, name: &str, _: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "a" => put!(out, "{}", self.a),
            "b" => put!(out, "{}", self.b),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        expr::gcd(self.a, self.b).to_string()
    }

    /// The larger minus the smaller, until both are equal.
    fn solve(&self, _: Lang, steps: &mut Steps) {
        for (a, b) in self.pairs() {
            steps.line(format!("{a}>{b}"));
            steps.difference(a, b);
        }
        let g = expr::gcd(self.a, self.b);
        steps.line(format!("{g}={g}"));
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    (gcd|gcf|hcf)\\({a}, {b}\\)
    (gcd|gcf|GCD) of {a} and {b}[?| please]
    <is> the (gcd|GCD|greatest common divisor|greatest common factor|largest common divisor|highest common factor) of {a} and {b}?
    <do> the (gcd|GCD|greatest common divisor|greatest common factor|largest common divisor|highest common factor) of {a} and {b}.
    <can> the (gcd|GCD|greatest common divisor|greatest common factor|largest common divisor) of {a} and {b}?
    (which|what) is the (largest|greatest|biggest) number that divides [both ]{a} and {b}?
    {a} and {b}: (what is their|name the|find the) (greatest common divisor|gcd|greatest common factor)[?]
    what is the (largest|greatest) (divisor|factor) that {a} and {b} (share|have in common)?
    ",
    "
    (ggT|ggt)\\({a}, {b}\\)
    (ggT|GGT|ggt) von {a} und {b}[?| bitte]
    (wie lautet|was ist|kennst du|weißt du|wie groß ist) der (ggT|größte gemeinsame Teiler|größte gemeinsame Faktor) von {a} und {b}?
    (berechne|bestimme|ermittle|nenne mir|sag mir|gib mir|ich brauche|ich suche|finde)[ bitte] den (ggT|größten gemeinsamen Teiler|größten gemeinsamen Faktor) von {a} und {b}.
    <can> den (ggT|größten gemeinsamen Teiler|größten gemeinsamen Faktor) von {a} und {b} <inf>?
    (welche|was) ist die größte Zahl, die {a} und {b} teilt?
    {a} und {b}: (wie lautet|nenne|finde) (ihr größter gemeinsamer Teiler|der ggT|den ggT)[?]
    ",
]];
