//! Anthropic's messages: content blocks, thinking, tools, streaming events, counting.
//!
//! Source: Anthropic's API reference. Where a request says nothing of thinking, the model does as its template has it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use fathom_engine::{Ending, Usage};
use fathom_text::{ChatMessage, Role as Speaker, Thinking};
use serde_json::{Value, json};

use super::openai::chat::LITTLE_EFFORT;
use super::turn::Turn;
use super::{Routes, body, chat, on};
use crate::answer::{self, Encode, respond, sse};
use crate::ask::{Ask, Chat, Choice, Format, Heading, Input, Piece, Sent, ToolChoice, Wish, total};
use crate::fields::{Field, Fields, Kind, Role};
use crate::{App, Refusal};

/// Whether a path is this dialect's own.
pub(super) fn owns(path: &str) -> bool {
    path.starts_with("/v1/messages") || path.starts_with("/anthropic/")
}

pub(super) fn routes() -> Routes {
    let routes = on(Routes::new(), &["/v1/messages", "/anthropic/v1/messages"], post(messages));
    on(routes, &["/v1/messages/count_tokens", "/anthropic/v1/messages/count_tokens"], post(count_tokens))
}

/// Fields of `/v1/messages`.
pub(super) const MESSAGES: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("messages", Kind::Each(chat::MESSAGES, MESSAGE), Role::Required),
    Field("max_tokens", Kind::Int(1, 1 << 24), Role::Used),
    Field("system", Kind::Any, Role::Used),
    Field("stop_sequences", Kind::Texts(chat::STOPS), Role::Used),
    Field("stream", Kind::Bool, Role::Used),
    Field("temperature", Kind::Number(0.0, 1.0), Role::Used),
    Field("top_k", Kind::Int(0, 1 << 24), Role::Used),
    Field("top_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("tools", Kind::Each(chat::TOOLS, TOOL), Role::Used),
    Field("tool_choice", Kind::Of(CHOICE), Role::Used),
    Field("thinking", Kind::Of(THINKING), Role::Used),
    Field("output_config", Kind::Of(OUTPUT), Role::Used),
    Field("metadata", Kind::Object, Role::Inert),
    Field("service_tier", Kind::Text, Role::Inert),
    Field("inference_geo", Kind::Any, Role::Inert),
    Field("cache_control", Kind::Any, Role::Inert),
    Field("container", Kind::Any, Role::Refused(&[])),
    Field("mcp_servers", Kind::Any, Role::Refused(&["[]"])),
    Field("context_management", Kind::Any, Role::Refused(&[])),
];

const MESSAGE: &[Field] = &[
    Field("role", Kind::Word(&["user", "assistant", "system"]), Role::Required),
    Field("content", Kind::Any, Role::Required),
];

const BLOCK: &[Field] = &[
    Field("type", Kind::Word(&["text", "image", "thinking", "tool_use", "tool_result"]), Role::Required),
    Field("text", Kind::Text, Role::Used),
    Field("source", Kind::Object, Role::Used),
    Field("thinking", Kind::Text, Role::Used),
    Field("signature", Kind::Text, Role::Inert),
    Field("id", Kind::Text, Role::Used),
    Field("name", Kind::Text, Role::Used),
    Field("input", Kind::Object, Role::Used),
    Field("tool_use_id", Kind::Text, Role::Used),
    Field("content", Kind::Any, Role::Used),
    Field("is_error", Kind::Bool, Role::Inert),
    Field("caller", Kind::Any, Role::Inert),
    Field("cache_control", Kind::Any, Role::Inert),
    Field("citations", Kind::Any, Role::Refused(&["[]"])),
];

const TOOL: &[Field] = &[
    Field("name", Kind::Text, Role::Required),
    Field("description", Kind::Text, Role::Used),
    Field("input_schema", Kind::Object, Role::Required),
    Field("strict", Kind::Bool, Role::Used),
    Field("type", Kind::Word(&["custom"]), Role::Used),
    Field("cache_control", Kind::Any, Role::Inert),
    Field("eager_input_streaming", Kind::Bool, Role::Inert),
];

