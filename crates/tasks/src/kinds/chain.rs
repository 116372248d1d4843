//! Chains of three or four operations with brackets.

use super::{Problem, no_slot, put};
use crate::grammar::{between, chance, pick};
use crate::{Expr, Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Chain(Expr);

/// The largest intermediate result.
const LIMIT: u64 = 199;

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    loop {
        let operands = 3 + rng.below(2) as usize;
        let expr = tree(rng, operands);
        if expr.is_writable(LIMIT) {
            return Arc::new(Chain(expr));
        }
    }
}

fn tree(rng: &mut Rng, leaves: usize) -> Expr {
    if leaves == 1 {
        let top = if chance(rng, 0.3) { 30 } else { 9 };
        return Expr::Num(between(rng, 1, top) as u64);
    }
    let left = 1 + rng.below(leaves as u32 - 1) as usize;
    let op = *pick(rng, &['+', '+', '-', '-', '*', '*', '/']);
    Expr::op(tree(rng, left), op, tree(rng, leaves - left))
}

impl Problem for Chain {
    fn key(&self) -> String {
        self.0.to_string()
    }

    fn fill(&self, name: &str, _: Lang, rng: &mut Rng, out: &mut String) {
        let text = self.0.to_string();
        match name {
            "e" if chance(rng, 0.4) => put!(out, "{}", spaced(&text)),
            "e" => put!(out, "{text}"),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        self.0.value().map_or(String::new(), |v| v.0.to_string())
    }

    fn solve(&self, _: Lang, steps: &mut Steps) {
        self.0.reduce(steps);
    }
}

/// `(2+3)*4` as `(2 + 3) * 4`.
fn spaced(text: &str) -> String {
    text.chars().map(|c| if "+-*/".contains(c) { format!(" {c} ") } else { c.to_string() }).collect()
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {e}[=| =| = ?|=?|?]
    <eq> {e}?
    <do> {e}.
    <can> {e}?
    <is> the (value|result) of {e}?
    <do> the (value|result) of {e}.
    <can> the (value|result) of {e}?
    [please ](solve|evaluate|simplify|do) {e}[ for me| step by step].
    (what do i get|what is the result|what comes out) (if|when) i (work out|calculate|evaluate) {e}?
    (the expression|the term|this) [is ]{e}. (what is it|how much is it|what is its value|work it out)[?]
    mind the brackets[ and the order]: (<eq> |){e}[?]
    here is (a term|an expression|a chain|my homework)[:|,] {e}[. solve it| work it out|]
    ",
    "
    {e}[=| =| = ?|=?|?]
    <eq> {e}?
    <do> {e}.
    <can> {e} <inf>?
    <is> das Ergebnis von {e}?
    <do> das Ergebnis von {e}.
    <can> das Ergebnis von {e} <inf>?
    [bitte ](löse|vereinfache|rechne) {e}[ für mich| Schritt für Schritt].
    rechne[ mir][ bitte] {e} aus.
    was (bekomme ich|kommt heraus|erhalte ich), wenn ich {e} (ausrechne|berechne)?
    (der Ausdruck|der Term|es) (ist|lautet) {e}. (wie viel ist das|was ist das Ergebnis|was kommt heraus|rechne ihn aus)[?]
    achte auf die Klammern[ und die Reihenfolge]: (<eq> |){e}[?]
    hier ist (ein Term|ein Ausdruck|eine Kette|meine Hausaufgabe)[:|,] {e}[. löse sie| rechne das aus|]
    ",
]];
