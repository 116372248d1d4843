//! What can go wrong on floor 0. Fields, not prose: the caller decides how to say it.

use crate::{FormatId, Shape};

/// Result of every fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of backends and codecs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument of an operation has the wrong shape.
    #[error("{op}: {arg} has shape {found}, expected {expected}")]
    Shape {
        /// Operation.
        op: &'static str,
        /// Argument.
        arg: &'static str,
        /// What the operation takes.
        expected: String,
        /// What it was given.
        found: Shape,
    },
    /// A tensor or weight lives on another device than the one asked to use it.
    #[error("{op}: the data lives on `{found}`, but `{expected}` was asked to use it; copy it first")]
    Foreign {
        /// Operation.
        op: &'static str,
        /// Device that was asked.
        expected: &'static str,
        /// Device that owns the data.
        found: &'static str,
    },
    /// A tensor has another element type than the operation reads.
    #[error("{op}: expected {expected} elements, found {found}")]
    Type {
        /// Operation.
        op: &'static str,
        /// Type that it takes.
        expected: &'static str,
        /// Type that it was given.
        found: &'static str,
    },
    /// The bytes of a weight do not make up its declared shape.
    #[error("weight of format {format} with {rows} rows of {cols}: needs {expected_bytes} bytes, has {found_bytes}")]
    WeightSize {
        /// Block format.
        format: FormatId,
        /// Rows.
        rows: usize,
        /// Elements per row.
        cols: usize,
        /// Bytes that this takes.
        expected_bytes: u64,
        /// Bytes there are.
        found_bytes: u64,
    },
    /// A row is not a whole number of blocks.
    #[error("format {format} stores blocks of {block} elements, but a row has {cols}")]
    RaggedRow {
        /// Block format.
        format: FormatId,
        /// Elements per block.
        block: usize,
        /// Elements per row.
        cols: usize,
    },
    /// No encoder exists for the format.
    #[error("format {0} can be read but not written")]
    NoEncoder(FormatId),
    /// Memory ran out, or would.
    #[error("{what} needs {needs_bytes} bytes, {free_bytes} are free")]
    Memory {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes that it takes.
        needs_bytes: u64,
        /// Bytes there are.
        free_bytes: u64,
    },
    /// The device refused or failed.
    #[error("{device}: {op} failed: {why}")]
    Device {
        /// Device.
        device: &'static str,
        /// Operation.
        op: &'static str,
        /// What it said.
        why: String,
    },
}

impl Error {
    /// Checks a shape condition of an operation's argument.
    pub fn check_shape(
        ok: bool,
        op: &'static str,
        arg: &'static str,
        found: Shape,
        expected: impl FnOnce() -> String,
    ) -> Result<()> {
        if ok { Ok(()) } else { Err(Error::Shape { op, arg, expected: expected(), found }) }
    }
}
