//! Responses, stateless: nothing is stored, so earlier turns come with the request.
//!
//! Source: OpenAI's API reference; DeepSeek's subset of it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use fathom_engine::Usage;
use fathom_text::{ChatMessage, Role as Speaker, Thinking, ToolCall};
use serde_json::{Value, json};

use super::chat::{EFFORTS, LITTLE_EFFORT, response_format, scored};
use super::error;
use crate::answer::{Encode, respond, sse};
use crate::ask::{Ask, Chat, Choice, Heading, Input, Piece, Scored, Sent, ToolChoice, Wish, total};
use crate::dialects::turn::Turn;
use crate::dialects::{body, chat};
use crate::fields::{Field, Fields, Kind, Role};
use crate::{App, Refusal};

/// Fields of `/v1/responses`.
pub(in crate::dialects) const RESPONSES: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("input", Kind::Any, Role::Required),
    Field("instructions", Kind::Text, Role::Used),
    Field("max_output_tokens", Kind::Int(1, 1 << 24), Role::Used),
    Field("temperature", Kind::Number(0.0, 2.0), Role::Used),
    Field("top_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("stream", Kind::Bool, Role::Used),
    Field("tools", Kind::Each(chat::TOOLS, TOOL), Role::Used),
    Field("tool_choice", Kind::Any, Role::Used),
    Field("parallel_tool_calls", Kind::Bool, Role::Used),
    Field("include", Kind::Texts(16), Role::Used),
    Field("top_logprobs", Kind::Int(0, 20), Role::Used),
    Field("reasoning", Kind::Of(REASONING), Role::Used),
    Field("text", Kind::Of(TEXT), Role::Used),
    Field("service_tier", Kind::Word(&["auto", "default", "flex", "priority"]), Role::Used),
    Field("store", Kind::Bool, Role::Inert),
    Field("metadata", Kind::Object, Role::Inert),
    Field("user", Kind::Text, Role::Inert),
    Field("safety_identifier", Kind::Text, Role::Inert),
    Field("prompt_cache_key", Kind::Text, Role::Inert),
    Field("stream_options", Kind::Object, Role::Inert),
    Field("max_tool_calls", Kind::Int(1, 1 << 20), Role::Inert),
    Field("truncation", Kind::Any, Role::Refused(&["\"disabled\""])),
    Field("background", Kind::Any, Role::Refused(&["false"])),
    Field("previous_response_id", Kind::Any, Role::Refused(&[])),
    Field("conversation", Kind::Any, Role::Refused(&[])),
    Field("prompt", Kind::Any, Role::Refused(&[])),
];

const REASONING: &[Field] = &[
    Field("effort", Kind::Word(EFFORTS), Role::Used),
    Field("summary", Kind::Any, Role::Inert),
    Field("generate_summary", Kind::Any, Role::Inert),
];

const TEXT: &[Field] =
    &[Field("format", Kind::Object, Role::Used), Field("verbosity", Kind::Any, Role::Refused(&["\"medium\""]))];

const TOOL: &[Field] = &[
    Field("type", Kind::Word(&["function"]), Role::Required),
    Field("name", Kind::Text, Role::Required),
    Field("description", Kind::Text, Role::Used),
    Field("parameters", Kind::Object, Role::Used),
    Field("strict", Kind::Bool, Role::Used),
];

const NAMED: &[Field] =
    &[Field("type", Kind::Word(&["function"]), Role::Required), Field("name", Kind::Text, Role::Required)];

const ITEM: &[Field] = &[
    Field("type", Kind::Word(&["message", "function_call", "function_call_output", "reasoning"]), Role::Used),
    Field("role", Kind::Word(&["system", "developer", "user", "assistant"]), Role::Used),
    Field("content", Kind::Any, Role::Used),
    Field("call_id", Kind::Text, Role::Used),
    Field("name", Kind::Text, Role::Used),
    Field("arguments", Kind::Text, Role::Used),
    Field("output", Kind::Any, Role::Used),
    Field("summary", Kind::Any, Role::Inert),
    Field("id", Kind::Text, Role::Inert),
    Field("status", Kind::Text, Role::Inert),
    Field("encrypted_content", Kind::Any, Role::Refused(&[])),
];

