//! Differences of two numbers of up to four digits, negative ones included.

use super::{Problem, no_slot, number, plain, put};
use crate::{
    Lang,
    grammar::chance,
    steps::{Steps, compared},
};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Sub {
    a: u64,
    b: u64,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let (a, b) = (number(rng, 4), number(rng, 4));
    let swap = a < b && chance(rng, 0.6);
    Arc::new(if swap { Sub { a: b, b: a } } else { Sub { a, b } })
}

impl Problem for Sub {
    fn key(&self) -> String {
        format!("{} {}", self.a, self.b)
    }

    fn fill(&self, name: &str, _: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "a" => put!(out, "{}", self.a),
            "b" => put!(out, "{}", self.b),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        let sign = if self.a < self.b { "-" } else { "" };
        format!("{sign}{}", self.a.abs_diff(self.b))
    }

    /// Decides the sign first, from the leading digits, then subtracts the smaller from the larger.
    fn solve(&self, lang: Lang, steps: &mut Steps) {
        steps.line(compared(self.a, self.b));
        if self.a < self.b {
            steps.line(lang.pick("swap, minus", "tausche, minus"));
            steps.difference(self.b, self.a);
        } else {
            steps.difference(self.a, self.b);
        }
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        plain(text).replace("minus", "-") == self.answer(lang)
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {a}(-| - | −| – ){b}[=| =| = ?|=?|?]
    {a} minus {b}[?]
    <eq> {a}(-| - | minus ){b}?
    <do> {a}(-| - | minus ){b}.
    <can> {a}(-| - | minus ){b}?
    <eq> {a} (less|take away) {b}?
    <is> the difference {a} minus {b}?
    <do> the difference {a} minus {b}.
    <can> the difference {a} minus {b}?
    [please ](subtract|take|take away) {b} from {a}[ for me].
    (what|how much) (is left|remains|stays) (if|when) (i|you|we) (take|subtract|remove) {b} from {a}?
    (what do i get|what is the result|what comes out) (if|when) i (subtract|take) {b} from {a}?
    {a} (reduced|lowered) by {b}[?| is what?| please]
    {b} (taken|subtracted) from {a}[?| is what?| please]
    i have {a} and (lose|spend|give away) {b}. how much is (left|it now)?
    ",
    "
    {a}(-| - | −| – ){b}[=| =| = ?|=?|?]
    {a} (minus|weniger) {b}[?]
    <eq> {a}(-| - | minus | weniger ){b}?
    <do> {a}(-| - | minus ){b}.
    <can> {a}(-| - | minus ){b} <inf>?
    <is> die Differenz {a} minus {b}?
    <do> die Differenz {a} minus {b}.
    <can> die Differenz {a} minus {b} <inf>?
    [bitte ](subtrahiere|subtrahier) {b} von {a}[ für mich].
    ziehe[ bitte] {b} von {a} ab.
    (was|wie viel|wieviel) (bleibt|bleibt übrig|ist übrig), wenn (ich|man) {b} von {a} (abzieht|abziehe|wegnimmt|wegnehme)?
    was (bekomme ich|kommt heraus|erhalte ich), wenn ich {b} von {a} (abziehe|subtrahiere)?
    {a} (vermindert|verringert) um {b}[?| ist was?| bitte]
    {b} (abgezogen|subtrahiert) von {a}[?| ist was?| bitte]
    ich habe {a} und (verliere|verbrauche|gebe aus|verschenke) {b}. wie viel (bleibt|habe ich noch|ist das jetzt)?
    ",
]];
