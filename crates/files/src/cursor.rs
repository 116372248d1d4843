//! A checked walk through a header: every read names what it wants and fails with the byte where it stood.

use std::path::Path;

use crate::Fault;
use crate::fault::quoted;

/// A position in the bytes of a file.
pub(crate) struct Cursor<'a> {
    pub(crate) file: &'a Path,
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Cursor<'a> {
    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], Fault> {
        let left = self.bytes.len() - self.at;
        if n > left as u64 {
            let expected = format!("{what} ({n} bytes)");
            return Err(Fault::byte(self.file, self.at, expected, format!("{left} bytes to the end")));
        }
        let start = self.at;
        self.at += n as usize;
        Ok(&self.bytes[start..self.at])
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("invariant: took 4 bytes")))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("invariant: took 8 bytes")))
    }

    /// A count or length of at most `cap`.
    pub(crate) fn count(&mut self, what: &str, cap: u64) -> Result<u64, Fault> {
        let at = self.at;
        let n = self.u64(what)?;
        if n > cap {
            return Err(Fault::byte(self.file, at, format!("{what} of at most {cap}"), n.to_string()));
        }
        Ok(n)
    }

    /// A string: length, then that many bytes of UTF-8.
    pub(crate) fn string(&mut self, what: &str, cap: u64) -> Result<&'a str, Fault> {
        let at = self.at;
        let n = self.u64("the length of a string")?;
        if n > cap {
            return Err(Fault::byte(self.file, at, format!("{what} of at most {cap} bytes"), n.to_string()));
        }
        let bytes = self.take(n, what)?;
        std::str::from_utf8(bytes).map_err(|_| {
            let found = String::from_utf8_lossy(&bytes[..bytes.len().min(99)]);
            Fault::byte(self.file, at + 8, format!("{what} in UTF-8"), quoted(&found))
        })
    }
}
