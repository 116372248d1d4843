//! Tool calls in generated text, parsed while it streams: DeepSeek's token form and the Hermes/Qwen form.
//!
//! DeepSeek R1 writes `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`, a line break and a fenced `json` block;
//! V3.1 writes `NAME<｜tool▁sep｜>JSON`. Both close with `<｜tool▁call▁end｜>`, and one parser reads both.
//! Hermes and Qwen write `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.
//! The exact text of every call is kept, so that a later prompt can repeat it byte for byte.

use crate::hold::{find_first, held_suffix};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A call that a model made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ToolCall {
    /// The caller's identifier, which the tool's answer refers to. Models write none; the server gives one.
    pub id: Option<String>,
    /// The function's name.
    pub name: String,
    /// The arguments: the JSON text as written.
    pub arguments: String,
}

/// How a model writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolForm {
    /// DeepSeek R1 and V3: arguments in a fenced block.
    R1,
    /// DeepSeek V3.1.
    V31,
    /// Hermes, Qwen.
    Hermes,
}

/// What the parser found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent<'a> {
    /// Text outside calls.
    Text(&'a str),
    /// A call and its exact text.
    Call {
        /// The call.
        call: ToolCall,
        /// Its text, tags included.
        raw: &'a str,
    },
    /// Something between call tags that is no call; nothing is guessed.
    Malformed {
        /// Its text, tags included.
        raw: &'a str,
        /// What is wrong with it.
        reason: String,
    },
}

const SECTION_BEGIN: &str = "<｜tool▁calls▁begin｜>";
const SECTION_END: &str = "<｜tool▁calls▁end｜>";
const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
const CALL_END: &str = "<｜tool▁call▁end｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const HERMES_BEGIN: &str = "<tool_call>";
const HERMES_END: &str = "</tool_call>";

impl ToolForm {
    /// The form whose tags a chat template uses, if any.
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains(CALL_BEGIN) {
            Some(if source.contains("```json") { Self::R1 } else { Self::V31 })
        } else if source.contains(HERMES_BEGIN) {
            Some(Self::Hermes)
        } else {
            None
        }
    }

    /// Tags that leave ordinary text: the call's own first.
    fn openers(self) -> &'static [&'static str] {
        match self {
            Self::R1 | Self::V31 => &[CALL_BEGIN, SECTION_BEGIN],
            Self::Hermes => &[HERMES_BEGIN],
        }
    }

    /// Tags that end a call: its own first; models also forget it before the next tag.
    fn closers(self) -> &'static [&'static str] {
        match self {
            Self::R1 | Self::V31 => &[CALL_END, SECTION_END, CALL_BEGIN],
            Self::Hermes => &[HERMES_END, HERMES_BEGIN],
        }
    }

    fn parse(self, body: &str) -> Result<ToolCall, String> {
        match self {
            Self::R1 | Self::V31 => parse_deepseek(body),
            Self::Hermes => parse_hermes(body),
        }
    }
}

/// The marks around calls, as a grammar needs them. An empty one is not written.
pub(crate) struct CallMarks {
    /// Before all calls.
    pub(crate) open: &'static str,
    /// Before a call.
    pub(crate) begin: &'static str,
    /// Behind a call.
    pub(crate) end: &'static str,
    /// Between two calls.
    pub(crate) between: &'static str,
    /// Behind all calls.
    pub(crate) close: &'static str,
}

impl CallMarks {
    /// Every mark of every form that may be a token of its own.
    pub(crate) const ALL: [&'static str; 7] =
        [SECTION_BEGIN, SECTION_END, CALL_BEGIN, CALL_END, SEPARATOR, HERMES_BEGIN, HERMES_END];
}

impl ToolForm {
    /// The marks around calls.
    pub(crate) fn marks(self) -> CallMarks {
        match self {
            Self::R1 | Self::V31 => CallMarks {
                open: SECTION_BEGIN,
                begin: CALL_BEGIN,
                end: CALL_END,
                between: if self == Self::R1 { "\n" } else { "" },
                close: SECTION_END,
            },
            Self::Hermes => CallMarks { open: "", begin: HERMES_BEGIN, end: HERMES_END, between: "\n", close: "" },
        }
    }

