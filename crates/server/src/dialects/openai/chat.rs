//! Chat completions, with the fields that DeepSeek and local servers add.
//!
//! Source: OpenAI's API reference; DeepSeek's API documentation for `reasoning_content`, `thinking` and `prefix`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use fathom_engine::Ending;
use fathom_text::{ChatMessage, Role as Speaker, THINK_CLOSE, Thinking};
use serde_json::{Map, Value, json};

use super::{error, usage};
use crate::answer::{Encode, respond, sse};
use crate::ask::{Ask, Chat, Choice, Format, Heading, Input, Piece, Scored, Sent, ToolChoice, Wish, total};
use crate::dialects::turn::Turn;
use crate::dialects::{body, chat};
use crate::fields::{Field, Fields, Kind, Role};
use crate::{App, Refusal};

/// Fields of `/v1/chat/completions`.
pub(in crate::dialects) const CHAT: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("messages", Kind::Each(chat::MESSAGES, MESSAGE), Role::Required),
    Field("stream", Kind::Bool, Role::Used),
    Field("stream_options", Kind::Of(STREAM_OPTIONS), Role::Used),
    Field("max_tokens", Kind::Int(1, 1 << 24), Role::Used),
    Field("max_completion_tokens", Kind::Int(1, 1 << 24), Role::Used),
    Field("n", Kind::Int(1, 1024), Role::Used),
    Field("stop", Kind::Texts(chat::STOPS), Role::Used),
    Field("seed", Kind::Int(i64::MIN, i64::MAX), Role::Used),
    Field("temperature", Kind::Number(0.0, 2.0), Role::Used),
    Field("top_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("presence_penalty", Kind::Number(-2.0, 2.0), Role::Used),
    Field("frequency_penalty", Kind::Number(-2.0, 2.0), Role::Used),
    Field("logit_bias", Kind::Object, Role::Used),
    Field("logprobs", Kind::Bool, Role::Used),
    Field("top_logprobs", Kind::Int(0, 20), Role::Used),
    Field("response_format", Kind::Of(FORMAT), Role::Used),
    Field("tools", Kind::Each(chat::TOOLS, TOOL), Role::Used),
    Field("tool_choice", Kind::Any, Role::Used),
    Field("parallel_tool_calls", Kind::Bool, Role::Used),
    Field("reasoning_effort", Kind::Word(EFFORTS), Role::Used),
    Field("service_tier", Kind::Word(&["auto", "default", "flex", "priority"]), Role::Used),
    // DeepSeek's.
    Field("thinking", Kind::Of(THINKING), Role::Used),
    Field("thinking_budget", Kind::Int(1, 1 << 24), Role::Used),
    Field("user_id", Kind::Text, Role::Used),
    // Local servers'.
    Field("top_k", Kind::Int(0, 1 << 24), Role::Used),
    Field("min_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("repetition_penalty", Kind::Number(0.01, 100.0), Role::Used),
    Field("ignore_eos", Kind::Bool, Role::Used),
    // Without effect on the answer.
    Field("user", Kind::Text, Role::Inert),
    Field("metadata", Kind::Object, Role::Inert),
    Field("store", Kind::Bool, Role::Inert),
    Field("safety_identifier", Kind::Text, Role::Inert),
    Field("prompt_cache_key", Kind::Text, Role::Inert),
    Field("prompt_cache_retention", Kind::Text, Role::Inert),
    Field("prediction", Kind::Object, Role::Inert),
    // With an effect that cannot be had.
    Field("modalities", Kind::Any, Role::Refused(&["[\"text\"]"])),
    Field("verbosity", Kind::Any, Role::Refused(&["\"medium\""])),
    Field("audio", Kind::Any, Role::Refused(&[])),
    Field("web_search_options", Kind::Any, Role::Refused(&[])),
    Field("functions", Kind::Any, Role::Refused(&["[]"])),
    Field("function_call", Kind::Any, Role::Refused(&["\"none\""])),
];

pub(in crate::dialects) const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"];

/// Reasoning tokens that little effort may spend. DeepSeek's API has three levels; here there are this one and no bound.
pub(in crate::dialects) const LITTLE_EFFORT: usize = 1024;

const MESSAGE: &[Field] = &[
    Field("role", Kind::Word(&["system", "developer", "user", "assistant", "tool"]), Role::Required),
    Field("content", Kind::Any, Role::Used),
    Field("name", Kind::Text, Role::Used),
    Field("tool_calls", Kind::Each(chat::TOOLS, CALL), Role::Used),
    Field("tool_call_id", Kind::Text, Role::Used),
    Field("reasoning_content", Kind::Text, Role::Used),
    Field("prefix", Kind::Bool, Role::Used),
    Field("annotations", Kind::Any, Role::Inert),
    Field("refusal", Kind::Any, Role::Refused(&[])),
    Field("audio", Kind::Any, Role::Refused(&[])),
    Field("function_call", Kind::Any, Role::Refused(&[])),
];

const TOOL: &[Field] = &[
    Field("type", Kind::Word(&["function"]), Role::Required),
    Field("function", Kind::Of(chat::FUNCTION), Role::Required),
];

const CALL: &[Field] = &[
    Field("id", Kind::Text, Role::Required),
    Field("type", Kind::Word(&["function"]), Role::Used),
    Field("index", Kind::Int(0, 1 << 20), Role::Inert),
    Field("function", Kind::Of(CALLED), Role::Required),
];

const CALLED: &[Field] = &[Field("name", Kind::Text, Role::Required), Field("arguments", Kind::Text, Role::Required)];

pub(super) const STREAM_OPTIONS: &[Field] =
    &[Field("include_usage", Kind::Bool, Role::Used), Field("include_obfuscation", Kind::Bool, Role::Inert)];

const THINKING: &[Field] = &[
    Field("type", Kind::Word(&["enabled", "disabled", "auto", "adaptive"]), Role::Required),
    Field("budget_tokens", Kind::Int(1, 1 << 24), Role::Used),
];

/// What of a chat's wishes concerns its encoding.
pub(in crate::dialects) struct Style {
    usage: bool,
    logprobs: bool,
}

pub(in crate::dialects) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let (ask, style) = parse_chat(value)?;
    respond(&app, &caller, ask, |heading| ChatEncoder::<false>::new(heading, style)).await
}