const PART: &[Field] = &[
    Field("type", Kind::Word(&["input_text", "output_text", "reasoning_text", "input_image"]), Role::Required),
    Field("text", Kind::Text, Role::Used),
    Field("image_url", Kind::Text, Role::Used),
    Field("detail", Kind::Word(&["auto", "low", "high", "original"]), Role::Inert),
    Field("file_id", Kind::Any, Role::Refused(&[])),
    Field("annotations", Kind::Any, Role::Inert),
    Field("logprobs", Kind::Any, Role::Inert),
];

pub(in crate::dialects) async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let (ask, echo) = parse(value)?;
    respond(&app, &caller, ask, |heading| Responses {
        heading,
        echo,
        sequence: 0,
        items: Vec::new(),
        open: None,
        sent: 0,
    })
    .await
}

/// Reads a request; the second part is what the response repeats of it.
pub(in crate::dialects) fn parse(value: Value) -> Result<(Ask, Value), Refusal> {
    let mut fields = Fields::read(RESPONSES, value, "")?;
    let mut wish = Wish {
        max_tokens: fields.count("max_output_tokens"),
        priority: chat::priority(&fields),
        ..chat::sampling(&fields)
    };
    for (i, wanted) in fields.texts("include").into_iter().enumerate() {
        match wanted.as_str() {
            "message.output_text.logprobs" => wish.logprobs = Some(fields.count("top_logprobs").unwrap_or(0)),
            // Reasoning is part of the output and not encrypted, so there is nothing to add.
            "reasoning.encrypted_content" => fields.inert.push(format!("include[{i}]")),
            other => return Err(Refusal::field(format!("include[{i}]"), format!("there is no `{other}` here"))),
        }
    }
    if fields.count("top_logprobs").is_some_and(|n| n > 0) && wish.logprobs.is_none() {
        return fields.refuse("top_logprobs", "needs `message.output_text.logprobs` in `include`");
    }
    let mut thinking = Thinking::Default;
    if let Some(reasoning) = fields.object("reasoning", REASONING)? {
        match reasoning.text("effort") {
            None => {}
            Some("none") => thinking = Thinking::Off,
            Some("minimal" | "low") => (thinking, wish.thinking_budget) = (Thinking::On, Some(LITTLE_EFFORT)),
            Some(_) => thinking = Thinking::On,
        }
    }
    if let Some(mut text) = fields.object("text", TEXT)?
        && let Some(format) = text.take("format")
    {
        wish.format = response_format(nested(format), "text.format")?;
    }
    let (mut tools, mut strict) = (Vec::new(), false);
    for (i, value) in fields.list("tools").into_iter().enumerate() {
        let place = format!("tools[{i}]");
        let mut tool = Fields::read(TOOL, value, &place)?;
        strict |= tool.bool("strict") == Some(true);
        let mut function = serde_json::Map::new();
        for name in ["name", "description", "parameters"] {
            function.extend(tool.take(name).map(|value| (name.to_owned(), value)));
        }
        tools.push(chat::tool(&place, Value::Object(function))?);
    }
    let choice = match fields.take("tool_choice") {
        Some(Value::Object(named)) => {
            let mut named = Fields::read(NAMED, Value::Object(named), "tool_choice")?;
            chat::named(named.take_text("name").unwrap_or_default(), &tools)?
        }
        other => chat::choice_word(other, &tools)?,
    };
    let echo = json!({
        "instructions": fields.text("instructions"),
        "max_output_tokens": wish.max_tokens,
        "parallel_tool_calls": fields.bool("parallel_tool_calls").unwrap_or(true),
        "temperature": wish.temperature,
        "top_p": wish.top_p,
        "tool_choice": match &choice {
            ToolChoice::Auto => json!("auto"),
            ToolChoice::None => json!("none"),
            ToolChoice::Required => json!("required"),
            ToolChoice::Named(name) => json!({"type": "function", "name": name}),
        },
        "tools": tools.iter().map(|tool| {
            let mut tool = tool["function"].clone();
            tool["type"] = "function".into();
            tool["strict"] = strict.into();
            tool
        }).collect::<Vec<_>>(),
    });
    let mut pictures = Vec::new();
    let conversation = Chat {
        messages: messages(&mut fields, &mut pictures)?,
        pictures,
        tools,
        choice,
        parallel: fields.bool("parallel_tool_calls").unwrap_or(true),
        strict,
        thinking,
    };
    let ask = Ask {
        model: fields.take_text("model").unwrap_or_default(),
        inputs: vec![Input::Chat(conversation)],
        wish,
        n: 1,
        stream: fields.bool("stream").unwrap_or(false),
        inert: fields.inert,
    };
    Ok((ask, echo))
}

