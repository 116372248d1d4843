//! What can go wrong in the engine. Every message says what was found, what was expected and what to do.

use std::path::PathBuf;

/// Result of every fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the engine. Cloneable, because one failed step is reported to every sequence in it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A request without a prompt.
    #[error("the prompt is empty: at least one token is needed to predict the next")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("{place}: token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// Where it stood.
        place: &'static str,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A prompt that leaves no room in the context.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the context holds {context_tokens} and one must be left for the \
         answer: shorten the prompt or raise the context length"
    )]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the context holds.
        context_tokens: usize,
    },
    /// A prompt that the cache memory can never hold.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the KV cache was given room for {cache_tokens}: raise the memory \
         for the cache or shorten the prompt"
    )]
    CacheTooSmall {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that all cache blocks together hold.
        cache_tokens: usize,
    },
    /// An option outside its range.
    #[error("{name} is {found}, expected {expected}")]
    Option {
        /// Name of the option.
        name: &'static str,
        /// Value given.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Too many requests wait already.
    #[error("the queue is full: {limit} requests wait already; try again later")]
    QueueFull {
        /// How many may wait.
        limit: usize,
    },
    /// The engine has shut down, or its model has failed.
    #[error("the engine has stopped")]
    Stopped,
    /// The model produced numbers that no token can be drawn from.
    #[error("logits at position {position}: {why}; the weights or the arithmetic are broken")]
    Logits {
        /// Position of the token that they were computed from.
        position: usize,
        /// What is wrong with them.
        why: &'static str,
    },
    /// The model or its device failed. Ends the engine.
    #[error("the model failed: {0}")]
    Model(String),
    /// A text-side failure: tokenizer, template or detokenizer.
    #[error("{place}: {why}")]
    Text {
        /// What was being done.
        place: &'static str,
        /// What it said.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {why}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A saved session that is not one, or not one of ours.
    #[error("{path}: {place}: expected {expected}, found {found}")]
    Session {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
}

impl From<fathom_core::Error> for Error {
    fn from(error: fathom_core::Error) -> Self {
        Error::Model(error.to_string())
    }
}
