//! Products of packed weights with activations rounded to integers.
//!
//! Per block of 32 columns: `y += (Σ q·x̂ − offset·Σ x̂) · (d·dx) + m · (dx·Σ x̂)`, the sums over q and x̂ in exact integers. Lanes are output
//! rows, so one token or eight, each result is built block after block by the same operations: matrix-vector and
//! matrix-matrix products agree bit for bit. Activations have a scale per 32 (llama.cpp: per 256 for K formats), and one
//! digit of base 128 (int8) or two (15 bits: twice the dot products of bytes, or products of words; [`Simd::WORDS`]).

use std::marker::PhantomData;

use super::rows::put;
use crate::pack::{BLOCK, GROUP, Layout, ROWS, Scales};
use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Levels, Quants, Simd};

/// A block of 32 activations as levels q of `DIGITS` digits.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Act<const DIGITS: usize> {
    /// `q = round(127·128^(DIGITS − 1) x / largest magnitude)`.
    quants: Quants<DIGITS>,
    /// `Σ x·q / Σ q²`: what fits these levels best (1.3 % less error than the largest magnitude over 127).
    scale: f32,
    /// `scale · Σ q`.
    total: f32,
}

impl<const DIGITS: usize> Act<DIGITS> {
    /// Zeros.
    pub(crate) const ZERO: Self = Act { quants: Quants::ZERO, scale: 0.0, total: 0.0 };
    /// The highest level.
    const TOP: f32 = if DIGITS == 1 { 127.0 } else { 127.0 * 128.0 };

    /// Blocks from one row to the next: one more than a row has, so that rows do not lie a power of two apart in
    /// the cache.
    pub(crate) fn stride(cols: usize) -> usize {
        cols / BLOCK + 1
    }
}

/// Rounds rows of activations.
pub(crate) struct Quantise<'a, const DIGITS: usize> {
    /// `[rows, cols]`.
    pub(crate) x: &'a [f32],
    pub(crate) cols: usize,
    /// `[rows, stride]`.
    pub(crate) out: &'a mut [Act<DIGITS>],
    /// Blocks from one row to the next.
    pub(crate) stride: usize,
}

impl<const DIGITS: usize> Kernel for Quantise<'_, DIGITS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(self.cols).zip(self.out.chunks_exact_mut(self.stride)) {
            for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
                let x = x.as_chunks::<LANES>().0;
                let (a, b) = (s.load(&x[0]), s.load(&x[1]));
                let zero = s.zero();
                let magnitude = s.max(s.max(a, s.sub(zero, a)), s.max(b, s.sub(zero, b)));
                let peak = s.peak(magnitude);
                let inverse = s.splat(if peak > 1e-30 { Act::<DIGITS>::TOP / peak } else { 0.0 });
                let (qa, qb) = (s.round(s.mul(a, inverse)), s.round(s.mul(b, inverse)));
                let (fa, fb) = (s.to_f(qa), s.to_f(qb));
                let norm = s.sum(s.fma(fa, fa, s.mul(fb, fb)));
                s.set_quants([qa, qb], &mut out.quants);
                out.scale = if norm > 0.0 { s.sum(s.fma(a, fa, s.mul(b, fb))) / norm } else { 0.0 };
                out.total = out.scale * out.quants.sums[0].wrapping_add(out.quants.sums[1]) as f32;
            }
        }
    }
}

/// What is done with panels of any layout.
trait Work {
    fn work<S: Simd, C: Codes, D: Scaling>(self, s: S);
}

#[inline(always)]
fn for_layout<S: Simd, W: Work>(layout: Layout, s: S, w: W) {
    match (layout.bits, layout.scales) {
        (4, Scales::F16) => w.work::<S, Codes4, ScaleF16<8>>(s),
        (5, Scales::F16) => w.work::<S, Codes5, ScaleF16<16>>(s),
        (8, Scales::F16) => w.work::<S, Codes8, ScaleF16<128>>(s),
        (4, Scales::Affine) => w.work::<S, Codes4, ScaleAffine>(s),
        (5, Scales::Affine) => w.work::<S, Codes5, ScaleAffine>(s),
        (4, Scales::K) => w.work::<S, Codes4, ScaleK>(s),
        (5, Scales::K) => w.work::<S, Codes5, ScaleK>(s),
        (6, Scales::K16) => w.work::<S, Codes6, ScaleK16>(s),
        other => unreachable!("invariant: no format has layout {other:?}"),
    }
}

