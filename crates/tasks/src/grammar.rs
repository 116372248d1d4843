//! Phrasing grammars: many surface forms from a few lines of text.
//!
//! One line is one way to ask. Inside it `(a|b)` chooses, `[a]` may be left out, `{x}` is a slot that
//! the problem fills, `<rule>` stands for a shared rule (`RULES`), and `\(` is a plain bracket. An
//! expansion also yields its *template*: the text with the slots still open, case and punctuation removed.
//! Splits hash the template, so a phrasing is held out as a whole, whatever operands or greetings it gets.

use crate::{Lang, TasksError};
use fathom_core::rng::Rng;
use std::ops::Range;

/// Shared rules, `(name, [english, german])`. Leads come without their final mark: a line adds it.
#[rustfmt::skip]
const RULES: &[(&str, [&str; 2])] = &[
    // What is ... ? before a noun phrase (German: nominative feminine or neuter)
    ("is", ["(what is|what's|do you know|can you tell me|could you [please ]tell me|what would be)",
            "(was ist|wie lautet|kennst du|weißt du|wie groß ist|was wäre)"]),
    // What is ... ? before an expression
    ("eq", ["(what is|what's|how much is|what does|do you know what is|what do you get for|how much would be)",
            "(was ist|wie viel ist|wieviel ist|was ergibt|was macht|wie viel ergibt|was gibt|was kommt heraus bei)"]),
    // Imperative (German: before an accusative feminine or neuter)
    ("do", ["([please ](calculate|compute|work out|find|determine|give me|tell me)|i need|i want to know|i would like to know|let me know)",
            "((berechne|bestimme|ermittle|nenne mir|sag mir|gib mir)[ bitte]|bitte (berechne|bestimme|ermittle|nenne mir)|ich (brauche|suche|möchte)|finde)"]),
    // Polite question (German closes with <inf>)
    ("can", ["(can|could|would|will) you [please ](calculate|compute|work out|find|determine)",
             "(kannst|könntest|würdest) du[ mir][ bitte]"]),
    ("inf", ["", "(berechnen|ausrechnen|bestimmen|ermitteln|nennen|sagen)"]),
    // How many ...
    ("many", ["how many", "(wie viele|wieviele|wieviel|wie viel)"]),
];

/// One part of a line.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Slot(String),
    Choice(Vec<Seq>),
}

type Seq = Vec<Part>;

/// A set of ways to say one thing.
#[derive(Debug, Clone)]
pub struct Grammar {
    lines: Vec<Seq>,
}

/// One expansion of a grammar.
#[derive(Debug, Default, Clone)]
pub struct Phrase {
    /// The text, slots filled.
    pub text: String,
    /// Byte ranges of `text` that slots filled: no typo or change of case may touch them.
    pub filled: Vec<Range<usize>>,
    /// The text with slots open, lower case, without spaces and punctuation: the phrasing's identity.
    pub template: String,
}

impl Grammar {
    /// Reads a grammar in `lang`: one alternative a line, empty lines ignored.
    ///
    /// # Errors
    /// [`TasksError::Grammar`] for an open bracket, an unknown rule, or no line at all.
    pub fn parse(source: &str, lang: Lang) -> Result<Self, TasksError> {
        let lines = source.lines().map(str::trim).filter(|l| !l.is_empty());
        let lines = lines.map(|line| Parser { line, at: 0, lang }.line()).collect::<Result<Vec<_>, _>>()?;
        if lines.is_empty() {
            return Err(TasksError::Grammar { line: source.to_owned(), at: 0, fault: "no line".to_owned() });
        }
        Ok(Grammar { lines })
    }

    /// Expands by random choices; `fill` writes a slot's text.
    pub fn expand(&self, rng: &mut Rng, fill: &mut dyn FnMut(&str, &mut Rng, &mut String)) -> Phrase {
        let mut phrase = Phrase::default();
        let line: &Seq = pick(rng, &self.lines);
        phrase.push_seq(line, rng, fill);
        phrase.text.truncate(phrase.text.trim_end().len());
        phrase.capitalise();
        phrase
    }

    /// Number of choice paths (two paths may meet in one text).
    pub fn paths(&self) -> u64 {
        self.lines.iter().map(|l| paths(l)).sum()
    }

