//! Numbers into base 2 to 9 and back.

use super::{Problem, no_slot, put};
use crate::grammar::{between, chance, pick};
use crate::steps::{Steps, quotient, scaled};
use crate::{Lang, kinds::plain};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Base {
    n: u64,
    base: u64,
    /// From ten to `base`, not from `base` to ten.
    into: bool,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let base = *pick(rng, &[2, 2, 2, 2, 3, 4, 5, 6, 7, 8, 8, 9]);
    let top = if base == 2 { 127 } else { 255 };
    Arc::new(Base { n: between(rng, base as i64, top) as u64, base, into: chance(rng, 0.5) })
}

impl Base {
    fn in_base(&self) -> String {
        let mut digits = vec![];
        let mut n = self.n;
        while n > 0 {
            digits.push((b'0' + (n % self.base) as u8) as char);
            n /= self.base;
        }
        digits.iter().rev().collect()
    }
}

impl Problem for Base {
    fn key(&self) -> String {
        format!("{} {}", self.n, self.base)
    }

    /// 0, 1: into and from base 2, which has names of its own; 2, 3: any base.
    fn form(&self) -> usize {
        usize::from(!self.into) + 2 * usize::from(self.base != 2 || self.n.is_multiple_of(3))
    }

    fn fill(&self, name: &str, _: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "n" => put!(out, "{}", self.n),
            "m" => put!(out, "{}", self.in_base()),
            "b" => put!(out, "{}", self.base),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        if self.into { self.in_base() } else { self.n.to_string() }
    }

