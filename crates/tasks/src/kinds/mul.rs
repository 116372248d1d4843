//! Products: up to three digits by one, and two by two.

use super::{Problem, no_slot, number, put};
use crate::{Lang, grammar::chance, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Mul {
    a: u64,
    b: u64,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let (a, b) = if chance(rng, 0.6) { (number(rng, 3), number(rng, 1)) } else { (number(rng, 2), number(rng, 2)) };
    Arc::new(if chance(rng, 0.5) { Mul { a, b } } else { Mul { a: b, b: a } })
}

impl Problem for Mul {
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
        (self.a * self.b).to_string()
    }

    fn solve(&self, _: Lang, steps: &mut Steps) {
        steps.product(self.a, self.b);
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {a}(*| * |x| x | × |×|·| · ){b}[=| =| = ?|=?|?]
    {a} times {b}[?]
    <eq> {a}(*| * | x | × | times | multiplied by ){b}?
    <do> {a}(*| * | x | × | times ){b}.
    <can> {a}(*| * | x | × | times ){b}?
    <is> the product of {a} and {b}?
    <do> the product of {a} and {b}.
    <can> the product of {a} and {b}?
    [please ]multiply {a} (by|with|and) {b}[ for me].
    (how much|what) (do|would|will) {a} times {b} (make|give|come to|be)?
    (what do i get|what is the result|what comes out) (if|when) i multiply {a} (by|with) {b}?
    {a} multiplied by {b}[?| is what?| please]
    the product of {a} and {b}[ please| is?]
    how much (is|are) {a} (groups|sets|lots) of {b}?
    ",
    "
    {a}(*| * |x| x | × |×|·| · ){b}[=| =| = ?|=?|?]
    {a} mal {b}[?]
    <eq> {a}(*| * | x | × | mal | multipliziert mit ){b}?
    <do> {a}(*| * | x | × | mal ){b}.
    <can> {a}(*| * | x | × | mal ){b} <inf>?
    <is> das Produkt (von|aus) {a} und {b}?
    <do> das Produkt (von|aus) {a} und {b}.
    <can> das Produkt (von|aus) {a} und {b} <inf>?
    [bitte ](multipliziere|multiplizier) {a} (mit|und) {b}[ für mich].
    nimm[ bitte] {a} mal {b}.
    was (bekomme ich|kommt heraus|erhalte ich), wenn ich {a} mit {b} multipliziere?
    {a} multipliziert mit {b}[?| ist was?| bitte]
    das Produkt (von|aus) {a} und {b}[ bitte| ist?]
    (wie viel|wieviel) (ist|sind|ergibt) das {a}-fache von {b}?
    ",
]];