    /// Every slot name used, for tests that a problem can fill them.
    pub fn slots(&self) -> Vec<&str> {
        let mut names = vec![];
        self.lines.iter().for_each(|l| collect_slots(l, &mut names));
        names
    }
}

impl Phrase {
    fn push_seq(&mut self, seq: &[Part], rng: &mut Rng, fill: &mut dyn FnMut(&str, &mut Rng, &mut String)) {
        for part in seq {
            match part {
                Part::Text(text) => self.push_text(text),
                Part::Slot(name) => {
                    let start = self.text.len();
                    fill(name, rng, &mut self.text);
                    self.filled.push(start..self.text.len());
                    self.template.push('{');
                    self.template.push_str(name);
                    self.template.push('}');
                }
                Part::Choice(seqs) => {
                    let chosen: &Seq = pick(rng, seqs);
                    self.push_seq(chosen, rng, fill);
                }
            }
        }
    }

    /// Appends text, letting no two spaces meet, so that optional parts need no care.
    fn push_text(&mut self, text: &str) {
        let met = self.text.is_empty() || self.text.ends_with(' ');
        self.text.push_str(if met { text.trim_start_matches(' ') } else { text });
        let solid = text.chars().filter(|c| !c.is_whitespace() && !".,;:?!=\"'".contains(*c));
        self.template.extend(solid.flat_map(char::to_lowercase));
    }

    /// Gives every sentence its capital, unless a slot begins it.
    fn capitalise(&mut self) {
        let starts: Vec<usize> = self.text.match_indices(". ").map(|(at, mark)| at + mark.len()).collect();
        for at in [0].into_iter().chain(starts).filter(|at| !self.filled.iter().any(|f| f.contains(at))) {
            let Some(first) = self.text[at..].chars().next() else { continue };
            let upper: String = first.to_uppercase().collect();
            if upper.len() == first.len_utf8() {
                self.text.replace_range(at..at + upper.len(), &upper);
            }
        }
    }

    /// Whether the phrasing has no word of its own (`{a}+{b}`): such bare forms are never held out.
    pub fn is_bare(&self) -> bool {
        let mut inside = false;
        !self.template.chars().any(|c| {
            inside = (inside || c == '{') && c != '}';
            !inside && c.is_alphabetic()
        })
    }
}

struct Parser<'a> {
    line: &'a str,
    at: usize,
    lang: Lang,
}

impl Parser<'_> {
    fn line(mut self) -> Result<Seq, TasksError> {
        let seq = self.seq()?;
        if self.at < self.line.len() {
            return Err(self.fault("a bracket closes that was not opened, or a stray `|`"));
        }
        Ok(seq)
    }

    /// Reads parts up to the end or a `|`, `)` or `]` of the level above.
    fn seq(&mut self) -> Result<Seq, TasksError> {
        let mut seq = vec![];
        while let Some(c) = self.line[self.at..].chars().next() {
            match c {
                '|' | ')' | ']' => break,
                '(' => seq.push(Part::Choice(self.choice(')')?)),
                '[' => {
                    let mut seqs = self.choice(']')?;
                    seqs.push(vec![]);
                    seq.push(Part::Choice(seqs));
                }
                '{' => seq.push(Part::Slot(self.name('}')?)),
                '<' => {
                    let name = self.name('>')?;
                    let Some((_, texts)) = RULES.iter().find(|(n, _)| *n == name) else {
                        return Err(self.fault(&format!("no rule is called <{name}>")));
                    };
                    seq.extend(Parser { line: texts[self.lang as usize], at: 0, lang: self.lang }.line()?);
                }
                _ => {
                    self.at += usize::from(c == '\\');
                    let rest = &self.line[self.at..];
                    let first = rest.chars().next().map_or(0, char::len_utf8);
                    let end =
                        rest[first..].find(['|', '(', ')', '[', ']', '{', '<', '\\']).map_or(rest.len(), |e| e + first);
                    seq.push(Part::Text(self.spelled(&rest[..end])));
                    self.at += end;
                }
            }
        }
        Ok(seq)
    }

    /// In English the pronoun `i` becomes a capital, so that a line may be written in lower case.
    fn spelled(&self, text: &str) -> String {
        let pronoun = |w: &str| self.lang == Lang::En && w.trim_end_matches(['?', '.', ',']) == "i";
        let word = |w: &str| if pronoun(w) { w.to_uppercase() } else { w.to_owned() };
        text.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }

    fn choice(&mut self, close: char) -> Result<Vec<Seq>, TasksError> {
        self.at += 1;
        let mut seqs = vec![self.seq()?];
        while self.line[self.at..].starts_with('|') {
            self.at += 1;
            seqs.push(self.seq()?);
        }
        if !self.line[self.at..].starts_with(close) {
            return Err(self.fault(&format!("expected `{close}`")));
        }
        self.at += 1;
        Ok(seqs)
    }

    fn name(&mut self, close: char) -> Result<String, TasksError> {
        let rest = &self.line[self.at + 1..];
        let Some(end) = rest.find(close) else { return Err(self.fault(&format!("expected `{close}`"))) };
        self.at += end + 2;
        Ok(rest[..end].to_owned())
    }

    fn fault(&self, fault: &str) -> TasksError {
        TasksError::Grammar { line: self.line.to_owned(), at: self.at, fault: fault.to_owned() }
    }
}

