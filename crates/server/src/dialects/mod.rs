//! The languages that clients speak, one file each, over the neutral `Ask` and `Piece`. Their names stand nowhere else.

mod anthropic;
mod chat;
mod deepseek;
mod ollama;
mod openai;
mod openapi;
mod service;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::handler::HandlerWithoutStateExt as _;
use axum::routing::MethodRouter;
use serde_json::Value;

use crate::guard::Caller;
use crate::{App, Refusal};

/// Request headers that pages of other origins may send.
pub(crate) const ALLOWED_HEADERS: &str = "authorization, content-type, x-api-key, anthropic-version";

/// All paths.
pub(crate) fn router(app: Arc<App>) -> Router {
    let router = Router::new()
        .merge(service::routes())
        .merge(openai::routes())
        .merge(deepseek::routes())
        .merge(anthropic::routes())
        .merge(ollama::routes());
    router
        .method_not_allowed_fallback(wrong_method)
        .fallback_service(nothing_here.into_service())
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), crate::guard::guard))
        .with_state(app)
}

async fn nothing_here(request: Request) -> Refusal {
    Refusal::NoPath(request.uri().path().to_owned())
}

async fn wrong_method(request: Request) -> Refusal {
    Refusal::Method(format!("{} does not take {}", request.uri().path(), request.method()))
}

/// Status and body of a refusal in the shape of the path's dialect.
pub(crate) fn error(path: &str, refusal: &Refusal, request_id: &str) -> (u16, Value) {
    match path {
        path if anthropic::owns(path) => anthropic::error(refusal, request_id),
        path if ollama::owns(path) => ollama::error(refusal, request_id),
        path if deepseek::owns(path) => deepseek::error(refusal, request_id),
        _ => openai::error(refusal, request_id),
    }
}

/// A request's body as JSON, and whose it is.
pub(crate) async fn body(app: &App, request: Request) -> Result<(Value, Caller), Refusal> {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let limit = app.limits.body_bytes;
    let declared = request.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|n| n > limit) {
        return Err(Refusal::TooLarge(limit));
    }
    let bytes = tokio::time::timeout(app.limits.body, axum::body::to_bytes(request.into_body(), limit)).await;
    let slow = |_| Refusal::Malformed(format!("the body took longer than {} s", Duration::as_secs(&app.limits.body)));
    let bytes = bytes.map_err(slow)?.map_err(|e| match e.to_string() {
        why if why.contains("length limit") => Refusal::TooLarge(limit),
        why => Refusal::Malformed(format!("the body broke off: {why}")),
    })?;
    let value = serde_json::from_slice(&bytes);
    Ok((value.map_err(|e| Refusal::Malformed(format!("the body is no JSON: {e}")))?, caller))
}

/// Reads a request as the dialect of its path would, without answering it.
///
/// # Errors
/// The refusal that a client would get.
pub fn check_request(path: &str, body: &[u8]) -> Result<(), Refusal> {
    let value: Value = serde_json::from_slice(body).map_err(|e| Refusal::Malformed(e.to_string()))?;
    match path {
        "/v1/chat/completions" => openai::chat::parse_chat(value).map(drop),
        "/v1/completions" => openai::text::parse(value).map(drop),
        "/v1/responses" => openai::responses::parse(value).map(drop),
        "/v1/messages" => anthropic::parse(value).map(drop),
        "/api/chat" => ollama::parse_chat(value).map(drop),
        "/api/generate" => ollama::parse_generate(value).map(drop),
        other => Err(Refusal::NoPath(other.to_owned())),
    }
}

/// Routes of one dialect.
pub(crate) type Routes = Router<Arc<App>>;

/// The same handler on several paths.
pub(crate) fn on(routes: Routes, paths: &[&str], handler: MethodRouter<Arc<App>>) -> Routes {
    paths.iter().fold(routes, |routes, path| routes.route(path, handler.clone()))
}