/// Decodes a panel: the sixteen numbers of each column, column after column.
pub(crate) struct Columns<'a> {
    pub(crate) layout: Layout,
    pub(crate) cols: usize,
    pub(crate) panel: &'a [u8],
    /// `[cols, 16]`.
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Columns<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for_layout(self.layout, s, self);
    }
}

impl Work for Columns<'_> {
    #[inline(always)]
    fn work<S: Simd, C: Codes, D: Scaling>(self, s: S) {
        debug_assert_eq!(self.out.len(), self.cols * LANES);
        let mut rest = self.panel;
        for outs in self.out.as_chunks_mut::<{ BLOCK * LANES }>().0.chunks_mut(GROUP) {
            let (scales, codes) = group::<C, D>(rest, outs.len());
            rest = &rest[scales.len() + codes.len()..];
            let head = D::head(s, scales);
            for (j, (codes, out)) in codes.chunks_exact(C::BYTES).zip(outs).enumerate() {
                let factor = D::factor(s, head, scales, j);
                let (groups, _) = out.as_chunks_mut::<{ 4 * LANES }>();
                for (g, out) in groups.iter_mut().enumerate() {
                    let levels = C::group(s, codes, g);
                    for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                        // A dot product with a unit vector takes one column's level out.
                        let mut unit = [0; 4];
                        unit[i] = 1;
                        let q = s.to_f(s.dot4(s.splat_i(-D::OFFSET), levels, unit));
                        let d = factor[usize::from(D::HALVES && g >= 4)];
                        s.store(if D::ADDEND { s.fma(q, d, factor[1]) } else { s.mul(q, d) }, out);
                    }
                }
            }
        }
    }
}

/// Panels `0..count` of a rectangle of `x·Wᵀ + b`.
pub(crate) struct PackedBlock<'a, 'r, const DIGITS: usize> {
    pub(crate) layout: Layout,
    pub(crate) cols: usize,
    /// The panels, one behind the other.
    pub(crate) panels: &'a [u8],
    /// Rows of blocks.
    pub(crate) acts: &'a [Act<DIGITS>],
    /// Blocks from one token's row to the next one's.
    pub(crate) stride: usize,
    pub(crate) bias: Option<&'a [f32]>,
    /// Column of the rectangle at which the first panel begins.
    pub(crate) at: usize,
    pub(crate) rect: &'a mut Rect<'r>,
}

impl<const DIGITS: usize> Kernel for PackedBlock<'_, '_, DIGITS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for_layout(self.layout, s, self);
    }
}

impl<const DIGITS: usize> Work for PackedBlock<'_, '_, DIGITS> {
    #[inline(always)]
    fn work<S: Simd, C: Codes, D: Scaling>(mut self, s: S) {
        let mut t = self.rect.rows.start;
        let end = self.rect.rows.end;
        while t < end {
            t += match end - t {
                16.. if Fits::<S, D, 4, 4>::YES => self.tile::<S, C, D, 4, 4>(s, t),
                16.. if Fits::<S, D, 2, 8>::YES => self.tile::<S, C, D, 2, 8>(s, t),
                8.. if Fits::<S, D, 8, 1>::YES => self.tile::<S, C, D, 8, 1>(s, t),
                8.. if Fits::<S, D, 4, 2>::YES => self.tile::<S, C, D, 4, 2>(s, t),
                8.. if Fits::<S, D, 2, 4>::YES => self.tile::<S, C, D, 2, 4>(s, t),
                4.. if Fits::<S, D, 4, 1>::YES => self.tile::<S, C, D, 4, 1>(s, t),
                4.. if Fits::<S, D, 2, 2>::YES => self.tile::<S, C, D, 2, 2>(s, t),
                2.. if Fits::<S, D, 2, 1>::YES => self.tile::<S, C, D, 2, 1>(s, t),
                _ => self.tile::<S, C, D, 1, 1>(s, t),
            }
        }
    }
}

/// Whether a level has `N` tiles of `T` tokens for a format. A constant of a type, not a condition, so that what it has not is not compiled.
struct Fits<S, D, const T: usize, const N: usize>(PhantomData<(S, D)>);

impl<S: Simd, D: Scaling, const T: usize, const N: usize> Fits<S, D, T, N> {
    const YES: bool = {
        let tiles = if D::HALVES { S::TILES_OF_HALVES } else { S::TILES };
        let (mut i, mut found) = (0, false);
        while i < tiles.len() {
            found |= tiles[i].0 == T && tiles[i].1 == N;
            i += 1;
        }
        found
    };
}

