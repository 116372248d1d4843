//! Grammars that hold generated tokens to a shape: JSON, JSON Schema, regular expressions, Lark, tool calls.
//!
//! The matching is `llguidance`'s. A [`GrammarMaker`] is built once per tokenizer; it compiles a [`Shape`] to a [`Grammar`],
//! from which every answer starts a [`Guide`] of its own. Input is hostile: sizes, compilation and every step are bounded.

use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, panic_utils};
use serde_json::{Value, json};

use crate::error::{Result, TextError};
use crate::tokenizer::Tokenizer;
use crate::tools::{CallMarks, ToolForm};

/// Longest schema, expression or grammar in bytes.
const MAX_SOURCE: usize = 1 << 20;

/// White space that may stand between JSON's tokens: a space, or a line break with indentation. Unbounded white space would let
/// a model write nothing else.
const WHITESPACE: &str = r" |\n {0,32}";

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Any JSON object.
    Json,
    /// JSON that is valid under a schema.
    Schema(Value),
    /// A text that matches a regular expression as a whole.
    Regex(String),
    /// A text of a language in Lark's notation, from the rule `start`.
    Lark(String),
    /// Calls of tools, and perhaps other text.
    Calls(Calls),
}

/// Which calls an answer may or must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    /// How calls are written.
    pub form: ToolForm,
    /// Name and schema of the arguments, of every tool that may be called.
    pub tools: Vec<(String, Value)>,
    /// Whether there must be a call.
    pub required: bool,
    /// Whether there may be more than one.
    pub parallel: bool,
    /// What an answer without a call must look like; none = any text.
    pub otherwise: Option<Box<Shape>>,
}

/// Compiles grammars for one tokenizer.
pub struct GrammarMaker {
    factory: ParserFactory,
    tokenizer: Arc<Tokenizer>,
}

/// A compiled grammar.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

/// A grammar's state in one answer.
pub struct Guide {
    matcher: Matcher,
}

fn refused(reason: impl std::fmt::Display) -> TextError {
    // The library's reports continue with the grammar itself.
    let reason = reason.to_string();
    let first = reason.split("\nlark:").next().unwrap_or_default().trim();
    let mut first = first.replace('\n', " ");
    first.truncate(first.floor_char_boundary(500));
    TextError::Grammar { reason: first }
}

