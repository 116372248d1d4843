//! NumPy's array file, version 1.0: a padded text header, then numbers (numpy.lib.format).
//!
//! Written row by row, so that logits of a long prompt never lie in memory at once. The file gets its name only when it is
//! complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Everything before the numbers of a little-endian float32 array `[rows, cols]`.
fn header(rows: usize, cols: usize) -> Vec<u8> {
    const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    // Magic, two bytes of length and the text with its newline together are a multiple of 64.
    let used = MAGIC.len() + 2 + text.len() + 1;
    text.push_str(&" ".repeat(used.next_multiple_of(64) - used));
    text.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

/// A file being written.
pub(crate) struct NpyWriter {
    out: BufWriter<File>,
    unfinished: PathBuf,
    path: PathBuf,
    rows: usize,
    cols: usize,
    written: usize,
}

impl NpyWriter {
    /// Begins a float32 array `[rows, cols]`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn create(path: &Path, rows: usize, cols: usize) -> io::Result<Self> {
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let unfinished = path.with_file_name(name);
        let mut out = BufWriter::new(File::create_new(&unfinished)?);
        out.write_all(&header(rows, cols))?;
        Ok(NpyWriter { out, unfinished, path: path.to_owned(), rows, cols, written: 0 })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If the disk refuses.
    ///
    /// # Panics
    /// If the row has another width than announced.
    pub(crate) fn row(&mut self, row: &[f32]) -> io::Result<()> {
        assert_eq!(row.len(), self.cols, "invariant: all rows are as wide as the header says");
        self.written += 1;
        row.iter().try_for_each(|x| self.out.write_all(&x.to_le_bytes()))
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// If the disk refuses.
    ///
    /// # Panics
    /// If rows are missing.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        assert_eq!(self.written, self.rows, "invariant: there are as many rows as the header says");
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        fs::rename(&self.unfinished, &self.path)
    }
}

impl Drop for NpyWriter {
    fn drop(&mut self) {
        // Gone already if the file was finished; nothing to do if it cannot be removed.
        let _ = fs::remove_file(&self.unfinished);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_that_numpy_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let mut npy = NpyWriter::create(&path, 2, 3).unwrap();
        npy.row(&[1.0, -0.5, 2.0]).unwrap();
        assert!(!path.exists(), "a file has its name before it is complete");
        npy.row(&[0.0, f32::INFINITY, 1e-3]).unwrap();
        npy.finish().unwrap();
        // numpy 2.4.6: np.save(f, np.array([[1, -.5, 2], [0, np.inf, 1e-3]], "<f4"))
        let mut golden =
            b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }".to_vec();
        golden.resize(127, b' ');
        golden.push(b'\n');
        for bits in [0x3f80_0000u32, 0xbf00_0000, 0x4000_0000, 0, 0x7f80_0000, 0x3a83_126f] {
            golden.extend_from_slice(&bits.to_le_bytes());
        }
        assert_eq!(fs::read(&path).unwrap(), golden);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(NpyWriter::create(&dir.path().join("a.npy"), 1, 1).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_numbers_begin_at_a_multiple_of_64() {
        for (rows, cols) in [(1, 1), (123_456_789, 129_280), (usize::MAX, usize::MAX)] {
            assert!(header(rows, cols).len().is_multiple_of(64));
        }
    }
}