/// Reads a chat request.
pub(in crate::dialects) fn parse_chat(value: Value) -> Result<(Ask, Style), Refusal> {
    let mut fields = Fields::read(CHAT, value, "")?;
    let stream = fields.bool("stream").unwrap_or(false);
    let options = stream_options(&mut fields, stream)?;
    let logprobs = fields.bool("logprobs").unwrap_or(false);
    if fields.has("top_logprobs") && !logprobs {
        return fields.refuse("top_logprobs", "needs `logprobs`: true");
    }
    let mut wish = Wish {
        max_tokens: fields.count("max_completion_tokens").or(fields.count("max_tokens")),
        logit_bias: chat::logit_bias(&mut fields)?,
        stop: chat::stops(&fields, "stop")?,
        repetition_penalty: fields.number("repetition_penalty"),
        logprobs: logprobs.then(|| fields.count("top_logprobs").unwrap_or(0)),
        ignore_end: fields.bool("ignore_eos").unwrap_or(false),
        priority: chat::priority(&fields),
        tenant: fields.take_text("user_id").unwrap_or_default(),
        thinking_budget: fields.count("thinking_budget"),
        ..chat::sampling(&fields)
    };
    let thinking = thinking(&mut fields, &mut wish)?;
    if let Some(format) = fields.take("response_format") {
        wish.format = response_format(format, "response_format")?;
    }
    let (tools, strict) = tools(&mut fields)?;
    let choice = tool_choice(&mut fields, &tools)?;
    let mut pictures = Vec::new();
    let mut conversation = Chat {
        messages: messages(&mut fields, &mut wish, &mut pictures)?,
        pictures,
        tools,
        choice,
        parallel: fields.bool("parallel_tool_calls").unwrap_or(true),
        strict,
        thinking,
    };
    if !wish.lead.is_empty() && conversation.thinking == Thinking::Default {
        conversation.thinking = if wish.lead.contains(THINK_CLOSE) { Thinking::On } else { Thinking::Off };
    }
    let style = Style { usage: options.usage, logprobs };
    let ask = Ask {
        model: fields.take_text("model").unwrap_or_default(),
        n: fields.count("n").unwrap_or(1),
        stream,
        inputs: vec![Input::Chat(conversation)],
        wish,
        inert: fields.inert,
    };
    Ok((ask, style))
}

/// What a stream is to hold besides the answer.
pub(in crate::dialects) struct StreamOptions {
    pub(in crate::dialects) usage: bool,
}

pub(in crate::dialects) fn stream_options(fields: &mut Fields, stream: bool) -> Result<StreamOptions, Refusal> {
    let options = fields.object("stream_options", STREAM_OPTIONS)?;
    if options.is_some() && !stream {
        return fields.refuse("stream_options", "means something only with `stream`: true");
    }
    Ok(StreamOptions { usage: options.is_some_and(|o| o.bool("include_usage") == Some(true)) })
}

