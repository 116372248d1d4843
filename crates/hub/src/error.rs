//! What can go wrong between a name and a verified file, each with what to do about it.
//!
//! Every variant carries fields, so a caller can tell a missing token from a full disk without
//! reading text. The messages are for people and end with the way out where there is one.

use std::io;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be pulled, found or deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name, setting or path that this crate refuses to use.
    #[error("{what} `{value}` is refused: {why}")]
    Invalid {
        /// What kind of thing it is: a model name, an environment variable, a file of the hub.
        what: &'static str,
        /// The thing itself.
        value: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// Several models answer to a name.
    #[error("`{name}` could be any of: {}; name one", choices.join(", "))]
    Ambiguous {
        /// The name as given.
        name: String,
        /// Names that would be exact.
        choices: Vec<String>,
    },
    /// The repository, revision or file does not exist there.
    #[error("{what} not found at {place}{}", there_is(.available))]
    NotFound {
        /// What was looked for.
        what: String,
        /// The repository or address.
        place: String,
        /// What is there instead, if that is known.
        available: Vec<String>,
    },
    /// The hub wants a (different) token, or the repository does not exist and it will not say so.
    #[error(
        "the hub answered {status} for {url} {}: check the name; for a gated model accept its licence on its page and set HF_TOKEN",
        if *.token_sent { "with the token" } else { "without a token" }
    )]
    Denied {
        /// What was asked for.
        url: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token went with the request.
        token_sent: bool,
    },
    /// The server answered with another failure, after retries where they make sense.
    #[error("{url} answered {status} ({attempts} attempts)")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// How often it was tried without any progress.
        attempts: u32,
    },
    /// No connection, or a connection that broke again and again without progress.
    #[error("{url}: {source} ({attempts} attempts)")]
    Network {
        /// What was asked for.
        url: String,
        /// How often it was tried without any progress.
        attempts: u32,
        /// What the last attempt ran into.
        #[source]
        source: io::Error,
    },
    /// The server answered something that this protocol does not allow.
    #[error("{url}: {what}: expected {expected}, found {found}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// Which part of the answer.
        what: &'static str,
        /// What it should have been.
        expected: String,
        /// What it was.
        found: String,
    },
    /// The bytes are not those that the hub announced, twice.
    #[error(
        "{file} of {repo}: checksum {found} where the hub announces {expected}, twice; a proxy or the disk may be at fault"
    )]
    Checksum {
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// Announced by the hub: sha256 for large files, git's sha1 for small ones.
        expected: String,
        /// Computed from what came.
        found: String,
    },
    /// The disk is too small.
    #[error("{} has {free_bytes} bytes free and the model needs {needed_bytes}: free some, or set HF_HOME to another disk", dir.display())]
    Space {
        /// The cache directory.
        dir: PathBuf,
        /// Still to be fetched.
        needed_bytes: u64,
        /// Available to this user.
        free_bytes: u64,
    },
    /// The file system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The progress callback asked to stop.
    #[error("cancelled; what was fetched is kept and the next pull resumes it")]
    Cancelled,
}

fn there_is(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("; there is: {}", names.join(", ")),
    }
}

/// Turns an I/O result into one that says what was done to which path.
pub(crate) trait IoContext<T> {
    /// Adds the deed and the path.
    fn on(self, doing: &'static str, path: &std::path::Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, doing: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| Error::Io { doing, path: path.into(), source })
    }
}
