//! What people put around a question: greetings, labels, thanks, carelessness.
//!
//! Prefixes vary the position of every operand; case, end marks and typos vary the text. None of it
//! touches what a slot filled, so the problem stays exactly the one that is answered.

use crate::Lang;
use crate::grammar::{Phrase, between, chance, pick};
use fathom_core::rng::Rng;

#[rustfmt::skip]
const OPENERS: [&[&str]; 2] = [
    &["Hi", "Hello", "Hey", "Hi there", "Good morning", "Good evening", "Ok", "So", "Well", "Now", "Please", "Quick question",
      "Question", "Task", "Exercise", "Next", "One more", "Hi fathom", "Hello fathom", "Hey you", "Excuse me", "Sorry", "Hm", "Right"],
    &["Hallo", "Hi", "Hey", "Guten Tag", "Guten Morgen", "Guten Abend", "Ok", "Also", "Gut", "Nun", "Bitte", "Kurze Frage",
      "Frage", "Aufgabe", "Übung", "Weiter", "Noch eine", "Hallo fathom", "Hi fathom", "Moin", "Entschuldigung", "Sag mal", "Hm", "So"],
];

#[rustfmt::skip]
const CLOSERS: [&[&str]; 2] = [
    &["Thanks!", "Thank you.", "Please.", "Show your work.", "Think first.", "Just the result.", "It is urgent.", "Cheers"],
    &["Danke!", "Vielen Dank.", "Bitte.", "Mit Rechenweg.", "Denk erst nach.", "Nur das Ergebnis.", "Es eilt.", "Danke dir"],
];

/// Dresses a phrase as somebody in a hurry, or somebody polite, would type it.
pub(crate) fn dress(mut phrase: Phrase, lang: Lang, rng: &mut Rng) -> String {
    if chance(rng, 0.05) {
        misspell(&mut phrase, rng);
    }
    let opener = opener(lang, rng);
    if chance(rng, 0.15) {
        lower(&mut phrase, usize::MAX);
    } else if opener.ends_with(", ") || chance(rng, 0.05) {
        lower(&mut phrase, 1);
    }
    let mut text = opener + &phrase.text;
    let closed = text.ends_with(['?', '.']);
    if closed && chance(rng, 0.25) {
        text.pop();
    } else if closed && chance(rng, 0.06) {
        text.push_str(pick::<&str>(rng, &["?", "!", "..", "??"]));
    } else if chance(rng, 0.08) {
        text.push(' ');
        text.push_str(pick::<&str>(rng, CLOSERS[lang as usize]));
    }
    text
}

fn opener(lang: Lang, rng: &mut Rng) -> String {
    if !chance(rng, 0.3) {
        return String::new();
    }
    let mut words = pick(rng, OPENERS[lang as usize]).to_string();
    while chance(rng, 0.2) {
        words.push(' ');
        words.push_str(&pick(rng, OPENERS[lang as usize]).to_lowercase());
    }
    if chance(rng, 0.12) {
        words += &format!(" {}", between(rng, 1, 20));
    }
    words + pick::<&str>(rng, &[", ", ": ", "! ", ". "])
}

/// Lower-cases the first `limit` characters outside the slots.
fn lower(phrase: &mut Phrase, limit: usize) {
    let filled = |at: usize| phrase.filled.iter().any(|f| f.contains(&at));
    let same_width = |c: char| c.to_lowercase().next().filter(|l| l.len_utf8() == c.len_utf8());
    let low = |(n, (at, c)): (usize, (usize, char))| {
        if n < limit && !filled(at) { same_width(c).unwrap_or(c) } else { c }
    };
    phrase.text = phrase.text.char_indices().enumerate().map(low).collect();
}

/// Swaps, drops or doubles one letter in a word of the phrase's own.
fn misspell(phrase: &mut Phrase, rng: &mut Rng) {
    let bytes = phrase.text.as_bytes();
    let letters = |at: usize| bytes[at..at + 4].iter().all(u8::is_ascii_lowercase);
    let free = |at: usize| phrase.filled.iter().all(|f| at + 4 < f.start || at >= f.end);
    let places: Vec<usize> = (0..bytes.len().saturating_sub(4)).filter(|&at| letters(at) && free(at)).collect();
    if places.is_empty() {
        return;
    }
    let at = *pick(rng, &places) + 1;
    let two = &phrase.text[at..at + 2];
    let new = match rng.below(3) {
        0 => two.chars().rev().collect(),
        1 => two[..1].to_owned(),
        _ => format!("{}{two}", &two[..1]),
    };
    let grown = new.len() as isize - 2;
    phrase.text.replace_range(at..at + 2, &new);
    for range in phrase.filled.iter_mut().filter(|f| f.start > at) {
        *range = range.start.wrapping_add_signed(grown)..range.end.wrapping_add_signed(grown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::Grammar;

    #[test]
    fn slots_survive_every_dress() {
        let grammar = Grammar::parse("please find the Reverse of the Word {w} now, or later {w}", Lang::En).unwrap();
        let mut rng = Rng::new(3, 0);
        let mut texts = std::collections::BTreeSet::new();
        for _ in 0..4000 {
            let phrase = grammar.expand(&mut rng, &mut |_, _, out| *out += "QuiTeLong");
            let text = dress(phrase, Lang::De, &mut rng);
            assert_eq!(text.matches("QuiTeLong").count(), 2, "{text}");
            texts.insert(text);
        }
        assert!(texts.len() > 500, "{}", texts.len());
    }
}