/// Thinking: OpenAI's effort and DeepSeek's switch.
fn thinking(fields: &mut Fields, wish: &mut Wish) -> Result<Thinking, Refusal> {
    let effort = fields.text("reasoning_effort").map(str::to_owned);
    let mut thinking = match effort.as_deref() {
        None => Thinking::Default,
        Some("none") => Thinking::Off,
        Some("minimal" | "low") => {
            wish.thinking_budget = wish.thinking_budget.or(Some(LITTLE_EFFORT));
            Thinking::On
        }
        Some(_) => Thinking::On,
    };
    if let Some(switch) = fields.object("thinking", THINKING)? {
        thinking = match switch.text("type") {
            Some("enabled") => Thinking::On,
            Some("disabled") => Thinking::Off,
            _ => thinking,
        };
        wish.thinking_budget = switch.count("budget_tokens").or(wish.thinking_budget);
    }
    if thinking == Thinking::Off
        && wish.thinking_budget.take().is_some()
        && !matches!(effort.as_deref(), Some("minimal" | "low"))
    {
        return fields.refuse("thinking_budget", "means nothing while thinking is off");
    }
    if thinking == Thinking::Default && wish.thinking_budget.is_some() {
        thinking = Thinking::On;
    }
    Ok(thinking)
}

const JSON_SCHEMA: &[Field] = &[
    Field("name", Kind::Text, Role::Required),
    Field("description", Kind::Text, Role::Inert),
    Field("schema", Kind::Object, Role::Used),
    Field("strict", Kind::Bool, Role::Used),
];

pub(super) const FORMAT: &[Field] = &[
    Field("type", Kind::Word(&["text", "json_object", "json_schema", "regex", "lark"]), Role::Required),
    Field("json_schema", Kind::Of(JSON_SCHEMA), Role::Used),
    Field("regex", Kind::Text, Role::Used),
    Field("lark", Kind::Text, Role::Used),
];

pub(in crate::dialects) fn response_format(value: Value, place: &str) -> Result<Format, Refusal> {
    let mut fields = Fields::read(FORMAT, value, place)?;
    let kind = fields.take_text("type").unwrap_or_default();
    let text = |fields: &mut Fields, name: &str| match fields.take_text(name) {
        Some(text) => Ok(text),
        None => fields.refuse(name, "is required by this type"),
    };
    let format = match kind.as_str() {
        "text" => Format::Free,
        "json_object" => Format::Json,
        "regex" => Format::Regex(text(&mut fields, "regex")?),
        "lark" => Format::Lark(text(&mut fields, "lark")?),
        _ => match fields.object("json_schema", JSON_SCHEMA)? {
            Some(mut inner) => inner.take("schema").map_or(Format::Json, Format::Schema),
            None => return fields.refuse("json_schema", "is required by this type"),
        },
    };
    for name in ["json_schema", "regex", "lark"] {
        if fields.has(name) {
            return fields.refuse(name, format!("does not belong to the type `{kind}`"));
        }
    }
    Ok(format)
}

/// Definitions, and whether one of them is strict.
fn tools(fields: &mut Fields) -> Result<(Vec<Value>, bool), Refusal> {
    let mut strict = false;
    let read = |(i, value)| {
        let place = format!("tools[{i}]");
        let mut tool = Fields::read(TOOL, value, &place)?;
        let function = tool.take("function").unwrap_or_default();
        strict |= function["strict"] == true;
        chat::tool(&format!("{place}.function"), function)
    };
    let tools = fields.list("tools").into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
    Ok((tools, strict))
}

const NAMED: &[Field] =
    &[Field("type", Kind::Word(&["function"]), Role::Required), Field("function", Kind::Object, Role::Required)];
const NAME: &[Field] = &[Field("name", Kind::Text, Role::Required)];

fn tool_choice(fields: &mut Fields, tools: &[Value]) -> Result<ToolChoice, Refusal> {
    match fields.take("tool_choice") {
        Some(Value::Object(named)) => {
            let mut named = Fields::read(NAMED, Value::Object(named), "tool_choice")?;
            let function = named.object("function", NAME)?;
            chat::named(function.and_then(|mut f| f.take_text("name")).unwrap_or_default(), tools)
        }
        other => chat::choice_word(other, tools),
    }
}

