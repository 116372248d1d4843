//! What can be wrong with a model, as fields.

use fathom_files::Faults;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of loading and running a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its architecture is none that we know.
    #[error("architecture `{found}` is unknown; known are {}", known.join(", "))]
    UnknownArchitecture {
        /// What the file says.
        found: String,
        /// What we can load.
        known: Vec<&'static str>,
    },
    /// We know what it is and cannot run it.
    #[error("{what} cannot be loaded: {why}")]
    Refused {
        /// The architecture.
        what: String,
        /// Reason, and what to do.
        why: &'static str,
    },
    /// There are no weights, only a description.
    #[error("{0} describes a model but holds no weights; it can only be shown")]
    NoWeights(String),
    /// A tensor could not be taken over.
    #[error("{tensor}: {source}")]
    Upload {
        /// Which.
        tensor: String,
        /// Why.
        source: Box<fathom_core::Error>,
    },
    /// The files cannot be read, or are not what they must be; all faults at once.
    #[error(transparent)]
    Files(#[from] fathom_files::Error),
    /// The tokenizer or template is broken.
    #[error(transparent)]
    Text(#[from] fathom_text::TextError),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] fathom_core::Error),
}

impl From<Faults> for Error {
    fn from(faults: Faults) -> Self {
        Error::Files(fathom_files::Error::Faults(faults))
    }
}