/// The format as chat completions have it: there the schema is one object further in.
fn nested(format: Value) -> Value {
    match format {
        Value::Object(mut map) if map.get("type").is_some_and(|t| t == "json_schema") => {
            map.remove("type");
            json!({"type": "json_schema", "json_schema": map})
        }
        other => other,
    }
}

fn messages(fields: &mut Fields, pictures: &mut Vec<Sent>) -> Result<Vec<ChatMessage>, Refusal> {
    let mut messages = Vec::new();
    messages.extend(fields.take_text("instructions").map(|text| ChatMessage::new(Speaker::System, text)));
    let items = match fields.take("input") {
        Some(Value::String(text)) => vec![json!({"role": "user", "content": text})],
        Some(Value::Array(items)) if items.len() <= chat::MESSAGES => items,
        _ => return fields.refuse("input", format!("must be a text or a list of up to {} items", chat::MESSAGES)),
    };
    let mut reasoning = None;
    for (i, value) in items.into_iter().enumerate() {
        let place = format!("input[{i}]");
        let mut item = Fields::read(ITEM, value, &place)?;
        let need = |item: &mut Fields, name: &str| match item.take_text(name) {
            Some(text) => Ok(text),
            None => item.refuse(name, "is required"),
        };
        match item.take_text("type").as_deref().unwrap_or("message") {
            "reasoning" => reasoning = Some(content(&mut item, "content", None)?.unwrap_or_default()),
            "function_call" => {
                let id = need(&mut item, "call_id")?;
                let (name, arguments) = (need(&mut item, "name")?, need(&mut item, "arguments")?);
                let call = chat::earlier_call(&place, Some(id), name, arguments)?;
                let turn: &mut ChatMessage = match messages.last_mut() {
                    Some(turn) if turn.role == Speaker::Assistant => turn,
                    _ => {
                        messages.push(ChatMessage::new(Speaker::Assistant, ""));
                        messages.last_mut().expect("invariant: one was just pushed")
                    }
                };
                turn.tool_calls.push(call);
                turn.reasoning = turn.reasoning.take().or(reasoning.take());
            }
            "function_call_output" => {
                let output = content(&mut item, "output", Some(pictures))?;
                let mut turn = ChatMessage::new(Speaker::Tool, output.unwrap_or_default());
                turn.tool_call_id = Some(need(&mut item, "call_id")?);
                messages.push(turn);
            }
            _ => {
                let role = match need(&mut item, "role")?.as_str() {
                    "system" | "developer" => Speaker::System,
                    "assistant" => Speaker::Assistant,
                    _ => Speaker::User,
                };
                let seen = if role == Speaker::User { Some(&mut *pictures) } else { None };
                let Some(content) = content(&mut item, "content", seen)? else {
                    return item.refuse("content", "is required");
                };
                let mut turn = ChatMessage::new(role, content);
                if role == Speaker::Assistant {
                    turn.reasoning = reasoning.take();
                }
                messages.push(turn);
            }
        }
        fields.inert.append(&mut item.inert);
    }
    chat::check_turns(&messages)?;
    Ok(messages)
}

