//! Three to six different numbers below 100 in rising or falling order.

use super::{Problem, no_slot, number, numbers, put};
use crate::grammar::{chance, pick};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Sort {
    numbers: Vec<u64>,
    falling: bool,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let len = 3 + rng.below(4) as usize;
    let mut numbers = vec![];
    while numbers.len() < len {
        let n = number(rng, 2);
        if !numbers.contains(&n) {
            numbers.push(n);
        }
    }
    Arc::new(Sort { numbers, falling: chance(rng, 0.5) })
}

impl Sort {
    fn sorted(&self) -> Vec<u64> {
        let mut sorted = self.numbers.clone();
        sorted.sort_unstable();
        if self.falling {
            sorted.reverse();
        }
        sorted
    }
}

fn join(numbers: &[u64], between: &str) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(between)
}

impl Problem for Sort {
    fn key(&self) -> String {
        let mut sorted = self.numbers.clone();
        sorted.sort_unstable();
        join(&sorted, " ")
    }

    fn form(&self) -> usize {
        usize::from(self.falling)
    }

    fn fill(&self, name: &str, _: Lang, rng: &mut Rng, out: &mut String) {
        match name {
            "n" => put!(out, "{}", join(&self.numbers, pick::<&str>(rng, &[", ", ", ", ", ", " ", "; "]))),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        join(&self.sorted(), ", ")
    }

    /// `done | rest`, then a walk through the rest that carries the best so far, until nothing rests.
    fn solve(&self, lang: Lang, steps: &mut Steps) {
        let rising = lang.pick("rising, take min", "steigend, nimm min");
        let falling = lang.pick("falling, take max", "fallend, nimm max");
        steps.line(if self.falling { falling } else { rising });
        let (mut done, mut rest) = (vec![], self.numbers.clone());
        while rest.len() > 1 {
            steps.line(format!("{} | {}", join(&done, " "), join(&rest, " ")).trim_start());
            let mut best = rest[0];
            let mut walk = String::new();
            for &n in &rest[1..] {
                let sign = if best < n { '<' } else { '>' };
                walk += &format!("{best}{sign}{n} ");
                if (n < best) != self.falling {
                    best = n;
                }
            }
            steps.line(format!("{walk}: {best}"));
            rest.retain(|&n| n != best);
            done.push(best);
        }
        steps.line(format!("{} | {}", join(&done, " "), rest[0]));
    }

    fn verify(&self, _: Lang, text: &str) -> bool {
        let allowed = |c: char| c.is_ascii_digit() || c.is_whitespace() || ",;.<>[]".contains(c);
        text.chars().all(allowed) && numbers(text) == self.sorted()
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[
    [
        "
        sort[:] {n}[.]
        (sort|sorted|order|ordered) (rising|ascending): {n}
        [please ](sort|order|arrange) [the numbers |these numbers |these |this list[:] ]{n}[.]
        [please ](sort|order|arrange|put) [the numbers |these numbers ]{n} in (ascending|rising|increasing) order.
        [please ](sort|order|arrange) [the numbers |these numbers ]{n} from (small to large|low to high|smallest to largest|the smallest to the largest).
        (can|could|would|will) you [please ](sort|order|arrange) {n}[ in (ascending|rising|increasing) order]?
        {n}[:|.] (sort|order|arrange) (them|these)[ in (ascending|rising|increasing) order| from small to large|, smallest first], please.
        what is the (ascending|rising|increasing) order of {n}?
        (smallest|lowest) first: {n}
        (give me|tell me|write) {n} in (ascending|rising|increasing) order.
        ",
        "
        sortiere[:] {n}[.]
        aufsteigend[ sortieren| sortiert| ordnen]: {n}
        [bitte ](sortiere|ordne|sortier) [die Zahlen |diese Zahlen |diese Liste[:] ]{n}[.]
        [bitte ](sortiere|ordne|sortier) [die Zahlen |diese Zahlen ]{n} (aufsteigend|der Größe nach|in steigender Reihenfolge|steigend).
        [bitte ](sortiere|ordne) [die Zahlen |diese Zahlen ]{n} (von klein nach groß|vom Kleinsten zum Größten|von der kleinsten zur größten).
        (kannst|könntest|würdest) du[ mir][ bitte] {n} [aufsteigend |steigend |von klein nach groß ](sortieren|ordnen)?
        {n}[:|.] (sortiere|ordne) (sie|diese)[ aufsteigend| steigend| von klein nach groß|, die kleinste zuerst], bitte.
        wie lauten {n} (aufsteigend|in steigender Reihenfolge|von klein nach groß)?
        (kleinste|die kleinste) zuerst: {n}
        (gib mir|nenne mir|schreib) {n} (aufsteigend|in steigender Reihenfolge|von klein nach groß).
        ",
    ],
    [
        "
        (sort|sorted|order|ordered) (falling|descending): {n}
        [please ](sort|order|arrange|put) [the numbers |these numbers ]{n} in (descending|falling|decreasing) order.
        [please ](sort|order|arrange) [the numbers |these numbers ]{n} from (large to small|high to low|largest to smallest|the largest to the smallest).
        (can|could|would|will) you [please ](sort|order|arrange) {n} in (descending|falling|decreasing) order?
        {n}[:|.] (sort|order|arrange) (them|these)( in (descending|falling|decreasing) order| from large to small|, largest first), please.
        what is the (descending|falling|decreasing) order of {n}?
        (largest|highest|biggest) first: {n}
        (give me|tell me|write) {n} in (descending|falling|decreasing) order.
        ",
        "
        absteigend[ sortieren| sortiert| ordnen]: {n}
        [bitte ](sortiere|ordne|sortier) [die Zahlen |diese Zahlen ]{n} (absteigend|in fallender Reihenfolge|fallend).
        [bitte ](sortiere|ordne) [die Zahlen |diese Zahlen ]{n} (von groß nach klein|vom Größten zum Kleinsten|von der größten zur kleinsten).
        (kannst|könntest|würdest) du[ mir][ bitte] {n} (absteigend|fallend|von groß nach klein) (sortieren|ordnen)?
        {n}[:|.] (sortiere|ordne) (sie|diese)( absteigend| fallend| von groß nach klein|, die größte zuerst), bitte.
        wie lauten {n} (absteigend|in fallender Reihenfolge|von groß nach klein)?
        (größte|die größte) zuerst: {n}
        (gib mir|nenne mir|schreib) {n} (absteigend|in fallender Reihenfolge|von groß nach klein).
        ",
    ],
];
