//! The matrix product of training: `C = α·A·B + β·C` with any strides, its factors in f32 or bf16, its sums in f32.
//!
//! Both factors are packed into words of 32 bits: one number, or two successive ones of the inner dimension in bf16. A tile holds
//! [`ROWS`] rows of A, a panel [`WIDTH`] columns of B, word after word of the inner dimension; a tile times a panel stays in
//! registers (Goto & van de Geijn 2008). Sums run along the inner dimension in order, cut at places that its length
//! alone decides, so a result depends on no other row.

use std::marker::PhantomData;
use std::ops::Range;

use crate::simd::{Kernel, LANES, Simd};

/// Columns of a panel.
pub(crate) const WIDTH: usize = 2 * LANES;
/// Rows of a tile.
pub(crate) const ROWS: usize = 12;
/// Most words of the inner dimension between two additions to C: a panel and a tile of them fit in the first-level cache.
const DEPTH: usize = 192;

/// What the words of a product hold.
pub(crate) trait Word: Copy + Send + Sync {
    /// Successive numbers of the inner dimension in a word.
    const NUMBERS: usize;
    /// Words of successive numbers: sixteen in `a`, or 32 in `a` and `b`.
    fn along<S: Simd>(s: S, a: S::F, b: S::F) -> S::B;
    /// Words of sixteen lanes: `a` at one place of the inner dimension, `b` at the next.
    fn across<S: Simd>(s: S, a: S::F, b: S::F) -> S::B;
    /// `sum + x·y`.
    fn product<S: Simd>(s: S, x: S::B, y: S::B, sum: S::F) -> S::F;
}

/// One f32.
#[derive(Clone, Copy)]
pub(crate) struct Single;

impl Word for Single {
    const NUMBERS: usize = 1;
    #[inline(always)]
    fn along<S: Simd>(s: S, a: S::F, _: S::F) -> S::B {
        s.bits(a)
    }
    #[inline(always)]
    fn across<S: Simd>(s: S, a: S::F, _: S::F) -> S::B {
        s.bits(a)
    }
    #[inline(always)]
    fn product<S: Simd>(s: S, x: S::B, y: S::B, sum: S::F) -> S::F {
        s.fma(s.numbers(x), s.numbers(y), sum)
    }
}

/// Two bf16.
#[derive(Clone, Copy)]
pub(crate) struct Pair;

impl Word for Pair {
    const NUMBERS: usize = 2;
    #[inline(always)]
    fn along<S: Simd>(s: S, a: S::F, b: S::F) -> S::B {
        s.bf16(a, b)
    }
    #[inline(always)]
    fn across<S: Simd>(s: S, a: S::F, b: S::F) -> S::B {
        s.bf16_pairs(a, b)
    }
    #[inline(always)]
    fn product<S: Simd>(s: S, x: S::B, y: S::B, sum: S::F) -> S::F {
        s.dot2_bf16(sum, x, y)
    }
}

/// A matrix whose rows (or columns: `along` is false) lie in memory one by one, `stride` apart, perhaps in another order.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    data: &'a [f32],
    stride: usize,
    /// Whether neighbours in memory are neighbours in a row.
    along: bool,
    /// Which row of memory row i is; `None`: i.
    places: Option<&'a [usize]>,
}

impl<'a> Strided<'a> {
    /// A row-major matrix of `cols` columns.
    pub(crate) fn rows(data: &'a [f32], cols: usize) -> Self {
        Strided { data, stride: cols, along: true, places: None }
    }

    /// The rows `places` of a row-major matrix of `cols` columns.
    pub(crate) fn picked(data: &'a [f32], cols: usize, places: &'a [usize]) -> Self {
        Strided { data, stride: cols, along: true, places: Some(places) }
    }

    /// Its transpose.
    pub(crate) fn transposed(self) -> Self {
        Strided { along: !self.along, ..self }
    }

    /// What lies below the first `rows` rows.
    pub(crate) fn below(self, rows: usize) -> Self {
        debug_assert!(self.along, "invariant: only a matrix of rows is cut");
        match self.places {
            Some(p) => Strided { places: Some(&p[rows..]), ..self },
            None => Strided { data: &self.data[rows * self.stride..], ..self },
        }
    }

