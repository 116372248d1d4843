//! Reads tokenizer fixtures: their files as a `VocabSource`, their golden cases as JSON.
#![allow(dead_code)] // each test binary uses its part

use fathom_text::{
    ChatMessage, ChatTemplate, HuggingFaceTexts, RenderOptions, Role, TokenRef, Tokenizer, ToolCall, VocabLists,
    VocabSource, Vocabulary,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The tokenizer styles in `testdata/tokenizers`, each with the name GGUF files give its pre-tokenizer.
pub(crate) const STYLES: [(&str, &str); 4] =
    [("deepseek_v3", "deepseek-v3"), ("janus", "deepseek-llm"), ("qwen2", "deepseek-r1-qwen"), ("llama3", "llama-bpe")];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn style_dir(style: &str) -> PathBuf {
    root().join("testdata/tokenizers").join(style)
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

/// The source of a Hugging Face directory.
pub(crate) fn source(dir: &Path) -> VocabSource {
    let optional = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
    let (config, special_tokens) = (optional("tokenizer_config.json"), optional("special_tokens_map.json"));
    let texts = HuggingFaceTexts {
        tokenizer: &read(&dir.join("tokenizer.json")),
        config: config.as_deref(),
        special_tokens: special_tokens.as_deref(),
        chat_template: None,
    };
    VocabSource::from_hugging_face(&dir.display().to_string(), texts).unwrap()
}

/// The same vocabulary in the form of GGUF metadata.
pub(crate) fn source_as_lists(dir: &Path, pre: &str) -> VocabSource {
    let json = read_json(&dir.join("tokenizer.json"));
    let mut rows: Vec<(u64, String, u32)> = Vec::new();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        rows.push((id.as_u64().unwrap(), token.clone(), VocabLists::NORMAL));
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let kind = if added["special"] == true { VocabLists::CONTROL } else { VocabLists::USER };
        let row = (added["id"].as_u64().unwrap(), added["content"].as_str().unwrap().to_owned(), kind);
        rows.retain(|(id, ..)| *id != row.0);
        rows.push(row);
    }
    rows.sort();
    assert!(rows.iter().zip(0..).all(|((id, ..), index)| *id == index));
    let part = |rule: &Value, index: usize| rule[index].as_str().unwrap().to_owned();
    let merges = json["model"]["merges"].as_array().unwrap();
    let lists = VocabLists {
        model: "gpt2".into(),
        pre: pre.into(),
        kinds: rows.iter().map(|row| row.2).collect(),
        tokens: rows.into_iter().map(|row| row.1).collect(),
        merges: merges.iter().map(|rule| format!("{} {}", part(rule, 0), part(rule, 1))).collect(),
    };
    let hf = source(dir);
    let by_id = |token: &Option<TokenRef>| match token {
        Some(TokenRef::Text(text)) => {
            lists.tokens.iter().position(|token| token == text).map(|id| TokenRef::Id(id as u32))
        }
        _ => None,
    };
    VocabSource {
        bos: by_id(&hf.bos),
        eos: by_id(&hf.eos),
        pad: by_id(&hf.pad),
        templates: hf.templates,
        ..VocabSource::new("lists", Vocabulary::Lists(lists))
    }
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A conversation in Hugging Face's JSON form.
pub(crate) fn messages(value: &Value) -> Vec<ChatMessage> {
    let message = |message: &Value| {
        let role = match text(&message["role"]) {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => panic!("role {other}"),
        };
        let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
        let call = |call: &Value| ToolCall {
            id: None,
            name: text(&call["function"]["name"]).into(),
            arguments: match &call["function"]["arguments"] {
                Value::String(text) => text.clone(),
                object => object.to_string(),
            },
        };
        ChatMessage {
            content: message["content"].as_str().map(str::to_owned),
            tool_calls: calls.iter().map(call).collect(),
            ..ChatMessage::new(role, "")
        }
    };
    value.as_array().unwrap().iter().map(message).collect()
}

/// Renders every case and compares text and ids; returns how many there were.
pub(crate) fn check_chat(cases: &Value, tokenizer: &Tokenizer, template: &ChatTemplate) -> usize {
    let cases = cases.as_array().unwrap();
    for case in cases {
        let options =
            RenderOptions { history_only: case["add_generation_prompt"] == false, ..RenderOptions::default() };
        let prompt = template.render(&messages(&case["messages"]), &options).unwrap();
        let name = text(&case["name"]);
        assert_eq!(prompt.text, text(&case["text"]), "{name}");
        assert_eq!(prompt.thinking, prompt.text.ends_with("<think>\n"), "{name}");
        assert_eq!(tokenizer.encode_prompt(&prompt.text).unwrap(), ids(&case["ids"]), "{name}");
    }
    cases.len()
}