    /// What stands around the arguments of a call of `name` between its marks, before and behind; a part is a mark or text.
    pub(crate) fn around(self, name: &str) -> [Vec<(String, bool)>; 2] {
        let text = |text: &str| (text.to_owned(), false);
        let separator = (SEPARATOR.to_owned(), true);
        match self {
            Self::R1 => [vec![text("function"), separator, text(&format!("{name}\n```json\n"))], vec![text("\n```")]],
            Self::V31 => [vec![text(name), separator], vec![]],
            Self::Hermes => [vec![text(&format!("\n{{\"name\": \"{name}\", \"arguments\": "))], vec![text("}\n")]],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// In DeepSeek's section of calls, outside a call.
    Section,
    /// Behind a call's opening tag, which is held with it. Bytes known to hold no closing tag.
    Call {
        searched: usize,
    },
}

/// Streaming parser; the events' texts do not depend on how the output is cut into pieces.
#[derive(Debug, Clone)]
pub struct ToolParser {
    form: ToolForm,
    state: State,
    held: String,
}

impl ToolParser {
    /// A parser for one answer.
    pub fn new(form: ToolForm) -> Self {
        Self { form, state: State::Text, held: String::new() }
    }

    /// Takes a piece of output and emits what is decided by now.
    pub fn push(&mut self, piece: &str, mut emit: impl FnMut(ToolEvent<'_>)) {
        self.held.push_str(piece);
        self.advance(false, &mut emit);
    }

    /// Ends the output: text held back is emitted, a call without an end is malformed.
    pub fn finish(&mut self, mut emit: impl FnMut(ToolEvent<'_>)) {
        self.advance(true, &mut emit);
    }

    fn advance(&mut self, last: bool, emit: &mut dyn FnMut(ToolEvent<'_>)) {
        let mut text = std::mem::take(&mut self.held);
        let mut at = 0;
        loop {
            let rest = &text[at..];
            match self.state {
                State::Text => {
                    let openers = self.form.openers();
                    let found = find_first(rest, openers);
                    let held = openers.iter().map(|tag| held_suffix(rest, tag)).max().filter(|_| !last);
                    let shown = found.map_or(rest.len() - held.unwrap_or(0), |(start, _)| start);
                    if shown > 0 {
                        emit(ToolEvent::Text(&rest[..shown]));
                    }
                    at += shown;
                    match found {
                        Some((_, 0)) => self.state = State::Call { searched: 0 },
                        Some(_) => {
                            at += SECTION_BEGIN.len();
                            self.state = State::Section;
                        }
                        None => break,
                    }
                }
                State::Section => {
                    let body = rest.trim_start();
                    let skipped = rest.len() - body.len();
                    if body.starts_with(CALL_BEGIN) {
                        at += skipped;
                        self.state = State::Call { searched: 0 };
                    } else if body.starts_with(SECTION_END) {
                        at += skipped + SECTION_END.len();
                        self.state = State::Text;
                    } else if body.is_empty() && last {
                        at = text.len();
                        break;
                    } else if !last && (CALL_BEGIN.starts_with(body) || SECTION_END.starts_with(body)) {
                        break;
                    } else {
                        self.state = State::Text;
                    }
                }
                State::Call { searched } => {
                    let begin = self.form.openers()[0].len();
                    let closers = self.form.closers();
                    let from = rest.floor_char_boundary(begin.max(searched));
                    match find_first(&rest[from..], closers) {
                        Some((offset, which)) => {
                            let body_end = from + offset;
                            // A tag that is not the call's own stays, to be read next.
                            let raw_end = body_end + if which == 0 { closers[0].len() } else { 0 };
                            emit_call(self.form, &rest[begin..body_end], &rest[..raw_end], emit);
                            at += raw_end;
                            self.state = match self.form {
                                ToolForm::R1 | ToolForm::V31 => State::Section,
                                ToolForm::Hermes => State::Text,
                            };
                        }
                        None if last => {
                            let reason = "the answer ended inside the call".to_owned();
                            emit(ToolEvent::Malformed { raw: rest, reason });
                            at = text.len();
                            self.state = State::Text;
                            break;
                        }
                        None => {
                            let longest = closers.iter().map(|tag| tag.len()).max().unwrap_or(0);
                            self.state = State::Call { searched: rest.len().saturating_sub(longest) };
                            break;
                        }
                    }
                }
            }
        }
        text.drain(..at);
        self.held = text;
    }
}

fn emit_call(form: ToolForm, body: &str, raw: &str, emit: &mut dyn FnMut(ToolEvent<'_>)) {
    emit(match form.parse(body) {
        Ok(call) => ToolEvent::Call { call, raw },
        Err(reason) => ToolEvent::Malformed { raw, reason },
    });
}

fn parse_deepseek(body: &str) -> Result<ToolCall, String> {
    let (head, tail) = body.split_once(SEPARATOR).ok_or_else(|| format!("no `{SEPARATOR}` in the call"))?;
    // JSON has no bare line break inside strings, so a fence after one can only be R1's.
    let (name, arguments) = match tail.split_once("\n```") {
        Some((name, fenced)) => {
            let fenced = fenced.strip_prefix("json").unwrap_or(fenced);
            (name, fenced.trim_end().trim_end_matches("```"))
        }
        None => (head, tail),
    };
    call(name.trim(), arguments.trim())
}

#[derive(Deserialize)]
struct HermesCall<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

fn parse_hermes(body: &str) -> Result<ToolCall, String> {
    let parsed: HermesCall<'_> =
        serde_json::from_str(body).map_err(|error| format!("the call is no JSON object: {error}"))?;
    let arguments = parsed.arguments.map_or("{}", RawValue::get);
    // Some models quote the arguments once more.
    match serde_json::from_str::<String>(arguments) {
        Ok(quoted) => call(&parsed.name, &quoted),
        Err(_) => call(&parsed.name, arguments),
    }
}

fn call(name: &str, arguments: &str) -> Result<ToolCall, String> {
    if name.is_empty() {
        return Err("the call names no function".to_owned());
    }
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments)
        .map_err(|error| format!("the arguments are no JSON object: {error}"))?;
    Ok(ToolCall { id: None, name: name.to_owned(), arguments: arguments.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Events with owned text, adjacent texts joined.
    #[derive(Debug, PartialEq, Clone)]
    enum Got {
        Text(String),
        Call(String, String, String),
        Malformed(String),
    }

    fn parse(form: ToolForm, pieces: &[&str]) -> Vec<Got> {
        let mut got: Vec<Got> = Vec::new();
        let mut take = |event: ToolEvent<'_>| match (event, got.last_mut()) {
            (ToolEvent::Text(text), Some(Got::Text(before))) => before.push_str(text),
            (ToolEvent::Text(text), _) => got.push(Got::Text(text.into())),
            (ToolEvent::Call { call, raw }, _) => got.push(Got::Call(call.name, call.arguments, raw.into())),
            (ToolEvent::Malformed { raw, .. }, _) => got.push(Got::Malformed(raw.into())),
        };
        let mut parser = ToolParser::new(form);
        for piece in pieces {
            parser.push(piece, &mut take);
        }
        parser.finish(&mut take);
        got
    }

    fn call(name: &str, arguments: &str, raw: &str) -> Got {
        Got::Call(name.into(), arguments.into(), raw.into())
    }

    const R1_F: &str =
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": \"x\\n```\"}\n```<｜tool▁call▁end｜>";
    const R1_G: &str = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>";
    const V31_F: &str = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>";

    #[test]
    fn r1_form_with_two_calls_and_text_around() {
        let text = format!("Sure.<｜tool▁calls▁begin｜>{R1_F}\n{R1_G}<｜tool▁calls▁end｜>done");
        assert_eq!(
            parse(ToolForm::R1, &[&text]),
            [
                Got::Text("Sure.".into()),
                call("f", "{\"a\": \"x\\n```\"}", R1_F),
                call("g", "{}", R1_G),
                Got::Text("done".into()),
            ]
        );
    }

    #[test]
    fn r1_call_never_closed_by_a_section_end() {
        let text = format!("<｜tool▁calls▁begin｜>{R1_F}");
        assert_eq!(parse(ToolForm::R1, &[&text]), [call("f", "{\"a\": \"x\\n```\"}", R1_F)]);
    }

    #[test]
    fn v31_form_without_separators() {
        let text = format!("<｜tool▁calls▁begin｜>{V31_F}{V31_F}<｜tool▁calls▁end｜>");
        assert_eq!(parse(ToolForm::R1, &[&text]), [call("f", "{\"a\": 1}", V31_F), call("f", "{\"a\": 1}", V31_F)]);
    }

    #[test]
    fn a_forgotten_end_tag_ends_at_the_next_tag() {
        let open = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}";
        let text = format!("{open}{V31_F}{open}<｜tool▁calls▁end｜>.");
        assert_eq!(
            parse(ToolForm::R1, &[&text]),
            [call("f", "{}", open), call("f", "{\"a\": 1}", V31_F), call("f", "{}", open), Got::Text(".".into())]
        );
    }

    #[test]
    fn hermes_form_keeps_the_arguments_as_written() {
        let raw = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\":1,  \"a\": [1.50]}}\n</tool_call>";
        assert_eq!(
            parse(ToolForm::Hermes, &["x ", raw, "\n"]),
            [Got::Text("x ".into()), call("f", "{\"b\":1,  \"a\": [1.50]}", raw), Got::Text("\n".into()),]
        );
        let quoted = "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>";
        assert_eq!(parse(ToolForm::Hermes, &[quoted]), [call("f", "{\"a\": 1}", quoted)]);
        let bare = "<tool_call>{\"name\": \"f\"}</tool_call>";
        assert_eq!(parse(ToolForm::Hermes, &[bare]), [call("f", "{}", bare)]);
    }

    #[test]
    fn what_is_no_call_is_handed_back_whole() {
        for (form, raw) in [
            (ToolForm::R1, "<｜tool▁call▁begin｜>f {}<｜tool▁call▁end｜>"),
            (ToolForm::R1, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": <｜tool▁call▁end｜>"),
            (ToolForm::R1, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>[1]<｜tool▁call▁end｜>"),
            (ToolForm::R1, "<｜tool▁call▁begin｜><｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
            (ToolForm::R1, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"never"),
            (ToolForm::Hermes, "<tool_call>{\"arguments\": {}}</tool_call>"),
            (ToolForm::Hermes, "<tool_call>call f</tool_call>"),
            (ToolForm::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": 3}</tool_call>"),
        ] {
            assert_eq!(parse(form, &[raw]), [Got::Malformed(raw.into())]);
        }
    }

    #[test]
    fn the_form_is_read_off_the_template() {
        assert_eq!(ToolForm::of_template("..<｜tool▁call▁begin｜>.."), Some(ToolForm::V31));
        assert_eq!(ToolForm::of_template("..<｜tool▁call▁begin｜>..```json"), Some(ToolForm::R1));
        assert_eq!(ToolForm::of_template("..<tool_call>.."), Some(ToolForm::Hermes));
        assert_eq!(ToolForm::of_template("{{ messages }}"), None);
    }

    proptest! {
        #[test]
        fn cutting_does_not_matter(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just(SECTION_BEGIN), Just(SECTION_END), Just(CALL_BEGIN), Just(CALL_END), Just(SEPARATOR),
                    Just(V31_F), Just(R1_G), Just("{}"), Just("f"), Just("\n"), Just("é"), Just("<｜tool"),
                    Just(HERMES_BEGIN), Just(HERMES_END), Just("{\"name\": \"f\"}"),
                ],
                0..8,
            ),
            hermes: bool,
            seed: u64,
        ) {
            let form = if hermes { ToolForm::Hermes } else { ToolForm::R1 };
            let text = parts.concat();
            let mut pieces: Vec<String> = vec![String::new()];
            for (index, c) in text.chars().enumerate() {
                if seed >> (index % 64) & 1 == 1 {
                    pieces.push(String::new());
                }
                pieces.last_mut().unwrap().push(c);
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(parse(form, &pieces), parse(form, &[&text]));
        }
    }
}
