//! The larger or smaller of two numbers, whole or with decimals.

use super::{Problem, no_slot, plain, put};
use crate::grammar::{between, chance};
use crate::{Lang, steps::Steps, steps::compare};
use fathom_core::rng::Rng;
use std::sync::Arc;

/// Two numbers in hundredths, each with the decimals it is written with.
#[derive(Debug)]
struct Compare {
    values: [u64; 2],
    decimals: [usize; 2],
    largest: bool,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let largest = chance(rng, 0.5);
    loop {
        let decimals = if chance(rng, 0.4) { [0; 2].map(|_| 1 + rng.below(2) as usize) } else { [0, 0] };
        let top = 10_i64.pow(1 + rng.below(if decimals[0] == 0 { 4 } else { 2 })) - 1;
        let first = between(rng, 1, top);
        let near = chance(rng, 0.4);
        let second = if near { between(rng, (first - 12).max(1), first + 12) } else { between(rng, 1, top) };
        let hundredths = |whole: i64, decimals: usize, rng: &mut Rng| {
            whole as u64 * 100 + [0, 10 * u64::from(rng.below(10)), u64::from(rng.below(100))][decimals]
        };
        let second = if decimals[0] > 0 && chance(rng, 0.6) { first } else { second };
        let values = [hundredths(first, decimals[0], rng), hundredths(second, decimals[1], rng)];
        if values[0] != values[1] {
            return Arc::new(Compare { values, decimals, largest });
        }
    }
}

impl Compare {
    fn written(&self, i: usize, decimals: usize, width: usize, lang: Lang) -> String {
        let (whole, part) = (self.values[i] / 100, self.values[i] % 100);
        let point = lang.pick('.', ',');
        match decimals {
            0 => format!("{whole:0width$}"),
            1 => format!("{whole:0width$}{point}{}", part / 10),
            _ => format!("{whole:0width$}{point}{part:02}"),
        }
    }

    fn winner(&self) -> usize {
        usize::from((self.values[1] > self.values[0]) == self.largest)
    }
}

impl Problem for Compare {
    fn key(&self) -> String {
        format!("{} {}", self.values[0].min(self.values[1]), self.values[0].max(self.values[1]))
    }

    fn form(&self) -> usize {
        usize::from(!self.largest)
    }

    fn fill(&self, name: &str, lang: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "a" => put!(out, "{}", self.written(0, self.decimals[0], 0, lang)),
            "b" => put!(out, "{}", self.written(1, self.decimals[1], 0, lang)),
            _ => no_slot(name),
        }
    }

    fn answer(&self, lang: Lang) -> String {
        self.written(self.winner(), self.decimals[self.winner()], 0, lang)
    }

    /// Aligns both, compares digits until they differ, then says which side is wanted.
    fn solve(&self, lang: Lang, steps: &mut Steps) {
        let want = if self.largest { "max" } else { "min" };
        steps.line(format!("{} {want}", lang.pick("want", "gesucht")));
        let decimals = self.decimals[0].max(self.decimals[1]);
        let width = (self.values[0].max(self.values[1]) / 100).to_string().len();
        let [a, b] = [0, 1].map(|i| self.written(i, decimals, width, lang));
        steps.line(format!("{a} {b}: {}", compare(&a, &b)));
        let sides = lang.pick(["left", "right"], ["links", "rechts"]);
        steps.line(format!("max {}", sides[usize::from(self.values[1] > self.values[0])]));
        steps.line(format!("{want} {} {}", sides[self.winner()], self.answer(lang)));
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        let point = |t: &str| plain(t).replace(',', ".");
        point(text) == point(&self.answer(lang))
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[
    [
        "
        max\\({a}, {b}\\)
        (larger|greater|bigger|maximum)[:| of] {a} (or|and|,) {b}[?]
        (which|what) [number ]is (larger|bigger|greater|higher|more)[:|,] {a} or {b}?
        (which|what) is the (larger|bigger|greater|higher) [number ](of|:) {a} (and|or) {b}?
        {a} or {b}[:|,] (which|what) [one ]is (larger|bigger|greater|higher|more)?
        {a} and {b}[:|,] which is the (larger|bigger|greater|higher)[ one| number]?
        <is> the (maximum|larger number|bigger number|greater number|max) of {a} and {b}?
        <do> the (maximum|larger|bigger|greater) of {a} and {b}.
        (compare|look at) {a} (and|with) {b}[.|,|:] [and ](name|give me|tell me) the (larger|bigger|greater)[ one| number].
        of {a} and {b}, which is (more|larger|bigger|greater)?
        ",
        "
        max\\({a}; {b}\\)
        (größer|mehr|Maximum)[:| von] {a} (oder|und) {b}[?]
        (was|welche Zahl) ist (größer|mehr|höher)[:|,] {a} oder {b}?
        welche[ der| von den] [beiden ]Zahlen {a} und {b} ist (größer|die größere|höher|mehr)?
        {a} oder {b}[:|,] (was|welche[ Zahl]) ist (größer|mehr|höher)?
        {a} und {b}[:|,] (welche|was) ist (die größere[ Zahl]|größer|höher)?
        <is> (das Maximum|die größere Zahl) von {a} und {b}?
        <do> (das Maximum|die größere Zahl) von {a} und {b}.
        vergleiche {a} (und|mit) {b}[.|,|:] [und ](nenne|nenn mir|gib mir) die (größere|höhere)[ Zahl].
        von {a} und {b}, (was|welche[ Zahl]) ist (mehr|größer|höher)?
        ",
    ],
    [
        "
        min\\({a}, {b}\\)
        (smaller|lesser|minimum|less)[:| of] {a} (or|and|,) {b}[?]
        (which|what) [number ]is (smaller|less|lower|lesser)[:|,] {a} or {b}?
        (which|what) is the (smaller|lower|lesser) [number ](of|:) {a} (and|or) {b}?
        {a} or {b}[:|,] (which|what) [one ]is (smaller|less|lower|lesser)?
        {a} and {b}[:|,] which is the (smaller|lower|lesser)[ one| number]?
        <is> the (minimum|smaller number|lower number|lesser number|min) of {a} and {b}?
        <do> the (minimum|smaller|lower|lesser) of {a} and {b}.
        (compare|look at) {a} (and|with) {b}[.|,|:] [and ](name|give me|tell me) the (smaller|lower)[ one| number].
        of {a} and {b}, which is (less|smaller|lower)?
        ",
        "
        min\\({a}; {b}\\)
        (kleiner|weniger|Minimum)[:| von] {a} (oder|und) {b}[?]
        (was|welche Zahl) ist (kleiner|weniger|niedriger)[:|,] {a} oder {b}?
        welche[ der| von den] [beiden ]Zahlen {a} und {b} ist (kleiner|die kleinere|niedriger|weniger)?
        {a} oder {b}[:|,] (was|welche[ Zahl]) ist (kleiner|weniger|niedriger)?
        {a} und {b}[:|,] (welche|was) ist (die kleinere[ Zahl]|kleiner|niedriger)?
        <is> (das Minimum|die kleinere Zahl) von {a} und {b}?
        <do> (das Minimum|die kleinere Zahl) von {a} und {b}.
        vergleiche {a} (und|mit) {b}[.|,|:] [und ](nenne|nenn mir|gib mir) die (kleinere|niedrigere)[ Zahl].
        von {a} und {b}, (was|welche[ Zahl]) ist (weniger|kleiner|niedriger)?
        ",
    ],
];
