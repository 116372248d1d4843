//! The two register tiles of attention: products of queries with tiles of keys, and weighted sums of values.
//!
//! Six queries by one vector fill the registers of AVX2 (twelve sums, two halves of a vector, a number repeated), six by four those of
//! AVX-512. Fewer queries take more vectors side by side, so that enough sums are under way to hide a multiplier's latency.

use std::marker::PhantomData;

use fathom_core::dtype::RUN;
use half::f16;

use super::attend::{Block, Num, Scores};
use crate::kv::{GROUP, scales_at};
use crate::simd::{Kernel, LANES, Simd};

/// Most queries of a register tile.
pub(crate) const MOST: usize = 6;

/// Queries of the next tile when `left` are left: tiles of one size at the end, since small ones are slow.
#[inline(always)]
pub(crate) fn tile_of<S: Simd>(left: usize) -> usize {
    match left {
        _ if left <= S::QUERIES => left,
        _ if left < 2 * S::QUERIES => left.div_ceil(2),
        _ => S::QUERIES,
    }
}

/// A loop over the `T` queries of a tile.
pub(crate) trait Tiled {
    /// Runs it.
    fn run<S: Simd, const T: usize>(self, s: S);
}

struct Times<K, const T: usize>(K);

impl<K: Tiled, const T: usize> Kernel for Times<K, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run::<S, T>(s);
    }
}

/// Whether a level's tiles have so many queries: a constant of a type, so that what it has not is not compiled.
struct Fits<S, const T: usize>(PhantomData<S>);

impl<S: Simd, const T: usize> Fits<S, T> {
    const YES: bool = T <= S::QUERIES;
}

/// Runs a loop over a tile of `queries` queries, each number of them as a function of its own.
#[inline(always)]
pub(crate) fn by_queries<S: Simd>(s: S, queries: usize, tiled: impl Tiled) {
    match queries {
        1 => s.call(Times::<_, 1>(tiled)),
        2 => s.call(Times::<_, 2>(tiled)),
        3 if Fits::<S, 3>::YES => s.call(Times::<_, 3>(tiled)),
        4 if Fits::<S, 4>::YES => s.call(Times::<_, 4>(tiled)),
        5 if Fits::<S, 5>::YES => s.call(Times::<_, 5>(tiled)),
        6 if Fits::<S, 6>::YES => s.call(Times::<_, 6>(tiled)),
        _ => unreachable!("invariant: tiles have at most as many queries as the level allows"),
    }
}

/// Lays queries `[n, dim]` out as tiles, each `[dim, T]`, times `scale`; `query(i)` is query i.
#[inline(always)]
pub(crate) fn pack_queries<'a, S: Simd>(
    _: S,
    n: usize,
    dim: usize,
    scale: f32,
    out: &mut [f32],
    query: impl Fn(usize) -> &'a [f32],
) {
    let mut first = 0;
    while first < n {
        let t = tile_of::<S>(n - first);
        let tile = &mut out[first * dim..(first + t) * dim];
        match t {
            6 => pack_tile::<6>(dim, scale, tile, std::array::from_fn(|i| query(first + i))),
            4 => pack_tile::<4>(dim, scale, tile, std::array::from_fn(|i| query(first + i))),
            2 => pack_tile::<2>(dim, scale, tile, std::array::from_fn(|i| query(first + i))),
            _ => (0..t).for_each(|i| {
                let places = tile.chunks_exact_mut(t);
                places.zip(query(first + i)).for_each(|(o, x)| o[i] = x * scale);
            }),
        }
        first += t;
    }
}

#[inline(always)]
fn pack_tile<const T: usize>(dim: usize, scale: f32, out: &mut [f32], queries: [&[f32]; T]) {
    let queries = queries.map(|q| &q[..dim]);
    for (d, o) in out.as_chunks_mut::<T>().0.iter_mut().enumerate().take(dim) {
        for i in 0..T {
            o[i] = queries[i][d] * scale;
        }
    }
}

/// `x` as f32.
#[inline(always)]
pub(crate) fn widen<S: Simd, E: Num>(s: S, x: &[E], out: &mut [f32]) {
    let (x16, x_tail) = x.as_chunks::<LANES>();
    let (o16, o_tail) = out.as_chunks_mut::<LANES>();
    for (x, o) in x16.iter().zip(o16) {
        s.store(E::load(s, x), o);
    }
    for (x, o) in x_tail.iter().zip(o_tail) {
        *o = x.widen();
    }
}

/// Vectors of a cache line.
const fn line<E>() -> usize {
    if size_of::<[E; LANES]>() < 64 { 64 / size_of::<[E; LANES]>() } else { 1 }
}

