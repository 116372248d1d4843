//! DeepSeek's API: OpenAI's chat and completions with and without `/v1` and under `/beta`, its own status for bad values,
//! blank lines while a client waits, and a balance.
//!
//! Source: DeepSeek's API documentation.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::{Routes, body, on, openai};
use crate::answer::{self, respond};
use crate::{App, Refusal};

/// Whether a path is this dialect's own. Paths under `/v1` are OpenAI's, which answers alike.
pub(super) fn owns(path: &str) -> bool {
    path.starts_with("/beta/")
        || ["/chat/completions", "/completions", "/responses", "/models", "/user/balance"].contains(&path)
}

pub(super) fn routes() -> Routes {
    let chat = ["/chat/completions", "/beta/chat/completions", "/beta/v1/chat/completions"];
    let text = ["/completions", "/beta/completions", "/beta/v1/completions"];
    let routes = on(Routes::new(), &chat, post(completions));
    let routes = on(routes, &text, post(openai::text::completions));
    let routes = on(routes, &["/responses"], post(openai::responses::create));
    let routes = on(routes, &["/beta/models"], get(openai::models));
    on(routes, &["/user/balance"], get(balance))
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let (ask, style) = openai::chat::parse_chat(value)?;
    respond(&app, &caller, ask, |heading| openai::chat::ChatEncoder::<true>::new(heading, style)).await
}

/// One's own machine costs nothing and never runs out.
async fn balance() -> Response {
    let none = "0.00";
    answer::json(&json!({"is_available": true, "balance_infos": [{
        "currency": "USD", "total_balance": none, "granted_balance": none, "topped_up_balance": none,
    }]}))
}

/// Status and body of a refusal: bad values are 422.
pub(super) fn error(refusal: &Refusal, request_id: &str) -> (u16, Value) {
    let (status, body) = openai::error(refusal, request_id);
    (if matches!(refusal, Refusal::Field { .. }) { 422 } else { status }, body)
}