const CHOICE: &[Field] = &[
    Field("type", Kind::Word(&["auto", "any", "tool", "none"]), Role::Required),
    Field("name", Kind::Text, Role::Used),
    Field("disable_parallel_tool_use", Kind::Bool, Role::Used),
];

const THINKING: &[Field] = &[
    Field("type", Kind::Word(&["enabled", "disabled", "adaptive"]), Role::Required),
    Field("budget_tokens", Kind::Int(1, 1 << 24), Role::Used),
    Field("display", Kind::Any, Role::Refused(&["\"summarized\"", "\"full\""])),
];

const OUTPUT: &[Field] = &[
    Field("effort", Kind::Word(&["low", "medium", "high", "xhigh", "max"]), Role::Used),
    Field("format", Kind::Of(OUTPUT_FORMAT), Role::Used),
];

const OUTPUT_FORMAT: &[Field] =
    &[Field("type", Kind::Word(&["json_schema"]), Role::Required), Field("schema", Kind::Object, Role::Required)];

async fn messages(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    if value.get("max_tokens").is_none() {
        return Err(Refusal::field("max_tokens", "is required"));
    }
    let ask = parse(value)?;
    respond(&app, &caller, ask, |heading| Messages { heading, block: None, index: 0 }).await
}

async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, _) = body(&app, request).await?;
    let tokens = answer::count(&app, parse(value)?).await?;
    Ok(answer::json(&json!({"input_tokens": tokens})))
}

/// Reads a request.
pub(super) fn parse(value: Value) -> Result<Ask, Refusal> {
    let mut fields = Fields::read(MESSAGES, value, "")?;
    let mut wish = Wish {
        max_tokens: fields.count("max_tokens"),
        stop: chat::stops(&fields, "stop_sequences")?,
        ..chat::sampling(&fields)
    };
    let mut thinking = Thinking::Default;
    if let Some(mut output) = fields.object("output_config", OUTPUT)? {
        if output.text("effort") == Some("low") {
            wish.thinking_budget = Some(LITTLE_EFFORT);
        }
        if let Some(mut format) = output.object("format", OUTPUT_FORMAT)? {
            wish.format = format.take("schema").map_or(Format::Json, Format::Schema);
        }
    }
    if let Some(switch) = fields.object("thinking", THINKING)? {
        thinking = match switch.text("type") {
            Some("disabled") => Thinking::Off,
            Some("enabled") => Thinking::On,
            _ => Thinking::Default,
        };
        wish.thinking_budget = switch.count("budget_tokens").or(wish.thinking_budget);
    }
    match thinking {
        Thinking::Off => wish.thinking_budget = None,
        _ if wish.thinking_budget.is_some() => thinking = Thinking::On,
        _ => {}
    }
    let (mut tools, mut strict) = (Vec::new(), false);
    for (i, value) in fields.list("tools").into_iter().enumerate() {
        let place = format!("tools[{i}]");
        if let Some(kind) = value["type"].as_str().filter(|kind| *kind != "custom") {
            return Err(Refusal::field(place, format!("`{kind}` runs on Anthropic's servers; there is none here")));
        }
        let mut tool = Fields::read(TOOL, value, &place)?;
        fields.inert.append(&mut tool.inert);
        strict |= tool.bool("strict") == Some(true);
        let mut function = json!({"name": tool.take("name"), "parameters": tool.take("input_schema")});
        if let Some(description) = tool.take("description") {
            function["description"] = description;
        }
        tools.push(chat::tool(&place, function)?);
    }
    let (mut choice, mut parallel) = (ToolChoice::Auto, true);
    if let Some(mut wanted) = fields.object("tool_choice", CHOICE)? {
        parallel = wanted.bool("disable_parallel_tool_use") != Some(true);
        choice = match wanted.text("type") {
            Some("none") => ToolChoice::None,
            Some("any") => chat::choice_word(Some("required".into()), &tools)?,
            Some("tool") => chat::named(wanted.take_text("name").unwrap_or_default(), &tools)?,
            _ => ToolChoice::Auto,
        };
    }
    let mut pictures = Vec::new();
    let messages = conversation(&mut fields, &mut wish, &mut pictures)?;
    if !wish.lead.is_empty() {
        if thinking == Thinking::On {
            return fields.refuse("thinking", "cannot be on when the last message begins the answer");
        }
        thinking = Thinking::Off;
    }
    let chat = Chat { messages, tools, choice, parallel, strict, thinking, pictures };
    Ok(Ask {
        model: fields.take_text("model").unwrap_or_default(),
        inputs: vec![Input::Chat(chat)],
        wish,
        n: 1,
        stream: fields.bool("stream").unwrap_or(false),
        inert: fields.inert,
    })
}