impl<const DIGITS: usize> PackedBlock<'_, '_, DIGITS> {
    /// Runs a [`Tile`]; how many tokens it took.
    #[inline(always)]
    fn tile<S: Simd, C: Codes, D: Scaling, const T: usize, const N: usize>(&mut self, s: S, t: usize) -> usize {
        s.call(Tile::<'_, '_, '_, C, D, DIGITS, T, N> { block: self, t, layout: PhantomData });
        N * T
    }
}

/// All panels of a block for `N` times `T` tokens from `t` on.
struct Tile<'b, 'a, 'r, C, D, const DIGITS: usize, const T: usize, const N: usize> {
    block: &'b mut PackedBlock<'a, 'r, DIGITS>,
    t: usize,
    layout: PhantomData<(C, D)>,
}

impl<C: Codes, D: Scaling, const DIGITS: usize, const T: usize, const N: usize> Kernel
    for Tile<'_, '_, '_, C, D, DIGITS, T, N>
{
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackedBlock { layout, cols, panels, acts, stride, bias, at, rect } = self.block;
        let (blocks, bytes) = (*cols / BLOCK, layout.panel_bytes(*cols));
        let mut rows = [[&[] as &[Act<DIGITS>]; T]; N];
        for (i, r) in rows.as_flattened_mut().iter_mut().enumerate() {
            *r = &acts[(self.t + i) * *stride..][..blocks];
        }
        for p in 0..panels.len() / bytes {
            let sums = panel_times::<S, C, D, DIGITS, T, N>(s, &panels[p * bytes..], blocks, &rows);
            for (i, sums) in sums.as_flattened().iter().enumerate() {
                put(s, *sums, *bias, rect, self.t + i, *at + p * ROWS);
            }
        }
    }
}

/// Scales and codes of the group of `blocks` blocks that `panel` begins with.
#[inline(always)]
fn group<C: Codes, D: Scaling>(panel: &[u8], blocks: usize) -> (&[u8], &[u8]) {
    let scales = D::bytes(blocks);
    panel[..scales + blocks * C::BYTES].split_at(scales)
}

/// Most tokens at which weights are asked for ahead: with more, products take longer than reading.
const FEW: usize = 8;

/// Asks for the `n` bytes that lie [`Simd::AHEAD`] of `at`.
#[inline(always)]
fn ask<S: Simd>(s: S, panels: &[u8], at: usize, n: usize) {
    if S::AHEAD > 0
        && let Some(ahead) = panels.get(at + S::AHEAD..at + S::AHEAD + n)
    {
        ahead.as_chunks::<64>().0.iter().for_each(|line| s.fetch(line));
    }
}

/// The panel that `panels` begin with times `N` register tiles of `T` rows of activations, which share the unpacking. One tile reads
/// faster than the machine foresees on some processors and not on others (`LOG.md`), so [`Simd::AHEAD`] says what is asked for.
#[inline(always)]
fn panel_times<S: Simd, C: Codes, D: Scaling, const DIGITS: usize, const T: usize, const N: usize>(
    s: S,
    panels: &[u8],
    blocks: usize,
    x: &[[&[Act<DIGITS>]; T]; N],
) -> [[S::F; T]; N] {
    let mut acc = [[s.zero(); T]; N];
    let (mut block, mut at) = (0, 0);
    while block < blocks {
        let (scales, codes) = group::<C, D>(&panels[at..], GROUP.min(blocks - block));
        if T * N <= FEW {
            ask(s, panels, at, scales.len());
        }
        at += scales.len();
        let head = D::head(s, scales);
        for (j, bytes) in codes.chunks_exact(C::BYTES).enumerate() {
            if T * N <= FEW {
                ask(s, panels, at, C::BYTES);
            }
            at += C::BYTES;
            let levels = Block::<S, C, D, DIGITS, N>::new(s, bytes);
            let factor = D::factor(s, head, scales, j);
            for (x, acc) in x.iter().zip(&mut acc) {
                let x = x.map(|x| &x[block]);
                let quants = x.map(|x| &x.quants);
                if D::HALVES {
                    let sums = s.half_dots::<_, DIGITS, T>(&levels, quants, D::half_scales(scales, j));
                    for i in 0..T {
                        acc[i] = s.fma(sums[i], s.mul(head[0], s.splat(x[i].scale)), acc[i]);
                    }
                } else {
                    let sums = s.dots::<_, DIGITS, 1, T>(&levels, quants);
                    for i in 0..T {
                        acc[i] = s.fma(s.to_f(sums[i][0]), s.mul(factor[0], s.splat(x[i].scale)), acc[i]);
                    }
                }
                if D::ADDEND {
                    for i in 0..T {
                        acc[i] = s.fma(factor[1], s.splat(x[i].total), acc[i]);
                    }
                }
            }
            block += 1;
        }
    }
    acc
}

