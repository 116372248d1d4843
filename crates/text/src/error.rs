//! What can go wrong between a model's text files and its token ids.
//!
//! Every variant names the file (as the caller called it), the place in it, what was expected and what was found.
//! Bad input is an error here; only a broken invariant of this crate panics.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, TextError>;

/// Errors of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The file is no JSON, or its JSON has another shape than the format's.
    #[error("{file}: not readable as JSON of this kind: {reason}")]
    Json {
        /// Name of the file or metadata block.
        file: String,
        /// The JSON parser's words, with line and column.
        reason: String,
    },
    /// A field has a value that this crate cannot honour.
    #[error("{file}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// Name of the file or metadata block.
        file: String,
        /// Path of the field in it.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The pre-tokenizer is unknown. Guessing one gives wrong ids without any sign of it, so the file is refused.
    #[error("{file}: unknown pre-tokenizer `{found}`; known are {}. A guess would give wrong token ids", known.join(", "))]
    UnknownPreTokenizer {
        /// Name of the file or metadata block.
        file: String,
        /// The name found.
        found: String,
        /// The names accepted there.
        known: Vec<&'static str>,
    },
    /// A token id is used twice, missing, out of range or contradicted elsewhere in the file.
    #[error("{file}: token {id} `{token}`: {fault}")]
    TokenId {
        /// Name of the file or metadata block.
        file: String,
        /// The id.
        id: u32,
        /// The token's text as stored.
        token: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A merge rule names a token that does not exist, or is no pair.
    #[error("{file}: merge {rank} `{merge}`: {fault}")]
    Merge {
        /// Name of the file or metadata block.
        file: String,
        /// Position in the merge list, from 0.
        rank: usize,
        /// The rule as stored.
        merge: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The vocabulary has no token for a byte that text can contain, so some text could not be encoded.
    #[error(
        "{file}: the vocabulary has no token for byte 0x{byte:02X}; a byte-level vocabulary needs one for every byte of UTF-8"
    )]
    MissingByte {
        /// Name of the file or metadata block.
        file: String,
        /// The first byte missing.
        byte: u8,
    },
    /// Something exceeds a cap that protects against hostile input.
    #[error("{what}: {found} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The cap.
        limit: usize,
    },
    /// The tokenizer library failed on a text.
    #[error("text of {bytes} bytes cannot be encoded: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// The library's words.
        reason: String,
    },
    /// The model's files contain no chat template.
    #[error("{file}: no chat template in the model's files, and none is guessed; give one, or use plain completion")]
    NoTemplate {
        /// Name of the file or metadata block.
        file: String,
    },
    /// The chat template does not parse.
    #[error("{file}: chat template, line {line}: {reason}")]
    TemplateSyntax {
        /// Name of the file or metadata block.
        file: String,
        /// Line in the template, from 1; 0 if unknown.
        line: usize,
        /// The template engine's words.
        reason: String,
    },
    /// The chat template refused the conversation, by `raise_exception` or by a failing operation.
    #[error("{file}: chat template, line {line}, refused the conversation: {reason}")]
    TemplateRender {
        /// Name of the file or metadata block.
        file: String,
        /// Line in the template, from 1; 0 if unknown.
        line: usize,
        /// The template's or the template engine's words.
        reason: String,
    },
    /// The chat template used up its budget of steps, memory, nesting or output.
    #[error("{file}: chat template stopped: it exceeds the limit of {limit}")]
    TemplateLimit {
        /// Name of the file or metadata block.
        file: String,
        /// Which budget, with its size.
        limit: String,
    },
    /// A schema, expression or grammar that cannot be followed.
    #[error("the output's shape: {reason}")]
    Grammar {
        /// What is not understood, too large, or impossible.
        reason: String,
    },
}