/// The turns. An answer that the last one begins goes to `wish.lead`.
fn conversation(fields: &mut Fields, wish: &mut Wish, pictures: &mut Vec<Sent>) -> Result<Vec<ChatMessage>, Refusal> {
    let mut turns = Vec::new();
    if let Some(system) = fields.take("system") {
        turns.push(ChatMessage::new(Speaker::System, texts(system, "system", &mut fields.inert, None)?));
    }
    for (i, value) in fields.list("messages").into_iter().enumerate() {
        let place = format!("messages[{i}]");
        let mut message = Fields::read(MESSAGE, value, &place)?;
        let role = match message.text("role") {
            Some("assistant") => Speaker::Assistant,
            Some("system") => Speaker::System,
            _ => Speaker::User,
        };
        let place = format!("{place}.content");
        let blocks = match message.take("content") {
            Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
            Some(Value::Array(blocks)) => blocks,
            _ => return Err(Refusal::field(place, "must be a text or a list of blocks")),
        };
        let mut turn = ChatMessage::new(role, "");
        let mut said = Turn::default();
        let mut answered = false;
        for (j, value) in blocks.into_iter().enumerate() {
            let place = format!("{place}[{j}]");
            if let Some(kind @ ("document" | "redacted_thinking")) = value["type"].as_str() {
                return Err(Refusal::field(place, format!("this model takes no `{kind}`")));
            }
            let mut block = Fields::read(BLOCK, value, &place)?;
            fields.inert.append(&mut block.inert);
            let need = |block: &mut Fields, name: &str| match block.take_text(name) {
                Some(text) => Ok(text),
                None => block.refuse(name, "is required"),
            };
            match (block.take_text("type").as_deref(), role) {
                (Some("text"), _) => said.say(&need(&mut block, "text")?),
                (Some("image"), Speaker::User) => picture(&mut block, &mut said)?,
                (Some("thinking"), Speaker::Assistant) => {
                    turn.reasoning.get_or_insert_default().push_str(&need(&mut block, "thinking")?);
                }
                (Some("tool_use"), Speaker::Assistant) => {
                    let input = block.take("input").unwrap_or_else(|| json!({})).to_string();
                    let (id, name) = (need(&mut block, "id")?, need(&mut block, "name")?);
                    turn.tool_calls.push(chat::earlier_call(&place, Some(id), name, input)?);
                }
                (Some("tool_result"), Speaker::User) => {
                    let content = block.take("content").unwrap_or_else(|| "".into());
                    let text = texts(content, &format!("{place}.content"), &mut fields.inert, Some(pictures))?;
                    let mut result = ChatMessage::new(Speaker::Tool, text);
                    result.tool_call_id = Some(need(&mut block, "tool_use_id")?);
                    turns.push(result);
                    answered = true;
                }
                (kind, _) => {
                    let why = format!("a `{}` does not belong to this role", kind.unwrap_or_default());
                    return Err(Refusal::field(place, why));
                }
            }
        }
        let said = said.close(pictures)?;
        if said.is_empty() && answered {
            continue;
        }
        turn.content = Some(said);
        turns.push(turn);
    }
    // A last turn of the assistant's is the beginning of the answer.
    if let Some(last) = turns.last()
        && last.role == Speaker::Assistant
        && last.tool_calls.is_empty()
    {
        wish.lead = last.content.clone().unwrap_or_default().trim_end().to_owned();
        turns.pop();
    }
    chat::check_turns(&turns)?;
    Ok(turns)
}

