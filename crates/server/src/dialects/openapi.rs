//! The OpenAPI document, made from the tables that the dialects read requests with, so that it cannot say anything else.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{anthropic, ollama, openai};
use crate::App;
use crate::answer;
use crate::fields::{Field, schema};

/// Method, path, summary and the body's fields.
type Operation = (&'static str, &'static str, &'static str, Option<&'static [Field]>);

const OPERATIONS: &[Operation] = &[
    ("post", "/v1/chat/completions", "Answer a conversation", Some(openai::chat::CHAT)),
    ("post", "/v1/completions", "Continue a text, or fill a gap in one", Some(openai::text::TEXT)),
    ("post", "/v1/responses", "Answer a conversation; nothing is stored", Some(openai::responses::RESPONSES)),
    ("post", "/v1/embeddings", "Texts as vectors", Some(openai::vectors::EMBEDDINGS)),
    ("post", "/v1/images/generations", "Draw pictures", Some(openai::images::IMAGES)),
    ("post", "/v1/tokenize", "A text as tokens", Some(openai::vectors::TOKENIZE)),
    ("post", "/v1/detokenize", "Tokens as text", Some(openai::vectors::DETOKENIZE)),
    ("get", "/tokenizer_info", "The first model's marks of beginning and end", None),
    ("get", "/v1/models", "The models", None),
    ("post", "/chat/completions", "DeepSeek: answer a conversation", Some(openai::chat::CHAT)),
    ("post", "/beta/chat/completions", "DeepSeek: the same with beta features", Some(openai::chat::CHAT)),
    ("post", "/beta/completions", "DeepSeek: fill a gap in a text", Some(openai::text::TEXT)),
    ("get", "/user/balance", "DeepSeek: what is left of the money", None),
    ("post", "/v1/messages", "Anthropic: answer a conversation", Some(anthropic::MESSAGES)),
    ("post", "/v1/messages/count_tokens", "Anthropic: the length of a prompt", Some(anthropic::MESSAGES)),
    ("post", "/anthropic/v1/messages", "Anthropic: answer a conversation", Some(anthropic::MESSAGES)),
    ("post", "/api/chat", "Ollama: answer a conversation", Some(ollama::CHAT)),
    ("post", "/api/generate", "Ollama: answer or continue a text", Some(ollama::GENERATE)),
    ("post", "/api/embed", "Ollama: texts as vectors", Some(ollama::EMBED)),
    ("post", "/api/show", "Ollama: what a model is", Some(ollama::SHOW)),
    ("post", "/api/pull", "Ollama: fetch a model", Some(ollama::PULL)),
    ("delete", "/api/delete", "Ollama: delete a model", Some(ollama::SHOW)),
    ("get", "/api/tags", "Ollama: the models", None),
    ("get", "/api/ps", "Ollama: the loaded models", None),
    ("get", "/api/version", "Ollama: the version", None),
    ("get", "/health", "Whether the process lives", None),
    ("get", "/ready", "Whether requests are taken", None),
    ("get", "/metrics", "Counters and gauges for Prometheus", None),
    ("get", "/openapi.json", "This document", None),
];

/// `GET /openapi.json`.
pub(super) async fn document(State(app): State<Arc<App>>) -> Response {
    let names = app.models.offers().into_iter().map(|offer| offer.name);
    answer::json(&build(&names.collect::<Vec<_>>()))
}

/// The document of a server that offers these models.
fn build(models: &[String]) -> Value {
    let mut paths = Map::new();
    for (method, path, summary, fields) in OPERATIONS {
        let streams = fields.is_some_and(|fields| fields.iter().any(|f| f.0 == "stream"));
        let object = json!({"schema": {"type": "object"}});
        let mut content = Map::new();
        match *path {
            "/metrics" => content.insert("text/plain".into(), json!({"schema": {"type": "string"}})),
            _ => content.insert("application/json".into(), object.clone()),
        };
        if streams {
            let kind = if path.starts_with("/api/") { "application/x-ndjson" } else { "text/event-stream" };
            content.insert(kind.into(), json!({"schema": {"type": "string"}}));
        }
        let mut done = json!({"description": "Done", "content": content});
        if *method == "delete" {
            done = json!({"description": "Done"});
        }
        let refused = json!({"description": "Refused; the body says why", "content": {"application/json": object}});
        let mut operation = json!({"summary": summary, "responses": {"200": done, "default": refused}});
        if let Some(fields) = fields {
            let mut schema = schema(fields);
            if let Some(model) = schema["properties"].get_mut("model") {
                model["examples"] = models.into();
            }
            operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        let entry = paths.entry((*path).to_owned()).or_insert_with(|| json!({}));
        entry[*method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "fathom", "version": env!("CARGO_PKG_VERSION"),
            "description": "DeepSeek's open models on your own hardware, in the dialects that clients speak."},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_becomes_a_schema() {
        let document = build(&["m".into()]);
        let chat = &document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"];
        assert_eq!(chat["schema"]["required"], json!(["model", "messages"]));
        assert_eq!(chat["schema"]["properties"]["top_logprobs"]["maximum"], 20);
        assert_eq!(chat["schema"]["additionalProperties"], false);
        assert_eq!(chat["schema"]["properties"]["model"]["examples"], json!(["m"]));
        let messages = &chat["schema"]["properties"]["messages"]["items"];
        assert_eq!((&messages["required"], &messages["additionalProperties"]), (&json!(["role"]), &json!(false)));
    }
}
