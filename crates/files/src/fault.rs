//! What is wrong with a file: where, what was expected, what was found.
//!
//! One load can find many faults; [`Faults`] carries them all (the first hundred; hostile files can hold
//! any number). Text that comes from a file is quoted, escaped and shortened before it is kept.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of reading and writing model files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The file, or a file it names, is not what it must be.
    #[error("{0}")]
    Faults(Faults),
}

impl Error {
    /// For `map_err`: what the operating system said when `action` was tried on `path`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { path: path.to_owned(), action, source }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let mut faults = Faults::default();
        faults.push(fault);
        Error::Faults(faults)
    }
}

/// Where in a file a fault lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// This byte, counted from the start of the file.
    Byte(u64),
    /// A metadata key or configuration field.
    Key(String),
    /// A tensor.
    Tensor(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File => Ok(()),
            Place::Byte(at) => write!(f, " at byte {at}:"),
            Place::Key(key) => write!(f, " key {key}:"),
            Place::Tensor(name) => write!(f, " tensor {name}:"),
        }
    }
}

/// One thing wrong with one file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{place} expected {expected}, found {found}", file.display())]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What must be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Fault {
    /// A fault of the file as a whole.
    pub fn file(file: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Fault { file: file.to_owned(), place: Place::File, expected: expected.into(), found: found.into() }
    }

    /// A fault of the metadata or configuration entry `key`.
    pub fn key(file: &Path, key: &str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Fault { place: Place::Key(plain(key)), ..Fault::file(file, expected, found) }
    }

    /// A fault of the tensor `name`.
    pub fn tensor(file: &Path, name: &str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Fault { place: Place::Tensor(plain(name)), ..Fault::file(file, expected, found) }
    }

    pub(crate) fn byte(file: &Path, at: usize, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Fault { place: Place::Byte(at as u64), ..Fault::file(file, expected, found) }
    }
}

/// Text from a file made safe to print: control characters escaped, at most 80 characters.
fn plain(text: &str) -> String {
    let mut out: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        out.push('…');
    }
    out
}

/// [`plain`] text in quotation marks.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", plain(text))
}

/// Everything wrong with a model's files that one look at them shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    list: Vec<Fault>,
    total: usize,
}

impl Faults {
    const KEPT: usize = 100;

    /// Adds one; beyond the first hundred they are only counted.
    pub fn push(&mut self, fault: Fault) {
        if self.list.len() < Self::KEPT {
            self.list.push(fault);
        }
        self.total += 1;
    }

    /// Takes over what `result` failed with, or returns what it holds.
    pub(crate) fn catch<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(Error::Faults(other)) => {
                self.total += other.total - other.list.len();
                other.list.into_iter().for_each(|f| self.push(f));
            }
            Err(Error::Io { path, action, source }) => {
                self.push(Fault::file(&path, format!("to {action} it"), source.to_string()));
            }
        }
        None
    }

    /// `value`, unless there are faults.
    ///
    /// # Errors
    /// All the faults.
    pub fn or<T>(self, value: T) -> Result<T> {
        if self.total == 0 { Ok(value) } else { Err(Error::Faults(self)) }
    }

    /// The first hundred.
    pub fn list(&self) -> &[Fault] {
        &self.list
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.total
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        if self.total > self.list.len() {
            write!(f, "\nand {} faults more", self.total - self.list.len())?;
        }
        Ok(())
    }
}
