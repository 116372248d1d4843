//! What can be wrong with a picture.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of reading and writing pictures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file is larger than allowed.
    #[error("the picture's file has {found} bytes; at most {most} are read")]
    Bytes {
        /// Bytes of the file.
        found: u64,
        /// Bytes allowed.
        most: u64,
    },
    /// The picture has more pixels than allowed.
    #[error(
        "the picture is {width} × {height}; at most {most} pixels and {most_side} on a side are read: scale it down"
    )]
    Pixels {
        /// Pixels of a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Pixels allowed.
        most: u64,
        /// Pixels of a side allowed.
        most_side: u32,
    },
    /// The file is of another kind.
    #[error("{found} cannot be read; expected a PNG, JPEG or WebP picture")]
    Kind {
        /// What it seems to be.
        found: &'static str,
    },
    /// The picture moves.
    #[error("the {kind} is animated; expected one still picture")]
    Animated {
        /// Kind of file.
        kind: &'static str,
    },
    /// The file is broken.
    #[error("the {kind} is broken: {why}")]
    Broken {
        /// Kind of file.
        kind: &'static str,
        /// What its decoder says.
        why: String,
    },
    /// A picture without pixels.
    #[error("the picture is {width} × {height}: expected at least one pixel")]
    Empty {
        /// Pixels of a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A picture's address that is not read.
    #[error("pictures come as base64 `data:` URLs; nothing is fetched from elsewhere")]
    Address,
    /// A picture cannot be written.
    #[error("the PNG cannot be written: {0}")]
    Write(String),
}
