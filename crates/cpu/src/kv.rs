//! How cache streams lie in memory.
//!
//! Sixteen slots make a group. Of every head a group holds its keys as `[dim, 16]`, so that a vector is one number of sixteen
//! positions, and its values as `[16, dim]`: either way a head's part of a group is one piece. A head's pieces of several groups lie
//! side by side, `[stretch, head, group]`, because one long stream is read faster than pieces apart. Latents are
//! values of a single head. Scales of q8_0 are a stream of their own, as keys lie: `[runs, 16]`, so that a vector is the scales of one
//! run of sixteen positions. Who reads a cache asks [`History`] for numbers, or [`Places`] where something is.

use std::sync::Arc;

use fathom_core::dtype::RUN;
use fathom_core::format::q8_0_run;
use fathom_core::{Buffer, DType, KvCache, KvStream, Result, Shape, Storage, Tensor, check};
use half::f16;
use half::slice::HalfBitsSliceExt;

use crate::DEVICE;
use crate::kernels::attend::Num;
use crate::kernels::tile::widen;
use crate::memory::Growing;
use crate::simd::{Kernel, LANES, Simd};

/// Slots of a group.
pub(crate) const GROUP: usize = LANES;

/// Slots of a stretch, a power of two: as many as a megabyte holds in binary16 with heads of 128, so that a short context, which writes
/// to the beginnings of all heads, stays in the part of a cache that takes memory page by page.
#[inline(always)]
fn stretch(heads: usize) -> usize {
    1 << (4096 / heads).clamp(GROUP, 1024).ilog2()
}

/// Where head `head` of slot `slot` begins, and how far its numbers are apart.
#[inline(always)]
pub(crate) fn place(stream: KvStream, slot: usize, head: usize) -> (usize, usize) {
    let (heads, dim) = stream.heads();
    let stretch = stretch(heads);
    let (first, lane) = (slot / stretch * stretch, slot % GROUP);
    let piece = (first * heads + head * stretch) * dim + (slot - first - lane) * dim;
    match stream {
        KvStream::Keys { .. } => (piece + lane, GROUP),
        KvStream::Values { .. } | KvStream::Latents { .. } => (piece + lane * dim, 1),
    }
}

/// The scales that belong to a stream.
#[inline(always)]
fn scales(stream: KvStream) -> KvStream {
    let (heads, dim) = stream.heads();
    KvStream::Keys { heads, dim: dim.div_ceil(RUN) }
}

/// Where the scales begin of the piece of a group that begins at `at`, which is numbers of heads of width `dim`: there is a piece of
/// scales for each, in the same order.
#[inline(always)]
pub(crate) fn scales_at(at: usize, dim: usize) -> usize {
    at / dim * dim.div_ceil(RUN)
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
                let (_, dim) = stream.heads();
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
    /// Signed bytes, and the scales of their runs.
    Q8_0 {
        q: &'a [u8],
        d: &'a [f16],
    },
}

/// Numbers of a cache, to be written.
pub(crate) enum NumbersMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Q8_0 { q: &'a mut [u8], d: &'a mut [f16] },
}

fn halves(x: &[u8]) -> &[f16] {
    bytemuck::cast_slice::<_, u16>(x).reinterpret_cast()
}

fn halves_mut(x: &mut [u8]) -> &mut [f16] {
    bytemuck::cast_slice_mut::<_, u16>(x).reinterpret_cast_mut()
}

/// One stream of a cache.
pub(crate) enum CacheMemory {
    F32(Growing),
    F16(Growing),
    Q8_0 { q: Growing, d: Growing },
}

