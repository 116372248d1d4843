//! What can go wrong in training, as fields.

use std::io;
use std::path::{Path, PathBuf};

use crate::conversations::LineFault;

/// Result of this crate's runs.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipe that is no TOML, or has keys it should not have.
    #[error("{file}: {why}")]
    RecipeText {
        /// The recipe.
        file: PathBuf,
        /// What is wrong, with the line.
        why: String,
    },
    /// A value of a recipe outside its range.
    #[error("{file}: {key} is {found}, it must be {expected}")]
    RecipeValue {
        /// The recipe.
        file: PathBuf,
        /// The key, with its table.
        key: String,
        /// The value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// A stage is missing what an earlier one makes.
    #[error("stage `{stage}` begins with {needs}, which {folder} does not have: run that stage first")]
    Missing {
        /// The stage.
        stage: &'static str,
        /// What it needs.
        needs: String,
        /// The run's folder.
        folder: PathBuf,
    },
    /// A folder holds another run.
    #[error(
        "{folder} holds a run of another recipe ({what} differs): take another folder with --out, or delete this one"
    )]
    OtherRun {
        /// The run's folder.
        folder: PathBuf,
        /// What differs.
        what: String,
    },
    /// The loss is no number any more, or has exploded.
    #[error(
        "stage `{stage}` diverged at step {step}: the loss is {loss}; the last good checkpoint is {checkpoint}. A smaller lr or a longer warmup may help"
    )]
    Diverged {
        /// The stage.
        stage: &'static str,
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Where to go on from.
        checkpoint: String,
    },
    /// A file of the run is broken.
    #[error("{file}: {why}")]
    Broken {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Lines of a file of conversations that nothing can be learned from as they are.
    #[error("{}: {wrong} of {lines} lines are wrong:{}", file.display(), listed(faults, *wrong))]
    Lines {
        /// The file.
        file: PathBuf,
        /// How many.
        wrong: usize,
        /// Of how many.
        lines: usize,
        /// The first of them.
        faults: Vec<LineFault>,
    },
    /// A setting outside its range.
    #[error("{key} is {found}, it must be {expected}")]
    Setting {
        /// Which.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// The operating system said no.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The data generator.
    #[error(transparent)]
    Tasks(#[from] fathom_tasks::TasksError),
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] fathom_model::Error),
    /// Rollouts and evaluation.
    #[error(transparent)]
    Engine(#[from] fathom_engine::Error),
}

/// The faults, one a line, and how many there are besides.
fn listed(faults: &[LineFault], wrong: usize) -> String {
    let mut text: String = faults.iter().map(|f| format!("\n  line {}: {}", f.line, f.why)).collect();
    if wrong > faults.len() {
        text += &format!("\n  and {} more", wrong - faults.len());
    }
    text
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

impl From<fathom_files::Error> for Error {
    fn from(e: fathom_files::Error) -> Self {
        Error::Model(e.into())
    }
}

impl From<fathom_text::TextError> for Error {
    fn from(e: fathom_text::TextError) -> Self {
        Error::Model(e.into())
    }
}

impl From<fathom_core::Error> for Error {
    fn from(e: fathom_core::Error) -> Self {
        Error::Model(e.into())
    }
}
