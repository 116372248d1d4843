//! The words that a tokenizer for these texts should hold as one piece each.
//!
//! Text splits into words (with the space before them), single digits and single other characters.
//! Words of the phrasings become tokens; words that are operands stay out, so that a model sees their
//! letters as bytes.

use crate::kinds::words;
use crate::{Generator, Mix, Split, TasksError};
use std::collections::{BTreeMap, BTreeSet};

/// Samples that the words are counted in.
const SAMPLES: u64 = 60_000;

/// Fewest times that a word must have been met.
const FEWEST: usize = 4;

/// Splits text into words with at most one space before them, single digits, and single other characters.
pub fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut chars = rest.char_indices().peekable();
        let (_, first) = chars.next()?;
        let leads = first == ' ' && chars.peek().is_some_and(|(_, c)| c.is_alphabetic());
        let end = if leads || first.is_alphabetic() {
            chars.find(|(_, c)| !c.is_alphabetic()).map_or(rest.len(), |(at, _)| at)
        } else {
            first.len_utf8()
        };
        let piece;
        (piece, rest) = rest.split_at(end);
        Some(piece)
    })
}

/// The most frequent words of the training split in both languages, at most `max`, most frequent first.
///
/// # Errors
/// Those of [`Generator::new`].
pub fn word_list(max: usize) -> Result<Vec<String>, TasksError> {
    let generator = Generator::new(&Mix::default())?;
    let operands: BTreeSet<&str> = words::real().iter().copied().collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..SAMPLES {
        let sample = generator.sample(Split::Train, 0, index);
        for text in [&sample.question, &sample.completion()] {
            let words =
                pieces(text).filter(|p| p.trim_start().chars().nth(1).is_some() && p.ends_with(char::is_alphabetic));
            for word in words.filter(|w| !operands.contains(w.trim_start().to_lowercase().as_str())) {
                *counts.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
    let mut ranked: Vec<(usize, String)> =
        counts.into_iter().map(|(w, n)| (n, w)).filter(|(n, _)| *n >= FEWEST).collect();
    ranked.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(ranked.into_iter().take(max).map(|(_, w)| w).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits() {
        let text = "Was ist  12+3 für\n\"abc\"?";
        let wanted = ["Was", " ist", " ", " ", "1", "2", "+", "3", " für", "\n", "\"", "abc", "\"", "?"];
        assert_eq!(pieces(text).collect::<Vec<_>>(), wanted);
    }
}