impl CacheMemory {
    /// A cache of `slots` slots, zeroed.
    ///
    /// # Errors
    /// If caches have no such type, or there is no memory.
    pub(crate) fn alloc(slots: usize, stream: KvStream, dtype: DType) -> Result<KvCache> {
        check::kv_alloc(dtype)?;
        let whole = slots.next_multiple_of(stretch(stream.heads().0));
        let zeroes = |stream: KvStream, size| Growing::zeroes(whole * stream.width() * size);
        let memory = match dtype {
            DType::F32 => CacheMemory::F32(zeroes(stream, size_of::<f32>())?),
            DType::F16 => CacheMemory::F16(zeroes(stream, size_of::<f16>())?),
            DType::Q8_0 => CacheMemory::Q8_0 { q: zeroes(stream, 1)?, d: zeroes(scales(stream), size_of::<f16>())? },
            DType::U32 => unreachable!("invariant: checked above"),
        };
        let shape = Shape::matrix(slots, stream.width());
        Ok(KvCache { data: Tensor { buf: Buffer::new(Arc::new(memory)), shape, dtype }, stream })
    }

    pub(crate) fn numbers(&self) -> Numbers<'_> {
        match self {
            CacheMemory::F32(x) => Numbers::F32(bytemuck::cast_slice(x)),
            CacheMemory::F16(x) => Numbers::F16(halves(x)),
            CacheMemory::Q8_0 { q, d } => Numbers::Q8_0 { q, d: halves(d) },
        }
    }

    pub(crate) fn numbers_mut(&mut self) -> NumbersMut<'_> {
        match self {
            CacheMemory::F32(x) => NumbersMut::F32(bytemuck::cast_slice_mut(x)),
            CacheMemory::F16(x) => NumbersMut::F16(halves_mut(x)),
            CacheMemory::Q8_0 { q, d } => NumbersMut::Q8_0 { q, d: halves_mut(d) },
        }
    }
}

impl Storage for CacheMemory {
    fn device(&self) -> &'static str {
        DEVICE
    }
}

/// Keys, values or latents of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct History<'a> {
    pub(crate) numbers: Numbers<'a>,
    pub(crate) stream: KvStream,
    pub(crate) places: Places<'a>,
}

impl History<'_> {
    /// Where head `head` of position `p` begins.
    #[inline(always)]
    pub(crate) fn at(&self, p: usize, head: usize) -> usize {
        self.places.at(self.stream, p, head).0
    }

    /// Values or latents of positions `from..from + n`, widened, in rows `stride` apart, zeros behind each. `from` is a multiple of
    /// sixteen.
    #[inline(always)]
    pub(crate) fn rows<S: Simd>(&self, s: S, from: usize, n: usize, head: usize, stride: usize, out: &mut [f32]) {
        let (out, (_, dim)) = (&mut out[..n * stride], self.stream.heads());
        if let Numbers::Q8_0 { q, d } = self.numbers {
            return s.call(WidenRows { of: *self, q, d, from, head, stride, out });
        }
        for (j, row) in out.chunks_exact_mut(stride).enumerate() {
            let at = self.at(from + j, head);
            let (row, rest) = row.split_at_mut(dim);
            match self.numbers {
                Numbers::F32(x) => row.copy_from_slice(&x[at..at + dim]),
                Numbers::F16(x) => widen(s, &x[at..at + dim], row),
                Numbers::Q8_0 { .. } => unreachable!("invariant: taken above"),
            }
            rest.fill(0.0);
        }
    }

    /// Keys of positions `from..from + n`, widened, as tiles `[dim, 16]`; what lies behind the last position stays as it was.
    /// `from` is a multiple of sixteen.
    #[inline(always)]
    pub(crate) fn tiles<S: Simd>(&self, s: S, from: usize, n: usize, head: usize, out: &mut [f32]) {
        let (_, dim) = self.stream.heads();
        for (g, tile) in out.chunks_exact_mut(GROUP * dim).take(n.div_ceil(GROUP)).enumerate() {
            let first = from + g * GROUP;
            if self.places.grouped() {
                let at = self.at(first, head);
                match self.numbers {
                    Numbers::F32(x) => tile.copy_from_slice(&x[at..at + tile.len()]),
                    Numbers::F16(x) => widen(s, &x[at..at + tile.len()], tile),
                    Numbers::Q8_0 { q, d } => {
                        s.call(WidenTile { q: &q[at..at + tile.len()], d: &d[scales_at(at, dim)..], out: tile });
                    }
                }
                continue;
            }
            for j in 0..GROUP.min(from + n - first) {
                let (at, step) = self.places.at(self.stream, first + j, head);
                let (scale, apart) = self.places.at(scales(self.stream), first + j, head);
                for (i, o) in tile[j..].iter_mut().step_by(GROUP).enumerate() {
                    *o = match self.numbers {
                        Numbers::F32(x) => x[at + i * step],
                        Numbers::F16(x) => x[at + i * step].to_f32(),
                        Numbers::Q8_0 { q, d } => q[at + i * step].widen() * d[scale + i / RUN * apart].to_f32(),
                    };
                }
            }
        }
    }
}

