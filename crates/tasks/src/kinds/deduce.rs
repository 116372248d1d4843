//! Simple deduction: who is first, or last, by a chain of comparisons told in any order.

use super::word::NAMES;
use super::{Problem, no_slot, plain, put};
use crate::grammar::{chance, pick};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

/// more, less, most, least, positive: `[english, german]`.
type Scale = [[&'static str; 5]; 2];

#[rustfmt::skip]
const SCALES: &[Scale] = &[
    [["taller", "shorter", "tallest", "shortest", "tall"], ["größer", "kleiner", "am größten", "am kleinsten", "groß"]],
    [["older", "younger", "oldest", "youngest", "old"], ["älter", "jünger", "am ältesten", "am jüngsten", "alt"]],
    [["faster", "slower", "fastest", "slowest", "fast"], ["schneller", "langsamer", "am schnellsten", "am langsamsten", "schnell"]],
    [["heavier", "lighter", "heaviest", "lightest", "heavy"], ["schwerer", "leichter", "am schwersten", "am leichtesten", "schwer"]],
    [["stronger", "weaker", "strongest", "weakest", "strong"], ["stärker", "schwächer", "am stärksten", "am schwächsten", "stark"]],
    [["richer", "poorer", "richest", "poorest", "rich"], ["reicher", "ärmer", "am reichsten", "am ärmsten", "reich"]],
];

#[derive(Debug)]
struct Deduce {
    /// From most to least.
    people: Vec<&'static str>,
    /// Positions `i` of the pairs `people[i] > people[i + 1]`, in the order told.
    told: Vec<usize>,
    scale: usize,
    most: bool,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let len = 3 + rng.below(3) as usize;
    let mut people = vec![];
    while people.len() < len {
        let name = *pick(rng, NAMES);
        if !people.contains(&name) {
            people.push(name);
        }
    }
    let mut told: Vec<usize> = (0..len - 1).collect();
    for i in (1..told.len()).rev() {
        told.swap(i, rng.below(i as u32 + 1) as usize);
    }
    Arc::new(Deduce { people, told, scale: rng.below(SCALES.len() as u32) as usize, most: chance(rng, 0.5) })
}

impl Problem for Deduce {
    fn key(&self) -> String {
        format!("{} {} {} {:?}", self.people.join(">"), self.scale, self.most, self.told)
    }

    fn fill(&self, name: &str, lang: Lang, rng: &mut Rng, out: &mut String) {
        let [more, less, most, least, positive] = SCALES[self.scale][lang as usize];
        match name {
            "s" => {
                for (n, &i) in self.told.iter().enumerate() {
                    let (a, b) = (self.people[i], self.people[i + 1]);
                    put!(out, "{}", if n > 0 { " " } else { "" });
                    match (rng.below(5), lang) {
                        (0 | 1, Lang::En) => put!(out, "{a} is {more} than {b}."),
                        (2 | 3, Lang::En) => put!(out, "{b} is {less} than {a}."),
                        (_, Lang::En) => put!(out, "{b} is not as {positive} as {a}."),
                        (0 | 1, Lang::De) => put!(out, "{a} ist {more} als {b}."),
                        (2 | 3, Lang::De) => put!(out, "{b} ist {less} als {a}."),
                        (_, Lang::De) => put!(out, "{b} ist nicht so {positive} wie {a}."),
                    }
                }
            }
            "q" => put!(out, "{}", if self.most { most } else { least }),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        let place = if self.most { 0 } else { self.people.len() - 1 };
        self.people[place].to_owned()
    }

    /// The relations with the loser first, then from the first loser to whom it loses, until nobody is left to lose to.
    fn solve(&self, lang: Lang, steps: &mut Steps) {
        let [_, _, most, least, _] = SCALES[self.scale][lang as usize];
        let (want, bound) = if self.most { (most, "max") } else { (least, "min") };
        steps.line(format!("{} {want}: {bound}", lang.pick("want", "gesucht")));
        let pair = |i: usize| match self.most {
            true => (i, format!("{}<{}", self.people[i + 1], self.people[i])),
            false => (i + 1, format!("{}>{}", self.people[i], self.people[i + 1])),
        };
        steps.line(self.told.iter().map(|&i| pair(i).1).collect::<Vec<_>>().join(" "));
        let mut next = Some(self.told[0]);
        while let Some(i) = next {
            let (winner, text) = pair(i);
            steps.line(text);
            // Whose pair has the winner as its loser.
            next = if self.most { winner.checked_sub(1) } else { Some(winner).filter(|w| w + 1 < self.people.len()) };
        }
        steps.line(format!("{}: {bound}", self.answer(lang)));
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        plain(text) == plain(&self.answer(lang))
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    {s} who is [the ]{q}?
    {s} (which of them|which one|which person|who of them|who of these people|who) is [the ]{q}[ of (all|them|these)| here| then]?
    {s} (name|tell me|find|say) the {q}[ one| person| of them].
    {s} (name|tell me|find|say) who is [the ]{q}.
    {s} (can|could|would) you (tell me|say|work out|find out) who is [the ]{q}?
    {s} (so|then|now)[,] who is [the ]{q}?
    who is [the ]{q}(, if|:|?) {s}
    (find|tell me|work out) who is [the ]{q}(:|.) {s}
    (we know|i know|it is known|given)(:|,) {s} who is [the ]{q}?
    {s} the {q}[ one| person| of them] is[ who]?
    (i (wonder|ask|want to know)|please tell me|do you know) who is [the ]{q}(, given|, if|:|.) {s}
    (three|some|a few) (friends|people|children) (meet|compare themselves|stand here)(.|:) {s} who is [the ]{q}[ of them]?
    (read|look|listen|think)[ carefully| well](:|.) {s} (who|which person|which of them) is [the ]{q}?
    {s} (using this|from this|by this|with that)[,] (who|which of them|which person) is [the ]{q}?
    ",
    "
    {s} wer ist {q}?
    {s} (wer von ihnen|welche Person|wer von allen|wer davon|wer) ist [hier |dann |also ]{q}?
    {s} (nenne|sag mir|finde|sage)[ bitte][ mir], wer (von ihnen |von allen |)[nun |dann ]{q} ist.
    {s} (kannst|könntest|würdest) du[ mir][ bitte] (sagen|nennen|herausfinden), wer {q} ist?
    {s} (weißt du|kannst du sagen|ich frage), wer [hier |dann |]{q} ist?
    {s} (also|dann|nun)[,] wer ist {q}?
    wer ist {q}(, wenn gilt|:|?) {s}
    (finde heraus|sag mir|bestimme), wer {q} ist(:|.) {s}
    (ich (frage|möchte wissen|wüsste gern)|sag mir bitte|weißt du), wer {q} ist(, wenn|:|.) {s}
    (drei|einige|ein paar) (Freunde|Leute|Kinder) (treffen sich|vergleichen sich|stehen hier)(.|:) {s} wer ist {q}[ von ihnen]?
    (lies|schau|hör|denk)[ genau| gut](:|.) {s} (wer|welche Person|wer von ihnen) ist {q}?
    {s} (daraus folgt|nach all dem|demnach)[:|,] (wer|welche Person|wer von ihnen) ist {q}?
    (wir wissen|ich weiß|es gilt|gegeben|bekannt ist)(:|,) {s} wer ist {q}?
    ",
]];