    /// Memory from row `i` of memory, element `j` on.
    #[inline(always)]
    fn from(&self, i: usize, j: usize) -> &'a [f32] {
        &self.data[self.places.map_or(i, |p| p[i]) * self.stride + j..]
    }

    /// Element (i, j).
    #[cfg(test)]
    pub(crate) fn get(&self, i: usize, j: usize) -> f32 {
        if self.along { self.from(i, j)[0] } else { self.from(j, i)[0] }
    }

    /// The words of columns `k` (numbers) of at most sixteen rows from `first` on: word u of row `first + l` at `out[u × stride + l]`.
    /// Sixteen are always written; those beyond `rows` mean nothing.
    #[inline(always)]
    fn pack<S: Simd, W: Word>(self, s: S, first: usize, rows: usize, k: Range<usize>, out: &mut [u32], stride: usize) {
        if !self.along {
            return self.pack_across::<S, W>(s, first, rows, k, out, [stride, 0]);
        }
        for (block, from) in k.clone().step_by(LANES * W::NUMBERS).enumerate() {
            let n = (LANES * W::NUMBERS).min(k.end - from);
            let mut v = [s.splat_word(0); LANES];
            for (i, v) in v.iter_mut().enumerate().take(rows) {
                let row = &self.from(first + i, from)[..n];
                let (a, b) = row.split_at(n.min(LANES));
                *v = W::along(s, load(s, a), load(s, b));
            }
            let v = s.transpose(v);
            for (u, v) in v.into_iter().enumerate().take(n.div_ceil(W::NUMBERS)) {
                s.store_words(v, words(&mut out[(block * LANES + u) * stride..]));
            }
        }
    }

    /// [`Strided::pack`] of a matrix that lies across, for all tiles of `rows` rows: memory is read once from end to end. Tile t begins at
    /// `out[t × tile]`.
    #[inline(always)]
    fn pack_across<S: Simd, W: Word>(
        self,
        s: S,
        first: usize,
        rows: usize,
        k: Range<usize>,
        out: &mut [u32],
        [stride, tile]: [usize; 2],
    ) {
        for (u, from) in k.clone().step_by(W::NUMBERS).enumerate() {
            let a = self.from(from, first);
            let b = if W::NUMBERS == 2 && from + 1 < k.end { self.from(from + 1, first) } else { &[] };
            for (t, at) in (0..rows).step_by(stride).enumerate() {
                let b = if b.is_empty() { s.zero() } else { sixteen(s, &b[at..]) };
                s.store_words(W::across(s, sixteen(s, &a[at..]), b), words(&mut out[t * tile + u * stride..]));
            }
        }
    }
}

/// The first sixteen numbers, zeros behind a shorter slice's.
#[inline(always)]
fn sixteen<S: Simd>(s: S, x: &[f32]) -> S::F {
    x.first_chunk().map_or_else(|| s.load_part(x), |full| s.load(full))
}

/// At most sixteen numbers, zeros behind them.
#[inline(always)]
fn load<S: Simd>(s: S, x: &[f32]) -> S::F {
    match x.as_array() {
        Some(full) => s.load(full),
        None if x.is_empty() => s.zero(),
        None => s.load_part(x),
    }
}

#[inline(always)]
fn words(out: &mut [u32]) -> &mut [u32; LANES] {
    out.first_chunk_mut().expect("invariant: packed memory has room for sixteen words")
}

/// Packs `LANES` words of the inner dimension of one panel: [`PANEL`] words.
pub(crate) struct PackPanel<'a, W> {
    pub(crate) b: Strided<'a>,
    /// First column, and how many there are.
    pub(crate) first: usize,
    pub(crate) width: usize,
    /// Numbers of the inner dimension.
    pub(crate) k: Range<usize>,
    pub(crate) out: &'a mut [u32],
    pub(crate) word: PhantomData<W>,
}

/// Words that [`PackPanel`] writes.
pub(crate) const PANEL: usize = LANES * WIDTH;

impl<W: Word> Kernel for PackPanel<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for half in (0..self.width).step_by(LANES) {
            let n = LANES.min(self.width - half);
            self.b.transposed().pack::<S, W>(s, self.first + half, n, self.k.clone(), &mut self.out[half..], WIDTH);
        }
    }
}

/// Rows of the product, with a packed right factor.
pub(crate) struct Product<'a, W> {
    /// Its row `first` gives the first row.
    pub(crate) a: Strided<'a>,
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Inner dimension, in numbers.
    pub(crate) depth: usize,
    /// Blocks of depth, one after the other (see [`depth_step`]), the last rounded up to LANES; each `[panel][words][WIDTH]`.
    pub(crate) panels: &'a [u32],
    /// Number of panels.
    pub(crate) across: usize,
    pub(crate) cols: usize,
    /// `out[i × stride + j]` is element (i, j).
    pub(crate) out: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    /// [`tile_words`] of the rows.
    pub(crate) tiles: &'a mut [u32],
    pub(crate) word: PhantomData<W>,
}

