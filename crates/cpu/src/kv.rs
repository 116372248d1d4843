//! How cache streams lie in memory.
//!
//! Sixteen slots make a group. Of every head a group holds its keys as `[dim, 16]`, so that a vector is one number of sixteen
//! positions, and its values as `[16, dim]`: either way a head's part of a group is one piece. Latents are
//! values of a single head. Who reads a cache asks [`Places`] where something is.

use fathom_core::KvStream;
use half::f16;

use crate::kernels::attend::Num;
use crate::kernels::tile::widen;
use crate::simd::{Kernel, LANES, Simd};

/// Slots of a group.
pub(crate) const GROUP: usize = LANES;

/// Numbers from a group's start to the next one's.
fn group(stream: KvStream) -> usize {
    GROUP * stream.width()
}

/// Rows of memory that hold `slots` slots.
pub(crate) fn rows(slots: usize) -> usize {
    slots.next_multiple_of(GROUP)
}

/// Where head `head` of slot `slot` begins, and how far its numbers are apart.
#[inline(always)]
pub(crate) fn place(stream: KvStream, slot: usize, head: usize) -> (usize, usize) {
    let (base, lane) = (slot / GROUP * group(stream), slot % GROUP);
    match stream {
        KvStream::Keys { dim, .. } => (base + head * dim * GROUP + lane, GROUP),
        KvStream::Values { dim, .. } => (base + (head * GROUP + lane) * dim, 1),
        KvStream::Latents { width } => (base + lane * width, 1),
    }
}

/// Heads of a stream and their width.
fn heads(stream: KvStream) -> (usize, usize) {
    match stream {
        KvStream::Keys { heads, dim } | KvStream::Values { heads, dim } => (heads, dim),
        KvStream::Latents { width } => (1, width),
    }
}

/// Where the rows of a sequence lie: rows of a batch, or slots of a paged cache.
#[derive(Clone, Copy)]
pub(crate) enum Places<'a> {
    /// Position p is row `first + p` of `[tokens, width]` tensors.
    Run {
        /// Row of position 0.
        first: usize,
    },
    /// Position p is in block `table[p / block]` of a cache.
    Paged {
        /// Block numbers.
        table: &'a [u32],
        /// Tokens per block.
        block: usize,
    },
}

impl Places<'_> {
    /// Whether sixteen positions from a multiple of sixteen on are a group, in order.
    #[inline(always)]
    pub(crate) fn grouped(&self) -> bool {
        matches!(self, Places::Paged { block, .. } if block.is_multiple_of(GROUP))
    }

    /// Where head `head` of position `p` begins, and how far its numbers are apart.
    #[inline(always)]
    pub(crate) fn at(&self, stream: KvStream, p: usize, head: usize) -> (usize, usize) {
        match *self {
            Places::Run { first } => {
                let (_, dim) = heads(stream);
                ((first + p) * stream.width() + head * dim, 1)
            }
            Places::Paged { table, block } => place(stream, table[p / block] as usize * block + p % block, head),
        }
    }
}

/// Numbers of a tensor or a cache as they lie in memory, and maybe more behind them. Kernels look at the type where they widen: one
/// compiled for each type would be as many copies of all of attention.
#[derive(Clone, Copy)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl Numbers<'_> {
    /// `out.len()` numbers from `at` on.
    #[inline(always)]
    pub(crate) fn widen<S: Simd>(&self, s: S, at: usize, out: &mut [f32]) {
        match self {
            Numbers::F32(x) => out.copy_from_slice(&x[at..at + out.len()]),
            Numbers::F16(x) => widen(s, &x[at..at + out.len()], out),
        }
    }

    /// The number at `at`.
    #[inline(always)]
    pub(crate) fn get(&self, at: usize) -> f32 {
        match self {
            Numbers::F32(x) => x[at],
            Numbers::F16(x) => x[at].to_f32(),
        }
    }
}

/// Element that a cache can be written with.
pub(crate) trait Narrow: Num {
    /// Sixteen numbers, rounded.
    fn store<S: Simd>(s: S, x: S::F, out: &mut [Self; 16]);
    /// One.
    fn narrow(x: f32) -> Self;
}

impl Narrow for f32 {
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, out: &mut [f32; 16]) {
        s.store(x, out);
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

impl Narrow for f16 {
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, out: &mut [f16; 16]) {
        s.store_f16(x, out);
    }
    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

/// Writes rows `[slots, width]` to their slots.
pub(crate) struct Write<'a, E> {
    pub(crate) stream: KvStream,
    pub(crate) x: &'a [f32],
    pub(crate) slots: &'a [u32],
    pub(crate) cache: &'a mut [E],
}

impl<E: Narrow> Kernel for Write<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (heads, dim) = heads(self.stream);
        for (row, &slot) in self.x.chunks_exact(self.stream.width()).zip(self.slots) {
            for (head, x) in row.chunks_exact(dim).enumerate().take(heads) {
                let (at, step) = place(self.stream, slot as usize, head);
                let out = &mut self.cache[at..at + (dim - 1) * step + 1];
                if step == 1 {
                    let (x16, x_tail) = x.as_chunks::<LANES>();
                    let (o16, o_tail) = out.as_chunks_mut::<LANES>();
                    x16.iter().zip(o16).for_each(|(x, o)| E::store(s, s.load(x), o));
                    x_tail.iter().zip(o_tail).for_each(|(x, o)| *o = E::narrow(*x));
                    continue;
                }
                let mut narrow = [E::narrow(0.0); LANES];
                for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES * step)) {
                    E::store(s, s.load_part(x), &mut narrow);
                    out.iter_mut().step_by(step).zip(&narrow[..x.len()]).for_each(|(o, x)| *o = *x);
                }
            }
        }
    }
}

/// Copies `count` slots, as if all were read before one is written.
pub(crate) fn copy<E: Copy>(stream: KvStream, cache: &mut [E], from: usize, to: usize, count: usize) {
    if count == 0 || from == to {
        return;
    }
    let one = |cache: &mut [E], i: usize| {
        let (heads, dim) = heads(stream);
        for head in 0..heads {
            let ((a, step), (b, _)) = (place(stream, from + i, head), place(stream, to + i, head));
            (0..dim).for_each(|d| cache[b + d * step] = cache[a + d * step]);
        }
    };
    let whole = [from, to, count].iter().all(|n| n.is_multiple_of(GROUP));
    if whole {
        let width = stream.width();
        cache.copy_within(from * width..(from + count) * width, to * width);
    } else if from < to {
        (0..count).rev().for_each(|i| one(cache, i));
    } else {
        (0..count).for_each(|i| one(cache, i));
    }
}
