//! Hours and minutes between two times of one day.

use super::{Problem, no_slot, numbers, put};
use crate::grammar::{between, pick};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

/// Minutes since midnight.
#[derive(Debug)]
struct Time {
    from: u64,
    to: u64,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let from = between(rng, 0, 24 * 60 - 3);
    Arc::new(Time { from: from as u64, to: between(rng, from + 1, 24 * 60 - 1) as u64 })
}

impl Problem for Time {
    fn key(&self) -> String {
        format!("{} {}", self.from, self.to)
    }

    fn fill(&self, name: &str, lang: Lang, rng: &mut Rng, out: &mut String) {
        let minutes = match name {
            "a" => self.from,
            "b" => self.to,
            _ => no_slot(name),
        };
        put!(out, "{}:{:02}{}", minutes / 60, minutes % 60, pick(rng, &["", "", "", lang.pick("", " Uhr")]));
    }

    fn answer(&self, _: Lang) -> String {
        let minutes = self.to - self.from;
        format!("{}:{:02}", minutes / 60, minutes % 60)
    }

    /// End minus start, minutes first; where minutes are too few an hour becomes 60 of them.
    fn solve(&self, lang: Lang, steps: &mut Steps) {
        let [(h, m), (start_h, start_m)] = [self.to, self.from].map(|t| (t / 60, t % 60));
        steps.line(format!("{h:02}:{m:02} - {start_h:02}:{start_m:02}"));
        let (h, m) = if m < start_m {
            steps.line(format!("{m:02}<{start_m:02}: {}", lang.pick("borrow", "leihe")));
            (steps.difference(h, 1), steps.sum(m, 60))
        } else {
            let sign = if m == start_m { '=' } else { '>' };
            steps.line(format!("{m:02}{sign}{start_m:02}: {}", lang.pick("enough", "genug")));
            (h, m)
        };
        let minutes = steps.difference(m, start_m);
        let hours = steps.difference(h, start_h);
        steps.line(format!("{hours} h {minutes} min"));
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        let known =
            ["hours", "hour", "stunden", "stunde", "minutes", "minuten", "minute", "and", "und", "min", "std", "h"];
        let rest = known.iter().fold(text.to_lowercase(), |t, word| t.replace(word, " "));
        let form = rest.chars().all(|c| c.is_ascii_digit() || c.is_whitespace() || ":.,".contains(c));
        form && numbers(text) == numbers(&self.answer(lang))
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {a}( - |-| – | to | until ){b}[?]
    from {a} (to|until|till) {b}[?]
    how (long|much time) is (it|there) (from {a} (to|until|till) {b}|between {a} and {b})?
    how (long|much time) (passes|goes by|elapses|lies) (from {a} (to|until) {b}|between {a} and {b})?
    how many hours and minutes (are|are there|lie|pass) (from {a} (to|until) {b}|between {a} and {b})?
    <is> the (time|time difference|difference|duration|time span) (from {a} (to|until) {b}|between {a} and {b})?
    <do> the (time|time difference|duration|time span) (from {a} (to|until) {b}|between {a} and {b}).
    <can> the (time|time difference|duration|time span) (from {a} (to|until) {b}|between {a} and {b})?
    (a|the|my) (film|train|meeting|lesson|game|trip|shift|party) (starts|begins|leaves) at {a} and (ends|arrives|finishes|is over) at {b}. how long (is it|does it take|does it last)?
    it is {a}[ now]. how long (is it |)until {b}?
    ",
    "
    {a}( - |-| – | bis ){b}[?]
    von {a} bis {b}[?]
    wie (lange|viel Zeit) ist es (von {a} bis {b}|zwischen {a} und {b})?
    wie viel Zeit (vergeht|liegt|ist) (von {a} bis {b}|zwischen {a} und {b})?
    wie viele Stunden und Minuten (sind es|liegen|vergehen|sind) (von {a} bis {b}|zwischen {a} und {b})?
    <is> die (Zeit|Zeitdifferenz|Dauer|Zeitspanne) (von {a} bis {b}|zwischen {a} und {b})?
    <do> die (Zeit|Zeitdifferenz|Dauer|Zeitspanne) (von {a} bis {b}|zwischen {a} und {b}).
    <can> die (Zeit|Zeitdifferenz|Dauer|Zeitspanne) (von {a} bis {b}|zwischen {a} und {b}) <inf>?
    (ein|der|mein) (Film|Zug|Kurs|Unterricht|Ausflug|Dienst) (beginnt|startet|fängt an) um {a} und (endet|ist vorbei|ist zu Ende) um {b}. wie lange (dauert das|ist das|dauert er)?
    es ist[ jetzt] {a}. wie lange (ist es |dauert es |)(noch |)bis {b}?
    ",
]];