const SOURCE: &[Field] = &[
    Field("type", Kind::Word(&["base64", "url", "file"]), Role::Required),
    Field("media_type", Kind::Text, Role::Inert),
    Field("data", Kind::Text, Role::Used),
    Field("url", Kind::Text, Role::Used),
    Field("file_id", Kind::Any, Role::Refused(&[])),
];

/// The picture of an `image` block. Its kind is told by its content, not by `media_type`.
fn picture(block: &mut Fields, said: &mut Turn) -> Result<(), Refusal> {
    let Some(source) = block.object("source", SOURCE)? else { return block.refuse("source", "is required") };
    match (source.text("type"), source.text("data"), source.text("url")) {
        (Some("base64"), Some(data), _) => said.show_base64(source.path("data"), data),
        (Some("url"), _, Some(url)) => said.show_url(source.path("url"), url),
        _ => source.refuse("type", "is `base64` with `data`, or `url` with a `data:` URL"),
    }
}

const TEXT: &[Field] = &[
    Field("type", Kind::Word(&["text", "image"]), Role::Required),
    Field("text", Kind::Text, Role::Used),
    Field("source", Kind::Object, Role::Used),
    Field("cache_control", Kind::Any, Role::Inert),
    Field("citations", Kind::Any, Role::Refused(&["[]"])),
];

/// A text, or blocks that are all text.
fn texts(
    value: Value,
    place: &str,
    inert: &mut Vec<String>,
    pictures: Option<&mut Vec<Sent>>,
) -> Result<String, Refusal> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(blocks) => {
            let (mut all, mut begun) = (Turn::default(), false);
            for (i, block) in blocks.into_iter().enumerate() {
                let mut block = Fields::read(TEXT, block, &format!("{place}[{i}]"))?;
                if block.text("type") == Some("image") {
                    if pictures.is_none() {
                        return block.refuse("type", "pictures do not belong here");
                    }
                    picture(&mut block, &mut all)?;
                } else {
                    let Some(text) = block.text("text") else { return block.refuse("text", "is required") };
                    // Texts are lines of their own.
                    all.say(if std::mem::replace(&mut begun, true) { "\n" } else { "" });
                    all.say(text);
                }
                inert.append(&mut block.inert);
            }
            all.close(pictures.unwrap_or(&mut Vec::new()))
        }
        _ => Err(Refusal::field(place, "must be a text or a list of text blocks")),
    }
}

/// What the block under way holds.
#[derive(Clone, Copy, PartialEq)]
enum Block {
    Thinking,
    Text,
}

struct Messages {
    heading: Heading,
    block: Option<Block>,
    index: usize,
}

/// Anthropic counts what the cache held apart.
fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    })
}

fn stop_reason(choice: &Choice) -> (&'static str, Option<&str>) {
    match &choice.done {
        Some((Ending::Length, _)) => ("max_tokens", None),
        Some((Ending::StopString(text), _)) => ("stop_sequence", Some(text)),
        _ if !choice.calls.is_empty() => ("tool_use", None),
        _ => ("end_turn", None),
    }
}

/// A call's arguments as an object; the engine has checked that they are one.
fn input(arguments: &str) -> Value {
    serde_json::from_str(arguments).unwrap_or_else(|_| json!({}))
}

impl Messages {
    fn message(&self, content: Value, reason: Value, sequence: Value, counts: &Usage) -> Value {
        json!({
            "id": format!("msg_{}", self.heading.id), "type": "message", "role": "assistant",
            "model": self.heading.model, "content": content, "stop_reason": reason, "stop_sequence": sequence,
            "usage": usage(counts),
        })
    }