/// A text, or parts: texts, and pictures where these may stand.
fn content(item: &mut Fields, name: &str, pictures: Option<&mut Vec<Sent>>) -> Result<Option<String>, Refusal> {
    let place = item.path(name);
    match item.take(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let mut turn = Turn::default();
            for (i, part) in parts.into_iter().enumerate() {
                let part = Fields::read(PART, part, &format!("{place}[{i}]"))?;
                let picture = part.text("type") == Some("input_image");
                match if picture { part.text("image_url") } else { part.text("text") } {
                    Some(_) if picture && pictures.is_none() => {
                        return part
                            .refuse("type", "pictures belong to the user's messages and to outputs of functions");
                    }
                    Some(url) if picture => turn.show_url(part.path("image_url"), url)?,
                    Some(text) => turn.say(text),
                    None => return part.refuse(if picture { "image_url" } else { "text" }, "is required"),
                }
                item.inert.extend(part.inert);
            }
            Ok(Some(turn.close(pictures.unwrap_or(&mut Vec::new()))?))
        }
        Some(_) => Err(Refusal::field(place, "must be a text or a list of parts")),
    }
}

/// An item of the output that still grows.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Reasoning,
    Message,
}

struct Responses {
    heading: Heading,
    echo: Value,
    sequence: usize,
    /// The output so far, finished items first.
    items: Vec<Value>,
    open: Option<Open>,
    /// Scored tokens of the answer that have been sent.
    sent: usize,
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    })
}

impl Responses {
    fn item_id(&self, kind: &str) -> String {
        format!("{kind}_{}{}", self.heading.id, self.items.len())
    }

    fn reasoning_item(id: &str, text: &str, status: &str) -> Value {
        json!({"id": id, "type": "reasoning", "status": status, "summary": [],
            "content": [{"type": "reasoning_text", "text": text}]})
    }

    fn message_item(&self, id: &str, text: &str, scores: &[Scored], status: &str) -> Value {
        let logprobs = scored(&self.heading, scores);
        let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs});
        let content = if status == "in_progress" { json!([]) } else { json!([part]) };
        json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
    }

    fn call_item(id: &str, call: &ToolCall, arguments: &str, status: &str) -> Value {
        json!({"id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name,
            "arguments": arguments})
    }

    fn object(&self, status: &str, choice: Option<&Choice>) -> Value {
        let mut object = json!({
            "id": format!("resp_{}", self.heading.id),
            "object": "response",
            "created_at": self.heading.created,
            "status": status,
            "error": null,
            "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
            "model": self.heading.model,
            "output": self.items,
            "previous_response_id": null,
            "store": false,
            "metadata": {},
            "truncation": "disabled",
            "usage": choice.map(|c| usage(&total(std::slice::from_ref(c), 1))),
        });
        if let (Value::Object(object), Value::Object(echo)) = (&mut object, &self.echo) {
            object.extend(echo.clone());
        }
        object
    }

    fn event(&mut self, kind: &str, mut data: Value, out: &mut String) {
        data["type"] = kind.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        sse(out, Some(kind), &data);
    }

    /// Ends the item that grows.
    fn finish(&mut self, so_far: &Choice, out: &mut String) {
        let Some(open) = self.open.take() else { return };
        let index = self.items.len();
        let (id, item) = match open {
            Open::Reasoning => {
                let id = self.item_id("rs");
                (id.clone(), Self::reasoning_item(&id, &so_far.reasoning, "completed"))
            }
            Open::Message => {
                let id = self.item_id("msg");
                (id.clone(), self.message_item(&id, &so_far.text, &so_far.tokens[1], "completed"))
            }
        };
        let place = json!({"item_id": id, "output_index": index, "content_index": 0});
        let with = |name: &str, value: Value| {
            let mut data = place.clone();
            data[name] = value;
            data
        };
        match open {
            Open::Reasoning => {
                self.event("response.reasoning_text.done", with("text", so_far.reasoning.as_str().into()), out);
            }
            Open::Message => {
                let mut data = with("text", so_far.text.as_str().into());
                data["logprobs"] = item["content"][0]["logprobs"].clone();
                self.event("response.output_text.done", data, out);
                self.event("response.content_part.done", with("part", item["content"][0].clone()), out);
            }
        }
        self.event("response.output_item.done", json!({"output_index": index, "item": item}), out);
        self.items.push(item);
    }

    /// Begins an item unless it grows already.
    fn begin(&mut self, wanted: Open, so_far: &Choice, out: &mut String) {
        if self.open == Some(wanted) {
            return;
        }
        self.finish(so_far, out);
        self.open = Some(wanted);
        let index = self.items.len();
        let (id, item) = match wanted {
            Open::Reasoning => {
                let id = self.item_id("rs");
                let item =
                    json!({"id": id, "type": "reasoning", "status": "in_progress", "summary": [], "content": []});
                (id, item)
            }
            Open::Message => {
                let id = self.item_id("msg");
                let item = self.message_item(&id, "", &[], "in_progress");
                (id, item)
            }
        };
        self.event("response.output_item.added", json!({"output_index": index, "item": item}), out);
        if wanted == Open::Message {
            let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
            let data = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
            self.event("response.content_part.added", data, out);
        }
    }

    fn delta(&mut self, kind: &str, item: &str, text: &str, scores: &[Scored], out: &mut String) {
        let data = json!({"item_id": self.item_id(item), "output_index": self.items.len(), "content_index": 0,
            "delta": text, "logprobs": scored(&self.heading, scores)});
        self.event(kind, data, out);
    }
}

