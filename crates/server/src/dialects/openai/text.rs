//! Completions of plain text: `echo` with log-probabilities of the prompt (what lm-evaluation-harness needs), and `suffix`.
//!
//! Source: OpenAI's API reference (legacy completions); DeepSeek's FIM completion.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{error, usage};
use crate::answer::{Encode, respond, sse};
use crate::ask::{Ask, Choice, Heading, Input, Piece, Scored, Wish, total};
use crate::dialects::{body, chat};
use crate::fields::{Field, Fields, Kind, Role};
use crate::{App, Refusal};

/// Prompts in one request at most.
const PROMPTS: usize = 512;
/// Tokens generated where the request does not say (OpenAI's default).
const MAX_TOKENS: usize = 16;

/// Fields of `/v1/completions`.
pub(in crate::dialects) const TEXT: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("prompt", Kind::Any, Role::Required),
    Field("suffix", Kind::Text, Role::Used),
    Field("echo", Kind::Bool, Role::Used),
    Field("stream", Kind::Bool, Role::Used),
    Field("stream_options", Kind::Of(super::chat::STREAM_OPTIONS), Role::Used),
    Field("max_tokens", Kind::Int(0, 1 << 24), Role::Used),
    Field("n", Kind::Int(1, 1024), Role::Used),
    Field("stop", Kind::Texts(chat::STOPS), Role::Used),
    Field("seed", Kind::Int(i64::MIN, i64::MAX), Role::Used),
    Field("temperature", Kind::Number(0.0, 2.0), Role::Used),
    Field("top_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("presence_penalty", Kind::Number(-2.0, 2.0), Role::Used),
    Field("frequency_penalty", Kind::Number(-2.0, 2.0), Role::Used),
    Field("logit_bias", Kind::Object, Role::Used),
    Field("logprobs", Kind::Int(0, 20), Role::Used),
    Field("response_format", Kind::Of(super::chat::FORMAT), Role::Used),
    Field("user_id", Kind::Text, Role::Used),
    Field("top_k", Kind::Int(0, 1 << 24), Role::Used),
    Field("min_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("repetition_penalty", Kind::Number(0.01, 100.0), Role::Used),
    Field("ignore_eos", Kind::Bool, Role::Used),
    Field("user", Kind::Text, Role::Inert),
    Field("best_of", Kind::Any, Role::Refused(&["1"])),
];

/// What of a completion's wishes concerns its encoding.
pub(in crate::dialects) struct Style {
    usage: bool,
    /// The prompts, shown before the answers, as they were written; tokens are decoded.
    echo: Option<Vec<Option<String>>>,
    logprobs: bool,
}

pub(in crate::dialects) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let (ask, style) = parse(value)?;
    respond(&app, &caller, ask, |heading| TextEncoder { heading, style, shown: Vec::new() }).await
}

/// Reads a request.
pub(in crate::dialects) fn parse(value: Value) -> Result<(Ask, Style), Refusal> {
    let mut fields = Fields::read(TEXT, value, "")?;
    let stream = fields.bool("stream").unwrap_or(false);
    let options = super::chat::stream_options(&mut fields, stream)?;
    let echo = fields.bool("echo").unwrap_or(false);
    let logprobs = fields.count("logprobs");
    let mut inputs = prompts(&mut fields, "prompt")?;
    if let Some(after) = fields.take_text("suffix") {
        if echo {
            return fields.refuse("echo", "cannot be combined with `suffix`");
        }
        inputs = inputs
            .into_iter()
            .map(|input| match input {
                Input::Text(before) => Ok(Input::Gap { before, after: after.clone() }),
                _ => fields.refuse("suffix", "needs a prompt of text"),
            })
            .collect::<Result<_, _>>()?;
    }
    let written = |input: &Input| match input {
        Input::Text(text) => Some(text.clone()),
        _ => None,
    };
    let style = Style {
        usage: options.usage,
        echo: echo.then(|| inputs.iter().map(written).collect()),
        logprobs: logprobs.is_some(),
    };
    let mut wish = Wish {
        max_tokens: Some(fields.count("max_tokens").unwrap_or(MAX_TOKENS)),
        logit_bias: chat::logit_bias(&mut fields)?,
        stop: chat::stops(&fields, "stop")?,
        repetition_penalty: fields.number("repetition_penalty"),
        logprobs,
        // The prompt's tokens are needed to show it, their scores only if asked for.
        prompt_logprobs: echo.then(|| logprobs.unwrap_or(0)),
        ignore_end: fields.bool("ignore_eos").unwrap_or(false),
        tenant: fields.take_text("user_id").unwrap_or_default(),
        ..chat::sampling(&fields)
    };
    if let Some(format) = fields.take("response_format") {
        wish.format = super::chat::response_format(format, "response_format")?;
    }
    let ask = Ask {
        model: fields.take_text("model").unwrap_or_default(),
        n: fields.count("n").unwrap_or(1),
        stream,
        inputs,
        wish,
        inert: fields.inert,
    };
    Ok((ask, style))
}

/// A text, several texts, token ids, or several lists of token ids.
pub(in crate::dialects) fn prompts(fields: &mut Fields, name: &str) -> Result<Vec<Input>, Refusal> {
    let tokens = |list: &[Value]| -> Option<Input> {
        let ids = list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        ids.collect::<Option<Vec<u32>>>().filter(|ids| !ids.is_empty()).map(Input::Tokens)
    };
    let inputs = match fields.take(name) {
        Some(Value::String(text)) => Some(vec![Input::Text(text)]),
        Some(Value::Array(list)) if list.is_empty() || list.len() > PROMPTS && !list[0].is_number() => None,
        Some(Value::Array(list)) if list[0].is_number() => tokens(&list).map(|input| vec![input]),
        Some(Value::Array(list)) => {
            let each = list.into_iter().map(|entry| match entry {
                Value::String(text) => Some(Input::Text(text)),
                Value::Array(ids) => tokens(&ids),
                _ => None,
            });
            each.collect()
        }
        _ => None,
    };
    inputs.map_or_else(
        || fields.refuse(name, format!("must be a text, token ids, or a list of up to {PROMPTS} of either")),
        Ok,
    )
}

