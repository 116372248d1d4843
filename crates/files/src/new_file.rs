//! Files that appear under their name only when they are whole.
//!
//! Bytes go to a temporary file beside the place; [`NewFile::finish`] puts them on disk for good and renames. A program that is
//! killed, or a disk that is full, leaves whatever was there before.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::fault::{Error, Result};

/// A file being written. Dropped before [`NewFile::finish`], it leaves nothing behind.
pub struct NewFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl NewFile {
    /// Starts the file that will be `path`.
    ///
    /// # Errors
    /// If the directory cannot be written to.
    pub fn create(path: &Path) -> Result<NewFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".fathom-").suffix(".part");
        // A temporary file is private by default; a model is as readable as any other new file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temp = builder.tempfile_in(directory(path)).map_err(Error::io(path, "create"))?;
        Ok(NewFile { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, temp) })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.io(|f| f.write_all(bytes))
    }

    pub(crate) fn io<T>(&mut self, f: impl FnOnce(&mut BufWriter<NamedTempFile>) -> io::Result<T>) -> Result<T> {
        f(&mut self.file).map_err(Error::io(&self.path, "write"))
    }

    /// Puts the file under its name, on disk for good.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn finish(mut self) -> Result<()> {
        // A hole at the end counts only if the file is made as long.
        let end = self.io(|f| f.stream_position())?;
        let path = self.path;
        let temp = self.file.into_inner().map_err(|e| Error::io(&path, "write")(e.into_error()))?;
        let sync = |file: &File| file.set_len(end).and_then(|()| file.sync_all());
        sync(temp.as_file()).map_err(Error::io(&path, "write"))?;
        temp.persist(&path).map_err(|e| Error::io(&path, "rename into place")(e.error))?;
        // The new name itself is part of the directory.
        #[cfg(unix)]
        File::open(directory(&path)).and_then(|d| d.sync_all()).map_err(Error::io(&path, "write"))?;
        Ok(())
    }
}

/// Writes a small file whole.
///
/// # Errors
/// As [`NewFile`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p != Path::new("") => p,
        _ => Path::new("."),
    }
}