/// `Σ_d q[d][t] · tiles[p][d]`, one d after the other, times `scales[p][d / 32]` if elements have scales.
#[inline(always)]
pub(crate) fn dots<S: Simd, E: Num, const T: usize, const P: usize>(
    s: S,
    q: &[[f32; T]],
    tiles: [&[[E; LANES]]; P],
    scales: [&[[f16; LANES]]; P],
    ahead: [[&[[E; LANES]]; P]; 2],
) -> [[S::F; P]; T] {
    let mut acc = [[s.zero(); P]; T];
    let dim = q.len();
    let mut rows = tiles;
    for p in 0..P {
        rows[p] = &tiles[p][..dim];
    }
    let mut scale = [s.zero(); P];
    for d in 0..dim {
        // Tiles are too short and too far apart for processors to read ahead by themselves.
        if d.is_multiple_of(line::<E>()) {
            for p in 0..P {
                if let Some(x) = ahead[0][p].get(d) {
                    s.fetch(x);
                }
                if let Some(x) = ahead[1][p].get(d) {
                    s.fetch_far(x);
                }
            }
        }
        if E::SCALED && d.is_multiple_of(RUN) {
            for p in 0..P {
                scale[p] = s.load_f16(&scales[p][d / RUN]);
            }
        }
        let mut k = [s.zero(); P];
        for p in 0..P {
            k[p] = E::load(s, &rows[p][d]);
            if E::SCALED {
                k[p] = s.mul(k[p], scale[p]);
            }
        }
        let q = &q[d];
        for t in 0..T {
            let x = s.splat(q[t]);
            for p in 0..P {
                acc[t][p] = s.fma(x, k[p], acc[t][p]);
            }
        }
    }
    acc
}

/// `sums[t] + Σ_d rows[t][d] · tile[d]`, one d after the other.
#[inline(always)]
pub(crate) fn dots_rows<S: Simd, const T: usize>(
    s: S,
    rows: [&[f32]; T],
    tile: &[[f32; LANES]],
    sums: [S::F; T],
) -> [S::F; T] {
    let (mut acc, mut x, n) = (sums, rows, tile.len());
    for t in 0..T {
        x[t] = &rows[t][..n];
    }
    for d in 0..n {
        let k = s.load(&tile[d]);
        for t in 0..T {
            acc[t] = s.fma(s.splat(x[t][d]), k, acc[t]);
        }
    }
    acc
}

/// Numbers of a dot product after which its sum rests in memory: a tile of this height stays in the first-level cache while
/// row after row passes.
const HEIGHT: usize = 320;

/// `out[i] = Σ_d rows[i × stride + d] · tile[d]`.
pub(crate) struct RowsByTile<'a> {
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) tile: &'a [[f32; LANES]],
    /// One for each row.
    pub(crate) out: &'a mut [[f32; LANES]],
}

impl Kernel for RowsByTile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RowsByTile { rows, stride, tile, out } = self;
        let n = out.len();
        let height = tile.len().div_ceil(tile.len().div_ceil(HEIGHT));
        for from in (0..tile.len()).step_by(height) {
            let part = &tile[from..tile.len().min(from + height)];
            let mut i = 0;
            while i < n {
                let (x, o, more) = (&rows[i * stride + from..], &mut out[i..], from > 0);
                // Four rows: with six, whose numbers lie apart, compilers load them all first and run out of AVX2's registers.
                i += match n - i {
                    8.. if S::TILE >= 8 => rows_tile::<S, 8>(s, x, stride, part, o, more),
                    4.. if S::QUERIES > 2 => rows_tile::<S, 4>(s, x, stride, part, o, more),
                    2.. => rows_tile::<S, 2>(s, x, stride, part, o, more),
                    _ => rows_tile::<S, 1>(s, x, stride, part, o, more),
                };
            }
        }
    }
}

#[inline(always)]
fn rows_tile<S: Simd, const T: usize>(
    s: S,
    x: &[f32],
    stride: usize,
    tile: &[[f32; LANES]],
    out: &mut [[f32; LANES]],
    more: bool,
) -> usize {
    let mut rows = [&[] as &[f32]; T];
    let mut sums = [s.zero(); T];
    for t in 0..T {
        rows[t] = &x[t * stride..];
        if more {
            sums[t] = s.load(&out[t]);
        }
    }
    let sums = dots_rows::<S, T>(s, rows, tile, sums);
    for t in 0..T {
        s.store(sums[t], &mut out[t]);
    }
    T
}

/// `out[c][j] = rows[j × stride + c]` for sixteen rows or fewer, zeros for the others.
#[inline(always)]
pub(crate) fn turn<S: Simd>(s: S, rows: &[f32], stride: usize, n: usize, out: &mut [[f32; LANES]]) {
    let cols = out.len();
    let whole = cols / LANES * LANES;
    for (first, out) in (0..whole).step_by(LANES).zip(out.as_chunks_mut::<LANES>().0) {
        let mut v = [s.bits(s.zero()); LANES];
        for j in 0..n.min(LANES) {
            let x = rows[j * stride + first..][..LANES].as_array().expect("invariant: a slice of sixteen");
            v[j] = s.bits(s.load(x));
        }
        let v = s.transpose(v);
        for j in 0..LANES {
            s.store(s.numbers(v[j]), &mut out[j]);
        }
    }
    for (c, out) in out.iter_mut().enumerate().skip(whole) {
        *out = std::array::from_fn(|j| if j < n { rows[j * stride + c] } else { 0.0 });
    }
}