fn paths(seq: &[Part]) -> u64 {
    let branches = |seqs: &Vec<Seq>| seqs.iter().map(|s| paths(s)).sum::<u64>();
    seq.iter().map(|p| if let Part::Choice(seqs) = p { branches(seqs) } else { 1 }).product()
}

fn collect_slots<'a>(seq: &'a [Part], names: &mut Vec<&'a str>) {
    for part in seq {
        match part {
            Part::Slot(name) => names.push(name),
            Part::Choice(seqs) => seqs.iter().for_each(|s| collect_slots(s, names)),
            Part::Text(_) => {}
        }
    }
}

/// One of `items`, uniformly.
pub fn pick<'a, T>(rng: &mut Rng, items: &'a [T]) -> &'a T {
    &items[rng.below(items.len() as u32) as usize]
}

/// An integer of `low..=high`, uniformly.
pub fn between(rng: &mut Rng, low: i64, high: i64) -> i64 {
    low + i64::from(rng.below((high - low + 1) as u32))
}

/// Whether an event of this probability happens.
pub fn chance(rng: &mut Rng, probability: f64) -> bool {
    rng.uniform() < probability
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(source: &str) -> std::collections::BTreeSet<String> {
        let grammar = Grammar::parse(source, Lang::En).unwrap();
        let mut rng = Rng::new(1, 0);
        let expand = |_| grammar.expand(&mut rng, &mut |name, _, out| *out += &name.to_uppercase()).text;
        (0..2000).map(expand).collect()
    }

    #[test]
    fn notation() {
        assert_eq!(all("[so ](add|sum) {a}[?]\n{a}+1").len(), 9);
        assert!(all("[so ](add|sum) {a}[?]").contains("So sum A?"));
        assert_eq!(all("{a} is {b}. who am i?"), ["A is B. Who am I?".to_owned()].into());
        assert_eq!(all("f\\(x\\)[y]"), ["F(x)", "F(x)y"].map(String::from).into());
        assert_eq!(all("a [b ][c ]d"), ["A d", "A b d", "A c d", "A b c d"].map(String::from).into());
    }

    #[test]
    fn template_forgets_slots_case_and_marks() {
        let grammar = Grammar::parse("what's {a} + {b}?", Lang::En).unwrap();
        let phrase = grammar.expand(&mut Rng::new(1, 0), &mut |_, _, out| *out += "17");
        assert_eq!((phrase.text.as_str(), phrase.template.as_str()), ("What's 17 + 17?", "whats{a}+{b}"));
        assert_eq!(phrase.filled.iter().map(|f| &phrase.text[f.clone()]).collect::<Vec<_>>(), ["17", "17"]);
        assert!(!phrase.is_bare());
        let bare = Grammar::parse("{a} + {b} = ?", Lang::En).unwrap();
        assert!(bare.expand(&mut Rng::new(1, 0), &mut |_, _, out| *out += "x").is_bare());
    }

    #[test]
    fn faults_have_a_place() {
        for bad in ["(a|b", "a)", "{a", "<nosuch>", "a|b", "", "[a)"] {
            assert!(matches!(Grammar::parse(bad, Lang::De), Err(TasksError::Grammar { .. })), "{bad}");
        }
    }
}
