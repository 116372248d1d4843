//! Splitting generated text into reasoning and answer at `<think>` ... `</think>`, while it streams.
//!
//! Models differ in who writes the opening tag: R1's template ends the prompt in `<think>`, so the output holds only
//! the closing one; others open it themselves, or answer at once. At most one block at the beginning counts: tags
//! later in an answer are text about tags. Nothing is trimmed: all event texts plus the tags give the input
//! (but for white space before an opening tag).

use crate::hold::held_suffix;

/// The tag that opens reasoning.
pub const THINK_OPEN: &str = "<think>";
/// The tag that closes reasoning.
pub const THINK_CLOSE: &str = "</think>";

/// A stretch of classified output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningEvent<'a> {
    /// More reasoning.
    Reasoning(&'a str),
    /// More of the answer.
    Text(&'a str),
    /// A closing tag without an opening one: all text so far was reasoning.
    TextWasReasoning,
}

/// Whether `prompt` ends inside an open think tag, so that the model's first token is reasoning.
pub fn ends_in_open_think(prompt: &str) -> bool {
    prompt.trim_end().ends_with(THINK_OPEN)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space yet, outside a think block.
    Start,
    /// Nothing but white space yet, inside: the model may repeat the opening tag.
    StartInside,
    Inside,
    /// In text that a closing tag may still turn out to be reasoning.
    Undecided,
    /// After the closing tag.
    Answer,
}

/// Streaming parser; the result does not depend on how the text is cut into pieces.
#[derive(Debug, Clone)]
pub struct ReasoningParser {
    state: State,
    held: String,
}

impl ReasoningParser {
    /// A parser for the output after a prompt; `inside` as [`ends_in_open_think`] or [`Prompt::thinking`](crate::Prompt::thinking) say.
    pub fn new(inside: bool) -> Self {
        let state = if inside { State::StartInside } else { State::Start };
        Self { state, held: String::new() }
    }

    /// Whether the next text is reasoning, as far as known.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::StartInside | State::Inside)
    }

    /// Takes a piece of output and emits what is decided by now.
    pub fn push(&mut self, piece: &str, mut emit: impl FnMut(ReasoningEvent<'_>)) {
        self.held.push_str(piece);
        self.advance(false, &mut emit);
    }

    /// Ends the output: emits what was held back.
    pub fn finish(&mut self, mut emit: impl FnMut(ReasoningEvent<'_>)) {
        self.advance(true, &mut emit);
    }

    fn advance(&mut self, last: bool, emit: &mut dyn FnMut(ReasoningEvent<'_>)) {
        let mut text = std::mem::take(&mut self.held);
        let mut at = 0;
        loop {
            let rest = &text[at..];
            match self.state {
                State::Start | State::StartInside => {
                    let body = rest.trim_start();
                    if body.starts_with(THINK_OPEN) {
                        at += rest.len() - body.len() + THINK_OPEN.len();
                        self.state = State::Inside;
                    } else if !last && THINK_OPEN.starts_with(body) {
                        break;
                    } else {
                        self.state = if self.is_thinking() { State::Inside } else { State::Undecided };
                    }
                }
                State::Inside | State::Undecided => {
                    let inside = self.state == State::Inside;
                    let close = rest.find(THINK_CLOSE);
                    let held = if last { 0 } else { held_suffix(rest, THINK_CLOSE) };
                    let shown = &rest[..close.unwrap_or(rest.len() - held)];
                    if !shown.is_empty() {
                        emit(if inside { ReasoningEvent::Reasoning(shown) } else { ReasoningEvent::Text(shown) });
                    }
                    at += shown.len();
                    if close.is_none() {
                        break;
                    }
                    if !inside {
                        emit(ReasoningEvent::TextWasReasoning);
                    }
                    at += THINK_CLOSE.len();
                    self.state = State::Answer;
                }
                State::Answer => {
                    if !rest.is_empty() {
                        emit(ReasoningEvent::Text(rest));
                    }
                    at = text.len();
                    break;
                }
            }
        }
        text.drain(..at);
        self.held = text;
    }
}

/// Splits a whole output into reasoning (if there was any tag or the prompt opened one) and answer.
pub fn split_reasoning(output: &str, inside: bool) -> (Option<String>, String) {
    let (mut reasoning, mut answer) = (inside.then(String::new), String::new());
    let mut take = |event: ReasoningEvent<'_>| match event {
        ReasoningEvent::Reasoning(text) => reasoning.get_or_insert_default().push_str(text),
        ReasoningEvent::Text(text) => answer.push_str(text),
        ReasoningEvent::TextWasReasoning => reasoning.get_or_insert_default().push_str(&std::mem::take(&mut answer)),
    };
    let mut parser = ReasoningParser::new(inside);
    parser.push(output, &mut take);
    parser.finish(&mut take);
    (reasoning, answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(output: &str, inside: bool) -> (Option<String>, String) {
        split_reasoning(output, inside)
    }

    fn some(reasoning: &str, answer: &str) -> (Option<String>, String) {
        (Some(reasoning.into()), answer.into())
    }

    #[test]
    fn prompt_opened_the_block() {
        assert!(ends_in_open_think("<｜Assistant｜><think>\n"));
        assert!(!ends_in_open_think("<｜Assistant｜><think>\n\n</think>\n\n"));
        assert!(!ends_in_open_think("what is <think>?<｜Assistant｜>"));
        assert_eq!(split("Okay.\n</think>\n\n4", true), some("Okay.\n", "\n\n4"));
        assert_eq!(split("cut off by the limit", true), some("cut off by the limit", ""));
    }

    #[test]
    fn model_opens_the_block_itself() {
        assert_eq!(split("<think>a</think>b", false), some("a", "b"));
        assert_eq!(split("\n <think>\na", false), some("\na", ""));
        assert_eq!(split("<think>\na</think>b", true), some("\na", "b"), "repeated opening tag");
    }

    #[test]
    fn closing_tag_alone_makes_the_text_before_it_reasoning() {
        assert_eq!(split("a</think>b</think>c", false), some("a", "b</think>c"));
        assert_eq!(split("</think>b", true), some("", "b"));
    }

    #[test]
    fn no_thinking_at_all() {
        assert_eq!(split("The tag <think> opens.", false), (None, "The tag <think> opens.".into()));
        assert_eq!(split(" <thin", false), (None, " <thin".into()));
        assert_eq!(split("", false), (None, String::new()));
    }

    #[test]
    fn reasoning_flows_while_it_comes() {
        let mut parser = ReasoningParser::new(true);
        let mut seen = String::new();
        for (piece, so_far) in [("Let", "Let"), (" me </", "Let me "), ("thi", "Let me "), ("s", "Let me </this")] {
            parser.push(piece, |event| match event {
                ReasoningEvent::Reasoning(text) => seen.push_str(text),
                other => panic!("{other:?}"),
            });
            assert_eq!(seen, so_far);
        }
        assert!(parser.is_thinking());
    }

    proptest! {
        #[test]
        fn cutting_does_not_matter(
            parts in proptest::collection::vec(
                prop_oneof![Just("<think>"), Just("</think>"), Just("<"), Just("</th"), Just(" "), Just("\n"), Just("é"), Just("x")],
                0..8,
            ),
            inside: bool,
            seed: u64,
        ) {
            let text = parts.concat();
            let (mut reasoning, mut answer) = (inside.then(String::new), String::new());
            let mut take = |event: ReasoningEvent<'_>| match event {
                ReasoningEvent::Reasoning(text) => reasoning.get_or_insert_default().push_str(text),
                ReasoningEvent::Text(text) => answer.push_str(text),
                ReasoningEvent::TextWasReasoning => reasoning.get_or_insert_default().push_str(&std::mem::take(&mut answer)),
            };
            let mut parser = ReasoningParser::new(inside);
            let mut piece = String::new();
            for (index, c) in text.chars().enumerate() {
                piece.push(c);
                if seed >> (index % 64) & 1 == 1 {
                    parser.push(&std::mem::take(&mut piece), &mut take);
                }
            }
            parser.push(&piece, &mut take);
            parser.finish(&mut take);
            prop_assert_eq!((reasoning, answer), split_reasoning(&text, inside));
        }
    }
}
