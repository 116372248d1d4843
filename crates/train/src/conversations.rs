//! Conversations to learn from: chat-format JSONL, through the model's own template.
//!
//! A line is `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`. Every turn of the assistant is an
//! example: the prompt exactly as serving renders it, then the answer and the token that ends it, and only these count.
//! Lines that are wrong are all named, and nothing is learned before they are right; examples that are too long are left out
//! and counted, never cut.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use fathom_text::{
    ChatMessage, ChatTemplate, RenderOptions, Role, Specials, THINK_CLOSE, Thinking, Tokenizer, split_reasoning,
};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::trainer::Example;

/// Longest line in bytes.
const MAX_LINE: usize = 16 << 20;
/// Most faults that are kept with their words.
const KEPT: usize = 20;

/// What a file of conversations holds.
#[derive(Debug, Default)]
pub struct Conversations {
    /// To learn from, in the order of the file.
    pub examples: Vec<Example>,
    /// Lines with a conversation.
    pub lines: usize,
    /// Answers left out because prompt and answer together are too long: line, and tokens.
    pub too_long: Vec<(usize, usize)>,
    /// Keys beside `messages`, which have no effect, and in how many lines they are.
    pub unused: BTreeMap<String, usize>,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineFault {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// The text side of a model.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// Tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Template.
    pub template: &'a ChatTemplate,
}

#[derive(Deserialize)]
struct Line {
    messages: Vec<Message>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: String,
    /// Reasoning before the content; it may also stand in the content, between think tags.
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

impl Conversations {
    /// Reads a file. Examples have at most `max_tokens` tokens.
    ///
    /// # Errors
    /// If it cannot be read, if lines are wrong (all of them, the first twenty with their reasons), or if nothing is left to learn
    /// from.
    pub fn read(path: &Path, text: Text<'_>, max_tokens: usize) -> Result<Conversations> {
        let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
        let mut reader = BufReader::new(file);
        let mut all = Conversations::default();
        let (mut faults, mut wrong) = (Vec::new(), 0);
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let limit = MAX_LINE as u64 + 1;
            if reader.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(Error::io("read", path))? == 0 {
                break;
            }
            if bytes.len() > MAX_LINE {
                reader.skip_until(b'\n').map_err(Error::io("read", path))?;
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            all.lines += 1;
            if let Err(why) = all.take(line, &bytes, text, max_tokens) {
                wrong += 1;
                if faults.len() < KEPT {
                    faults.push(LineFault { line, why });
                }
            }
        }
        if wrong > 0 {
            return Err(Error::Lines { file: path.to_owned(), wrong, lines: all.lines, faults });
        }
        if all.examples.is_empty() {
            let why = match all.too_long.iter().map(|(_, tokens)| tokens).min() {
                Some(least) => format!(
                    "all {} answers are too long: with its prompt the shortest has {least} tokens, allowed are {max_tokens}",
                    all.too_long.len()
                ),
                None => "there is no conversation in it".to_owned(),
            };
            return Err(Error::Broken { file: path.to_owned(), why });
        }
        Ok(all)
    }