impl GrammarMaker {
    /// Prepares the tokens for matching; takes a second for large vocabularies.
    ///
    /// # Errors
    /// [`TextError::Grammar`] if the model has no token that ends an answer.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let marks: Vec<u32> = CallMarks::ALL.iter().filter_map(|mark| tokenizer.id_of(mark)).collect();
        let word = |id: u32| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            // Control tokens and the marks of calls match by id only, never as text.
            let special = tokenizer.is_special(id) || marks.contains(&id);
            if special && !bytes.is_empty() {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
            } else {
                bytes.to_vec()
            }
        };
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32).map(word).collect();
        let ends = tokenizer.end_tokens();
        let Some(&end) = ends.first() else {
            return Err(refused("the model has no token that ends an answer"));
        };
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words).with_eos_tokens(ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(refused)?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(GrammarMaker { factory, tokenizer })
    }

    /// Compiles a shape. `reasoned`: the answer may begin with the line breaks that follow reasoning.
    ///
    /// # Errors
    /// [`TextError::Grammar`] naming what is not understood or too large.
    pub fn compile(&self, shape: &Shape, reasoned: bool) -> Result<Grammar> {
        let lead = if reasoned { "LEAD? " } else { "" };
        let lead_rule = if reasoned { "LEAD: /\\n{1,2}/\n" } else { "" };
        let text = match shape {
            Shape::Json => format!("start: {lead}body\n{lead_rule}body: {}\n", json_rule(&json!({"type": "object"}))?),
            Shape::Schema(schema) => format!("start: {lead}body\n{lead_rule}body: {}\n", json_rule(schema)?),
            Shape::Regex(regex) => {
                // Between slashes, which must not end early.
                let escaped = escape_slashes(regex)?;
                format!("start: {lead}BODY\n{lead_rule}BODY: /{escaped}/\n")
            }
            Shape::Lark(text) => text.clone(),
            Shape::Calls(calls) => self.calls(calls, lead, lead_rule)?,
        };
        if text.len() > MAX_SOURCE {
            return Err(TextError::TooLarge { what: "grammar in bytes", found: text.len(), limit: MAX_SOURCE });
        }
        let grammar = TopLevelGrammar { grammars: vec![GrammarWithLexer::from_lark(text)], max_tokens: None };
        let parser = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let mut matcher = Matcher::new(Ok(parser.map_err(refused)?));
        // The first mask finds what compiling leaves open, such as a language without a word.
        let mask = matcher.compute_mask().map_err(refused)?;
        if mask.is_zero() {
            return Err(refused("no text fits it"));
        }
        matcher.reset().map_err(refused)?;
        Ok(Grammar { matcher })
    }

    /// Calls in Lark's notation.
    fn calls(&self, calls: &Calls, lead: &str, lead_rule: &str) -> Result<String> {
        let marks = calls.form.marks();
        let quoted = |text: &str| Value::from(text).to_string();
        let mark = |mark: &str| match self.tokenizer.id_of(mark) {
            Some(id) => format!("<[{id}]>"),
            None => quoted(mark),
        };
        if calls.tools.is_empty() {
            return Err(refused("there is no tool to call"));
        }
        let mut rules = String::new();
        let mut names = Vec::new();
        for (i, (name, schema)) in calls.tools.iter().enumerate() {
            let [before, after] = calls.form.around(name);
            let body = json_rule(schema)?;
            let part = |(text, is_mark): &(String, bool)| if *is_mark { mark(text) } else { quoted(text) };
            let parts = |list: &[(String, bool)]| list.iter().map(part).collect::<Vec<_>>().join(" ");
            rules += &format!("call_{i}: {} args_{i} {}\n", parts(&before), parts(&after));
            rules += &format!("args_{i}: {body}\n");
            names.push(format!("call_{i}"));
        }
        let one = format!("{} ({}) {}", mark(marks.begin), names.join(" | "), mark(marks.end));
        rules += &format!("call: {one}\n");
        let more = match (calls.parallel, marks.between) {
            (false, _) => String::new(),
            (true, "") => " call*".to_owned(),
            (true, between) => format!(" ({} call)*", quoted(between)),
        };
        let section = |mark_text: &str| if mark_text.is_empty() { String::new() } else { mark(mark_text) };
        rules += &format!("calls: {} call{more} {}\n", section(marks.open), section(marks.close));
        if calls.required {
            return Ok(format!("start: {lead}calls\n{lead_rule}{rules}"));
        }
        if let Some(shape) = &calls.otherwise {
            let body = match &**shape {
                Shape::Json => json_rule(&json!({"type": "object"}))?,
                Shape::Schema(schema) => json_rule(schema)?,
                Shape::Regex(regex) => format!("BODY\nBODY: /{}/", escape_slashes(regex)?),
                Shape::Lark(_) | Shape::Calls(_) => return Err(refused("a grammar cannot stand beside calls")),
            };
            return Ok(format!("start: {lead}(body | calls)\n{lead_rule}body: {body}\n{rules}"));
        }
        let first = if marks.open.is_empty() { marks.begin } else { marks.open };
        if self.tokenizer.id_of(first).is_none() {
            return Err(refused(format!(
                "`{first}` is no token of this model, so free text and calls cannot be told apart"
            )));
        }
        Ok(format!("start: TEXT? calls?\nTEXT: /(.|\\n)+/\n{rules}"))
    }
}

/// A JSON schema as a rule's body.
fn json_rule(schema: &Value) -> Result<String> {
    let mut schema = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(true) => serde_json::Map::new(),
        _ => return Err(refused("a schema is an object")),
    };
    narrow_formats(&mut schema);
    schema.remove("x-guidance");
    schema.insert("x-guidance".into(), json!({"whitespace_pattern": WHITESPACE}));
    Ok(format!("%json {}", Value::Object(schema)))
}

