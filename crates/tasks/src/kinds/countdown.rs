//! Countdown: reach a target with three numbers of one digit, each used once, by a search in fixed order.

use super::{Problem, no_slot, put};
use crate::grammar::{between, pick};
use crate::{Expr, Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Countdown {
    numbers: [u64; 3],
    target: u64,
}

/// The largest target.
const LIMIT: u64 = 99;

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    loop {
        let numbers = [0; 3].map(|_| between(rng, 1, 9) as u64);
        let [a, b, c] = numbers;
        let Some(pair) = join(rng, a, b).filter(|r| *r > 0) else { continue };
        match join(rng, pair, c) {
            // A target of two digits is never sought as a quotient: its multiple would need digit steps.
            Some(target) if (2..=LIMIT).contains(&target) && (target < 10 || !pair.is_multiple_of(target * c)) => {
                let mut numbers = numbers;
                numbers.rotate_left(rng.below(3) as usize);
                return Arc::new(Countdown { numbers, target });
            }
            _ => {}
        }
    }
}

/// One of the whole numbers that two numbers make, if the operation drawn makes one.
fn join(rng: &mut Rng, a: u64, b: u64) -> Option<u64> {
    let (large, small) = (a.max(b), a.min(b));
    match rng.below(4) {
        0 => Some(a + b),
        1 => Some(large - small),
        2 => Some(a * b),
        _ => (small > 0 && large.is_multiple_of(small)).then(|| large / small),
    }
}

impl Countdown {
    /// Sets each different number `c` aside in turn, writes what the other two would have to make, then what they make.
    fn search(&self, steps: &mut Steps) -> Option<Expr> {
        let t = self.target;
        let [x, y, z] = self.numbers;
        steps.line(format!("{x} {y} {z} -> {t}"));
        for i in 0..3 {
            let c = self.numbers[i];
            if self.numbers[..i].contains(&c) {
                continue;
            }
            let (p, q) = (self.numbers[(i + 1) % 3], self.numbers[(i + 2) % 3]);
            let (a, b) = (p.max(q), p.min(q));
            let wanted = wanted(t, c);
            let facts: Vec<&str> = wanted.iter().map(|w| w.fact.as_str()).collect();
            steps.line(format!("?{t} {c}: {}", facts.join(" ")));
            let values: Vec<u64> = wanted.iter().filter_map(|w| w.value).collect();
            let list: Vec<String> = values.iter().map(|v| format!(" ?{v}")).collect();
            let mut line = format!("{a} {b}{}:", list.concat());
            for (op, fact, made) in makes(a, b) {
                line += &format!(" {fact}");
                let Some(hit) = wanted.iter().find(|w| made.is_some() && w.value == made) else { continue };
                steps.line(line + " !");
                let pair = Expr::op(Expr::Num(a), op, Expr::Num(b));
                let expr = match hit.flip {
                    true => Expr::op(Expr::Num(c), hit.op, pair),
                    false => Expr::op(pair, hit.op, Expr::Num(c)),
                };
                steps.line(format!("{expr}={t}"));
                return Some(expr);
            }
            steps.line(line);
        }
        None
    }
}

/// A value that makes the target together with the number set aside.
struct Wanted {
    /// How it was found: `29-7=22`.
    fact: String,
    /// The value, if there is one (`29/7=4r1` gives none).
    value: Option<u64>,
    /// The operation that joins value and number.
    op: char,
    /// Number first: `c-value`.
    flip: bool,
}

fn wanted(t: u64, c: u64) -> Vec<Wanted> {
    let mut all = vec![];
    let mut want = |fact, value, op, flip| all.push(Wanted { fact, value, op, flip });
    if t >= c {
        want(format!("{t}-{c}={}", t - c), Some(t - c), '+', false);
    } else {
        want(format!("{c}-{t}={}", c - t), Some(c - t), '-', true);
        want(format!("{c}/{t}={}r{}", c / t, c % t), c.is_multiple_of(t).then_some(c / t), '/', true);
    }
    want(format!("{t}+{c}={}", t + c), Some(t + c), '-', false);
    if c > 1 {
        // Beyond nine times c the quotient would need two digits; two steps of long division give it.
        let exact = t.is_multiple_of(c).then_some(t / c);
        let fact = if t < 10 * c {
            format!("{t}/{c}={}r{}", t / c, t % c)
        } else {
            let (tens, rest) = (t / 10 / c, t / 10 % c);
            format!(
                "{}/{c}={tens}r{rest} {}/{c}={}r{} ={}r{}",
                t / 10,
                10 * rest + t % 10,
                t / c % 10,
                t % c,
                t / c,
                t % c
            )
        };
        want(fact, exact, '*', false);
        if t < 10 {
            want(format!("{t}*{c}={}", t * c), Some(t * c), '/', false);
        }
    }
    all
}

