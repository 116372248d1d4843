//! What no dialect owns: health, metrics, and the page with its files.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::json;

use super::Routes;
use crate::answer;
use crate::{App, Refusal, page};

pub(super) fn routes() -> Routes {
    let mut routes = Routes::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(super::openapi::document));
    for file in &page::FILES {
        routes = routes.route(file.path, get(move || async move { page(file) }));
    }
    routes
}

/// The process lives.
async fn health() -> Response {
    answer::json(&json!({"status": "ok"}))
}

/// Requests are taken.
async fn ready(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    if app.draining.load(Ordering::Relaxed) {
        return Err(Refusal::Unavailable("the server is shutting down".into()));
    }
    if !app.models.ready() {
        return Err(Refusal::Unavailable("the models are being loaded".into()));
    }
    Ok(answer::json(&json!({"status": "ready"})))
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], app.metrics.text(&app)).into_response()
}

fn page(file: &'static page::File) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(file.kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY)),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, file.text).into_response()
}