/// Years that validators know, and in their Februaries a 29th only every fourth year.
const DATE: &str = concat!(
    r"(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-(?:0[13-9]|1[0-2]|02-(?:[01][0-9]|2[0-8]))",
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)",
);
/// Anything but a leap second, which is valid at the end of few days only.
const NO_LEAP_SECOND: &str = r":[0-9]{2}:[0-5]";

/// The length of a host's name in characters, at most (RFC 1123, section 2.1, by RFC 1035's 255 octets on the wire).
const HOSTNAME: u64 = 253;

/// `date`, `time` and `date-time` of RFC 3339 and `hostname` are narrower than `llguidance` has them: patterns and lengths beside them say
/// what it leaves open.
fn narrow_formats(schema: &mut serde_json::Map<String, Value>) {
    let pattern = match schema.get("format").and_then(Value::as_str) {
        Some("date") => format!("^{DATE}"),
        Some("date-time") => format!("^{DATE}.*{NO_LEAP_SECOND}"),
        Some("time") => format!("^[0-9]{{2}}{NO_LEAP_SECOND}"),
        Some("hostname") => {
            let own = schema.get("maxLength").and_then(Value::as_u64);
            // What is no length is refused when it is compiled.
            if own.is_some_and(|own| own > HOSTNAME) || !schema.contains_key("maxLength") {
                schema.insert("maxLength".into(), HOSTNAME.into());
            }
            String::new()
        }
        _ => String::new(),
    };
    for (key, value) in schema.iter_mut() {
        match value {
            // These hold values, not schemas.
            _ if ["const", "enum", "default", "examples"].contains(&key.as_str()) => {}
            Value::Object(inner) => narrow_formats(inner),
            Value::Array(list) => list.iter_mut().filter_map(Value::as_object_mut).for_each(narrow_formats),
            _ => {}
        }
    }
    if !pattern.is_empty() {
        let own = schema.remove("pattern").map(|own| json!({"pattern": own}));
        schema.insert("pattern".into(), pattern.into());
        if let Some(own) = own {
            // What is no array here is refused when it is compiled.
            if let Value::Array(all) = schema.entry("allOf").or_insert_with(|| json!([])) {
                all.push(own);
            }
        }
    }
}

/// A regular expression as it stands between slashes.
fn escape_slashes(regex: &str) -> Result<String> {
    let mut out = String::with_capacity(regex.len() + 8);
    let mut escaped = false;
    for c in regex.chars() {
        match c {
            '\n' => out.push_str(if escaped { "n" } else { "\\n" }),
            '/' if !escaped => out.push_str("\\/"),
            c => out.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    if escaped {
        return Err(refused("the expression ends in a backslash"));
    }
    Ok(out)
}

impl Grammar {
    /// A state at the beginning of an answer.
    pub fn start(&self) -> Guide {
        Guide { matcher: self.matcher.deep_clone() }
    }
}

impl Guide {
    /// The tokens that may come next: bit `i % 32` of word `i / 32` for token `i`. Tokens beyond its length may not. An answer
    /// that may end here has the model's end tokens among them.
    ///
    /// # Errors
    /// [`TextError::Grammar`] when the step exceeds its bounds.
    pub fn mask(&mut self) -> Result<Vec<u32>> {
        Ok(self.matcher.compute_mask_or_eos().map_err(refused)?.as_slice().to_vec())
    }

    /// Takes the next token. Returns whether the answer is complete, so that nothing but its end can follow.
    ///
    /// # Errors
    /// [`TextError::Grammar`] if the token does not fit.
    pub fn take(&mut self, token: u32) -> Result<bool> {
        self.matcher.consume_token(token).map_err(refused)?;
        Ok(self.matcher.is_stopped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_and_line_breaks_are_escaped_once() {
        assert_eq!(escape_slashes("a/b").unwrap(), "a\\/b");
        assert_eq!(escape_slashes("a\\/b\\\\/").unwrap(), "a\\/b\\\\\\/");
        assert_eq!(escape_slashes("a\nb").unwrap(), "a\\nb");
        assert!(escape_slashes("a\\").is_err());
    }
}
