//! Memory for packed weights and caches: in huge pages where the system grants them, because both are read from end to end and
//! address translation costs a tenth of the bandwidth otherwise. Small matrices lie side by side, or they would not fill such a page.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use fathom_core::{Error, Result};
use memmap2::{Advice, MmapMut};

use crate::backend::lock;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes that small matrices share; what is not written takes no memory.
const SHARED: usize = 8 * HUGE;
/// Bytes of the largest matrix that shares.
const SMALL: usize = 2 * HUGE;
/// Bytes of a cache in small pages.
const HEAD: usize = HUGE / 2;

/// Untouched zeroes, at least one.
fn map(what: &'static str, bytes: usize) -> Result<MmapMut> {
    let out_of_memory = |_| Error::Memory { what, needs_bytes: bytes as u64, free_bytes: 0 };
    MmapMut::map_anon(bytes.max(1)).map_err(out_of_memory)
}

/// Asks for huge pages in `range` of `map`.
fn huge(map: &MmapMut, range: Range<usize>) {
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(Advice::HugePage, range.start, range.len()); // advice: a refusal only costs speed
}

/// Zeroes, `bytes` of them or a little more.
pub(crate) fn zeroes(bytes: usize) -> Result<MmapMut> {
    // Up to a whole huge page where that costs little: what is left over lies in small ones.
    let whole = bytes.next_multiple_of(HUGE);
    let bytes = if whole - bytes <= bytes / 16 { whole } else { bytes };
    let map = map("packed weights", bytes)?;
    huge(&map, 0..map.len());
    Ok(map)
}

/// Zeroes that are written from the front on, as far as they are needed: the first of them lie in small pages, so that little is taken
/// where little is needed, the rest in huge ones.
pub(crate) struct Growing {
    map: MmapMut,
    range: Range<usize>,
}

impl Growing {
    /// `bytes` bytes of a cache, aligned to lines of the processor's caches.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn zeroes(bytes: usize) -> Result<Growing> {
        if bytes <= HEAD {
            return Ok(Growing { map: map("a cache", bytes)?, range: 0..bytes });
        }
        let map = map("a cache", bytes + HUGE)?;
        // A huge page begins where the head ends.
        let start = (2 * HUGE - HEAD - map.as_ptr().addr() % HUGE) % HUGE;
        huge(&map, start + HEAD..start + bytes);
        Ok(Growing { map, range: start..start + bytes })
    }
}

impl Deref for Growing {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl DerefMut for Growing {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.range.clone()]
    }
}

/// Memory that can be taken without swapping, if the system says.
pub(crate) fn available() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

/// Memory that is written until someone reads it, and never after.
struct Chunk {
    /// The memory, and how much of it is written.
    open: Mutex<Option<(MmapMut, usize)>>,
    closed: OnceLock<MmapMut>,
}

impl Chunk {
    fn new(bytes: usize) -> Result<Arc<Chunk>> {
        Ok(Arc::new(Chunk { open: Mutex::new(Some((zeroes(bytes)?, 0))), closed: OnceLock::new() }))
    }

    /// `bytes` bytes that `write` has written, if it is open and has as many left.
    fn take(self: &Arc<Self>, bytes: usize, write: &mut dyn FnMut(&mut [u8])) -> Option<Piece> {
        let mut open = lock(&self.open);
        let (map, used) = open.as_mut()?;
        let range = *used..*used + bytes;
        write(map.get_mut(range.clone())?);
        *used = range.end.next_multiple_of(64);
        Some(Piece { chunk: self.clone(), range })
    }
}

/// A part of a chunk. Reading the first closes it.
#[derive(Clone)]
pub(crate) struct Piece {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

impl Piece {
    /// Bytes `range` of it.
    pub(crate) fn part(&self, range: Range<usize>) -> Piece {
        assert!(range.start <= range.end && range.end <= self.range.len(), "invariant: a part lies in its piece");
        Piece { chunk: self.chunk.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }
}

impl Deref for Piece {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let close = || lock(&self.chunk.open).take().expect("invariant: a chunk is closed once").0;
        &self.chunk.closed.get_or_init(close)[self.range.clone()]
    }
}

/// Where a backend's packed weights lie.
#[derive(Default)]
pub(crate) struct Memory {
    /// What the next small matrix shares; freed with its last matrix.
    shared: Mutex<Weak<Chunk>>,
}

impl Memory {
    /// `bytes` bytes, aligned to 64, that `write` has written; they are zero before.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn written(&self, bytes: usize, write: &mut dyn FnMut(&mut [u8])) -> Result<Piece> {
        const FITS: &str = "invariant: a new chunk is open and large enough";
        if bytes > SMALL {
            return Ok(Chunk::new(bytes)?.take(bytes, write).expect(FITS));
        }
        let mut shared = lock(&self.shared);
        if let Some(piece) = shared.upgrade().and_then(|chunk| chunk.take(bytes, write)) {
            return Ok(piece);
        }
        let chunk = Chunk::new(SHARED)?;
        *shared = Arc::downgrade(&chunk);
        Ok(chunk.take(bytes, write).expect(FITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_of_a_cache_are_aligned_and_all_of_them_can_be_written() {
        for bytes in [0, 1, HEAD, HEAD + 1, HUGE, 3 * HUGE + 4097] {
            let mut all = Growing::zeroes(bytes).unwrap();
            assert!(all.len() == bytes && all.iter().all(|&b| b == 0) && all.as_ptr().addr().is_multiple_of(64));
            assert!(bytes <= HEAD || (all.as_ptr().addr() + HEAD).is_multiple_of(HUGE));
            all.fill(1);
        }
    }

    #[test]
    fn small_pieces_share_a_chunk_until_one_is_read() {
        let memory = Memory::default();
        let piece = |n: usize, value: u8| {
            memory
                .written(n, &mut |bytes| {
                    assert!(bytes.iter().all(|&b| b == 0));
                    bytes.fill(value);
                })
                .unwrap()
        };
        let (a, b, large) = (piece(1000, 1), piece(0, 2), piece(SMALL + 1, 3));
        let c = piece(70, 4);
        assert!(Arc::ptr_eq(&a.chunk, &b.chunk) && Arc::ptr_eq(&a.chunk, &c.chunk));
        assert!(!Arc::ptr_eq(&a.chunk, &large.chunk));
        assert!(a.len() == 1000 && a.iter().all(|&x| x == 1));
        let d = piece(SMALL, 5);
        assert!(!Arc::ptr_eq(&a.chunk, &d.chunk), "read, so closed");
        let part = c.part(6..70);
        assert!(part.len() == 64 && part.as_ptr() == c[6..].as_ptr());
        let rest: Vec<Piece> = (6..10).map(|i| piece(SMALL, i)).collect();
        assert!(Arc::ptr_eq(&d.chunk, &rest[2].chunk) && !Arc::ptr_eq(&d.chunk, &rest[3].chunk), "full");
        for (p, value) in [(&b, 2), (&c, 4), (&d, 5), (&large, 3)].into_iter().chain(rest.iter().zip(6..)) {
            assert!(p.iter().all(|&x| x == value) && p.as_ptr().addr().is_multiple_of(64));
        }
    }
}