    /// Into: divide until 0 and collect remainders from the right. Back: value times base plus next digit.
    fn solve(&self, _: Lang, steps: &mut Steps) {
        if self.into {
            let (mut n, mut found) = (self.n, String::new());
            while n > 0 {
                found.insert_str(0, &(n % self.base).to_string());
                steps.line(format!("{} | {found}", quotient(n, self.base)));
                n /= self.base;
            }
            return;
        }
        let text = self.in_base();
        let mut value = 0;
        for (at, digit) in text.char_indices() {
            steps.line(format!("{value} | {}", &text[at..]));
            if at == 0 {
                value = u64::from(digit as u8 - b'0');
                continue;
            }
            let digit = u64::from(digit as u8 - b'0');
            steps.line(scaled(value, self.base, digit));
            value = value * self.base + digit;
        }
        steps.line(value);
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        plain(text).trim_start_matches("0b") == self.answer(lang)
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[
    [
        "
        {n} in (binary|base 2)[?| please]
        {n} to binary[?]
        binary of {n}[?]
        [please ](convert|change|translate|turn) [the number |the decimal number |decimal ]{n} (to|into) (binary|base 2|a binary number|the binary system).
        [please ](write|give me|show me|express) [the number ]{n} (in binary|as a binary number|in base 2|in the binary system).
        (what|how) is {n} (in binary|as a binary number|in base 2|in the binary system|written in binary)?
        <is> the binary (form|number|representation|notation) of {n}?
        <can> the binary (form|number|representation|notation) of {n}?
        how do (you|i) write {n} (in binary|in base 2|as a binary number)?
        ",
        "
        {n} (binär|in binär|zur Basis 2)[?| bitte]
        (binär|Binärzahl) von {n}[?]
        (wandle|rechne)[ bitte] [die Zahl |die Dezimalzahl ]{n} (ins Binärsystem|in eine Binärzahl|ins Zweiersystem|in die Basis 2) um.
        [bitte ](schreibe|schreib|gib mir|zeige mir|nenne mir) [die Zahl ]{n} (binär|als Binärzahl|im Binärsystem|im Zweiersystem|zur Basis 2).
        (was|wie) (ist|lautet) {n} (binär|als Binärzahl|im Binärsystem|im Zweiersystem|zur Basis 2)?
        <is> die (Binärzahl|Binärdarstellung) (von|zu) {n}?
        <can> die (Binärzahl|Binärdarstellung) (von|zu) {n} <inf>?
        wie schreibt man {n} (binär|als Binärzahl|im Binärsystem|im Zweiersystem)?
        ",
    ],
    [
        "
        binary {m} in decimal[?| please]
        {m} from binary (to|into) decimal[?]
        [please ](convert|change|translate|turn) [the binary number |binary ]{m} from binary (to|into) (decimal|base 10|a decimal number).
        [please ](convert|change|translate|turn) (the binary number|binary) {m} (to|into) (decimal|base 10|a decimal number|the decimal system).
        (what|how much) is (the binary number|binary) {m}[ in decimal| in base 10| as a decimal number]?
        <is> the (decimal value|decimal number|value) of (the binary number|binary) {m}?
        <can> the (decimal value|decimal number|value) of (the binary number|binary) {m}?
        (which|what) (number|decimal number) is (binary|the binary number) {m}?
        ",
        "
        binär {m} dezimal[?| bitte]
        {m} von binär (nach|in) dezimal[?]
        (wandle|rechne)[ bitte] (die Binärzahl|binär) {m} (ins Dezimalsystem|in eine Dezimalzahl|ins Zehnersystem) um.
        [bitte ](schreibe|schreib|gib mir|zeige mir|nenne mir) (die Binärzahl|binär) {m} (dezimal|als Dezimalzahl|im Dezimalsystem|im Zehnersystem).
        (was|wie viel|wieviel) ist (die Binärzahl|binär) {m}[ dezimal| im Dezimalsystem| als Dezimalzahl]?
        <is> die Dezimalzahl (von|zu) (der Binärzahl|binär) {m}?
        <can> die Dezimalzahl (von|zu) (der Binärzahl|binär) {m} <inf>?
        welche (Zahl|Dezimalzahl) ist (die Binärzahl|binär) {m}?
        ",
    ],
    [
        "
        {n} in base {b}[?| please]
        {n} to base {b}[?]
        [please ](convert|change|translate|turn) [the number |the decimal number |decimal ]{n} (to|into|from base 10 to) base {b}.
        [please ](write|give me|show me|express) [the number ]{n} in (base|the base) {b}.
        (what|how) is {n} (in|written in|expressed in) base {b}?
        how do (you|i) write {n} in base {b}?
        (which|what) digits has {n} in base {b}?
        ",
        "
        {n} (zur|in|in der) Basis {b}[?| bitte]
        (wandle|rechne)[ bitte] [die Zahl |die Dezimalzahl ]{n} (in die|zur|nach) Basis {b} um.
        [bitte ](schreibe|schreib|gib mir|zeige mir|nenne mir) [die Zahl ]{n} (zur|in|in der) Basis {b}.
        (was|wie) (ist|lautet) [die Zahl ]{n} (zur|in|in der) Basis {b}?
        wie schreibt man {n} (zur|in|in der) Basis {b}?
        welche Ziffern hat {n} (zur|in|in der) Basis {b}?
        ",
    ],
    [
        "
        {m} from base {b} (to|into) (base 10|decimal)[?| please]
        {m} (base|in base) {b} is what in (decimal|base 10)?
        [please ](convert|change|translate|turn) [the number ]{m} from base {b} (to|into) (base 10|decimal).
        (what|how much) is {m} (in|of|from) base {b} (in decimal|in base 10|as a decimal number)?
        <is> the (decimal value|value) of {m} (in|from) base {b}?
        <can> the (decimal value|value) of {m} (in|from) base {b}?
        the number {m} is written in base {b}. what is it in (decimal|base 10)?
        ",
        "
        {m} (von|aus) Basis {b} (nach|in) (dezimal|Basis 10)[?| bitte]
        {m} zur Basis {b} ist (dezimal was|welche Dezimalzahl)?
        (wandle|rechne)[ bitte] [die Zahl ]{m} (von|aus der) Basis {b} (ins Dezimalsystem|in eine Dezimalzahl|ins Zehnersystem|nach Basis 10) um.
        (was|wie viel|wieviel) ist {m} (zur|in der|aus der) Basis {b} (dezimal|im Dezimalsystem|als Dezimalzahl)?
        <is> die Dezimalzahl (von|zu) {m} (zur|aus der|aus) Basis {b}?
        <can> die Dezimalzahl (von|zu) {m} (zur|aus der|aus) Basis {b} <inf>?
        die Zahl {m} steht zur Basis {b}. (was|wie viel) ist sie (dezimal|im Dezimalsystem)?
        ",
    ],
];
