//! The generator: sample number `index` of a split under a seed, each on its own.
//!
//! No sample depends on another, so training resumes anywhere and threads need not agree. A draw that
//! falls on the wrong side of a split is drawn again; `split` decides the sides.

use crate::grammar::{Grammar, Phrase, chance};
use crate::prose::{self, Topic};
use crate::split::{phrasing_is_held, problem_is_held};
use crate::steps::Steps;
use crate::{KINDS, Kind, Lang, Problem, Sample, Split, TasksError, dress};
use fathom_core::rng::Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which kinds, how often, in which language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Weight of each kind; a kind that is missing does not occur.
    pub weights: BTreeMap<String, f64>,
    /// Share of German, 0 to 1.
    pub german: f64,
    /// Whether greetings, carelessness and typos surround the questions.
    pub dressed: bool,
}

impl Default for Mix {
    fn default() -> Self {
        let computed = KINDS.iter().map(|k| (k.name.to_owned(), k.weight));
        let prose = [(FATHOM.to_owned(), 1.5), (OUTSIDE.to_owned(), 1.5)];
        Mix { weights: computed.chain(prose).collect(), german: 0.45, dressed: true }
    }
}

impl Mix {
    /// The given kinds in equal shares.
    pub fn only(kinds: &[&str]) -> Self {
        Mix { weights: kinds.iter().map(|k| ((*k).to_owned(), 1.0)).collect(), ..Mix::default() }
    }
}

/// Name of the kind that asks about fathom.
const FATHOM: &str = "fathom";
/// Name of the kind that lies outside the model's world.
const OUTSIDE: &str = "outside";

/// Draws that may miss a split before the generator gives up: far beyond any chance.
const PATIENCE: usize = 100_000;

/// Where a kind's problems come from.
enum Maker {
    Computed(&'static Kind, Vec<[Grammar; 2]>),
    Prose([Vec<Topic>; 2]),
}

struct Source {
    name: &'static str,
    maker: Maker,
    weight: f64,
}

/// Makes samples of a mix.
pub struct Generator {
    sources: Vec<Source>,
    mix: Mix,
}

impl Generator {
    /// Reads all grammars and facts.
    ///
    /// # Errors
    /// [`TasksError::UnknownKind`] and [`TasksError::Range`] for a bad mix; `Grammar` and `Data` if the crate's own data is broken.
    pub fn new(mix: &Mix) -> Result<Self, TasksError> {
        let known = Self::kinds();
        if let Some(name) = mix.weights.keys().find(|k| !known.contains(&k.as_str())) {
            return Err(TasksError::UnknownKind { name: name.clone(), known: known.join(", ") });
        }
        let range = |what: &str, value: f64, range| TasksError::Range {
            what: what.to_owned(),
            found: value.to_string(),
            range,
        };
        if !(0.0..=1.0).contains(&mix.german) {
            return Err(range("the share of German", mix.german, "0 to 1"));
        }
        if let Some((name, weight)) = mix.weights.iter().find(|(_, w)| !(0.0..=1e6).contains(*w)) {
            return Err(range(&format!("the weight of `{name}`"), *weight, "0 to 1000000"));
        }
        let total = mix.weights.values().sum::<f64>();
        if total <= 0.0 {
            return Err(range("the sum of all weights", total, "more than 0"));
        }
        let mut sources = vec![];
        for kind in KINDS {
            let both = |[en, de]: &[&str; 2]| Ok([Grammar::parse(en, Lang::En)?, Grammar::parse(de, Lang::De)?]);
            let grammars = kind.phrasings.iter().map(both).collect::<Result<_, TasksError>>()?;
            sources.push((kind.name, Maker::Computed(kind, grammars)));
        }
        sources.push((FATHOM, Maker::Prose([prose::fathom(Lang::En)?, prose::fathom(Lang::De)?])));
        sources.push((OUTSIDE, Maker::Prose([prose::outside(Lang::En)?, prose::outside(Lang::De)?])));
        let weighted = |(name, maker)| Source { name, maker, weight: mix.weights.get(name).copied().unwrap_or(0.0) };
        Ok(Generator { sources: sources.into_iter().map(weighted).collect(), mix: mix.clone() })
    }

    /// All kinds, computed or not.
    pub fn kinds() -> Vec<&'static str> {
        KINDS.iter().map(|k| k.name).chain([FATHOM, OUTSIDE]).collect()
    }

