//! Words whose letters are counted or reversed: real ones of both languages and made-up ones.
//!
//! table: none of them may be a word of the phrasings, which the tokenizer holds as one piece.

use crate::grammar::{between, chance, pick};
use fathom_core::rng::Rng;

#[rustfmt::skip]
const REAL: &[&str] = &[
    "apple", "banana", "strawberry", "blueberry", "raspberry", "cherry", "orange", "lemon", "melon", "peach", "potato", "tomato", "carrot",
    "pepper", "onion", "garlic", "butter", "cheese", "bread", "coffee", "mississippi", "tennessee", "committee", "balloon", "bookkeeper",
    "parallel", "accommodate", "success", "assassin", "address", "occurrence", "necessary", "letters", "llama", "giraffe", "elephant",
    "rabbit", "squirrel", "kangaroo", "zebra", "penguin", "parrot", "falcon", "whale", "dolphin", "turtle", "lizard", "spider", "beetle",
    "garden", "window", "kitchen", "mirror", "pillow", "blanket", "ladder", "hammer", "bottle", "candle", "basket", "bucket", "pencil",
    "guitar", "violin", "piano", "trumpet", "rocket", "planet", "galaxy", "comet", "desert", "forest", "island", "valley", "canyon",
    "winter", "summer", "autumn", "river", "mountain", "harbor", "castle", "bridge", "temple", "market", "village", "street", "tunnel",
    "erdbeere", "himbeere", "brombeere", "kirsche", "birne", "zitrone", "kartoffel", "tomate", "karotte", "paprika", "zwiebel", "knoblauch",
    "kaffee", "schokolade", "pfannkuchen", "ananas", "banane", "marmelade", "semmel", "brezel", "butterbrot", "schifffahrt", "bettdecke",
    "hubschrauber", "eisenbahn", "fahrrad", "flugzeug", "rakete", "laterne", "fenster", "teppich", "kissen", "sessel", "schrank", "lampe",
    "hammer", "schraube", "nagel", "leiter", "eimer", "flasche", "kerze", "korb", "bleistift", "papier", "tinte", "gitarre", "geige",
    "klavier", "trompete", "trommel", "sonne", "planet", "komet", "insel", "gebirge", "wasserfall", "nebel", "gewitter", "schnee", "hagel",
    "sommer", "herbst", "brunnen", "marktplatz", "kirchturm", "rathaus", "garten", "wiese", "acker", "esel", "ziege", "hase", "eichhorn",
    "igel", "dachs", "otter", "adler", "falke", "spatz", "amsel", "meise", "drossel", "storch", "reiher", "ameise", "biene", "hummel", "libelle",
];

/// All real words.
pub(crate) fn real() -> &'static [&'static str] {
    REAL
}

/// A word of lower-case letters a to z, at most `longest` long: two in three are made up of syllables or letters.
pub(crate) fn draw(rng: &mut Rng, longest: usize) -> String {
    loop {
        let word = match rng.below(3) {
            0 => pick(rng, REAL).to_string(),
            1 => syllables(rng),
            _ => letters(rng),
        };
        if (3..=longest).contains(&word.len()) {
            return word;
        }
    }
}

fn syllables(rng: &mut Rng) -> String {
    let mut word = String::new();
    for _ in 0..between(rng, 2, 4) {
        let vowel = *pick(rng, b"aeiou") as char;
        word.push(*pick(rng, b"bcdfghjklmnprstvwz") as char);
        word.push(vowel);
        if chance(rng, 0.2) {
            word.push(vowel);
        }
        if chance(rng, 0.4) {
            let end = *pick(rng, b"lmnrst") as char;
            word.push(end);
            if chance(rng, 0.3) {
                word.push(end);
            }
        }
    }
    word
}

/// Random letters of a small alphabet, so that letters repeat.
fn letters(rng: &mut Rng) -> String {
    let alphabet: Vec<u8> = (0..between(rng, 2, 7)).map(|_| b'a' + rng.below(26) as u8).collect();
    (0..between(rng, 3, 9)).map(|_| *pick(rng, &alphabet) as char).collect()
}
