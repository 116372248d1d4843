//! What the dialects' conversations have in common: roles, turns, checks, sampling fields.

use fathom_engine::Priority;
use fathom_text::{ChatMessage, Role, ToolCall};
use serde_json::{Value, json};

use crate::Refusal;
use crate::ask::{ToolChoice, Wish};
use crate::fields::{Field, Fields, Kind, Role as FieldRole};

/// Messages of a conversation at most.
pub(super) const MESSAGES: usize = 4096;
/// Tools at most.
pub(super) const TOOLS: usize = 128;
/// Stop texts at most.
pub(super) const STOPS: usize = 16;
/// Bytes of a stop text at most.
const STOP_BYTES: usize = 1024;

/// Stop texts, checked.
pub(super) fn stops(fields: &Fields, name: &str) -> Result<Vec<String>, Refusal> {
    let stops = fields.texts(name);
    if stops.iter().any(|s| s.is_empty() || s.len() > STOP_BYTES) {
        return fields.refuse(name, format!("a stop text has from 1 to {STOP_BYTES} bytes"));
    }
    Ok(stops)
}

/// `{"TOKEN": BIAS}` with token ids as keys; −100 and less forbid, as OpenAI has it.
pub(super) fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Refusal> {
    let Some(Value::Object(map)) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    if map.len() > 1024 {
        return fields.refuse("logit_bias", "has more than 1024 entries");
    }
    let entry = |(token, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b))? as f32;
        Some((token.parse().ok()?, if bias == -100.0 { f32::NEG_INFINITY } else { bias }))
    };
    let list: Option<Vec<_>> = map.iter().map(entry).collect();
    list.map_or_else(|| fields.refuse("logit_bias", "maps token ids to numbers from -100 to 100"), Ok)
}

/// `service_tier`: whether somebody waits.
pub(super) fn priority(fields: &Fields) -> Priority {
    if fields.text("service_tier") == Some("flex") { Priority::Batch } else { Priority::Interactive }
}

/// Sampling fields that several dialects call alike.
pub(super) fn sampling(fields: &Fields) -> Wish {
    Wish {
        temperature: fields.number("temperature"),
        top_p: fields.number("top_p"),
        top_k: fields.count("top_k"),
        min_p: fields.number("min_p"),
        presence_penalty: fields.number("presence_penalty"),
        frequency_penalty: fields.number("frequency_penalty"),
        seed: fields.int("seed").map(|seed| seed as u64),
        ..Wish::default()
    }
}

/// A tool's definition in OpenAI's form.
pub(super) const FUNCTION: &[Field] = &[
    Field("name", Kind::Text, FieldRole::Required),
    Field("description", Kind::Text, FieldRole::Used),
    Field("parameters", Kind::Object, FieldRole::Used),
    Field("strict", Kind::Bool, FieldRole::Used),
];

/// A tool definition in OpenAI's form, from its parts.
pub(super) fn tool(place: &str, function: Value) -> Result<Value, Refusal> {
    let mut fields = Fields::read(FUNCTION, function, place)?;
    let name = fields.take_text("name").unwrap_or_default();
    let fit =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !fit {
        return fields.refuse("name", "a function's name has 1 to 64 letters, digits, `_` and `-`");
    }
    let parameters = fields.take("parameters").unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    let mut function = json!({"name": name});
    if let Some(description) = fields.take("description") {
        function["description"] = description;
    }
    function["parameters"] = parameters;
    Ok(json!({"type": "function", "function": function}))
}

/// The choice of one tool by name.
pub(super) fn named(name: String, tools: &[Value]) -> Result<ToolChoice, Refusal> {
    if tools.iter().any(|tool| tool["function"]["name"] == name.as_str()) {
        return Ok(ToolChoice::Named(name));
    }
    Err(Refusal::field("tool_choice", format!("no tool is called `{name}`")))
}

/// OpenAI's words for whether tools are called.
pub(super) fn choice_word(word: Option<Value>, tools: &[Value]) -> Result<ToolChoice, Refusal> {
    let refuse = |why: &str| Err(Refusal::field("tool_choice", why));
    match word.as_ref().map(|w| w.as_str()) {
        None | Some(Some("auto")) => Ok(ToolChoice::Auto),
        Some(Some("none")) => Ok(ToolChoice::None),
        Some(Some("required")) if tools.is_empty() => refuse("is `required`, but there are no tools"),
        Some(Some("required")) => Ok(ToolChoice::Required),
        Some(_) => refuse("is one of `none`, `auto`, `required`, or names a function"),
    }
}

/// A call out of an earlier turn.
pub(super) fn earlier_call(
    place: &str,
    id: Option<String>,
    name: String,
    arguments: String,
) -> Result<ToolCall, Refusal> {
    match serde_json::from_str::<Value>(&arguments) {
        Ok(Value::Object(_)) => Ok(ToolCall { id, name, arguments }),
        _ => Err(Refusal::field(format!("{place}.arguments"), "must be a JSON object as text")),
    }
}

/// Checks that the turns can be answered.
pub(super) fn check_turns(messages: &[ChatMessage]) -> Result<(), Refusal> {
    if messages.is_empty() {
        return Err(Refusal::field("messages", "holds no message"));
    }
    for (i, message) in messages.iter().enumerate() {
        if message.role == Role::Tool {
            let before = messages[..i].iter().rev().find(|m| m.role != Role::Tool);
            let asked = before.is_some_and(|m| {
                m.role == Role::Assistant
                    && (message.tool_call_id.is_none() && !m.tool_calls.is_empty()
                        || m.tool_calls.iter().any(|c| c.id == message.tool_call_id))
            });
            if !asked {
                let why = "a tool's answer must follow the assistant's message that holds the call it names";
                return Err(Refusal::field(format!("messages[{i}]"), why));
            }
        }
    }
    Ok(())
}
