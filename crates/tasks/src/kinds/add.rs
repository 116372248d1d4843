//! Sums of two numbers of up to four digits.

use super::{Problem, no_slot, number, put};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Add {
    a: u64,
    b: u64,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    Arc::new(Add { a: number(rng, 4), b: number(rng, 4) })
}

impl Problem for Add {
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
        (self.a + self.b).to_string()
    }

    fn solve(&self, _: Lang, steps: &mut Steps) {
        steps.sum(self.a, self.b);
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {a}(+| + | +|+ ){b}[=| =| = ?|=?|?]
    {a} plus {b}[?]
    <eq> {a}(+| + | plus ){b}?
    <do> {a}(+| + | plus ){b}.
    <can> {a}(+| + | plus ){b}?
    <is> the (sum|total) of {a} and {b}?
    <do> the (sum|total) of {a} and {b}.
    <can> the (sum|total) of {a} and {b}?
    [please ](add|sum) {a} (and|to|with) {b}[ for me].
    add {a} and {b} up.
    (how much|what) (do|would|will) {a} and {b} (make|give|add up to|come to|be)[ together| in total| in all]?
    (what do i get|what is the result|what comes out) (if|when) i add {a} (and|to) {b}?
    {a} and {b} (together|in total|added up)[?| please| is how much?]
    the (sum|total) of {a} and {b}[ please| is?]
    i have {a} and (get|add) {b}[ more]. how (much|many) is (it|that)[ now| together]?
    ",
    "
    {a}(+| + | +|+ ){b}[=| =| = ?|=?|?]
    {a} (plus|und) {b}[?]
    <eq> {a}(+| + | plus | und ){b}[ zusammen]?
    <do> {a}(+| + | plus ){b}.
    <can> {a}(+| + | plus ){b} <inf>?
    <is> die (Summe|Gesamtsumme) (von|aus) {a} und {b}?
    <do> die (Summe|Gesamtsumme) (von|aus) {a} und {b}.
    <can> die (Summe|Gesamtsumme) (von|aus) {a} und {b} <inf>?
    [bitte ](addiere|addier) {a} (und|zu|mit) {b}[ für mich].
    zähle {a} und {b}[ bitte] zusammen.
    (wie viel|wieviel|was) (sind|ergeben|machen|geben) {a} und {b}[ zusammen| insgesamt| in Summe]?
    was (bekomme ich|kommt heraus|erhalte ich), wenn ich {a} (und|zu) {b} addiere?
    {a} und {b} (zusammen|insgesamt|addiert)[?| bitte| ist wie viel?]
    die Summe (von|aus) {a} und {b}[ bitte| ist?]
    ich habe {a} und bekomme {b}[ dazu]. wie viel (ist das|habe ich)[ jetzt| zusammen]?
    ",
]];
