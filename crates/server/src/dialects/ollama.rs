//! Ollama's API: newline-delimited streams, thinking, formats, models that come and go.
//!
//! Source: Ollama's `docs/api.md`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::{delete, get, post};
use fathom_engine::{Ending, Usage};
use fathom_text::{ChatMessage, Clock, Role as Speaker, Thinking, ToolCall};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

use super::openai::chat::{LITTLE_EFFORT, scored};
use super::openai::{text::prompts, vectors};
use super::turn::Turn;
use super::{Routes, body, chat};
use crate::answer::{self, Encode, respond};
use crate::ask::{Ask, Chat, Choice, Format, Heading, Input, Piece, Sent, ToolChoice, Wish, total};
use crate::fields::{Field, Fields, Kind, Role};
use crate::guard::Caller;
use crate::models::Offer;
use crate::{App, Refusal, unix_now};

/// Whether a path is this dialect's own.
pub(super) fn owns(path: &str) -> bool {
    path.starts_with("/api/")
}

pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/api/chat", post(chat_))
        .route("/api/generate", post(generate))
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(embeddings))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(ps))
        .route("/api/show", post(show))
        .route("/api/version", get(version))
        .route("/api/pull", post(pull))
        .route("/api/delete", delete(remove))
}

/// Fields of `/api/chat`.
pub(super) const CHAT: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("messages", Kind::Each(chat::MESSAGES, MESSAGE), Role::Used),
    Field("tools", Kind::Each(chat::TOOLS, TOOL), Role::Used),
    Field("format", Kind::Any, Role::Used),
    Field("options", Kind::Of(OPTIONS), Role::Used),
    Field("think", Kind::Any, Role::Used),
    Field("stream", Kind::Bool, Role::Used),
    Field("keep_alive", Kind::Any, Role::Used),
    Field("logprobs", Kind::Bool, Role::Used),
    Field("top_logprobs", Kind::Int(0, 20), Role::Used),
];

/// Fields of `/api/generate`.
pub(super) const GENERATE: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("prompt", Kind::Text, Role::Used),
    Field("suffix", Kind::Text, Role::Used),
    Field("system", Kind::Text, Role::Used),
    Field("format", Kind::Any, Role::Used),
    Field("options", Kind::Of(OPTIONS), Role::Used),
    Field("think", Kind::Any, Role::Used),
    Field("stream", Kind::Bool, Role::Used),
    Field("raw", Kind::Bool, Role::Used),
    Field("keep_alive", Kind::Any, Role::Used),
    Field("images", Kind::List(64), Role::Used),
    Field("template", Kind::Any, Role::Refused(&["\"\""])),
    Field("context", Kind::Any, Role::Refused(&["[]"])),
    Field("logprobs", Kind::Bool, Role::Used),
    Field("top_logprobs", Kind::Int(0, 20), Role::Used),
];

