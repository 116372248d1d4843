//! A file mapped read-only: the only `unsafe` of this crate.
//!
//! Weights are read straight from the page cache, and pages that a backend has repacked can be given back.
//! As with every program that maps files: do not truncate a model while it is loaded; the operating system
//! answers a read past the new end by ending the process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use fathom_core::ByteSource;

use crate::{Error, Fault, Result};

/// A regular file in memory, as long as this lives.
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps the whole of `path`.
    ///
    /// # Errors
    /// If it is not a regular file, or the operating system refuses.
    pub fn open(path: &Path) -> Result<Map> {
        let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !kind.is_file() {
            let found = if kind.is_dir() { "a directory" } else { "something else" };
            return Err(Fault::file(path, "a file", found).into());
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        // SAFETY: the mapping is read-only and we never write the file. Another process that changes it could
        // change what a `&[u8]` shows; nothing read from the map is trusted beyond the bounds that were checked,
        // and no `&str` or other value with an invariant is kept without being checked again where it is read.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Map(map))
    }

    fn give_back(&self, range: Range<usize>) -> io::Result<()> {
        // Every page size in use divides this, so only whole pages inside the range go.
        const STEP: usize = 64 << 10;
        let (start, end) = (range.start.next_multiple_of(STEP), range.end / STEP * STEP);
        if start >= end {
            return Ok(());
        }
        #[cfg(unix)]
        // SAFETY: the mapping is shared, read-only and backed by a file: dropped pages are read again from
        // there, so the bytes that references see do not change. The range lies inside the map (checked above it).
        unsafe {
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)?;
        }
        Ok(())
    }
}

impl ByteSource for Map {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn discard(&self, range: Range<usize>) {
        assert!(range.end <= self.0.len(), "invariant: a discarded range lies inside its source");
        // Only memory is at stake: where the system declines, the pages simply stay.
        let _ = self.give_back(range);
    }
}
