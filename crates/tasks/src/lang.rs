//! The two languages of the samples.

/// A language of questions, reasoning and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lang {
    /// English.
    En,
    /// German.
    De,
}

impl Lang {
    /// Both languages, in the order of every `[english, german]` pair in this crate.
    pub const ALL: [Lang; 2] = [Lang::En, Lang::De];

    /// `en` or `de`.
    pub fn code(self) -> &'static str {
        self.pick("en", "de")
    }

    /// The one of two that belongs to this language.
    pub fn pick<T>(self, english: T, german: T) -> T {
        match self {
            Lang::En => english,
            Lang::De => german,
        }
    }

    /// What stands before a computed answer.
    pub fn answer_mark(self) -> &'static str {
        self.pick("Answer: ", "Antwort: ")
    }
}