const OPTIONS: &[Field] = &[
    Field("num_ctx", Kind::Int(1, 1 << 30), Role::Used),
    Field("num_predict", Kind::Int(-2, 1 << 24), Role::Used),
    Field("temperature", Kind::Number(0.0, 100.0), Role::Used),
    Field("top_k", Kind::Int(0, 1 << 24), Role::Used),
    Field("top_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("min_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("seed", Kind::Int(i64::MIN, i64::MAX), Role::Used),
    Field("stop", Kind::Texts(chat::STOPS), Role::Used),
    Field("repeat_penalty", Kind::Number(0.01, 100.0), Role::Used),
    Field("presence_penalty", Kind::Number(-2.0, 2.0), Role::Used),
    Field("frequency_penalty", Kind::Number(-2.0, 2.0), Role::Used),
    // Where and how it is computed.
    Field("num_batch", Kind::Any, Role::Inert),
    Field("num_gpu", Kind::Any, Role::Inert),
    Field("main_gpu", Kind::Any, Role::Inert),
    Field("num_thread", Kind::Any, Role::Inert),
    Field("num_keep", Kind::Any, Role::Inert),
    Field("low_vram", Kind::Any, Role::Inert),
    Field("f16_kv", Kind::Any, Role::Inert),
    Field("use_mmap", Kind::Any, Role::Inert),
    Field("use_mlock", Kind::Any, Role::Inert),
    Field("numa", Kind::Any, Role::Inert),
    Field("vocab_only", Kind::Any, Role::Refused(&["false"])),
    // The penalties here see the whole text.
    Field("repeat_last_n", Kind::Any, Role::Refused(&["-1"])),
    Field("typical_p", Kind::Any, Role::Refused(&["1", "1.0"])),
    Field("tfs_z", Kind::Any, Role::Refused(&["1", "1.0"])),
    Field("mirostat", Kind::Any, Role::Refused(&["0"])),
];

const MESSAGE: &[Field] = &[
    Field("role", Kind::Word(&["system", "user", "assistant", "tool"]), Role::Required),
    Field("content", Kind::Text, Role::Used),
    Field("thinking", Kind::Text, Role::Used),
    Field("tool_calls", Kind::Each(chat::TOOLS, CALL), Role::Used),
    Field("tool_name", Kind::Text, Role::Used),
    Field("tool_call_id", Kind::Text, Role::Used),
    Field("images", Kind::List(64), Role::Used),
];

const TOOL: &[Field] = &[
    Field("type", Kind::Word(&["function"]), Role::Used),
    Field("function", Kind::Of(chat::FUNCTION), Role::Required),
];

const CALL: &[Field] = &[
    Field("id", Kind::Text, Role::Used),
    Field("type", Kind::Text, Role::Inert),
    Field("function", Kind::Of(CALLED), Role::Required),
];

const CALLED: &[Field] = &[
    Field("name", Kind::Text, Role::Required),
    Field("arguments", Kind::Object, Role::Required),
    Field("index", Kind::Int(0, 1 << 20), Role::Inert),
    Field("description", Kind::Text, Role::Inert),
];

async fn chat_(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let (ask, keep) = parse_chat(value)?;
    serve(app, caller, ask, keep, true).await
}

async fn generate(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let (ask, keep) = parse_generate(value)?;
    serve(app, caller, ask, keep, false).await
}

/// Answers, or loads and unloads where there is nothing to answer.
async fn serve(
    app: Arc<App>,
    caller: Caller,
    ask: Ask,
    keep: Option<Duration>,
    chat: bool,
) -> Result<Response, Refusal> {
    let (model, _) = app.models.resolve(&ask.model)?;
    if let Some(keep) = keep {
        app.models.set_keep(&model, keep);
    }
    if ask.inputs.is_empty() {
        let unload = keep == Some(Duration::ZERO);
        if unload {
            app.models.unload(&model).await;
        } else {
            app.models.get(&model).await?;
        }
        let mut body = json!({"model": model, "created_at": moment(unix_now()), "done": true,
            "done_reason": if unload { "unload" } else { "load" }});
        match chat {
            true => body["message"] = json!({"role": "assistant", "content": ""}),
            false => body["response"] = "".into(),
        }
        return Ok(answer::json(&body));
    }
    let logprobs = ask.wish.logprobs.is_some();
    respond(&app, &caller, ask, |heading| Lines { heading, chat, logprobs, sent: [0; 2] }).await
}

/// Fields that both endpoints share.
struct Common {
    wish: Wish,
    thinking: Thinking,
    keep: Option<Duration>,
    stream: bool,
}

fn common(fields: &mut Fields) -> Result<Common, Refusal> {
    let mut wish = Wish::default();
    if let Some(options) = fields.object("options", OPTIONS)? {
        wish = Wish {
            max_tokens: options.count("num_predict"),
            least_context: options.count("num_ctx"),
            stop: chat::stops(&options, "stop")?,
            repetition_penalty: options.number("repeat_penalty"),
            ..chat::sampling(&options)
        };
    }
    let top = fields.count("top_logprobs");
    wish.logprobs = fields.bool("logprobs").unwrap_or(false).then_some(top.unwrap_or(0));
    if top.is_some_and(|n| n > 0) && wish.logprobs.is_none() {
        return fields.refuse("top_logprobs", "needs `logprobs`: true");
    }
    wish.format = match fields.take("format") {
        None => Format::Free,
        Some(Value::String(word)) if word.is_empty() => Format::Free,
        Some(Value::String(word)) if word == "json" => Format::Json,
        Some(schema @ Value::Object(_)) => Format::Schema(schema),
        Some(_) => return fields.refuse("format", "is \"json\" or a JSON schema"),
    };
    let thinking = match fields.take("think") {
        None => Thinking::Default,
        Some(Value::Bool(false)) => Thinking::Off,
        Some(Value::Bool(true)) => Thinking::On,
        Some(Value::String(effort)) if ["low", "medium", "high"].contains(&effort.as_str()) => {
            wish.thinking_budget = (effort == "low").then_some(LITTLE_EFFORT);
            Thinking::On
        }
        Some(_) => return fields.refuse("think", "is true, false, \"low\", \"medium\" or \"high\""),
    };
    let keep = match fields.take("keep_alive") {
        None => None,
        Some(value) => match span(&value) {
            Some(keep) => Some(keep),
            None => return fields.refuse("keep_alive", "is a number of seconds or a duration such as \"5m\""),
        },
    };
    Ok(Common { wish, thinking, keep, stream: fields.bool("stream").unwrap_or(true) })
}

/// Seconds as a number, or `300ms`, `10s`, `5m`, `1h30m`; negative = for good.
fn span(value: &Value) -> Option<Duration> {
    const GOOD: Duration = Duration::from_secs(1 << 40);
    let seconds = |s: f64| if s < 0.0 { Some(GOOD) } else { Duration::try_from_secs_f64(s).ok() };
    let text = match value {
        Value::Number(n) => return seconds(n.as_f64()?),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    if let Ok(number) = text.parse::<f64>() {
        return seconds(number);
    }
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        sum += number
            * match &rest[..unit] {
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    seconds(if negative { -1.0 } else { sum })
}

/// Reads a chat request; the second part is how long the model is to stay.
pub(super) fn parse_chat(value: Value) -> Result<(Ask, Option<Duration>), Refusal> {
    let mut fields = Fields::read(CHAT, value, "")?;
    let Common { wish, thinking, keep, stream } = common(&mut fields)?;
    let tools = fields.list("tools").into_iter().enumerate().map(|(i, value)| {
        let place = format!("tools[{i}]");
        let mut tool = Fields::read(TOOL, value, &place)?;
        chat::tool(&format!("{place}.function"), tool.take("function").unwrap_or_default())
    });
    let tools = tools.collect::<Result<_, _>>()?;
    let mut pictures = Vec::new();
    let messages = messages(&mut fields, &mut pictures)?;
    let chat = Chat { messages, tools, choice: ToolChoice::Auto, parallel: true, strict: false, thinking, pictures };
    let inputs = if chat.messages.is_empty() { Vec::new() } else { vec![Input::Chat(chat)] };
    let model = fields.take_text("model").unwrap_or_default();
    Ok((Ask { model, inputs, wish, n: 1, stream, inert: fields.inert }, keep))
}

/// Reads a request to continue or answer a text.
pub(super) fn parse_generate(value: Value) -> Result<(Ask, Option<Duration>), Refusal> {
    let mut fields = Fields::read(GENERATE, value, "")?;
    let Common { wish, thinking, keep, stream } = common(&mut fields)?;
    let prompt = fields.take_text("prompt").unwrap_or_default();
    let raw = fields.bool("raw").unwrap_or(false);
    let system = fields.take_text("system").filter(|s| !s.is_empty());
    let suffix = fields.take_text("suffix").filter(|s| !s.is_empty());
    let mut pictures = Vec::new();
    let prompt = with_images(&mut fields, &prompt, &mut pictures)?;
    if (raw || suffix.is_some()) && !pictures.is_empty() {
        return fields.refuse("images", "belong to a prompt that is answered, not to a text that is continued");
    }
    if (raw || suffix.is_some()) && (system.is_some() || thinking == Thinking::On) {
        return fields.refuse("system", "and `think` mean nothing to a text that is continued as it stands");
    }
    let inputs = match (prompt.is_empty(), suffix) {
        (_, Some(after)) => vec![Input::Gap { before: prompt, after }],
        (true, None) => Vec::new(),
        (false, None) if raw => vec![Input::Text(prompt)],
        (false, None) => {
            let mut messages: Vec<ChatMessage> =
                system.into_iter().map(|text| ChatMessage::new(Speaker::System, text)).collect();
            messages.push(ChatMessage::new(Speaker::User, prompt));
            vec![Input::Chat(Chat { messages, thinking, pictures, ..Chat::default() })]
        }
    };
    let model = fields.take_text("model").unwrap_or_default();
    Ok((Ask { model, inputs, wish, n: 1, stream, inert: fields.inert }, keep))
}

/// A text with the pictures beside it.
fn with_images(fields: &mut Fields, text: &str, pictures: &mut Vec<Sent>) -> Result<String, Refusal> {
    let mut turn = Turn::default();
    turn.say(text);
    for (i, image) in fields.list("images").iter().enumerate() {
        let place = format!("{}[{i}]", fields.path("images"));
        match image.as_str() {
            Some(image) => turn.show_base64(place, image)?,
            None => return Err(Refusal::field(place, "is a picture in base64")),
        }
    }
    turn.close(pictures)
}

fn messages(fields: &mut Fields, pictures: &mut Vec<Sent>) -> Result<Vec<ChatMessage>, Refusal> {
    let mut turns: Vec<ChatMessage> = Vec::new();
    for (i, value) in fields.list("messages").into_iter().enumerate() {
        let place = format!("messages[{i}]");
        let mut message = Fields::read(MESSAGE, value, &place)?;
        fields.inert.append(&mut message.inert);
        let role = match message.text("role") {
            Some("system") => Speaker::System,
            Some("assistant") => Speaker::Assistant,
            Some("tool") => Speaker::Tool,
            _ => Speaker::User,
        };
        let said = message.take_text("content").unwrap_or_default();
        if message.has("images") && !matches!(role, Speaker::User | Speaker::Tool) {
            return message.refuse("images", "belong to messages of the roles `user` and `tool`");
        }
        let mut turn = ChatMessage::new(role, with_images(&mut message, &said, pictures)?);
        turn.reasoning = message.take_text("thinking").filter(|_| role == Speaker::Assistant);
        turn.name = message.take_text("tool_name");
        turn.tool_call_id = message.take_text("tool_call_id");
        for (j, value) in message.list("tool_calls").into_iter().enumerate() {
            let place = format!("{place}.tool_calls[{j}]");
            let mut call = Fields::read(CALL, value, &place)?;
            let id = call.take_text("id");
            let Some(mut function) = call.object("function", CALLED)? else { continue };
            let name = function.take_text("name").unwrap_or_default();
            let arguments = function.take("arguments").unwrap_or_else(|| json!({})).to_string();
            turn.tool_calls.push(chat::earlier_call(&place, id, name, arguments)?);
        }
        turns.push(turn);
    }
    if !turns.is_empty() {
        chat::check_turns(&turns)?;
    }
    Ok(turns)
}

/// Encodes lines of JSON.
struct Lines {
    heading: Heading,
    chat: bool,
    logprobs: bool,
    /// Scored tokens of reasoning and answer that have been sent.
    sent: [usize; 2],
}

/// RFC 3339.
fn moment(unix_seconds: u64) -> String {
    let clock = Clock { unix_seconds: unix_seconds as i64, utc_offset_seconds: 0 };
    clock.strftime("%Y-%m-%dT%H:%M:%SZ").unwrap_or_default()
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

impl Lines {
    fn line(&self, text: &str, thinking: &str, calls: &[ToolCall]) -> Value {
        let mut line = json!({"model": self.heading.model, "created_at": moment(unix_now())});
        let mut said = json!({});
        if !thinking.is_empty() {
            said["thinking"] = thinking.into();
        }
        if !calls.is_empty() {
            let call = |(index, call): (usize, &ToolCall)| {
                let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
                json!({"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}})
            };
            said["tool_calls"] = calls.iter().enumerate().map(call).collect();
        }
        if self.chat {
            said["role"] = "assistant".into();
            said["content"] = text.into();
            line["message"] = said;
        } else {
            line["response"] = text.into();
            line["thinking"] = thinking.into();
        }
        line["done"] = false.into();
        line
    }

    /// Adds the scores of tokens that have not been sent.
    fn score(&mut self, line: &mut Value, so_far: &Choice) {
        if self.logprobs {
            let new = (0..2).flat_map(|i| so_far.tokens[i].iter().skip(self.sent[i]).cloned());
            line["logprobs"] = scored(&self.heading, &new.collect::<Vec<_>>());
            self.sent = so_far.tokens.each_ref().map(Vec::len);
        }
    }

    fn finish(&self, line: &mut Value, choices: &[Choice]) {
        let usage: Usage = total(choices, 1);
        let cut = matches!(choices[0].done, Some((Ending::Length, _)));
        line["done"] = true.into();
        line["done_reason"] = if cut { "length" } else { "stop" }.into();
        line["total_duration"] = nanoseconds(usage.queue_s + usage.prefill_s + usage.decode_s).into();
        line["load_duration"] = 0.into();
        line["prompt_eval_count"] = usage.prompt.into();
        line["prompt_eval_duration"] = nanoseconds(usage.prefill_s).into();
        line["eval_count"] = usage.completion.into();
        line["eval_duration"] = nanoseconds(usage.decode_s).into();
    }
}

fn push(out: &mut String, line: &Value) {
    out.push_str(&line.to_string());
    out.push('\n');
}

impl Encode for Lines {
    const STREAM: &'static str = "application/x-ndjson";
    // Blank lines would not be JSON, and clients of this dialect wait without.
    const ALIVE: &'static str = "";

    fn whole(&mut self, choices: &[Choice]) -> Value {
        let choice = &choices[0];
        let mut line = self.line(&choice.text, &choice.reasoning, &choice.calls);
        self.score(&mut line, choice);
        self.finish(&mut line, choices);
        line
    }

    fn open(&mut self, _: &mut String) {}

    fn piece(&mut self, _: usize, piece: &Piece, so_far: &Choice, out: &mut String) {
        let mut line = match piece {
            Piece::Reasoning(text) => self.line("", text, &[]),
            Piece::Text(text) => self.line(text, "", &[]),
            Piece::Call(_) => self.line("", "", &so_far.calls[so_far.calls.len() - 1..]),
            _ => return,
        };
        self.score(&mut line, so_far);
        push(out, &line);
    }

    fn close(&mut self, choices: &[Choice], out: &mut String) {
        let mut line = self.line("", "", &[]);
        self.score(&mut line, &choices[0]);
        self.finish(&mut line, choices);
        push(out, &line);
    }

    fn broken(&mut self, refusal: &Refusal, out: &mut String) {
        push(out, &error(refusal, "").1);
    }
}

/// Status and body of a refusal.
pub(super) fn error(refusal: &Refusal, request_id: &str) -> (u16, Value) {
    let mut body = json!({"error": refusal.to_string()});
    if !request_id.is_empty() {
        body["request_id"] = request_id.into();
    }
    (refusal.status(), body)
}

/// Fields of `/api/embed`.
pub(super) const EMBED: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("input", Kind::Any, Role::Used),
    Field("prompt", Kind::Text, Role::Used),
    // Too long a text is refused, never cut.
    Field("truncate", Kind::Bool, Role::Inert),
    Field("options", Kind::Object, Role::Inert),
    Field("keep_alive", Kind::Any, Role::Inert),
    Field("dimensions", Kind::Any, Role::Refused(&[])),
];

async fn embed(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let mut fields = Fields::read(EMBED, value, "")?;
    let inputs = prompts(&mut fields, "input")?;
    let model = fields.take_text("model").unwrap_or_default();
    let (choices, model) = vectors::embed(&app, model, inputs, &caller).await?;
    let embeddings: Vec<Vec<f32>> = choices.iter().map(|c| vectors::normal(&c.embedding)).collect();
    let usage = total(&choices, 1);
    Ok(answer::json(&json!({
        "model": model, "embeddings": embeddings, "load_duration": 0, "prompt_eval_count": usage.prompt,
        "total_duration": nanoseconds(usage.queue_s + usage.prefill_s),
    })))
}

/// The older form, of one text.
async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let mut fields = Fields::read(EMBED, value, "")?;
    let inputs = vec![Input::Text(fields.take_text("prompt").unwrap_or_default())];
    let model = fields.take_text("model").unwrap_or_default();
    let (choices, _) = vectors::embed(&app, model, inputs, &caller).await?;
    Ok(answer::json(&json!({"embedding": vectors::normal(&choices[0].embedding)})))
}

fn details(offer: &Offer) -> Value {
    let size = match offer.parameters {
        0 => String::new(),
        n if n >= 1_000_000_000 => format!("{:.1}B", n as f64 / 1e9),
        n => format!("{:.1}M", n as f64 / 1e6),
    };
    json!({"parent_model": "", "format": "", "family": offer.family, "families": [offer.family],
        "parameter_size": size, "quantization_level": offer.format})
}

fn tag(offer: &Offer) -> Value {
    json!({"name": offer.name, "model": offer.name, "modified_at": moment(offer.modified), "size": offer.bytes,
        "digest": "", "details": details(offer)})
}

async fn tags(State(app): State<Arc<App>>) -> Response {
    let models: Vec<Value> = app.models.offers().iter().map(tag).collect();
    answer::json(&json!({"models": models}))
}

async fn ps(State(app): State<Arc<App>>) -> Response {
    let entry = |(served, used): &(Arc<crate::Served>, Option<std::time::Instant>)| {
        let mut entry = tag(&served.offer);
        let keep = app.models.keep(&served.offer.name).unwrap_or(Duration::from_secs(1 << 32));
        let idle = used.map_or(Duration::ZERO, |used| used.elapsed());
        entry["expires_at"] = moment(unix_now() + keep.saturating_sub(idle).as_secs().min(1 << 32)).into();
        entry["size_vram"] = 0.into();
        entry["context_length"] = served.engine.info().context.into();
        entry
    };
    let models: Vec<Value> = app.models.loaded().iter().map(entry).collect();
    answer::json(&json!({"models": models}))
}

/// Fields of `/api/show`.
pub(super) const SHOW: &[Field] = &[
    Field("model", Kind::Text, Role::Used),
    Field("name", Kind::Text, Role::Used),
    Field("verbose", Kind::Bool, Role::Inert),
];

/// `model`, or `name` as it was called once.
fn named(fields: &mut Fields) -> Result<String, Refusal> {
    let name = fields.take_text("model").or_else(|| fields.take_text("name"));
    name.map_or_else(|| fields.refuse("model", "is required"), Ok)
}

async fn show(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, _) = body(&app, request).await?;
    let name = named(&mut Fields::read(SHOW, value, "")?)?;
    let (resolved, _) = app.models.resolve(&name)?;
    let served = app.models.get(&resolved).await?;
    let mut capabilities = vec!["completion", "embedding"];
    if let Ok(template) = served.chat.template() {
        capabilities.extend(template.tool_form().map(|_| "tools"));
        capabilities.extend(template.reasons().then_some("thinking"));
    }
    if served.chat.sees() {
        capabilities.push("vision");
    }
    if served.chat.tokenizer().encode_gap("", "").is_ok() {
        capabilities.push("insert");
    }
    let family = &served.offer.family;
    let mut info = json!({
        "general.architecture": family, "general.parameter_count": served.offer.parameters,
    });
    info[format!("{family}.context_length")] = served.engine.info().context.into();
    let defaults = &served.defaults;
    let parameters =
        format!("temperature {}\ntop_p {}\ntop_k {}", defaults.temperature, defaults.top_p, defaults.top_k);
    Ok(answer::json(&json!({
        "modified_at": moment(served.offer.modified), "details": details(&served.offer), "model_info": info,
        "capabilities": capabilities, "parameters": parameters,
    })))
}

async fn version() -> Response {
    answer::json(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// Fields of `/api/pull`.
pub(super) const PULL: &[Field] = &[
    Field("model", Kind::Text, Role::Used),
    Field("name", Kind::Text, Role::Used),
    Field("stream", Kind::Bool, Role::Used),
    Field("insecure", Kind::Any, Role::Refused(&["false"])),
];

async fn pull(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, _) = body(&app, request).await?;
    let mut fields = Fields::read(PULL, value, "")?;
    let name = named(&mut fields)?;
    let (sender, mut receiver) = unbounded_channel::<Result<Value, Refusal>>();
    let store = Arc::clone(&app.models.store);
    tokio::task::spawn_blocking(move || {
        let mut last = None;
        let result = store.pull(&name, &mut |file, done, all| {
            // One line a percent is enough for a bar.
            let percent = (done * 100).checked_div(all).unwrap_or(0);
            if last.replace((file.to_owned(), percent)) != Some((file.to_owned(), percent)) {
                let status = format!("pulling {file}");
                let _ = sender.send(Ok(json!({"status": status, "digest": "", "total": all, "completed": done})));
            }
        });
        let _ = sender.send(result.map(|()| json!({"status": "success"})));
    });
    let Some(first) = receiver.recv().await else { return Err(Refusal::Failed("fetching broke off".into())) };
    let mut first = first?;
    if fields.bool("stream") == Some(false) {
        while let Some(next) = receiver.recv().await {
            first = next?;
        }
        return Ok(answer::json(&first));
    }
    let lines = futures_util::stream::unfold((Some(first), receiver), |(first, mut receiver)| async {
        let line = match first {
            Some(line) => line,
            None => match receiver.recv().await? {
                Ok(line) => line,
                Err(refusal) => error(&refusal, "").1,
            },
        };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(format!("{line}\n"))), (None, receiver)))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

async fn remove(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, _) = body(&app, request).await?;
    let name = named(&mut Fields::read(SHOW, value, "")?)?;
    app.models.unload(&name).await;
    let store = Arc::clone(&app.models.store);
    let removed = tokio::task::spawn_blocking(move || store.remove(&name)).await;
    removed.map_err(|_| Refusal::Failed("deleting broke off".into()))??;
    Ok(Response::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read() {
        for (text, seconds) in [
            (json!("5m"), 300.0),
            (json!("1h30m"), 5400.0),
            (json!(10), 10.0),
            (json!("250ms"), 0.25),
            (json!("0"), 0.0),
        ] {
            assert_eq!(span(&text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        assert!(span(&json!(-1)) > Some(Duration::from_secs(1 << 39)) && span(&json!("-1m")) == span(&json!(-1)));
        assert!(span(&json!("5 minutes")).is_none() && span(&json!([])).is_none() && span(&json!("m")).is_none());
    }
}