/// How codes become levels.
trait Codes {
    /// Bytes per block.
    const BYTES: usize;
    /// Bits of a level.
    const BITS: u32;
    /// Levels of group `g` of eight.
    fn group<S: Simd>(s: S, bytes: &[u8], g: usize) -> S::B;
}

/// A packed block for `N` tiles and so many digits. It is unpacked beforehand only if several tiles share it: there are more levels than AVX2
/// has registers.
struct Block<'a, S: Simd, C, D, const DIGITS: usize, const N: usize> {
    bytes: &'a [u8],
    /// Of every group its words, or its levels twice.
    unpacked: [[S::B; 2]; 8],
    layout: PhantomData<(C, D)>,
}

impl<'a, S: Simd, C: Codes, D: Scaling, const DIGITS: usize, const N: usize> Block<'a, S, C, D, DIGITS, N> {
    #[inline(always)]
    fn new(s: S, bytes: &'a [u8]) -> Self {
        let mut unpacked = [[s.splat_b(0); 2]; 8];
        if N > 1 {
            for (g, unpacked) in unpacked.iter_mut().enumerate() {
                let levels = C::group(s, bytes, g);
                *unpacked = if S::WORDS && DIGITS > 1 { s.words(levels, D::OFFSET as i16) } else { [levels; 2] };
            }
        }
        Block { bytes, unpacked, layout: PhantomData }
    }
}

impl<S: Simd, C: Codes, D: Scaling, const DIGITS: usize, const N: usize> Levels<S> for Block<'_, S, C, D, DIGITS, N> {
    const BITS: u32 = C::BITS;
    const OFFSET: i32 = D::OFFSET;
    #[inline(always)]
    fn group(&self, s: S, g: usize) -> S::B {
        if N > 1 { self.unpacked[g][0] } else { C::group(s, self.bytes, g) }
    }
    #[inline(always)]
    fn words(&self, s: S, g: usize) -> [S::B; 2] {
        if N > 1 { self.unpacked[g] } else { s.words(C::group(s, self.bytes, g), D::OFFSET as i16) }
    }
}

#[inline(always)]
fn vectors<const N: usize>(bytes: &[u8]) -> &[[u8; 64]; N] {
    bytes.as_chunks().0.as_array().expect("invariant: a block has as many vectors as its format says")
}

/// Levels of group `g` of four bits each: the low nibbles of the first four vectors, then the high ones.
#[inline(always)]
fn nibbles<S: Simd, const N: usize>(s: S, v: &[[u8; 64]; N], g: usize) -> S::B {
    let v = s.load_b(&v[g % 4]);
    s.and(if g < 4 { v } else { s.shr::<4>(v) }, s.splat_b(15))
}

struct Codes4;

impl Codes for Codes4 {
    const BYTES: usize = 256;
    const BITS: u32 = 4;
    #[inline(always)]
    fn group<S: Simd>(s: S, bytes: &[u8], g: usize) -> S::B {
        nibbles(s, vectors::<4>(bytes), g)
    }
}

struct Codes5;

impl Codes for Codes5 {
    const BYTES: usize = 320;
    const BITS: u32 = 5;
    #[inline(always)]
    fn group<S: Simd>(s: S, bytes: &[u8], g: usize) -> S::B {
        let v = vectors::<5>(bytes);
        let h = s.load_b(&v[4]);
        let h = match g {
            0 => s.shl::<4>(h),
            1 => s.shl::<3>(h),
            2 => s.shl::<2>(h),
            3 => s.shl::<1>(h),
            4 => h,
            5 => s.shr::<1>(h),
            6 => s.shr::<2>(h),
            _ => s.shr::<3>(h),
        };
        s.or(nibbles(s, v, g), s.and(h, s.splat_b(16)))
    }
}

struct Codes6;

impl Codes for Codes6 {
    const BYTES: usize = 384;
    const BITS: u32 = 6;
    #[inline(always)]
    fn group<S: Simd>(s: S, bytes: &[u8], g: usize) -> S::B {
        let v = vectors::<6>(bytes);
        let h = s.load_b(&v[4 + g / 4]);
        let h = match g % 4 {
            0 => s.shl::<4>(h),
            1 => s.shl::<2>(h),
            2 => h,
            _ => s.shr::<2>(h),
        };
        s.or(nibbles(s, v, g), s.and(h, s.splat_b(48)))
    }
}

struct Codes8;

impl Codes for Codes8 {
    const BYTES: usize = 512;
    const BITS: u32 = 8;
    #[inline(always)]
    fn group<S: Simd>(s: S, bytes: &[u8], g: usize) -> S::B {
        s.load_b(&vectors::<8>(bytes)[g])
    }
}