    /// Takes a line's answers; `Err`: what is wrong with it.
    fn take(
        &mut self,
        line: usize,
        bytes: &[u8],
        text: Text<'_>,
        max_tokens: usize,
    ) -> std::result::Result<(), String> {
        if bytes.len() > MAX_LINE {
            return Err(format!("more than {MAX_LINE} bytes"));
        }
        let parsed: Line = serde_json::from_slice(bytes).map_err(|e| {
            // There is one line; the place in it is what helps.
            let said = e.to_string();
            format!("{}, at character {}", said.split(" at line ").next().unwrap_or(&said), e.column())
        })?;
        let messages = messages(parsed.messages)?;
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            let example = example(&messages[..=i], text).map_err(|why| format!("message {}: {why}", i + 1))?;
            match example.tokens.len() {
                n if n > max_tokens => self.too_long.push((line, n)),
                _ => self.examples.push(example),
            }
        }
        parsed.rest.into_keys().for_each(|key| *self.unused.entry(key).or_default() += 1);
        Ok(())
    }
}

/// Checks a line's messages.
fn messages(given: Vec<Message>) -> std::result::Result<Vec<ChatMessage>, String> {
    let mut messages = Vec::new();
    for (i, m) in given.into_iter().enumerate() {
        let fault = |why: &str| Err(format!("message {}: {why}", i + 1));
        let role = match m.role.as_str() {
            "system" => Role::System,
            "developer" => Role::Developer,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return fault(&format!("role `{other}`; known are system, developer, user and assistant")),
        };
        if role == Role::Assistant && i == 0 {
            return fault("the assistant cannot have the first word");
        }
        if m.content.trim().is_empty() && role != Role::System {
            return fault(&format!("an empty turn of the {}", m.role));
        }
        if role != Role::Assistant && m.reasoning_content.is_some() {
            return fault("only the assistant reasons");
        }
        let (reasoning, content) = match (role, m.reasoning_content) {
            (Role::Assistant, None) => split_reasoning(&m.content, false),
            (_, reasoning) => (reasoning, m.content),
        };
        if content.trim().is_empty() && role == Role::Assistant {
            return fault("reasoning without an answer");
        }
        messages.push(ChatMessage { reasoning, ..ChatMessage::new(role, content) });
    }
    if !messages.iter().any(|m| m.role == Role::Assistant) {
        return Err("no turn of the assistant, so nothing to learn".to_owned());
    }
    Ok(messages)
}

/// The last turn as an example.
fn example(messages: &[ChatMessage], Text { tokenizer, template }: Text<'_>) -> std::result::Result<Example, String> {
    let (answer, before) = messages.split_last().expect("invariant: there is the assistant's turn");
    let content = answer.content.as_deref().unwrap_or_default();
    let thinking = match &answer.reasoning {
        Some(_) if !template.reasons() => return Err("it reasons, and this model's template knows no reasoning".into()),
        Some(_) => Thinking::On,
        None => Thinking::Default,
    };
    let said = |e: fathom_text::TextError| e.to_string();
    let prompt = template.render(before, &RenderOptions { thinking, ..RenderOptions::default() }).map_err(said)?;
    let mut tokens = tokenizer.encode_prompt(&prompt.text).map_err(said)?;
    let from = tokens.len();
    if prompt.thinking {
        // As the model itself goes from reasoning to the answer; without reasoning it closes the block at once.
        let reasoning = answer.reasoning.as_deref().unwrap_or_default().trim();
        tokens.extend(tokenizer.encode(reasoning, Specials::Plain).map_err(said)?);
        tokens.extend(tokenizer.encode(&format!("\n{THINK_CLOSE}\n\n"), Specials::Parse).map_err(said)?);
        tokens.extend(tokenizer.encode(content.trim(), Specials::Plain).map_err(said)?);
    } else {
        // The template knows best how an answer begins and ends, if its history goes on from its prompt.
        let history = RenderOptions { history_only: true, ..RenderOptions::default() };
        let whole = template.render(messages, &history).map_err(said)?.text;
        match whole.strip_prefix(&prompt.text).filter(|rest| rest.contains(content.trim())) {
            Some(rest) => tokens.extend(tokenizer.encode(rest, Specials::Parse).map_err(said)?),
            None => tokens.extend(tokenizer.encode(content.trim(), Specials::Plain).map_err(said)?),
        }
    }
    let ends = tokenizer.end_tokens();
    match (tokens[from..].iter().position(|t| ends.contains(t)), ends.first()) {
        (Some(at), _) => tokens.truncate(from + at + 1),
        (None, Some(end)) => tokens.push(*end),
        (None, None) => return Err("this model has no token that ends an answer".into()),
    }
    Ok(Example { tokens, from })
}
