//! Why a request is not served, in no dialect's shape. Each dialect gives it its own; the status is decided here.

use axum::response::{IntoResponse, Response};
use fathom_engine::Error;

/// A refusal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The request as a whole makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// One field makes no sense, is unknown, or asks for what cannot be done.
    #[error("{name}: {why}")]
    Field {
        /// Its path, as in `messages[2].role`.
        name: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// More tokens than the context holds.
    #[error("{0}")]
    Context(String),
    /// There is no such model.
    #[error("there is no model `{0}` here; `/v1/models` lists those that there are")]
    NoModel(String),
    /// There is no such path.
    #[error("there is nothing at {0}")]
    NoPath(String),
    /// The path takes another method.
    #[error("{0}")]
    Method(String),
    /// No key, or a wrong one.
    #[error("a valid API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`")]
    Unauthorized,
    /// Not from there, or not here.
    #[error("{0}")]
    Forbidden(String),
    /// The body is larger than this many bytes.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// The client's share is used up for now.
    #[error("{0}")]
    Busy(String),
    /// Loading, draining or overloaded as a whole.
    #[error("{0}")]
    Unavailable(String),
    /// Something broke in here.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    /// A fault of one field.
    pub fn field(name: impl Into<String>, why: impl Into<String>) -> Self {
        Refusal::Field { name: name.into(), why: why.into() }
    }

    /// HTTP status.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Refusal::Malformed(_) | Refusal::Field { .. } | Refusal::Context(_) => 400,
            Refusal::Unauthorized => 401,
            Refusal::Forbidden(_) => 403,
            Refusal::NoModel(_) | Refusal::NoPath(_) => 404,
            Refusal::Method(_) => 405,
            Refusal::TooLarge(_) => 413,
            Refusal::Busy(_) => 429,
            Refusal::Failed(_) => 500,
            Refusal::Unavailable(_) => 503,
        }
    }

    /// Seconds after which another try makes sense.
    pub(crate) fn retry_after_s(&self) -> Option<u32> {
        match self {
            Refusal::Busy(_) => Some(2),
            Refusal::Unavailable(_) => Some(5),
            _ => None,
        }
    }

    /// The field at fault.
    pub(crate) fn param(&self) -> Option<&str> {
        match self {
            Refusal::Field { name, .. } => Some(name),
            _ => None,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let why = error.to_string();
        match error {
            Error::ContextTooLong { .. } | Error::CacheTooSmall { .. } => Refusal::Context(why),
            Error::QueueFull { .. } => Refusal::Busy(why),
            Error::Stopped => Refusal::Unavailable(why),
            Error::Option { name, found, expected } => Refusal::field(name, format!("is {found}, expected {expected}")),
            Error::EmptyPrompt | Error::TokenOutOfRange { .. } | Error::Text { .. } => Refusal::Malformed(why),
            Error::Logits { .. } | Error::Model(_) | Error::Io { .. } | Error::Session { .. } => Refusal::Failed(why),
        }
    }
}

impl IntoResponse for Refusal {
    /// A bare status that carries the refusal; the outermost layer writes it in the dialect of the path.
    fn into_response(self) -> Response {
        let status = axum::http::StatusCode::from_u16(self.status()).expect("invariant: these are statuses");
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