/// What two numbers make, `a` at least `b`.
fn makes(a: u64, b: u64) -> Vec<(char, String, Option<u64>)> {
    let mut all = vec![
        ('+', format!("{a}+{b}={}", a + b), Some(a + b)),
        ('-', format!("{a}-{b}={}", a - b), Some(a - b)),
        ('*', format!("{a}*{b}={}", a * b), Some(a * b)),
    ];
    if b > 1 {
        all.push(('/', format!("{a}/{b}={}r{}", a / b, a % b), a.is_multiple_of(b).then_some(a / b)));
    }
    all.retain(|(_, _, made)| *made != Some(0));
    all
}

impl Problem for Countdown {
    fn key(&self) -> String {
        let mut sorted = self.numbers;
        sorted.sort_unstable();
        format!("{sorted:?} {}", self.target)
    }

    fn fill(&self, name: &str, lang: Lang, rng: &mut Rng, out: &mut String) {
        let [a, b, c] = self.numbers;
        match name {
            "n" => match rng.below(3) {
                0 => put!(out, "{a}, {b} {} {c}", lang.pick("and", "und")),
                1 => put!(out, "{a} {b} {c}"),
                _ => put!(out, "{a}{s}{b}{s}{c}", s = pick(rng, &[", ", ","])),
            },
            "t" => put!(out, "{}", self.target),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        self.search(&mut Steps::default()).map_or(String::new(), |e| e.to_string())
    }

    fn solve(&self, _: Lang, steps: &mut Steps) {
        self.search(steps);
    }

    /// Any expression of exactly these numbers that has the target's value.
    fn verify(&self, _: Lang, text: &str) -> bool {
        let text = text.trim().trim_end_matches('.');
        let (text, stated) = text.split_once('=').map_or((text, None), |(e, v)| (e, Some(v.trim())));
        let Some(expr) = Expr::parse(text).filter(|_| text.len() < 64) else { return false };
        let sorted = |mut n: Vec<u64>| {
            n.sort_unstable();
            n
        };
        sorted(expr.numbers()) == sorted(self.numbers.to_vec())
            && expr.value() == Some((self.target as i64, 1))
            && stated.is_none_or(|v| v == self.target.to_string())
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {n} -> {t}
    countdown: {n} (->|to|target) {t}
    (use|take|combine) [the numbers ]{n} to (make|get|reach|form|hit) {t}[, each [number |]once].
    (make|get|reach|form|build) {t} (from|with|using|out of) [the numbers ]{n}[, each [number |]once].
    how (do|can|could) (i|you|we) (make|get|reach|form) {t} (from|with|using|out of) [the numbers ]{n}?
    (can|could|would) you (make|get|reach|form) {t} (from|with|using) [the numbers ]{n}?
    (find|give me|write) (a term|an expression|a way|a calculation) (with|from|using) {n} that (gives|makes|equals|is) {t}.
    the numbers are {n}, the target is {t}[. how|. find a way|][?]
    target {t}, numbers {n}[.|?]
    with {n}[,] (reach|make|get) {t}[ please].
    ",
    "
    {n} -> {t}
    countdown: {n} (->|zu|Ziel) {t}
    (nimm|benutze|verwende|kombiniere) [die Zahlen ]{n}, um {t} zu (bilden|bekommen|erreichen|erhalten)[, jede [Zahl |]einmal].
    (bilde|erreiche|mach|baue) {t} (aus|mit) [den Zahlen ]{n}[, jede [Zahl |]einmal].
    wie (komme ich|kommt man|kommen wir) mit [den Zahlen ]{n} auf {t}?
    wie (bilde ich|bildet man|erreiche ich|erreicht man) {t} (aus|mit) [den Zahlen ]{n}?
    (kannst|könntest|würdest) du[ mir] {t} (aus|mit) [den Zahlen ]{n} (bilden|machen|erreichen)?
    (finde|gib mir|schreibe) (einen Term|eine Rechnung|einen Ausdruck|einen Weg) (mit|aus) {n}, (der|die) {t} ergibt.
    die Zahlen sind {n}, das Ziel ist {t}[. wie|. finde einen Weg|][?]
    Ziel {t}, Zahlen {n}[.|?]
    mit {n} auf {t} kommen[, bitte].
    ",
]];
