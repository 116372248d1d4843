//! Answers that must have a shape get it, whatever the model would rather say.

use serde_json::{Value, json};

use crate::parrot::{Setting, start};

const CHAT: &str = "/v1/chat/completions";

fn ask(extra: Value) -> Value {
    let mut body = json!({"model": "parrot", "max_tokens": 200, "temperature": 1.0, "seed": 3,
        "messages": [{"role": "user", "content": "Please say hello."}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn json_begins_behind_the_reasoning() {
    let (client, _) = start(Setting::default());
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2, 3]}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"], "additionalProperties": false});
    for thinking in ["enabled", "disabled"] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
        let answer = client
            .post(CHAT, &ask(json!({"response_format": format, "thinking": {"type": thinking}, "temperature": 0})));
        let body = answer.json();
        let message = &body["choices"][0]["message"];
        let text = message["content"].as_str();
        let value: Value = serde_json::from_str(text.unwrap()).unwrap_or_else(|e| panic!("{thinking}: {e}: {body}"));
        assert!([1, 2, 3].iter().any(|n| value["n"] == *n) && value["ok"].is_boolean(), "{value}");
        let reasoning = message["reasoning_content"].as_str();
        assert_eq!(reasoning, (thinking == "enabled").then_some("A greeting is due.\n"), "it is free to think");
    }
}

#[test]
fn regular_expressions_and_grammars_rule_every_token() {
    let (client, _) = start(Setting::default());
    for (format, texts) in [
        (json!({"type": "regex", "regex": "(red|green)/[0-9]{3}"}), None),
        (json!({"type": "lark", "lark": "start: \"yes\" | \"no\""}), Some(["yes", "no"])),
    ] {
        let body = ask(json!({"response_format": format, "thinking": {"type": "disabled"}}));
        let answer = client.post(CHAT, &body).json();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"));
        match texts {
            Some(texts) => assert!(texts.contains(&text), "{text}"),
            None => {
                let (colour, digits) = text.split_once('/').unwrap();
                assert!(["red", "green"].contains(&colour) && digits.len() == 3, "{text}");
                assert!(digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
            }
        }
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn tools_are_called_when_they_must_be() {
    let (client, _) = start(Setting::default());
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
            "properties": {"x": {"enum": ["left", "right"]}}, "required": ["x"], "additionalProperties": false}}})
    };
    let named = json!({"type": "function", "function": {"name": "turn"}});
    for choice in [json!("required"), named] {
        let body = ask(json!({"tools": [tool("go"), tool("turn")], "tool_choice": choice,
            "parallel_tool_calls": false, "thinking": {"type": "disabled"}}));
        let answer = client.post(CHAT, &body).json();
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(calls.len(), 1, "{answer}");
        let name = calls[0]["function"]["name"].as_str().unwrap();
        assert!(if choice.is_object() { name == "turn" } else { ["go", "turn"].contains(&name) }, "{name}");
        let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["x"] == "left" || arguments["x"] == "right", "{arguments}");
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[test]
fn a_shape_beside_tools_holds_where_none_is_called() {
    let (client, _) = start(Setting::default());
    let tool = json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}});
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": false});
    let body = |text: &str| {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
        ask(json!({"tools": [tool], "response_format": format, "temperature": 0,
            "messages": [{"role": "user", "content": text}]}))
    };
    let spoken = client.post(CHAT, &body("Please say hello.")).json();
    let text = spoken["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{spoken}"));
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["ok"].is_boolean(), "{value}");
    let called = client.post(CHAT, &body("Please add 6 and 7.")).json();
    let call = &called["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(
        (call["name"].as_str(), call["arguments"].as_str()),
        (Some("add"), Some("{\"a\": 6, \"b\": 7}")),
        "{called}"
    );
}

#[test]
fn shapes_that_cannot_be_followed_are_refused_with_a_reason() {
    let (client, _) = start(Setting::default());
    for (format, words) in [
        (json!({"type": "regex", "regex": "a("}), "shape"),
        (json!({"type": "lark", "lark": "start: nothing"}), "nothing"),
        (json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}), "nonsense"),
        (json!({"type": "regex"}), "required"),
        (
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "enum": []}}}),
            "shape",
        ),
    ] {
        let answer = client.post(CHAT, &ask(json!({"response_format": format})));
        assert!(answer.status == 400 && answer.body.contains(words), "{format}: {} {}", answer.status, answer.body);
    }
}
