//! The outermost layer: who may ask, from where, request ids, the shape of errors, counting and logging.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use crate::{App, Refusal, answer, dialects, random_id};

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Hashes of the keys that are let in; none = no key is needed.
    keys: Vec<blake3::Hash>,
    /// Names that the server goes by, beside addresses and `localhost`: the defence against DNS rebinding.
    hosts: Vec<String>,
    /// Origins whose pages may ask, beside the server's own.
    origins: Vec<String>,
}

impl Access {
    /// Lets in whoever has one of `keys`; anyone, if there are none.
    pub fn new(keys: &[String], hosts: Vec<String>, origins: Vec<String>) -> Self {
        let keys = keys.iter().map(|key| blake3::hash(key.as_bytes())).collect();
        Access { keys, hosts, origins }
    }

    /// Whether a key is needed.
    pub fn needs_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Which key a request has, counted from 1; 0 where none is needed.
    fn key(&self, headers: &HeaderMap) -> Option<usize> {
        if self.keys.is_empty() {
            return Some(0);
        }
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let bearer = text("authorization")
            .and_then(|v| v.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let key = bearer.map(|(_, key)| key.trim()).or_else(|| text("x-api-key"))?;
        // Hashes compare in constant time.
        let given = blake3::hash(key.as_bytes());
        (1..).zip(&self.keys).fold(None, |found, (i, known)| if *known == given { Some(i) } else { found })
    }

    /// Whether a `Host` header can be this server. Pages of other sites cannot make a browser send an address.
    fn host_is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<std::net::IpAddr>().is_ok()
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let text = |name: header::HeaderName| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
        let host = text(header::HOST).unwrap_or_default();
        if !host.is_empty() && !self.host_is_ours(host) {
            let why = format!("this server does not go by the name of {host}; `--allow-host` adds a name");
            return Err(Refusal::Forbidden(why));
        }
        match text(header::ORIGIN) {
            None => Ok(()),
            Some(origin) => {
                let own = origin.split_once("://").is_some_and(|(_, name)| name == host);
                if own || self.origins.iter().any(|o| o == origin || o == "*") {
                    return Ok(());
                }
                let why = format!("pages from {origin} may not ask here; `--allow-origin` adds an origin");
                Err(Refusal::Forbidden(why))
            }
        }
    }
}

/// Whose request it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// The request's name, as its response and the log have it.
    pub(crate) request: String,
    /// Which key it has, counted from 1; 0 where none is needed.
    pub(crate) key: usize,
}

/// Paths that show nothing and take nothing, so that probes and the page's files need no key.
const OPEN: [&str; 6] = ["/", "/health", "/ready", "/page.js", "/page.css", "/vendor.js"];

pub(crate) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = request.headers().get(header::ORIGIN).cloned();

    let mut response = match enter(&app, &request, &method, &path) {
        Err(refusal) => refused(&path, &refusal, &id),
        Ok(_) if method == Method::OPTIONS => empty(StatusCode::NO_CONTENT),
        Ok(key) => {
            request.extensions_mut().insert(Caller { request: id.clone(), key });
            let mut response = next.run(request).await;
            match response.extensions_mut().remove::<Refusal>() {
                Some(refusal) => refused(&path, &refusal, &id),
                None => response,
            }
        }
    };
    let status = response.status().as_u16();
    app.metrics.responded(status);
    app.log.line(&json!({
        "event": "request", "request": id, "method": method.as_str(), "path": path, "status": status,
        "head_s": start.elapsed().as_secs_f64(),
    }));
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    if let Some(origin) = origin.filter(|_| status != 403) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        let allowed = HeaderValue::from_static(dialects::ALLOWED_HEADERS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Lets a request in, or not. Returns which key it has.
fn enter(app: &App, request: &Request, method: &Method, path: &str) -> Result<usize, Refusal> {
    app.access.check_origin(request.headers())?;
    let open = method == Method::OPTIONS || method == Method::GET && OPEN.contains(&path);
    let key = app.access.key(request.headers()).or(open.then_some(0)).ok_or(Refusal::Unauthorized)?;
    if app.draining.load(Ordering::Relaxed) && method == Method::POST {
        return Err(Refusal::Unavailable("the server is shutting down".into()));
    }
    Ok(key)
}

/// The client's own id, if it is one that can stand in a log, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get("x-request-id").and_then(|v| v.to_str().ok());
    let fit = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    own.filter(fit).map_or_else(|| format!("req_{}", random_id()), str::to_owned)
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

/// A refusal in the shape of the path's dialect.
fn refused(path: &str, refusal: &Refusal, id: &str) -> Response {
    let (status, body) = dialects::error(path, refusal, id);
    let mut response = answer::json(&body);
    *response.status_mut() = StatusCode::from_u16(status).expect("invariant: dialects give statuses");
    if let Some(seconds) = refusal.retry_after_s() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if matches!(refusal, Refusal::Unauthorized) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        list.iter().map(pair).collect()
    }

    #[test]
    fn keys_come_in_two_headers() {
        let access = Access::new(&["other".into(), "secret".into()], vec![], vec![]);
        for (header, good) in [
            (("authorization", "Bearer secret"), true),
            (("authorization", "bearer secret"), true),
            (("x-api-key", "secret"), true),
            (("authorization", "Bearer secrets"), false),
            (("authorization", "secret"), false),
            (("x-api-key", ""), false),
        ] {
            assert_eq!(access.key(&headers(&[header])), good.then_some(2), "{header:?}");
        }
        assert_eq!(Access::default().key(&headers(&[])), Some(0));
    }

    #[test]
    fn other_sites_pages_are_refused() {
        let access = Access::new(&[], vec!["box.lan".into()], vec!["https://friend.example".into()]);
        for (host, origin, good) in [
            ("127.0.0.1:8080", None, true),
            ("localhost:8080", Some("http://localhost:8080"), true),
            ("[::1]:8080", Some("http://[::1]:8080"), true),
            ("box.lan:8080", None, true),
            ("evil.example", None, false),
            ("localhost:8080", Some("http://localhost:9090"), false),
            ("localhost:8080", Some("https://evil.example"), false),
            ("localhost:8080", Some("null"), false),
            ("localhost:8080", Some("https://friend.example"), true),
        ] {
            let mut list = vec![("host", host)];
            list.extend(origin.map(|o| ("origin", o)));
            assert_eq!(access.check_origin(&headers(&list)).is_ok(), good, "{host} {origin:?}");
        }
    }
}