/// Positions after which sums of values rest in memory: their rows stay in the first-level cache while column after column is
/// taken.
pub(crate) const STRETCH: usize = 2 * GROUP;

/// Adds weighted values of positions `from..to` of a block, a stretch of them, one after the other.
pub(crate) struct Mix<'a, E> {
    /// A row for each query.
    pub(crate) weights: &'a [Scores],
    pub(crate) block: Block<'a, E>,
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Whole vectors.
    pub(crate) width: usize,
    /// `[T, width]`; begins at zero with the first stretch.
    pub(crate) out: &'a mut [f32],
}

impl<E: Num> Tiled for Mix<'_, E> {
    #[inline(always)]
    fn run<S: Simd, const T: usize>(self, s: S) {
        let Mix { weights, block, from, to, width, out } = self;
        let weights: &[Scores; T] = weights.first_chunk().expect("invariant: a tile has weights for its queries");
        let mut c = 0;
        while c < width {
            c += match (width - c) / LANES {
                4.. if S::QUERIES > 2 && (T == 1 || S::TILE >= 8) => {
                    mix_tile::<S, E, T, 4>(s, weights, block, from, to, c, width, out)
                }
                2.. if S::QUERIES > 2 && T <= 3 => mix_tile::<S, E, T, 2>(s, weights, block, from, to, c, width, out),
                _ => mix_tile::<S, E, T, 1>(s, weights, block, from, to, c, width, out),
            };
        }
    }
}

/// Positions `from..to`, `C` vectors of columns from `c` on; returns how many columns.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn mix_tile<S: Simd, E: Num, const T: usize, const C: usize>(
    s: S,
    weights: &[Scores; T],
    block: Block<'_, E>,
    from: usize,
    to: usize,
    c: usize,
    width: usize,
    out: &mut [f32],
) -> usize {
    let mut acc = [[s.zero(); C]; T];
    if from > 0 {
        for t in 0..T {
            let sums = &out[t * width + c..][..C * LANES].as_chunks::<LANES>().0[..C];
            for i in 0..C {
                acc[t][i] = s.load(&sums[i]);
            }
        }
    }
    for first in (from..to).step_by(GROUP) {
        let g = first / GROUP;
        let mut w = [&[0.0; GROUP]; T];
        for t in 0..T {
            w[t] = weights[t][first..first + GROUP].as_array().expect("invariant: a group of weights");
        }
        // A scale for every row and vector: a run is two of these.
        let mut scales = [[0.0; GROUP]; C];
        if E::SCALED {
            let at = scales_at(block.values_at[g], block.stride);
            for i in 0..C {
                let at = at + (c / LANES + i) / (RUN / LANES) * GROUP;
                let d = block.value_scales[at..at + GROUP].as_array().expect("invariant: a slice of sixteen");
                s.store(s.load_f16(d), &mut scales[i]);
            }
        }
        // Line by line while rows pass: requests that a processor has no room for are dropped.
        let [values, keys] = block.wanted(g);
        let mut ask = [&[] as &[E]; C];
        for i in 0..C {
            let at = c + i * LANES;
            ask[i] = match at / LANES % line::<E>() {
                0 => values.get(at..),
                l if l == line::<E>() / 2 => keys.get(at - l * LANES..),
                _ => None,
            }
            .unwrap_or_default();
        }
        let rows = block.values[block.values_at[g]..].chunks_exact(block.stride);
        for (j, row) in rows.take(GROUP.min(to - first)).enumerate() {
            for i in 0..C {
                if let Some(x) = ask[i].get(j * block.stride) {
                    s.fetch_far(x);
                }
            }
            let row = &row[c..c + C * LANES].as_chunks::<LANES>().0[..C];
            let mut x = [s.zero(); C];
            for i in 0..C {
                x[i] = E::load(s, &row[i]);
                if E::SCALED {
                    x[i] = s.mul(x[i], s.splat(scales[i][j]));
                }
            }
            for t in 0..T {
                let w = s.splat(w[t][j]);
                for i in 0..C {
                    acc[t][i] = s.fma(w, x[i], acc[t][i]);
                }
            }
        }
    }
    for t in 0..T {
        let sums = out[t * width + c..][..C * LANES].as_chunks_mut::<LANES>().0;
        for i in 0..C {
            s.store(acc[t][i], &mut sums[i]);
        }
    }
    C * LANES
}
