//! Word problems: ten stories with names and things, one or two operations each.

use super::{Problem, no_slot, plain, put};
use crate::grammar::{between, pick};
use crate::{Expr, Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

/// People of the stories and of the deductions: the same in both languages.
pub(super) const NAMES: &[&str] = &[
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Lena", "Max", "Nora", "Oskar",
    "Paul", "Tom",
];

const THINGS: [&[&str]; 2] = [
    &[
        "apples", "books", "marbles", "cards", "balls", "pens", "flowers", "cookies", "coins", "stones", "nuts",
        "eggs", "shells", "stickers",
    ],
    &[
        "Äpfel", "Bücher", "Murmeln", "Karten", "Bälle", "Stifte", "Blumen", "Kekse", "Münzen", "Steine", "Nüsse",
        "Eier", "Muscheln", "Sticker",
    ],
];

#[derive(Debug)]
struct Word {
    story: usize,
    x: u64,
    y: u64,
    z: u64,
    name: &'static str,
    other: &'static str,
    thing: usize,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    loop {
        let (story, thing) = (rng.below(PHRASINGS.len() as u32) as usize, rng.below(THINGS[0].len() as u32) as usize);
        let (mut x, y, z) = (between(rng, 2, 99) as u64, between(rng, 2, 9) as u64, between(rng, 2, 12) as u64);
        if story == 5 {
            x = y * (x % 40 + 2);
        }
        let (name, other) = (*pick(rng, NAMES), *pick(rng, NAMES));
        let y = if [0, 1, 6, 7, 8].contains(&story) { between(rng, 2, 60) as u64 } else { y };
        let problem = Word { story, x, y, z, name, other, thing };
        if name != other && problem.expr().is_writable(250) {
            return Arc::new(problem);
        }
    }
}

impl Word {
    /// What the story asks for.
    fn expr(&self) -> Expr {
        let [x, y, z] = [self.x, self.y, self.z].map(Expr::Num);
        match self.story {
            0 => Expr::op(x, '+', y),
            1 | 8 => Expr::op(x, '-', y),
            2 => Expr::op(y, '*', z),
            3 => Expr::op(x, '+', Expr::op(y, '*', z)),
            4 => Expr::op(x, '-', Expr::op(y, '*', z)),
            5 => Expr::op(x, '/', y),
            6 => Expr::op(x.clone(), '+', Expr::op(x, '+', y)),
            7 => Expr::op(Expr::op(x, '+', y), '-', z),
            _ => Expr::op(Expr::op(y, '*', z), '-', Expr::Num(self.x % 10 + 1)),
        }
    }
}

impl Problem for Word {
    fn key(&self) -> String {
        format!("{} {}", self.story, self.expr())
    }

    fn form(&self) -> usize {
        self.story
    }

    fn fill(&self, name: &str, lang: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "n" => put!(out, "{}", self.name),
            "m" => put!(out, "{}", self.other),
            "i" => put!(out, "{}", THINGS[lang as usize][self.thing]),
            "x" if self.story == 9 => put!(out, "{}", self.x % 10 + 1),
            "x" => put!(out, "{}", self.x),
            "y" => put!(out, "{}", self.y),
            "z" => put!(out, "{}", self.z),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        self.expr().value().map_or(String::new(), |v| v.0.to_string())
    }

    fn solve(&self, _: Lang, steps: &mut Steps) {
        self.expr().reduce(steps);
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        let thing = plain(THINGS[lang as usize][self.thing]);
        plain(text).trim_end_matches(&thing) == self.answer(lang)
    }
}

#[rustfmt::skip]
pub(super) const PHRASINGS: &[[&str; 2]] = &[
    // 0: x + y
    ["{n} has {x} {i}[ at home| in a bag]. [then |later |]{m} (gives|brings|sends|hands) {n} {y} (more|more {i}|{i}). how many {i} does {n} have (now|then|in total|altogether)?
      {n} (has|owns|finds) {x} {i} and (buys|gets|finds|wins) {y} more. how many (is that|are there|{i} are there)[ now| in total]?
      there are {x} {i} (on the table|in a box). {n} (adds|puts down|brings) {y} more. how many {i} are (there|on it|in it) now?",
     "{n} hat {x} {i}[ zu Hause| in der Tasche]. [dann |später ](gibt|bringt|schickt|schenkt) {m} {y} (dazu|weitere|{i} dazu). wie viele {i} hat {n} (jetzt|dann|insgesamt|nun)?
      {n} (hat|besitzt|findet) {x} {i} und (kauft|bekommt|findet|gewinnt) {y} dazu. wie viele (sind das|sind es|{i} sind das)[ jetzt| insgesamt| zusammen]?
      (auf dem Tisch|in einer Kiste) liegen {x} {i}. {n} legt {y} dazu. wie viele {i} (liegen dort|sind es) (jetzt|nun)?"],
    // 1: x - y
    ["{n} has {x} {i}. [then |later |]{n} (loses|eats|sells|gives away|uses up|gives {m}) {y}[ of them]. how many {i} (are left|does {n} still have|does {n} have now|remain)?
      {n} (had|owned) {x} {i} and (lost|sold|gave away|gave {m}) {y}. how many (are left|{i} are left|remain|does {n} have left)?
      of {x} {i} {n} (takes|sells|loses) {y}. how many (are left|remain|stay)?",
     "{n} hat {x} {i}. [dann |später ](verliert|verkauft|verschenkt|verbraucht) {n} {y}[ davon]. wie viele {i} (bleiben|bleiben übrig|hat {n} noch|hat {n} jetzt)?
      {n} hatte {x} {i} und hat {y} (verloren|verkauft|verschenkt|{m} gegeben). wie viele (sind übrig|{i} sind noch da|bleiben|hat {n} noch)?
      von {x} {i} (nimmt|verkauft|verliert) {n} {y}. wie viele (bleiben|sind noch da|sind übrig)?"],
    // 2: y * z
    ["{n} has {y} (boxes|bags|baskets) with {z} {i} (each|in each). how many {i} (is that|are there|does {n} have)[ in total| altogether]?
      there are {y} (boxes|bags|shelves) and {z} {i} (in|on) each. how many {i} are there[ in total| altogether| in all]?
      {y} (children|friends|people) (have|bring|get) {z} {i} each. how many {i} (is that|are there)[ in total| altogether| together]?",
     "{n} hat {y} (Kisten|Tüten|Körbe) mit je {z} Stück {i}. wie viele {i} (sind das|sind es|hat {n})[ insgesamt| zusammen]?
      es gibt {y} (Kisten|Tüten|Regale), in jeder sind {z} {i}. wie viele {i} sind es[ insgesamt| zusammen]?
      {y} (Kinder|Freunde|Leute) (haben|bringen|bekommen) je {z} {i}. wie viele {i} sind das[ insgesamt| zusammen]?"],
    // 3: x + y * z
    ["{n} has {x} {i} and (buys|gets|finds) {y} (bags|boxes|packs) (of|with) {z}[ each| {i} each]. how many {i} (does {n} have|are there|is that)[ now| in total| altogether]?
      {n} (owns|has) {x} {i}. {y} friends (give|bring) {n} {z} {i} each. how many {i} does {n} have (now|then|in total)?",
     "{n} hat {x} {i} und (kauft|bekommt|findet) {y} (Tüten|Kisten|Packungen) mit je {z}[ Stück| dazu]. wie viele {i} (hat {n}|sind das|sind es)[ jetzt| insgesamt| zusammen]?
      {n} (besitzt|hat) {x} {i}. {y} Freunde (geben|bringen) {n} je {z} {i}. wie viele {i} hat {n} (jetzt|dann|insgesamt)?"],
    // 4: x - y * z
    ["{n} has {x} {i} and (gives|hands) {y} (friends|children|people) {z} {i} each. how many {i} (are left|does {n} still have|remain|does {n} keep)?
      {n} (had|owned) {x} {i}. {n} (filled|packed|sold) {y} (bags|boxes) with {z} {i} each. how many {i} (are left|remain|are still there)?",
     "{n} hat {x} {i} und (gibt|schenkt) {y} (Freunden|Kindern|Leuten) je {z} {i}. wie viele {i} (bleiben|bleiben übrig|hat {n} noch|behält {n})?
      {n} hatte {x} {i} und hat {y} (Tüten|Kisten) mit je {z} {i} (gefüllt|gepackt|verkauft). wie viele {i} (bleiben|sind noch da|bleiben übrig)?"],
    // 5: x / y
    ["{n} (shares|splits|divides) {x} {i} (equally|fairly|evenly) among {y} (friends|children|people). how many {i} does (each|everyone|each one) get?
      {x} {i} (are packed|are put|go) (equally|evenly) into {y} (boxes|bags). how many (are|{i} are) in each?
      {y} (friends|children) (share|split) {x} {i} (equally|fairly). how many (does each get|{i} does each one get|are there for each)?",
     "{n} verteilt {x} {i} (gleichmäßig|gerecht) (an|auf) {y} (Freunde|Kinder|Leute). wie viele {i} bekommt (jeder|jedes|jede Person)?
      {x} {i} (kommen|werden) (gleichmäßig|zu gleichen Teilen) in {y} (Kisten|Tüten)[ gepackt]. wie viele {i} sind in jeder?
      {y} (Freunde|Kinder) teilen sich {x} {i} (gerecht|gleichmäßig). wie viele (bekommt jeder|{i} bekommt jeder|sind das für jeden)?"],
    // 6: x + (x + y)
    ["{n} has {x} {i}. {m} has {y} {i} more than {n}. how many {i} do (they|both|the two|{n} and {m}) have (together|in total|altogether)?
      {m} has {y} {i} more than {n}, (and|who) [{n} ]has {x}. how many (have they|do they have|are there) (together|in total)?",
     "{n} hat {x} {i}. {m} hat {y} {i} mehr als {n}. wie viele {i} haben (sie|beide|die zwei|{n} und {m}) (zusammen|insgesamt|gemeinsam)?
      {m} hat {y} {i} mehr als {n}, und {n} hat {x}. wie viele {i} (haben sie|sind das|sind es) (zusammen|insgesamt)?"],
    // 7: x + y - z
    ["{n} has {x} {i}, (gets|buys|finds|wins) {y} (more|more {i}) and [then ](loses|eats|sells|gives away|gives {m}) {z}. how many {i} (are left|does {n} have now|does {n} have then|remain)?
      {x} people (are on|sit in) a (bus|train). {y} get on and {z} get off. how many (people are|are) (on it|in it|there) now?",
     "{n} hat {x} {i}, (bekommt|kauft|findet|gewinnt) {y} dazu und (verliert|verkauft|verschenkt) [dann ]{z}. wie viele {i} (bleiben|hat {n} jetzt|hat {n} dann|sind es nun)?
      in einem (Bus|Zug) (sind|sitzen) {x} Leute. {y} steigen ein und {z} steigen aus. wie viele (Leute sind|sind|sitzen) (jetzt|nun) darin?"],
    // 8: x - y, asked for the start
    ["{n} (got|bought|found) {y} {i} and (now has|has now) {x}[ of them|]. how many {i} did {n} have (before|at first|at the start|in the beginning)?
      after (getting|buying|finding) {y} {i} {n} has {x}. how many (were there|{i} were there|did {n} have) (before|at first)?",
     "{n} hat {y} {i} (bekommen|gekauft|gefunden) und hat (jetzt|nun) {x}. wie viele {i} hatte {n} (vorher|zuerst|am Anfang|zuvor)?
      nachdem {n} {y} {i} (bekommen|gekauft|gefunden) hat, sind es {x}. wie viele {i} (waren es|hatte {n}) (vorher|zuerst|am Anfang)?"],
    // 9: y * z - x
    ["{n} buys {y} (bags|boxes|packs) with {z} {i} each. {x} of (them|the {i}) are (broken|bad|gone|missing). how many [good ]{i} (are left|remain|does {n} have)?
      {y} (friends|children) bring {z} {i} each, but {x} (get lost|are missing|break). how many {i} (are left|are there|remain)?",
     "{n} kauft {y} (Tüten|Kisten|Packungen) mit je {z} Stück {i}. {x} davon (sind kaputt|sind schlecht|fehlen|gehen verloren). wie viele {i} (bleiben|bleiben übrig|hat {n})?
      {y} (Freunde|Kinder) bringen je {z} {i}, aber {x} (gehen verloren|fehlen|gehen kaputt). wie viele {i} (bleiben|sind es|sind da)?"],
];