/// [`History::rows`] in q8_0.
struct WidenRows<'a> {
    of: History<'a>,
    q: &'a [u8],
    d: &'a [f16],
    from: usize,
    head: usize,
    stride: usize,
    out: &'a mut [f32],
}

impl Kernel for WidenRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let WidenRows { of, q, d, from, head, stride, out } = self;
        let ((_, dim), scales) = (of.stream.heads(), scales(of.stream));
        for (g, rows) in out.chunks_mut(GROUP * stride).enumerate() {
            let first = from + g * GROUP;
            let mut at = [0; GROUP];
            for (j, row) in rows.chunks_exact_mut(stride).enumerate() {
                at[j] = of.at(first + j, head);
                row[dim..].fill(0.0);
            }
            for r in 0..dim.div_ceil(RUN) {
                let mut factors = [0.0; GROUP];
                if of.places.grouped() {
                    let at = scales_at(at[0], dim) + r * GROUP;
                    let d = d[at..at + GROUP].as_array().expect("invariant: a slice of sixteen");
                    s.store(s.load_f16(d), &mut factors);
                } else {
                    for (j, factor) in factors.iter_mut().enumerate().take(rows.len() / stride) {
                        let (at, step) = of.places.at(scales, first + j, head);
                        *factor = d[at + r * step].to_f32();
                    }
                }
                let run = r * RUN..dim.min((r + 1) * RUN);
                for (j, row) in rows.chunks_exact_mut(stride).enumerate() {
                    let q = &q[at[j] + run.start..at[j] + run.end];
                    widen_run(s, q, factors[j], &mut row[run.clone()]);
                }
            }
        }
    }
}

/// `d · q`, exact: a product of at most eighteen bits.
#[inline(always)]
fn widen_run<S: Simd>(s: S, q: &[u8], d: f32, out: &mut [f32]) {
    let (q16, q_tail) = q.as_chunks::<LANES>();
    let (o16, o_tail) = out.as_chunks_mut::<LANES>();
    for (q, o) in q16.iter().zip(o16) {
        s.store(s.mul(s.load_i8(q), s.splat(d)), o);
    }
    for (q, o) in q_tail.iter().zip(o_tail) {
        *o = q.widen() * d;
    }
}

/// A tile of keys in q8_0.
struct WidenTile<'a> {
    /// `[dim, 16]`.
    q: &'a [u8],
    /// `[runs, 16]`, and maybe more behind.
    d: &'a [f16],
    /// `[dim, 16]`.
    out: &'a mut [f32],
}

impl Kernel for WidenTile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let runs = self.q.as_chunks::<GROUP>().0.chunks(RUN).zip(self.d.as_chunks::<GROUP>().0);
        for ((q, d), out) in runs.zip(self.out.as_chunks_mut::<GROUP>().0.chunks_mut(RUN)) {
            let d = s.load_f16(d);
            for (q, o) in q.iter().zip(out) {
                s.store(s.mul(s.load_i8(q), d), o);
            }
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
        let (heads, dim) = self.stream.heads();
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

/// Writes rows `[slots, width]` to their slots in runs of 32.
pub(crate) struct WriteRuns<'a> {
    pub(crate) stream: KvStream,
    pub(crate) x: &'a [f32],
    pub(crate) slots: &'a [u32],
    pub(crate) q: &'a mut [u8],
    pub(crate) d: &'a mut [f16],
}