    /// Sample `index` of `split` under `seed`: always the same one.
    ///
    /// # Panics
    /// If every kind of the mix is empty in this split (only facts and refusals, and [`Split::Problem`]).
    pub fn sample(&self, split: Split, seed: u64, index: u64) -> Sample {
        let mut rng = stream(split, seed, index);
        let weight = |s: &Source| if s.is_empty(split) { 0.0 } else { s.weight };
        let total: f64 = self.sources.iter().map(weight).sum();
        assert!(total > 0.0, "invariant: a mix of facts and refusals alone has no held-out problems");
        let mut at = rng.uniform() * total;
        let fits = |s: &&Source| {
            at -= weight(s);
            weight(s) > 0.0 && at < 0.0
        };
        let last = self.sources.iter().rfind(|s| weight(s) > 0.0);
        let source = self.sources.iter().find(fits).or(last).expect("invariant: the total is above 0");
        let lang = if chance(&mut rng, self.mix.german) { Lang::De } else { Lang::En };
        self.make(source, lang, split, &mut rng, (seed, index))
    }

    /// Sample `index` of one kind in one language, whatever the mix.
    ///
    /// # Errors
    /// [`TasksError::UnknownKind`]; [`TasksError::EmptySplit`] if the kind has no problems to hold out.
    pub fn sample_of(&self, kind: &str, lang: Lang, split: Split, seed: u64, index: u64) -> Result<Sample, TasksError> {
        let Some(source) = self.sources.iter().find(|s| s.name == kind) else {
            return Err(TasksError::UnknownKind { name: kind.to_owned(), known: Self::kinds().join(", ") });
        };
        if source.is_empty(split) {
            return Err(TasksError::EmptySplit { kind: kind.to_owned(), split: split.name() });
        }
        Ok(self.make(source, lang, split, &mut stream(split, seed, index), (seed, index)))
    }

    fn make(&self, source: &Source, lang: Lang, split: Split, rng: &mut Rng, origin: (u64, u64)) -> Sample {
        let (problem, phrase) = source.draw(lang, split, rng);
        let template = phrase.template.clone();
        let question = if self.mix.dressed { dress::dress(phrase, lang, rng) } else { phrase.text };
        let mut steps = Steps::default();
        problem.solve(lang, &mut steps);
        let computed = matches!(source.maker, Maker::Computed(..));
        let mark = if computed { lang.answer_mark() } else { "" };
        Sample {
            kind: source.name,
            lang,
            split,
            question,
            reasoning: steps.into_text(),
            answer: format!("{mark}{}", problem.answer(lang)),
            source: format!("fathom-tasks {}, seed {}, index {}", env!("CARGO_PKG_VERSION"), origin.0, origin.1),
            licence: if source.name == FATHOM { "MIT" } else { "CC0-1.0" },
            template,
            problem,
        }
    }
}

impl Source {
    /// Facts and refusals have no problems to hold out, only phrasings.
    fn is_empty(&self, split: Split) -> bool {
        matches!(self.maker, Maker::Prose(_)) && split == Split::Problem
    }

    /// Draws problem and phrasing until both lie on their side of the split.
    fn draw(&self, lang: Lang, split: Split, rng: &mut Rng) -> (Arc<dyn Problem>, Phrase) {
        for _ in 0..PATIENCE {
            let (problem, grammar): (Arc<dyn Problem>, &Grammar) = match &self.maker {
                Maker::Computed(kind, grammars) => {
                    let problem = (kind.draw)(rng);
                    if problem_is_held(self.name, &problem.key()) != split.holds_problem() {
                        continue;
                    }
                    let form = problem.form();
                    (problem, &grammars[form][lang as usize])
                }
                Maker::Prose(topics) => {
                    let topic = crate::grammar::pick(rng, &topics[lang as usize]);
                    (topic.problem.clone(), &topic.grammar)
                }
            };
            let phrase = grammar.expand(rng, &mut |name, rng, out| problem.fill(name, lang, rng, out));
            let held = !phrase.is_bare() && phrasing_is_held(self.name, lang.code(), &phrase.template);
            if held == split.holds_phrasing() {
                return (problem, phrase);
            }
        }
        panic!("invariant: kind `{}` has problems and phrasings on both sides of every split", self.name)
    }
}

/// The random stream of one sample.
fn stream(split: Split, seed: u64, index: u64) -> Rng {
    let salt = (split as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Rng::new(seed.wrapping_add(salt).rotate_left(17) ^ index.wrapping_mul(0xd134_2543_de82_ef95), index)
}
