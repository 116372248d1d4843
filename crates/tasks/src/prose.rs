//! The two kinds that are not computed: facts about fathom, and what lies outside its world.
//!
//! Both are data: `data/fathom_{en,de}.toml` holds facts with their phrasings, made from the project's
//! own documentation; `data/outside_{en,de}.toml` holds topics that get the one honest answer.
//! There is nothing to hold out but the phrasing.

use crate::grammar::{Grammar, between, pick};
use crate::kinds::{self, Problem, no_slot, number, plain, put};
use crate::{Lang, TasksError, steps::Steps};
use fathom_core::rng::Rng;
use serde::Deserialize;
use std::sync::Arc;

/// What a file of prose holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    topic: Vec<Entry>,
    /// The answer of every topic without one of its own.
    answer: Option<String>,
}

/// One topic as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    answer: Option<String>,
    ask: String,
}

/// A topic ready to be asked about.
pub(crate) struct Topic {
    pub(crate) problem: Arc<Prose>,
    pub(crate) grammar: Grammar,
}

/// A question that is answered by a sentence.
#[derive(Debug)]
pub(crate) struct Prose {
    /// What the reasoning says of it: the fact's name, or what is asked for.
    thought: String,
    answer: String,
    outside: bool,
}

const FATHOM: [(&str, &str); 2] = [
    ("data/fathom_en.toml", include_str!("../data/fathom_en.toml")),
    ("data/fathom_de.toml", include_str!("../data/fathom_de.toml")),
];
const OUTSIDE: [(&str, &str); 2] = [
    ("data/outside_en.toml", include_str!("../data/outside_en.toml")),
    ("data/outside_de.toml", include_str!("../data/outside_de.toml")),
];

/// Facts about fathom in one language.
pub(crate) fn fathom(lang: Lang) -> Result<Vec<Topic>, TasksError> {
    topics(FATHOM[lang as usize], lang, false)
}

/// Whether an answer is the one that questions outside the world get, in either language.
pub fn refuses(text: &str) -> bool {
    let said = plain(text);
    let is = |(_, data): &(&str, &str)| {
        let line = data.lines().find_map(|l| l.strip_prefix("answer = "));
        let sentence = plain(line.unwrap_or_default().trim_matches('"'));
        let core = sentence.split_once('.').map_or(sentence.clone(), |(first, _)| first.to_owned());
        !core.is_empty() && said.starts_with(&core)
    };
    OUTSIDE.iter().any(is)
}

/// Topics outside its world in one language.
pub(crate) fn outside(lang: Lang) -> Result<Vec<Topic>, TasksError> {
    topics(OUTSIDE[lang as usize], lang, true)
}

fn topics((path, text): (&'static str, &str), lang: Lang, outside: bool) -> Result<Vec<Topic>, TasksError> {
    let fault = |fault: String| TasksError::Data { file: path, fault };
    let file: File = toml_edit::de::from_str(text).map_err(|e| fault(e.to_string()))?;
    let topic = |entry: Entry| {
        let answer = entry.answer.or_else(|| file.answer.clone());
        let answer = answer.ok_or_else(|| fault(format!("topic `{}` has no answer", entry.name)))?;
        let thought = match outside {
            true => format!("{}: {}", entry.name, lang.pick("not one of my kinds", "keine meiner Arten")),
            false => format!("fathom: {}", entry.name),
        };
        let grammar = Grammar::parse(&entry.ask, lang)?;
        Ok(Topic { problem: Arc::new(Prose { thought, answer, outside }), grammar })
    };
    file.topic.into_iter().map(topic).collect()
}

impl Problem for Prose {
    fn key(&self) -> String {
        self.thought.clone()
    }

    /// Things that questions outside the world mention: numbers, years, words of all sorts.
    fn fill(&self, name: &str, lang: Lang, rng: &mut Rng, out: &mut String) {
        match name {
            "n" => put!(out, "{}", number(rng, 4)),
            "k" => put!(out, "{}", between(rng, 2, 9)),
            "year" => put!(out, "{}", between(rng, 1200, 2030)),
            "w" => put!(out, "{}", kinds::words::draw(rng, 12)),
            "W" => {
                let word = kinds::words::draw(rng, 10);
                put!(out, "{}{}", word[..1].to_uppercase(), &word[1..]);
            }
            "r" => {
                let words: Vec<String> = (0..between(rng, 1, 7)).map(|_| kinds::words::draw(rng, 9)).collect();
                put!(out, "{}", words.join(" "));
            }
            "place" => put!(out, "{}", pick(rng, PLACES[lang as usize])),
            "person" => put!(out, "{}", pick(rng, PEOPLE)),
            "thing" => put!(out, "{}", pick(rng, THINGS[lang as usize])),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        self.answer.clone()
    }

    fn solve(&self, _: Lang, steps: &mut Steps) {
        steps.line(&self.thought);
    }

    /// The sentence itself; for what lies outside, its first clause is enough.
    fn verify(&self, _: Lang, text: &str) -> bool {
        let (text, wanted) = (plain(text), plain(&self.answer));
        let core = wanted.split_once('.').map_or(wanted.as_str(), |(first, _)| first);
        if self.outside { text.starts_with(core) } else { text == wanted }
    }
}

#[rustfmt::skip]
const PLACES: [&[&str]; 2] = [
    &["France", "Germany", "Japan", "Brazil", "Egypt", "Canada", "Spain", "India", "Kenya", "Norway", "Berlin", "Paris", "London", "Rome",
      "Tokyo", "New York", "Vienna", "Madrid", "Moscow", "Sydney", "Africa", "Europe", "the moon", "Mars", "Italy", "China", "Peru", "Poland"],
    &["Frankreich", "Deutschland", "Japan", "Brasilien", "Ägypten", "Kanada", "Spanien", "Indien", "Kenia", "Norwegen", "Berlin", "Paris", "London", "Rom",
      "Tokio", "New York", "Wien", "Madrid", "Moskau", "Sydney", "Afrika", "Europa", "Hamburg", "München", "Italien", "China", "Peru", "Polen"],
];

#[rustfmt::skip]
const PEOPLE: &[&str] = &[
    "Einstein", "Goethe", "Mozart", "Newton", "Shakespeare", "Napoleon", "Cleopatra", "Darwin", "Beethoven", "Picasso", "Marie Curie", "Gandhi",
    "Lincoln", "Bach", "Kafka", "Da Vinci", "Galileo", "Euler", "Gauss", "Ada Lovelace", "Alan Turing", "Caesar", "Columbus", "Schiller",
];

#[rustfmt::skip]
const THINGS: [&[&str]; 2] = [
    &["a car", "love", "a black hole", "photosynthesis", "a dog", "the sun", "a tree", "gravity", "a computer", "water", "music", "a virus", "time", "money",
      "a volcano", "the internet", "a poem", "rain", "a star", "a phone", "the sea", "sleep", "a cat", "bread", "a horse", "happiness", "a robot", "a king"],
    &["ein Auto", "Liebe", "ein schwarzes Loch", "Photosynthese", "ein Hund", "die Sonne", "ein Baum", "die Schwerkraft", "ein Computer", "Wasser", "Musik", "ein Virus", "Zeit", "Geld",
      "ein Vulkan", "das Internet", "ein Gedicht", "Regen", "ein Stern", "ein Telefon", "das Meer", "Schlaf", "eine Katze", "Brot", "ein Pferd", "Glück", "ein Roboter", "ein König"],
];
