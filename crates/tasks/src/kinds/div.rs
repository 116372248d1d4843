//! Division with remainder: up to four digits by one.

use super::{Problem, no_slot, number, plain, put};
use crate::{Lang, grammar::between, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Div {
    a: u64,
    d: u64,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    Arc::new(Div { a: number(rng, 4), d: between(rng, 2, 9) as u64 })
}

impl Problem for Div {
    fn key(&self) -> String {
        format!("{} {}", self.a, self.d)
    }

    fn fill(&self, name: &str, _: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "a" => put!(out, "{}", self.a),
            "d" => put!(out, "{}", self.d),
            _ => no_slot(name),
        }
    }

    fn answer(&self, lang: Lang) -> String {
        match (self.a / self.d, self.a % self.d) {
            (q, 0) => q.to_string(),
            (q, r) => format!("{q} {} {r}", lang.pick("remainder", "Rest")),
        }
    }

    fn solve(&self, _: Lang, steps: &mut Steps) {
        steps.quotient(self.a, self.d);
    }

    fn verify(&self, _: Lang, text: &str) -> bool {
        let text = ["remainder", "rest"].iter().fold(plain(text), |t, word| t.replace(word, "r"));
        let (q, r) = (self.a / self.d, self.a % self.d);
        text == format!("{q}r{r}") || r == 0 && text == q.to_string()
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {a}(/| / |÷| ÷ |:| : ){d}[=| =| = ?|=?|?]
    {a} divided by {d}[?]
    <eq> {a}(/| / | ÷ | divided by | over )[ ]{d}[ with remainder]?
    <do> {a}(/| / | ÷ | divided by )[ ]{d}[ with remainder].
    <can> {a}(/| / | ÷ | divided by )[ ]{d}[ with remainder]?
    <is> the quotient of {a} and {d}[ with remainder]?
    <do> the quotient of {a} and {d}[ with remainder].
    [please ](divide|split) {a} by {d}[ with remainder| for me].
    how (often|many times) does {d} (go|fit) into {a}[ and what is left]?
    (what do i get|what is the result|what comes out) (if|when) i divide {a} by {d}?
    {a} divided by {d}[ with remainder][?| is what?| please]
    share {a} (equally|fairly|evenly) among {d}[ people| friends| children][ with remainder].
    ",
    "
    {a}(/| / |÷| ÷ |:| : ){d}[=| =| = ?|=?|?]
    {a} (geteilt durch|durch) {d}[?]
    <eq> {a}(/| / | : | geteilt durch | durch | dividiert durch )[ ]{d}[ mit Rest]?
    <do> {a}(/| / | : | geteilt durch | durch )[ ]{d}[ mit Rest].
    <can> {a}(/| / | : | geteilt durch | durch )[ ]{d}[ mit Rest] <inf>?
    teile[ bitte] {a} durch {d}[ mit Rest| für mich].
    [bitte ](dividiere|dividier) {a} durch {d}[ mit Rest| für mich].
    wie oft (passt|geht) {d} in {a}[ und was bleibt übrig| und welcher Rest bleibt]?
    was (bekomme ich|kommt heraus|erhalte ich), wenn ich {a} durch {d} (teile|dividiere)?
    {a} geteilt durch {d}[ mit Rest][?| ist was?| bitte]
    verteile {a} (gleichmäßig|gerecht) auf {d}[ Leute| Freunde| Kinder][ mit Rest].
    ",
]];
