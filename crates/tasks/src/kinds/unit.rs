//! Quantities in a smaller unit, and back where the factor is a power of ten.

use super::{Problem, no_slot, numbers, put};
use crate::grammar::{between, chance, pick};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

/// A unit in one language: symbol, plural name, plural after "in".
type Name = [&'static str; 3];

#[derive(Debug)]
struct Pair {
    factor: u64,
    /// `[english, german]` of the larger and the smaller unit.
    large: [Name; 2],
    small: [Name; 2],
}

#[rustfmt::skip]
const PAIRS: &[Pair] = &[
    Pair { factor: 60, large: [["h", "hours", "hours"], ["h", "Stunden", "Stunden"]], small: [["min", "minutes", "minutes"], ["min", "Minuten", "Minuten"]] },
    Pair { factor: 60, large: [["min", "minutes", "minutes"], ["min", "Minuten", "Minuten"]], small: [["s", "seconds", "seconds"], ["s", "Sekunden", "Sekunden"]] },
    Pair { factor: 24, large: [["days", "days", "days"], ["Tage", "Tage", "Tagen"]], small: [["h", "hours", "hours"], ["h", "Stunden", "Stunden"]] },
    Pair { factor: 7, large: [["weeks", "weeks", "weeks"], ["Wochen", "Wochen", "Wochen"]], small: [["days", "days", "days"], ["Tage", "Tage", "Tagen"]] },
    Pair { factor: 12, large: [["years", "years", "years"], ["Jahre", "Jahre", "Jahren"]], small: [["months", "months", "months"], ["Monate", "Monate", "Monaten"]] },
    Pair { factor: 10, large: [["cm", "centimetres", "centimetres"], ["cm", "Zentimeter", "Zentimetern"]], small: [["mm", "millimetres", "millimetres"], ["mm", "Millimeter", "Millimetern"]] },
    Pair { factor: 100, large: [["m", "metres", "metres"], ["m", "Meter", "Metern"]], small: [["cm", "centimetres", "centimetres"], ["cm", "Zentimeter", "Zentimetern"]] },
    Pair { factor: 1000, large: [["km", "kilometres", "kilometres"], ["km", "Kilometer", "Kilometern"]], small: [["m", "metres", "metres"], ["m", "Meter", "Metern"]] },
    Pair { factor: 1000, large: [["kg", "kilograms", "kilograms"], ["kg", "Kilogramm", "Kilogramm"]], small: [["g", "grams", "grams"], ["g", "Gramm", "Gramm"]] },
    Pair { factor: 1000, large: [["t", "tonnes", "tonnes"], ["t", "Tonnen", "Tonnen"]], small: [["kg", "kilograms", "kilograms"], ["kg", "Kilogramm", "Kilogramm"]] },
    Pair { factor: 1000, large: [["l", "litres", "litres"], ["l", "Liter", "Litern"]], small: [["ml", "millilitres", "millilitres"], ["ml", "Milliliter", "Millilitern"]] },
    Pair { factor: 100, large: [["euros", "euros", "euros"], ["Euro", "Euro", "Euro"]], small: [["cents", "cents", "cents"], ["Cent", "Cent", "Cent"]] },
];

#[derive(Debug)]
struct Unit {
    pair: usize,
    large: u64,
    small: u64,
    up: bool,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let pair = rng.below(PAIRS.len() as u32) as usize;
    let factor = PAIRS[pair].factor as i64;
    let round = factor % 10 == 0 && factor != 60;
    let large = between(rng, 2, if round { 30 } else { 9 }) as u64;
    let small = if chance(rng, 0.5) { 0 } else { between(rng, 2, factor - 1) as u64 };
    Arc::new(Unit { pair, large, small, up: round && chance(rng, 0.35) })
}

impl Unit {
    fn pair(&self) -> &'static Pair {
        &PAIRS[self.pair]
    }

    fn total(&self) -> u64 {
        self.large * self.pair().factor + self.small
    }
}

impl Problem for Unit {
    fn key(&self) -> String {
        format!("{} {} {}", self.pair, self.large, self.small)
    }

    fn form(&self) -> usize {
        usize::from(self.up)
    }

    fn fill(&self, name: &str, lang: Lang, rng: &mut Rng, out: &mut String) {
        let (large, small) = (self.pair().large[lang as usize], self.pair().small[lang as usize]);
        let style = rng.below(2) as usize;
        match name {
            "x" if self.small == 0 => put!(out, "{} {}", self.large, large[style]),
            "x" => {
                let and = *pick(rng, &[" ", lang.pick(" and ", " und ")]);
                put!(out, "{} {}{and}{} {}", self.large, large[style], self.small, small[style]);
            }
            "y" => put!(out, "{} {}", self.total(), small[style]),
            "t" => put!(out, "{}", small[1]),
            "i" => put!(out, "{}", small[2 * style]),
            "v" => put!(out, "{}", small[style]),
            "u" => put!(out, "{} {} {}", large[2 * style], lang.pick("and", "und"), small[2 * style]),
            _ => no_slot(name),
        }
    }

