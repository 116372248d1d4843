#![forbid(unsafe_code)]
//! Floor 4: the server. HTTP, the languages that clients speak, and a plain page.
//!
//! A request passes `guard` (who may ask, request ids, the shape of errors) to one of the `dialects`, which
//! parses it against its tables of `fields` into a neutral `Ask`. `answer` renders, submits to the engine and
//! gives back `Piece`s, which the dialect encodes. [`models`] says which models there are and loads them;
//! `listen` accepts connections and drains them at the end.
//!
//! It must not know: backends, weights, the command line. Models come through [`Store`], options as structs.

mod answer;
mod ask;
mod dialects;
mod fields;
mod guard;
mod listen;
mod log;
mod metrics;
pub mod models;
mod page;
mod quota;
mod refusal;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use dialects::check_request;
pub use guard::Access;
pub use listen::{Bound, serve};
pub use log::Log;
pub use models::{Alias, ModelOptions, Offer, Served, Store};
pub use refusal::Refusal;

/// What a server is told.
pub struct ServeOptions {
    /// Address to listen on.
    pub host: String,
    /// Port; 0 = any free one.
    pub port: u16,
    /// Who may ask.
    pub access: Access,
    /// Bounds.
    pub limits: Limits,
    /// Which models are loaded when.
    pub models: ModelOptions,
    /// Where the log goes.
    pub log: Log,
}

/// Bounds on what a request may hold and how long things may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Answers to one request (`n`).
    pub choices: usize,
    /// Answers that one key may have under way at once; none = as many as it likes.
    pub per_key: Option<usize>,
    /// Open connections.
    pub connections: usize,
    /// Until a request's head has come.
    pub head: Duration,
    /// Until a request's body has come.
    pub body: Duration,
    /// From submission to the first token.
    pub first_token: Duration,
    /// From submission to the last token.
    pub total: Duration,
    /// For answers under way when the server is told to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: 32 << 20,
            head_bytes: 64 << 10,
            choices: 16,
            per_key: None,
            connections: 1024,
            head: Duration::from_secs(10),
            body: Duration::from_secs(60),
            first_token: Duration::from_secs(600),
            total: Duration::from_secs(3600),
            drain: Duration::from_secs(30),
        }
    }
}

/// What all handlers share.
struct App {
    models: Arc<models::Models>,
    access: Access,
    limits: Limits,
    quotas: Arc<quota::Quotas>,
    metrics: metrics::Metrics,
    log: Log,
    /// Exact texts of calls that were made, by id.
    replays: answer::Replays,
    /// Told to stop: nothing new is taken.
    draining: AtomicBool,
    /// The time for draining is over: what still runs ends now.
    over: tokio::sync::watch::Sender<bool>,
}

/// Twenty-four hexadecimal digits that nobody has used.
fn random_id() -> String {
    let part = || RandomState::new().hash_one(0u8);
    format!("{:016x}{:08x}", part(), part() >> 32)
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