impl Kernel for WriteRuns<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (heads, dim) = self.stream.heads();
        for (row, &slot) in self.x.chunks_exact(self.stream.width()).zip(self.slots) {
            for (head, x) in row.chunks_exact(dim).enumerate().take(heads) {
                let (at, step) = place(self.stream, slot as usize, head);
                let (scale, apart) = place(scales(self.stream), slot as usize, head);
                for (r, x) in x.chunks(RUN).enumerate() {
                    let mut bytes = [0; RUN];
                    self.d[scale + r * apart] = q8_0_run(x, &mut bytes[..x.len()]);
                    let out = self.q[at + r * RUN * step..].iter_mut().step_by(step);
                    out.zip(&bytes[..x.len()]).for_each(|(o, b)| *o = *b);
                }
            }
        }
    }
}

/// Copies `count` slots of q8_0, see [`copy`].
pub(crate) fn copy_runs(stream: KvStream, q: &mut [u8], d: &mut [f16], from: usize, to: usize, count: usize) {
    copy(stream, q, from, to, count);
    copy(scales(stream), d, from, to, count);
}

/// Copies `count` slots, as if all were read before one is written.
pub(crate) fn copy<E: Copy>(stream: KvStream, cache: &mut [E], from: usize, to: usize, count: usize) {
    if count == 0 || from == to {
        return;
    }
    let (heads, dim) = stream.heads();
    let pieces = [from, to, count].iter().all(|n| n.is_multiple_of(GROUP));
    let step = if pieces { GROUP } else { 1 };
    let mut one = |i: usize| {
        for head in 0..heads {
            let ((a, apart), (b, _)) = (place(stream, from + i, head), place(stream, to + i, head));
            if pieces {
                cache.copy_within(a..a + GROUP * dim, b);
            } else {
                (0..dim).for_each(|d| cache[b + d * apart] = cache[a + d * apart]);
            }
        }
    };
    if from < to {
        (0..count).step_by(step).rev().for_each(&mut one);
    } else {
        (0..count).step_by(step).for_each(&mut one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAMS: [KvStream; 4] = [
        KvStream::Keys { heads: 3, dim: 5 },
        KvStream::Values { heads: 40, dim: 4 },
        KvStream::Keys { heads: 300, dim: 2 },
        KvStream::Latents { width: 7 },
    ];

    /// Where the numbers of a slot lie, head after head.
    fn places(stream: KvStream, slot: usize) -> impl Iterator<Item = usize> {
        let (heads, dim) = stream.heads();
        (0..heads).flat_map(move |head| {
            let (at, apart) = place(stream, slot, head);
            (0..dim).map(move |d| at + d * apart)
        })
    }

    #[test]
    fn every_number_of_every_slot_has_a_place_of_its_own() {
        for stream in STREAMS {
            let slots = 2 * stretch(stream.heads().0);
            let mut taken = vec![false; slots * stream.width()];
            for at in (0..slots).flat_map(|slot| places(stream, slot)) {
                assert!(!std::mem::replace(&mut taken[at], true), "{stream:?}: {at} twice");
            }
        }
    }

    #[test]
    fn copies_cross_stretches_and_overlap() {
        for stream in STREAMS {
            let n = stretch(stream.heads().0);
            let slots = 4 * n;
            for (from, to, count) in [(0, 16, 2 * n), (n, n - 16, n + 32), (n - 3, n + 5, n), (n + 7, 1, n + 9)] {
                let before: Vec<usize> = (0..slots * stream.width()).collect();
                let mut after = before.clone();
                copy(stream, &mut after, from, to, count);
                for slot in 0..slots {
                    let source = if (to..to + count).contains(&slot) { slot - to + from } else { slot };
                    assert!(
                        places(stream, slot).map(|at| after[at]).eq(places(stream, source)),
                        "{stream:?}: {count} from {from} to {to}, slot {slot}"
                    );
                }
            }
        }
    }
}