/// How levels become numbers.
trait Scaling {
    /// Level of zero.
    const OFFSET: i32 = 0;
    /// Whether the two halves of a block have factors of their own.
    const HALVES: bool = false;
    /// Whether the second factor is an addend per unit of activation.
    const ADDEND: bool = false;
    /// Bytes of scales of a group of `blocks` blocks.
    fn bytes(blocks: usize) -> usize;
    /// What the blocks of a group share.
    fn head<S: Simd>(s: S, bytes: &[u8]) -> [S::F; 2];
    /// Factors of block `j` of the group.
    fn factor<S: Simd>(s: S, head: [S::F; 2], bytes: &[u8], j: usize) -> [S::F; 2];
    /// The scales, signed bytes, of the halves of block `j`, if they have any; `head` is then what they are multiplied with.
    fn half_scales(_bytes: &[u8], _j: usize) -> [&[u8; 16]; 2] {
        unreachable!("invariant: only asked where half blocks have scales")
    }
}

#[inline(always)]
fn halves<S: Simd>(s: S, bytes: &[u8], at: usize) -> S::F {
    s.load_f16_bytes(bytes[at..at + 32].as_array().expect("invariant: sixteen halves"))
}

#[inline(always)]
fn sixteen(bytes: &[u8], at: usize) -> &[u8; 16] {
    bytes[at..at + 16].as_array().expect("invariant: sixteen bytes")
}

struct ScaleF16<const OFFSET: i32>;

impl<const OFFSET: i32> Scaling for ScaleF16<OFFSET> {
    const OFFSET: i32 = OFFSET;
    #[inline(always)]
    fn bytes(blocks: usize) -> usize {
        (blocks * 32).next_multiple_of(64)
    }
    #[inline(always)]
    fn head<S: Simd>(s: S, _bytes: &[u8]) -> [S::F; 2] {
        [s.zero(); 2]
    }
    #[inline(always)]
    fn factor<S: Simd>(s: S, _head: [S::F; 2], bytes: &[u8], j: usize) -> [S::F; 2] {
        [halves(s, bytes, j * 32); 2]
    }
}

struct ScaleAffine;

impl Scaling for ScaleAffine {
    const ADDEND: bool = true;
    #[inline(always)]
    fn bytes(blocks: usize) -> usize {
        blocks * 64
    }
    #[inline(always)]
    fn head<S: Simd>(s: S, _bytes: &[u8]) -> [S::F; 2] {
        [s.zero(); 2]
    }
    #[inline(always)]
    fn factor<S: Simd>(s: S, _head: [S::F; 2], bytes: &[u8], j: usize) -> [S::F; 2] {
        [halves(s, bytes, j * 64), halves(s, bytes, j * 64 + 32)]
    }
}

struct ScaleK;

impl Scaling for ScaleK {
    const ADDEND: bool = true;
    #[inline(always)]
    fn bytes(_blocks: usize) -> usize {
        64 + GROUP * 32
    }
    #[inline(always)]
    fn head<S: Simd>(s: S, bytes: &[u8]) -> [S::F; 2] {
        [halves(s, bytes, 0), s.sub(s.zero(), halves(s, bytes, 32))]
    }
    #[inline(always)]
    fn factor<S: Simd>(s: S, head: [S::F; 2], bytes: &[u8], j: usize) -> [S::F; 2] {
        let at = 64 + j * 32;
        [s.mul(head[0], s.load_u8(sixteen(bytes, at))), s.mul(head[1], s.load_u8(sixteen(bytes, at + 16)))]
    }
}

struct ScaleK16;

impl Scaling for ScaleK16 {
    const OFFSET: i32 = 32;
    const HALVES: bool = true;
    #[inline(always)]
    fn bytes(_blocks: usize) -> usize {
        (32 + GROUP * 32).next_multiple_of(64)
    }
    #[inline(always)]
    fn head<S: Simd>(s: S, bytes: &[u8]) -> [S::F; 2] {
        let d = halves(s, bytes, 0);
        [d, d]
    }
    #[inline(always)]
    fn factor<S: Simd>(s: S, head: [S::F; 2], bytes: &[u8], j: usize) -> [S::F; 2] {
        Self::half_scales(bytes, j).map(|scales| s.mul(head[0], s.load_i8(scales)))
    }
    #[inline(always)]
    fn half_scales(bytes: &[u8], j: usize) -> [&[u8; 16]; 2] {
        [sixteen(bytes, 32 + j * 32), sixteen(bytes, 48 + j * 32)]
    }
}
