//! OpenAI's API: this file holds its paths, models, counts and errors; the others hold one endpoint each.
//!
//! Source: OpenAI's API reference. DeepSeek's dialect builds on this one.

pub(super) mod chat;
pub(super) mod images;
pub(super) mod responses;
pub(super) mod text;
pub(super) mod vectors;

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use fathom_engine::Usage;
use serde_json::{Value, json};

use super::{Routes, on};
use crate::models::Offer;
use crate::{App, Refusal, answer};

pub(super) fn routes() -> Routes {
    let routes = on(Routes::new(), &["/v1/chat/completions"], post(chat::completions));
    let routes = on(routes, &["/v1/completions"], post(text::completions));
    let routes = on(routes, &["/v1/images/generations"], post(images::generations));
    let routes = on(routes, &["/v1/responses"], post(responses::create));
    let routes = on(routes, &["/v1/embeddings"], post(vectors::embeddings));
    let routes = on(routes, &["/v1/tokenize", "/tokenize"], post(vectors::tokenize));
    let routes = on(routes, &["/v1/detokenize", "/detokenize"], post(vectors::detokenize));
    let routes = on(routes, &["/tokenizer_info"], get(vectors::tokenizer_info));
    let routes = on(routes, &["/v1/models", "/models"], get(models));
    on(routes, &["/v1/models/{*name}", "/models/{*name}"], get(model))
}

/// Counts in OpenAI's shape with DeepSeek's additions.
pub(in crate::dialects) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        "prompt_cache_hit_tokens": usage.cached,
        "prompt_cache_miss_tokens": usage.prompt - usage.cached,
    })
}

/// Status and body of a refusal.
pub(in crate::dialects) fn error(refusal: &Refusal, request_id: &str) -> (u16, Value) {
    let (kind, code) = match refusal {
        Refusal::Malformed(_) | Refusal::Field { .. } | Refusal::TooLarge(_) | Refusal::Method(_) => {
            ("invalid_request_error", None)
        }
        Refusal::Context(_) => ("invalid_request_error", Some("context_length_exceeded")),
        Refusal::NoModel(_) => ("invalid_request_error", Some("model_not_found")),
        Refusal::NoPath(_) => ("invalid_request_error", Some("unknown_url")),
        Refusal::Unauthorized => ("authentication_error", Some("invalid_api_key")),
        Refusal::Forbidden(_) => ("permission_error", None),
        Refusal::Busy(_) => ("rate_limit_error", Some("rate_limit_exceeded")),
        Refusal::Unavailable(_) => ("server_error", Some("unavailable")),
        Refusal::Failed(_) => ("server_error", None),
    };
    let error = json!({"message": refusal.to_string(), "type": kind, "param": refusal.param(), "code": code});
    let mut body = json!({"error": error});
    if !request_id.is_empty() {
        body["request_id"] = request_id.into();
    }
    (refusal.status(), body)
}

fn entry(offer: &Offer) -> Value {
    let mut entry = json!({"id": offer.name, "object": "model", "created": offer.modified, "owned_by": "fathom"});
    if offer.pictures {
        // For the page: OpenAI's list does not say what a model can do.
        entry["pictures"] = true.into();
    }
    entry
}

pub(in crate::dialects) async fn models(State(app): State<Arc<App>>) -> Response {
    let mut data: Vec<Value> = app.models.offers().iter().map(entry).collect();
    for alias in app.models.aliases() {
        data.push(
            json!({"id": alias.name, "object": "model", "created": 0, "owned_by": "fathom", "parent": alias.model}),
        );
    }
    answer::json(&json!({"object": "list", "data": data}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, Refusal> {
    let (resolved, _) = app.models.resolve(&name)?;
    let offer = app.models.offers().into_iter().find(|o| o.name == resolved).ok_or(Refusal::NoModel(name))?;
    Ok(answer::json(&entry(&offer)))
}