fn messages(fields: &mut Fields, wish: &mut Wish, pictures: &mut Vec<Sent>) -> Result<Vec<ChatMessage>, Refusal> {
    let list = fields.list("messages");
    let last = list.len().saturating_sub(1);
    let mut messages = Vec::with_capacity(list.len());
    for (i, value) in list.into_iter().enumerate() {
        let place = format!("messages[{i}]");
        let mut message = Fields::read(MESSAGE, value, &place)?;
        fields.inert.append(&mut message.inert);
        let role = match message.text("role") {
            Some("system" | "developer") => Speaker::System,
            Some("assistant") => Speaker::Assistant,
            Some("tool") => Speaker::Tool,
            _ => Speaker::User,
        };
        let content = content(&mut message, role, pictures)?;
        if content.is_none() && !(role == Speaker::Assistant && message.has("tool_calls")) {
            return message.refuse("content", "is required");
        }
        if message.bool("prefix") == Some(true) {
            if role != Speaker::Assistant || i != last {
                return message.refuse("prefix", "belongs to the last message, if that is the assistant's");
            }
            let text = content.unwrap_or_default();
            wish.lead = match message.take_text("reasoning_content") {
                Some(reasoning) => format!("{reasoning}\n{THINK_CLOSE}\n\n{text}"),
                None => text,
            };
            continue;
        }
        let mut turn = ChatMessage::new(role, content.unwrap_or_default());
        turn.name = message.take_text("name");
        for (name, only) in [
            ("tool_calls", Speaker::Assistant),
            ("reasoning_content", Speaker::Assistant),
            ("tool_call_id", Speaker::Tool),
        ] {
            if message.has(name) && role != only {
                return message.refuse(name, format!("belongs to messages of the role `{}`", only.as_str()));
            }
        }
        turn.reasoning = message.take_text("reasoning_content");
        turn.tool_call_id = message.take_text("tool_call_id");
        if role == Speaker::Tool && turn.tool_call_id.is_none() {
            return message.refuse("tool_call_id", "is required in a tool's message");
        }
        for (j, value) in message.list("tool_calls").into_iter().enumerate() {
            let place = format!("{place}.tool_calls[{j}]");
            let mut call = Fields::read(CALL, value, &place)?;
            let id = call.take_text("id");
            let Some(mut function) = call.object("function", CALLED)? else { continue };
            let (name, arguments) = (function.take_text("name"), function.take_text("arguments"));
            let place = format!("{place}.function");
            turn.tool_calls.push(chat::earlier_call(
                &place,
                id,
                name.unwrap_or_default(),
                arguments.unwrap_or_default(),
            )?);
        }
        messages.push(turn);
    }
    chat::check_turns(&messages)?;
    Ok(messages)
}

const PART: &[Field] = &[
    Field("type", Kind::Word(&["text", "image_url"]), Role::Required),
    Field("text", Kind::Text, Role::Used),
    Field("image_url", Kind::Object, Role::Used),
];

const PICTURE: &[Field] =
    &[Field("url", Kind::Text, Role::Required), Field("detail", Kind::Word(&["auto", "low", "high"]), Role::Inert)];

/// A text, or parts: texts, and in a user's or tool's message pictures.
fn content(message: &mut Fields, role: Speaker, pictures: &mut Vec<Sent>) -> Result<Option<String>, Refusal> {
    let place = message.path("content");
    match message.take("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let mut turn = Turn::default();
            for (i, part) in parts.into_iter().enumerate() {
                let mut part = Fields::read(PART, part, &format!("{place}[{i}]"))?;
                if part.text("type") == Some("image_url") {
                    if !matches!(role, Speaker::User | Speaker::Tool) {
                        return part.refuse("type", "pictures belong to messages of the roles `user` and `tool`");
                    }
                    match part.object("image_url", PICTURE)? {
                        Some(picture) => turn.show_url(picture.path("url"), picture.text("url").unwrap_or_default())?,
                        None => return part.refuse("image_url", "is required"),
                    }
                } else {
                    match part.take_text("text") {
                        Some(text) => turn.say(&text),
                        None => return part.refuse("text", "is required"),
                    }
                }
                message.inert.append(&mut part.inert);
            }
            Ok(Some(turn.close(pictures)?))
        }
        Some(_) => Err(Refusal::field(place, "must be a text or a list of parts")),
    }
}

/// Encodes chat completions; `PATIENT` as [`Encode::PATIENT`].
pub(in crate::dialects) struct ChatEncoder<const PATIENT: bool> {
    heading: Heading,
    style: Style,
    /// Scored tokens per choice that have been sent, of reasoning and answer.
    sent: Vec<[usize; 2]>,
}

