//! The day of the week some days before or after another.

use super::{Problem, no_slot, put};
use crate::grammar::{between, chance};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

const DAYS: [[&str; 7]; 2] = [
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"],
];

#[derive(Debug)]
struct Week {
    day: usize,
    shift: u64,
    back: bool,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let shift = if chance(rng, 0.2) { between(rng, 2, 9) } else { between(rng, 2, 200) };
    Arc::new(Week { day: rng.below(7) as usize, shift: shift as u64, back: chance(rng, 0.4) })
}

impl Week {
    /// The day `steps` days on the way.
    fn after(&self, steps: usize, lang: Lang) -> &'static str {
        let forward = if self.back { 7 - steps % 7 } else { steps };
        DAYS[lang as usize][(self.day + forward) % 7]
    }
}

impl Problem for Week {
    fn key(&self) -> String {
        format!("{} {} {}", self.day, self.shift, self.back)
    }

    fn form(&self) -> usize {
        usize::from(self.back)
    }

    fn fill(&self, name: &str, lang: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "d" => put!(out, "{}", DAYS[lang as usize][self.day]),
            "n" => put!(out, "{}", self.shift),
            _ => no_slot(name),
        }
    }

    fn answer(&self, lang: Lang) -> String {
        self.after((self.shift % 7) as usize, lang).to_owned()
    }

    /// Whole weeks change nothing; the rest is walked day by day.
    fn solve(&self, lang: Lang, steps: &mut Steps) {
        let rest = steps.quotient(self.shift, 7).1 as usize;
        let way = if self.back { lang.pick("back", "rückwärts") } else { lang.pick("forward", "vorwärts") };
        let walk: Vec<String> = (0..=rest).map(|n| format!("{} {n}", self.after(n, lang))).collect();
        steps.line(format!("{way} {rest}: {}", walk.join(" ")));
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[
    [
        "
        {d} + {n} days[?]
        {n} days after {d}[?| is what?]
        (what|which) [day|weekday|day of the week] (is|comes|will it be|is it|do we have) {n} days (after|from|past) [a |]{d}?
        (today is|it is|if today is|now it is) {d}[.|,] (what|which) (day|weekday|day of the week) (is it|will it be|is|do we have) (in {n} days|{n} days from now|after {n} days|{n} days later)?
        {n} days (after|from|past) {d}[:|,|-] (what|which) (day|weekday) (is that|is it|will it be)?
        (name|tell me|give me|find) the (day|weekday|day of the week) {n} days (after|from|past) {d}.
        <is> the (day|weekday|day of the week) {n} days (after|from|past) {d}?
        <can> the (day|weekday|day of the week) {n} days (after|from|past) {d}?
        ",
        "
        {d} + {n} Tage[?]
        {n} Tage nach {d}[?| ist was?]
        (welcher|was für ein) (Tag|Wochentag) (ist|kommt|ist es|wird es sein|haben wir) {n} Tage nach[ einem| dem|] {d}?
        (heute ist|es ist|wenn heute ist|jetzt ist) {d}[.|,] (welcher|was für ein) (Tag|Wochentag) ist (in {n} Tagen|nach {n} Tagen|{n} Tage später)?
        {n} Tage nach {d}[:|,] (welcher|was für ein) (Tag|Wochentag) ist (das|es|dann)?
        (nenne|nenn mir|sag mir|finde|bestimme) den (Tag|Wochentag) {n} Tage nach {d}.
        (was ist|wie lautet|wie heißt) der (Tag|Wochentag) {n} Tage nach {d}?
        (kannst|könntest|würdest) du[ mir][ bitte] den (Tag|Wochentag) {n} Tage nach {d} (nennen|sagen|bestimmen)?
        auf welchen (Tag|Wochentag) fällt der {n}. Tag nach {d}?
        ",
    ],
    [
        "
        {d} - {n} days[?]
        {n} days before {d}[?| was what?]
        (what|which) [day|weekday|day of the week] (was|came|was it|is|did we have) {n} days before [a |]{d}?
        (today is|it is|if today is|now it is) {d}[.|,] (what|which) (day|weekday|day of the week) (was it|was|did we have) ({n} days ago|{n} days before|{n} days earlier)?
        {n} days before {d}[:|,|-] (what|which) (day|weekday) (is that|is it|was it)?
        (name|tell me|give me|find) the (day|weekday|day of the week) {n} days before {d}.
        (what is|what was|do you know|can you tell me) the (day|weekday|day of the week) {n} days before {d}?
        <can> the (day|weekday|day of the week) {n} days before {d}?
        ",
        "
        {d} - {n} Tage[?]
        {n} Tage vor {d}[?| war was?]
        (welcher|was für ein) (Tag|Wochentag) (war|ist|war es|hatten wir) {n} Tage vor[ einem| dem|] {d}?
        (heute ist|es ist|wenn heute ist|jetzt ist) {d}[.|,] (welcher|was für ein) (Tag|Wochentag) war (vor {n} Tagen|{n} Tage früher|{n} Tage vorher|{n} Tage zuvor)?
        {n} Tage vor {d}[:|,] (welcher|was für ein) (Tag|Wochentag) (ist|war) (das|es|da)?
        (nenne|nenn mir|sag mir|finde|bestimme) den (Tag|Wochentag) {n} Tage vor {d}.
        (was ist|wie lautet|wie heißt) der (Tag|Wochentag) {n} Tage vor {d}?
        (kannst|könntest|würdest) du[ mir][ bitte] den (Tag|Wochentag) {n} Tage vor {d} (nennen|sagen|bestimmen)?
        ",
    ],
];