    fn answer(&self, lang: Lang) -> String {
        let (large, small) = (self.pair().large[lang as usize][0], self.pair().small[lang as usize][0]);
        match (self.up, self.small) {
            (false, _) => format!("{} {small}", self.total()),
            (true, 0) => format!("{} {large}", self.large),
            (true, rest) => format!("{} {large} {rest} {small}", self.large),
        }
    }

    fn solve(&self, lang: Lang, steps: &mut Steps) {
        let Pair { factor, large, small } = self.pair();
        steps.line(format!("1 {} = {factor} {}", large[lang as usize][0], small[lang as usize][0]));
        if self.up {
            steps.line(format!("{}={}*{factor}+{}", self.total(), self.large, self.small));
            return;
        }
        let whole = match factor {
            10 | 100 | 1000 => {
                steps.line(format!("{}*{factor}={}", self.large, self.large * factor));
                self.large * factor
            }
            _ => steps.product(*factor, self.large),
        };
        if self.small > 0 {
            steps.sum(whole, self.small);
        }
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        let (pair, at) = (self.pair(), lang as usize);
        let mut rest = text.to_lowercase();
        let mut known = [pair.large[at], pair.small[at]].concat();
        known.sort_by_key(|name| std::cmp::Reverse(name.len()));
        known.push(lang.pick("and", "und"));
        for name in known {
            rest = rest.replace(&name.to_lowercase(), " ");
        }
        let form = rest.chars().all(|c| c.is_ascii_digit() || c.is_whitespace() || ".,".contains(c));
        let wanted = numbers(&self.answer(lang));
        let found = numbers(text);
        form && (found == wanted || self.up && self.small == 0 && found == [self.large, 0])
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[
    [
        "
        {x} in {i}[?| please]
        {x} (to|into|->|=) [? ]{v}[?]
        <many> {t} (are|is|are there in|make|make up|has|have|do you get from) {x}?
        [please ](convert|change|turn|express) {x} (to|into|in) {i}[ for me].
        (can|could|would|will) you [please ](convert|change|turn|express) {x} (to|into) {i}?
        (what|how much) (is|are) {x} in {i}?
        {x}[:|,|-] <many> {t} (is|are) (that|it|this)?
        (express|write|give me|tell me) {x} in {i}.
        {x} (is|are) <many> {t}?
        <many> {t} (do|would) {x} (make|give|come to)?
        i have {x}. <many> {t} (is|are) (that|it)?
        ",
        "
        {x} in {i}[?| bitte]
        {x} (->|=|nach) [? ]{v}[?]
        <many> {t} (sind|ergeben|haben|stecken in|machen) {x}?
        (rechne|wandle|rechn)[ mir][ bitte] {x} (in|nach) {i} um[ für mich].
        (kannst|könntest|würdest) du[ mir][ bitte] {x} (in|nach) {i} (umrechnen|umwandeln|angeben)?
        (was|wie viel|wieviel) (ist|sind) {x} in {i}?
        {x}[:|,] <many> {t} (ist|sind) das?
        {x} (sind|ergeben|machen) <many> {t}?
        ich habe {x}. <many> {t} (sind|ist) das?
        (weißt du|sag mir|ich frage mich), <many> {t} {x} (sind|ergeben|haben)[?]
        [bitte ](schreibe|schreib|gib|nenne|zeige) (mir |){x} (in {i}|als {v}).
        ",
    ],
    [
        "
        {y} in {u}[?| please]
        {y} (to|into|->|=) [? ]{u}[?]
        [please ](convert|change|turn|express) {y} (to|into|in) {u}[ for me].
        (can|could|would|will) you [please ](convert|change|turn|express) {y} (to|into) {u}?
        (what|how much) (is|are) {y} in {u}?
        {y}[:|,|-] how much is (that|it|this) in {u}?
        (express|write|give me|tell me) {y} in {u}.
        ",
        "
        {y} in {u}[?| bitte]
        {y} (->|=|nach) [? ]{u}[?]
        (rechne|wandle|rechn)[ mir][ bitte] {y} (in|nach) {u} um[ für mich].
        (kannst|könntest|würdest) du[ mir][ bitte] {y} (in|nach) {u} (umrechnen|umwandeln|angeben)?
        (was|wie viel|wieviel) (ist|sind) {y} in {u}?
        {y}[:|,] wie viel ist das in {u}?
        (schreibe|schreib|gib mir|nenne mir) {y} in {u}.
        ",
    ],
];