impl Encode for Responses {
    fn whole(&mut self, choices: &[Choice]) -> Value {
        let choice = &choices[0];
        if !choice.reasoning.is_empty() {
            self.items.push(Self::reasoning_item(&self.item_id("rs"), &choice.reasoning, "completed"));
        }
        if !choice.text.is_empty() || choice.calls.is_empty() {
            self.items.push(self.message_item(&self.item_id("msg"), &choice.text, &choice.tokens[1], "completed"));
        }
        for call in &choice.calls {
            self.items.push(Self::call_item(&self.item_id("fc"), call, &call.arguments, "completed"));
        }
        self.object(if choice.cut() { "incomplete" } else { "completed" }, Some(choice))
    }

    fn open(&mut self, out: &mut String) {
        for kind in ["response.created", "response.in_progress"] {
            let data = json!({"response": self.object("in_progress", None)});
            self.event(kind, data, out);
        }
    }

    fn piece(&mut self, _: usize, piece: &Piece, so_far: &Choice, out: &mut String) {
        match piece {
            Piece::Reasoning(text) => {
                self.begin(Open::Reasoning, so_far, out);
                self.delta("response.reasoning_text.delta", "rs", text, &[], out);
            }
            Piece::Text(text) => {
                self.begin(Open::Message, so_far, out);
                let new = &so_far.tokens[1][self.sent.min(so_far.tokens[1].len())..];
                self.delta("response.output_text.delta", "msg", text, new, out);
                self.sent = so_far.tokens[1].len();
            }
            Piece::Call(call) => {
                self.finish(so_far, out);
                let (index, id) = (self.items.len(), self.item_id("fc"));
                let item = Self::call_item(&id, call, "", "in_progress");
                self.event("response.output_item.added", json!({"output_index": index, "item": item}), out);
                let data = json!({"item_id": id, "output_index": index, "delta": call.arguments});
                self.event("response.function_call_arguments.delta", data, out);
                let data =
                    json!({"item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments});
                self.event("response.function_call_arguments.done", data, out);
                let item = Self::call_item(&id, call, &call.arguments, "completed");
                self.event("response.output_item.done", json!({"output_index": index, "item": item}), out);
                self.items.push(item);
            }
            Piece::Done { .. } => self.finish(so_far, out),
            _ => {}
        }
    }

    fn close(&mut self, choices: &[Choice], out: &mut String) {
        let choice = &choices[0];
        let status = if choice.cut() { "incomplete" } else { "completed" };
        let data = json!({"response": self.object(status, Some(choice))});
        self.event(&format!("response.{status}"), data, out);
    }

    fn broken(&mut self, refusal: &Refusal, out: &mut String) {
        let mut response = self.object("failed", None);
        response["error"] = json!({"code": "server_error", "message": error(refusal, "").1["error"]["message"]});
        self.event("response.failed", json!({"response": response}), out);
    }
}