/// Tokens with their log-probabilities, in the shape that several dialects share.
pub(in crate::dialects) fn scored(heading: &Heading, tokens: &[Scored]) -> Value {
    let one = |token: u32, logprob: f32| {
        json!({
            "token": heading.token_text(token),
            // JSON has no minus infinity.
            "logprob": logprob.max(-9999.0),
            "bytes": heading.token_bytes(token),
        })
    };
    let entry = |s: &Scored| {
        let mut entry = one(s.token, s.logprob);
        entry["top_logprobs"] = s.top.iter().map(|&(token, logprob)| one(token, logprob)).collect();
        entry
    };
    tokens.iter().map(entry).collect()
}

/// Finish reason in OpenAI's words.
fn finish(choice: &Choice) -> &'static str {
    match &choice.done {
        Some((Ending::Length, _)) => "length",
        _ if !choice.calls.is_empty() => "tool_calls",
        _ => "stop",
    }
}

impl<const PATIENT: bool> ChatEncoder<PATIENT> {
    pub(in crate::dialects) fn new(heading: Heading, style: Style) -> Self {
        ChatEncoder { heading, style, sent: Vec::new() }
    }

    fn head(&self, object: &str) -> Map<String, Value> {
        let head = json!({
            "id": format!("chatcmpl-{}", self.heading.id),
            "object": object,
            "created": self.heading.created,
            "model": self.heading.model,
            "system_fingerprint": concat!("fathom-", env!("CARGO_PKG_VERSION")),
        });
        match head {
            Value::Object(head) => head,
            _ => Map::new(),
        }
    }

    fn chunk(&self, choices: Value, out: &mut String) {
        let mut chunk = self.head("chat.completion.chunk");
        chunk.insert("choices".into(), choices);
        if self.style.usage {
            chunk.insert("usage".into(), Value::Null);
        }
        sse(out, None, &Value::Object(chunk));
    }

    fn logprobs(&self, [reasoning, answer]: [&[Scored]; 2]) -> Value {
        if !self.style.logprobs {
            return Value::Null;
        }
        let mut logprobs = json!({"content": scored(&self.heading, answer), "refusal": null});
        if !reasoning.is_empty() {
            logprobs["reasoning_content"] = scored(&self.heading, reasoning);
        }
        logprobs
    }
}

impl<const PATIENT: bool> Encode for ChatEncoder<PATIENT> {
    const PATIENT: bool = PATIENT;

    fn whole(&mut self, choices: &[Choice]) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let text = (!choice.text.is_empty() || choice.calls.is_empty()).then_some(&choice.text);
            let mut message = json!({"role": "assistant", "content": text, "refusal": null});
            if !choice.reasoning.is_empty() {
                message["reasoning_content"] = choice.reasoning.as_str().into();
            }
            if !choice.calls.is_empty() {
                let call = |c: &fathom_text::ToolCall| json!({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}});
                message["tool_calls"] = choice.calls.iter().map(call).collect();
            }
            let logprobs = self.logprobs([&choice.tokens[0], &choice.tokens[1]]);
            json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish(choice)})
        };
        let list: Vec<Value> = choices.iter().enumerate().map(choice).collect();
        let mut body = self.head("chat.completion");
        body.insert("choices".into(), list.into());
        body.insert("usage".into(), usage(&total(choices, self.heading.n)));
        Value::Object(body)
    }

    fn open(&mut self, _: &mut String) {}

    fn piece(&mut self, index: usize, piece: &Piece, so_far: &Choice, out: &mut String) {
        if self.sent.len() <= index {
            self.sent.resize(index + 1, [0; 2]);
        }
        let delta = match piece {
            Piece::Accepted { .. } => json!({"role": "assistant", "content": ""}),
            Piece::Reasoning(text) => json!({"reasoning_content": text}),
            Piece::Text(text) => json!({"content": text}),
            Piece::Call(call) => json!({"tool_calls": [{
                "index": so_far.calls.len() - 1, "id": call.id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }]}),
            Piece::Done { .. } => json!({}),
            Piece::Token(_)
            | Piece::Given(_)
            | Piece::Prompt(_)
            | Piece::Embedding(_)
            | Piece::TextWasReasoning
            | Piece::Failed(_) => return,
        };
        let [reasoning, answer] = &so_far.tokens;
        let sent = self.sent[index];
        let logprobs =
            self.logprobs([&reasoning[sent[0].min(reasoning.len())..], &answer[sent[1].min(answer.len())..]]);
        self.sent[index] = [reasoning.len(), answer.len()];
        let reason = matches!(piece, Piece::Done { .. }).then(|| finish(so_far));
        self.chunk(json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]), out);
    }

    fn close(&mut self, choices: &[Choice], out: &mut String) {
        if self.style.usage {
            let mut chunk = self.head("chat.completion.chunk");
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
