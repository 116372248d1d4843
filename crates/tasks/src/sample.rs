//! One sample: a question, worked reasoning, an answer, and where they come from; and its JSONL form.

use crate::{Lang, Problem, Split};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::sync::Arc;

/// One question with its worked solution.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Kind of problem.
    pub kind: &'static str,
    /// Language of all texts.
    pub lang: Lang,
    /// Which split it belongs to.
    pub split: Split,
    /// What the user says.
    pub question: String,
    /// What stands between the think tags, without them.
    pub reasoning: String,
    /// The one line after them: `Answer: 81`, or a sentence.
    pub answer: String,
    /// Generator, seed and index: enough to make this sample again.
    pub source: String,
    /// SPDX name of the licence.
    pub licence: &'static str,
    /// The phrasing with its slots open.
    pub template: String,
    /// The problem behind it, which verifies answers.
    pub problem: Arc<dyn Problem>,
}

impl Sample {
    /// Whether the answer is computed, and so stands behind `Answer: `.
    pub fn is_computed(&self) -> bool {
        self.answer.starts_with(self.lang.answer_mark())
    }

    /// Whether the question has no word (`29x3=`), so that nobody can tell its language.
    pub fn is_wordless(&self) -> bool {
        self.question.split(|c: char| !c.is_alphabetic()).all(|word| word.chars().count() < 2)
    }

    /// What the assistant says after the template's `<think>` and line end: reasoning, closing tag, answer.
    pub fn completion(&self) -> String {
        format!("{}\n</think>\n\n{}", self.reasoning, self.answer)
    }

    /// The sample as a chat: two messages, the assistant's with its reasoning in think tags, and the provenance.
    pub fn to_json(&self) -> Value {
        json!({
            "messages": [
                { "role": "user", "content": self.question },
                { "role": "assistant", "content": format!("<think>\n{}", self.completion()) },
            ],
            "kind": self.kind,
            "lang": self.lang.code(),
            "split": self.split.name(),
            "source": self.source,
            "licence": self.licence,
            "teacher": null,
        })
    }
}

/// Writes samples as JSONL: one chat a line.
///
/// # Errors
/// Those of the writer.
pub fn write_jsonl(samples: impl IntoIterator<Item = Sample>, mut out: impl Write) -> io::Result<()> {
    for sample in samples {
        serde_json::to_writer(&mut out, &sample.to_json())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