    fn event(&self, kind: &str, mut data: Value, out: &mut String) {
        data["type"] = kind.into();
        sse(out, Some(kind), &data);
    }

    fn stop_block(&mut self, out: &mut String) {
        let Some(block) = self.block.take() else { return };
        if block == Block::Thinking {
            let delta = json!({"type": "signature_delta", "signature": ""});
            self.event("content_block_delta", json!({"index": self.index, "delta": delta}), out);
        }
        self.event("content_block_stop", json!({"index": self.index}), out);
        self.index += 1;
    }

    fn within(&mut self, block: Block, out: &mut String) {
        if self.block == Some(block) {
            return;
        }
        self.stop_block(out);
        self.block = Some(block);
        let empty = match block {
            Block::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Block::Text => json!({"type": "text", "text": ""}),
        };
        self.event("content_block_start", json!({"index": self.index, "content_block": empty}), out);
    }
}

impl Encode for Messages {
    const ALIVE: &'static str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";

    fn whole(&mut self, choices: &[Choice]) -> Value {
        let choice = &choices[0];
        let mut content = Vec::new();
        if !choice.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": choice.reasoning, "signature": ""}));
        }
        if !choice.text.is_empty() {
            content.push(json!({"type": "text", "text": choice.text}));
        }
        for call in &choice.calls {
            let input = input(&call.arguments);
            content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
        }
        let (reason, sequence) = stop_reason(choice);
        self.message(content.into(), reason.into(), sequence.into(), &total(choices, 1))
    }

    fn open(&mut self, _: &mut String) {}

    fn piece(&mut self, _: usize, piece: &Piece, so_far: &Choice, out: &mut String) {
        let delta = |this: &Self, delta: Value, out: &mut String| {
            this.event("content_block_delta", json!({"index": this.index, "delta": delta}), out);
        };
        match piece {
            Piece::Accepted { .. } => {
                let message = self.message(json!([]), Value::Null, Value::Null, &so_far.usage());
                self.event("message_start", json!({"message": message}), out);
            }
            Piece::Reasoning(text) => {
                self.within(Block::Thinking, out);
                delta(self, json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Piece::Text(text) => {
                self.within(Block::Text, out);
                delta(self, json!({"type": "text_delta", "text": text}), out);
            }
            Piece::Call(call) => {
                self.stop_block(out);
                let block = json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}});
                self.event("content_block_start", json!({"index": self.index, "content_block": block}), out);
                delta(self, json!({"type": "input_json_delta", "partial_json": call.arguments}), out);
                self.event("content_block_stop", json!({"index": self.index}), out);
                self.index += 1;
            }
            Piece::Done { .. } => self.stop_block(out),
            _ => {}
        }
    }

    fn close(&mut self, choices: &[Choice], out: &mut String) {
        let (reason, sequence) = stop_reason(&choices[0]);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        self.event("message_delta", json!({"delta": delta, "usage": usage(&total(choices, 1))}), out);
        self.event("message_stop", json!({}), out);
    }

    fn broken(&mut self, refusal: &Refusal, out: &mut String) {
        self.event("error", error(refusal, "").1, out);
    }
}

/// Status and body of a refusal.
pub(super) fn error(refusal: &Refusal, request_id: &str) -> (u16, Value) {
    let (status, kind) = match refusal {
        Refusal::Unauthorized => (401, "authentication_error"),
        Refusal::Forbidden(_) => (403, "permission_error"),
        Refusal::NoModel(_) | Refusal::NoPath(_) => (404, "not_found_error"),
        Refusal::TooLarge(_) => (413, "request_too_large"),
        Refusal::Busy(_) => (429, "rate_limit_error"),
        Refusal::Unavailable(_) => (503, "overloaded_error"),
        Refusal::Failed(_) => (500, "api_error"),
        other => (other.status(), "invalid_request_error"),
    };
    let mut body = json!({"type": "error", "error": {"type": kind, "message": refusal.to_string()}});
    if !request_id.is_empty() {
        body["request_id"] = request_id.into();
    }
    (status, body)
}