/// Words of packed memory that [`Product`] needs for `rows` rows.
pub(crate) fn tile_words(rows: usize) -> usize {
    rows.div_ceil(ROWS) * (ROWS * DEPTH + LANES)
}

/// Words of depth, of `units` in all, between two additions to C: a multiple of LANES.
pub(crate) fn depth_step(units: usize) -> usize {
    units.div_ceil(units.div_ceil(DEPTH).max(1)).max(1).next_multiple_of(LANES)
}

impl<W: Word> Kernel for Product<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { a, first, rows, depth, panels, across, cols, out, stride, alpha, beta, tiles, .. } = self;
        let units = depth.div_ceil(W::NUMBERS);
        let step = depth_step(units);
        // Once at least: the product of no depth is zero, and C still takes its factor.
        for from in (0..units.max(1)).step_by(step) {
            let n = step.min(units - from);
            let k = from * W::NUMBERS..depth.min((from + n) * W::NUMBERS);
            let size = n * ROWS + LANES;
            if a.along {
                for (t, row) in (0..rows).step_by(ROWS).enumerate() {
                    let count = ROWS.min(rows - row);
                    a.pack::<S, W>(s, first + row, count, k.clone(), &mut tiles[t * size..], ROWS);
                }
            } else {
                a.pack_across::<S, W>(s, first, rows, k, tiles, [ROWS, size]);
            }
            let beta = if from == 0 { beta } else { 1.0 };
            for (panel, at) in (0..cols).step_by(WIDTH).enumerate() {
                let b = &panels[(from * across + panel * n.next_multiple_of(LANES)) * WIDTH..][..n * WIDTH];
                let width = WIDTH.min(cols - at);
                for (t, row) in (0..rows).step_by(ROWS).enumerate() {
                    let a = &tiles[t * size..][..n * ROWS];
                    let out = &mut out[row * stride + at..];
                    let mut done = [[0.0; WIDTH]; ROWS];
                    if S::TILE >= 8 {
                        tile::<S, W, ROWS>(s, a, 0, b, &mut done);
                    } else {
                        for (i, done) in done.chunks_exact_mut(2).enumerate() {
                            tile::<S, W, 2>(s, a, 2 * i, b, done);
                        }
                    }
                    for (i, sums) in done.iter().enumerate().take(rows - row) {
                        let out = &mut out[i * stride..][..width];
                        match out.as_mut_array::<WIDTH>() {
                            Some(out) => finish(s, sums, alpha, beta, out),
                            None => {
                                let mut full = [0.0; WIDTH];
                                full[..width].copy_from_slice(out);
                                finish(s, sums, alpha, beta, &mut full);
                                out.copy_from_slice(&full[..width]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `N` rows of a tile, from its row `skip` on, times a panel.
#[inline(always)]
fn tile<S: Simd, W: Word, const N: usize>(s: S, a: &[u32], skip: usize, b: &[u32], done: &mut [[f32; WIDTH]]) {
    let mut sums = [[s.zero(); 2]; N];
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<WIDTH>().0) {
        let (halves, _) = b.as_chunks::<LANES>();
        let (b0, b1) = (s.load_words(&halves[0]), s.load_words(&halves[1]));
        for i in 0..N {
            let x = s.splat_word(a[skip + i]);
            sums[i][0] = W::product(s, x, b0, sums[i][0]);
            sums[i][1] = W::product(s, x, b1, sums[i][1]);
        }
    }
    // Into memory here, so that what is done with the sums cannot keep them out of registers above.
    for i in 0..N {
        let (halves, _) = done[i].as_chunks_mut::<LANES>();
        s.store(sums[i][0], &mut halves[0]);
        s.store(sums[i][1], &mut halves[1]);
    }
}

/// `out = α·sums + β·out`.
#[inline(always)]
fn finish<S: Simd>(s: S, sums: &[f32; WIDTH], alpha: f32, beta: f32, out: &mut [f32; WIDTH]) {
    let (sums, outs) = (sums.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
    for (sum, out) in sums.iter().zip(outs) {
        let sum = s.mul(s.splat(alpha), s.load(sum));
        // Zero times what the memory last held could be NaN.
        let sum = if beta == 0.0 { sum } else { s.fma(s.splat(beta), s.load(out), sum) };
        s.store(sum, out);
    }
}
