//! How often a letter occurs in a word.

use super::{Problem, no_slot, plain, put, words};
use crate::grammar::{chance, pick};
use crate::{Lang, steps::Steps};
use fathom_core::rng::Rng;
use std::sync::Arc;

#[derive(Debug)]
struct Count {
    letter: char,
    word: String,
}

pub(super) fn draw(rng: &mut Rng) -> Arc<dyn Problem> {
    let word = words::draw(rng, 12);
    let inside = *pick(rng, word.as_bytes()) as char;
    let letter = if chance(rng, 0.85) { inside } else { (b'a' + rng.below(26) as u8) as char };
    Arc::new(Count { letter, word })
}

impl Count {
    fn count(&self) -> usize {
        self.word.chars().filter(|c| *c == self.letter).count()
    }
}

impl Problem for Count {
    fn key(&self) -> String {
        format!("{} {}", self.letter, self.word)
    }

    fn fill(&self, name: &str, _: Lang, _: &mut Rng, out: &mut String) {
        match name {
            "c" => put!(out, "{}", self.letter),
            "w" => put!(out, "{}", self.word),
            _ => no_slot(name),
        }
    }

    fn answer(&self, _: Lang) -> String {
        self.count().to_string()
    }

    /// Every letter with a mark, `+` or `.` for match or none, and the count so far.
    fn solve(&self, _: Lang, steps: &mut Steps) {
        let mut line = format!("{}:", self.letter);
        let mut count = 0;
        for c in self.word.chars() {
            let found = c == self.letter;
            count += usize::from(found);
            line += &format!(" {c}{}{count}", if found { '+' } else { '.' });
        }
        steps.line(line);
    }

    fn verify(&self, lang: Lang, text: &str) -> bool {
        let text = ["times", "time", "mal"].iter().fold(plain(text), |t, word| t.replace(word, ""));
        text == self.answer(lang)
    }
}

pub(super) const PHRASINGS: &[[&str; 2]] = &[[
    "
    count (\"{c}\"|'{c}'|{c}) in (\"{w}\"|'{w}'|{w})[.]
    [please ](count|count up) the [letter |letters ](\"{c}\"|'{c}'|{c}|{c}s|{c}'s) in [the word ](\"{w}\"|'{w}'|{w}).
    <many> (times|of) the letter (\"{c}\"|'{c}'|{c}) in [the word ](\"{w}\"|{w})?
    <many> [letters |times ](\"{c}\"|'{c}'|{c}|{c}s|{c}'s) (are|are there|do you find|do you see) in [the word ](\"{w}\"|'{w}'|{w})?
    how (often|many times) (does|can) [the letter ](\"{c}\"|'{c}'|{c}) (appear|occur|come up|be found|be seen) in [the word ](\"{w}\"|'{w}'|{w})?
    how (often|many times) is [the letter |there a ](\"{c}\"|'{c}'|{c}) in [the word ](\"{w}\"|'{w}'|{w})?
    <many> (\"{c}\"|'{c}'|{c}|{c}s|{c}'s) does [the word ](\"{w}\"|'{w}'|{w}) (have|contain|hold)?
    [the word ](\"{w}\"|'{w}'|{w}): <many> (\"{c}\"|'{c}'|{c}|{c}s|{c}'s)[ are there| has it| in it]?
    (can|could|would) you [please ]count the [letter |letters ](\"{c}\"|{c}|{c}s) in [the word ](\"{w}\"|'{w}'|{w})?
    in [the word ](\"{w}\"|'{w}'|{w}), how often is [the letter |there a ](\"{c}\"|'{c}'|{c})?
    ",
    "
    zähle (\"{c}\"|'{c}'|{c}) in (\"{w}\"|'{w}'|{w})[.]
    [bitte ](zähle|zähl) (die Buchstaben|den Buchstaben|alle|die|jedes) (\"{c}\"|'{c}'|{c}) (in|im Wort) (\"{w}\"|'{w}'|{w}).
    <many> [Buchstaben |mal ](\"{c}\"|'{c}'|{c}|{c}s) (sind|gibt es|findest du|siehst du|stecken|stehen) (in|im Wort|in dem Wort) (\"{w}\"|'{w}'|{w})?
    wie oft (kommt|steht|erscheint) [der Buchstabe |ein ](\"{c}\"|'{c}'|{c}) (in|im Wort|in dem Wort) (\"{w}\"|'{w}'|{w})[ vor]?
    wie oft (ist|gibt es) [den Buchstaben |ein ](\"{c}\"|'{c}'|{c}) (in|im Wort) (\"{w}\"|'{w}'|{w})?
    <many> (\"{c}\"|'{c}'|{c}|{c}s) (hat|enthält) [das Wort ](\"{w}\"|'{w}'|{w})?
    [das Wort ](\"{w}\"|'{w}'|{w}): <many> (\"{c}\"|'{c}'|{c}|{c}s)[ sind das| hat es| sind darin]?
    (in|im Wort) (\"{w}\"|'{w}'|{w}), wie oft kommt [der Buchstabe |ein ](\"{c}\"|'{c}'|{c}) vor?
    ",
]];