struct TextEncoder {
    heading: Heading,
    style: Style,
    /// Per choice: scored tokens that were sent, and the length of the text so far in characters.
    shown: Vec<(usize, usize)>,
}

/// The legacy shape of log-probabilities.
#[derive(Default)]
struct Scores {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
}

impl Scores {
    fn json(self) -> Value {
        json!({"tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.top,
            "text_offset": self.offsets})
    }
}

impl TextEncoder {
    fn head(&self) -> Map<String, Value> {
        let head = json!({
            "id": format!("cmpl-{}", self.heading.id),
            "object": "text_completion",
            "created": self.heading.created,
            "model": self.heading.model,
            "system_fingerprint": concat!("fathom-", env!("CARGO_PKG_VERSION")),
        });
        match head {
            Value::Object(head) => head,
            _ => Map::new(),
        }
    }

    /// Adds a token that stands at character `offset`; returns the offset behind it.
    fn score(&self, scores: &mut Scores, token: u32, scored: Option<&Scored>, offset: usize) -> usize {
        let text = self.heading.token_text(token);
        let length = if self.heading.chat.tokenizer().is_special(token) { 0 } else { text.chars().count() };
        let finite = |x: f32| json!(x.max(-9999.0));
        scores.tokens.push(text.into());
        scores.offsets.push(offset);
        scores.logprobs.push(scored.map_or(Value::Null, |s| finite(s.logprob)));
        scores.top.push(scored.map_or(Value::Null, |s| {
            let entry = |&(token, logprob): &(u32, f32)| (self.heading.token_text(token), finite(logprob));
            Value::Object(s.top.iter().map(entry).collect())
        }));
        offset + length
    }

    fn echoed(&self, index: usize, choice: &Choice) -> Option<String> {
        let written = &self.style.echo.as_ref()?[index / self.heading.n];
        let decoded = || self.heading.chat.tokenizer().decode_skipping_special(&choice.given);
        Some(written.clone().unwrap_or_else(decoded))
    }

    /// Scores of the prompt, if it is shown.
    fn prompt_scores(&self, choice: &Choice, scores: &mut Scores) -> usize {
        let mut offset = 0;
        if self.style.echo.is_some() {
            for (i, &token) in choice.given.iter().enumerate() {
                offset = self.score(scores, token, i.checked_sub(1).and_then(|i| choice.prompt.get(i)), offset);
            }
        }
        offset
    }
}

fn finish(choice: &Choice) -> &'static str {
    if choice.cut() { "length" } else { "stop" }
}

impl Encode for TextEncoder {
    fn whole(&mut self, choices: &[Choice]) -> Value {
        let entry = |(index, choice): (usize, &Choice)| {
            let text = self.echoed(index, choice).unwrap_or_default() + &choice.text;
            let logprobs = self.style.logprobs.then(|| {
                let mut scores = Scores::default();
                let mut offset = self.prompt_scores(choice, &mut scores);
                for scored in &choice.tokens[1] {
                    offset = self.score(&mut scores, scored.token, Some(scored), offset);
                }
                scores.json()
            });
            json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish(choice)})
        };
        let list: Vec<Value> = choices.iter().enumerate().map(entry).collect();
        let mut body = self.head();
        body.insert("choices".into(), list.into());
        body.insert("usage".into(), usage(&total(choices, self.heading.n)));
        Value::Object(body)
    }

    fn open(&mut self, _: &mut String) {}

    fn piece(&mut self, index: usize, piece: &Piece, so_far: &Choice, out: &mut String) {
        if self.shown.len() <= index {
            self.shown.resize(index + 1, (0, 0));
        }
        let done = matches!(piece, Piece::Done { .. });
        let mut text = match piece {
            Piece::Text(text) => text.clone(),
            Piece::Done { .. } => String::new(),
            _ => return,
        };
        let (mut sent, mut offset) = self.shown[index];
        let mut scores = Scores::default();
        // The prompt comes with the first piece: its scores are known by then.
        if sent == 0 && offset == 0 {
            text = self.echoed(index, so_far).unwrap_or_default() + &text;
            offset = self.prompt_scores(so_far, &mut scores);
        }
        for scored in &so_far.tokens[1][sent..] {
            offset = self.score(&mut scores, scored.token, Some(scored), offset);
        }
        sent = so_far.tokens[1].len();
        // Without scores the marker that the prompt was shown is the offset.
        self.shown[index] = (sent, offset.max(1));
        let logprobs = self.style.logprobs.then(|| scores.json());
        let reason = done.then(|| finish(so_far));
        let mut chunk = self.head();
        let choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason});
        chunk.insert("choices".into(), json!([choice]));
        if self.style.usage {
            chunk.insert("usage".into(), Value::Null);
        }
        sse(out, None, &Value::Object(chunk));
    }

    fn close(&mut self, choices: &[Choice], out: &mut String) {
        if self.style.usage {
            let mut chunk = self.head();
            chunk.insert("choices".into(), json!([]));
            chunk.insert("usage".into(), usage(&total(choices, self.heading.n)));
            sse(out, None, &Value::Object(chunk));
        }
        out.push_str("data: [DONE]\n\n");
    }

    fn broken(&mut self, refusal: &Refusal, out: &mut String) {
        sse(out, None, &error(refusal, "").1);
    }
}
