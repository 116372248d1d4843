//! Softmax attention of several queries over one key and value head, block by block (Milakov & Gimelshein 2018; Dao et al.
//! 2022).
//!
//! Positions are cut at multiples of [`SPLIT`], whatever the batch looks like. For each block a query gets its largest score m, the sum l of
//! `e^(score − m)` and the sum a of values with these weights; blocks are merged in order. The same arithmetic whether a block is
//! reached in a loop (prefill) or by a task of its own (decode), so both give the same bits.

use half::f16;

use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// Positions per block.
pub(crate) const SPLIT: usize = 256;

/// Element of a cache.
pub(crate) trait Num: Copy + Send + Sync {
    /// Sixteen of them, widened.
    fn load<S: Simd>(s: S, x: &[Self; 16]) -> S::F;
    /// One, widened.
    fn widen(self) -> f32;
}

impl Num for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; 16]) -> S::F {
        s.load(x)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Num for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f16; 16]) -> S::F {
        s.load_f16(x)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// At most 16 numbers from `x[at]` on, zeros behind them.
#[inline(always)]
pub(crate) fn load_at<S: Simd, E: Num>(s: S, x: &[E], at: usize, n: usize) -> S::F {
    if n >= LANES {
        return E::load(s, x[at..at + LANES].as_array().expect("invariant: a slice of sixteen"));
    }
    let mut full = [0.0; LANES];
    for (o, v) in full.iter_mut().zip(&x[at..at + n]) {
        *o = v.widen();
    }
    s.load(&full)
}

/// Rows of a cache: row j of a block begins at `at[j]`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    pub(crate) data: &'a [E],
    pub(crate) at: &'a [usize],
}

/// Queries on their way through the blocks.
pub(crate) struct Flash<'a> {
    /// `[queries, dim]`, already times the softmax scale.
    q: &'a [f32],
    /// Width of a query or key.
    dim: usize,
    /// Width of a value.
    v_dim: usize,
    /// Largest score so far, per query; starts at −∞.
    max: &'a mut [f32],
    /// Sum of weights so far, per query; starts at 0.
    sum: &'a mut [f32],
    /// Weighted sum of values so far, `[queries, v_dim]`; starts at 0.
    acc: &'a mut [f32],
    /// [`Flash::work`] numbers.
    work: &'a mut [f32],
}

/// Queries of a register tile.
const TILE: usize = 4;

impl<'a> Flash<'a> {
    /// Queries that have seen nothing yet; `scratch` holds `queries × (2 + v_dim)` numbers and [`Flash::work`] more.
    #[inline(always)]
    pub(crate) fn start(q: &'a [f32], dim: usize, v_dim: usize, scratch: &'a mut [f32]) -> Flash<'a> {
        let queries = q.len() / dim;
        let (max, rest) = scratch.split_at_mut(queries);
        let (sum, rest) = rest.split_at_mut(queries);
        let (acc, rest) = rest.split_at_mut(queries * v_dim);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        acc.fill(0.0);
        Flash { q, dim, v_dim, max, sum, acc, work: &mut rest[..Flash::work(v_dim)] }
    }

    /// Numbers of scratch memory in `work`.
    pub(crate) fn work(v_dim: usize) -> usize {
        TILE * (SPLIT + v_dim.next_multiple_of(LANES))
    }

    /// Attends to one block, of which query i sees the first `seen(i)` positions.
    #[inline(always)]
    pub(crate) fn block<S: Simd, E: Num>(
        &mut self,
        s: S,
        k: Rows<'_, E>,
        v: Rows<'_, E>,
        seen: impl Fn(usize) -> usize,
    ) {
        let queries = self.max.len();
        let mut i = 0;
        while i < queries {
            let n = match queries - i {
                4.. if S::TILE >= 8 => 4,
                2.. => 2,
                _ => 1,
            };
            let mut limits = [0; TILE];
            for (j, l) in limits.iter_mut().enumerate().take(n) {
                *l = seen(i + j).min(k.at.len());
            }
            match n {
                4 => self.tile::<S, E, 4>(s, i, limits, k, v),
                2 => self.tile::<S, E, 2>(s, i, limits, k, v),
                _ => self.tile::<S, E, 1>(s, i, limits, k, v),
            }
            i += n;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, E: Num, const T: usize>(
        &mut self,
        s: S,
        first: usize,
        limits: [usize; TILE],
        k: Rows<'_, E>,
        v: Rows<'_, E>,
    ) {
        let most = limits.into_iter().max().unwrap_or(0);
        if most == 0 {
            return;
        }
        let (dim, v_dim) = (self.dim, self.v_dim);
        let (scores, values) = self.work.split_at_mut(TILE * SPLIT);
        let q = &self.q[first * dim..(first + T) * dim];
        let mut j = 0;
        while S::TILE >= 8 && j + 4 <= most {
            score::<S, E, T, 4>(s, q, dim, k, j, scores);
            j += 4;
        }
        while j + 2 <= most {
            score::<S, E, T, 2>(s, q, dim, k, j, scores);
            j += 2;
        }
        if j < most {
            score::<S, E, T, 1>(s, q, dim, k, j, scores);
        }
        let (mut max, mut sum) = ([0.0; T], [0.0; T]);
        for i in 0..T {
            let row = &mut scores[i * SPLIT..(i + 1) * SPLIT];
            row[limits[i]..].fill(f32::NEG_INFINITY);
            let row = row[..most.next_multiple_of(LANES)].as_chunks_mut::<LANES>().0;
            let mut m = s.splat(f32::NEG_INFINITY);
            for x in row.iter() {
                m = s.max(m, s.load(x));
            }
            max[i] = s.peak(m);
            let m = s.splat(max[i]);
            for x in row.iter_mut() {
                s.store(s.exp(s.sub(s.load(x), m)), x);
            }
        }
        // exp is clamped and never quite zero: what a query may not see is cleared by hand, and the sum taken after it.
        for i in 0..T {
            let row = &mut scores[i * SPLIT..(i + 1) * SPLIT];
            row[limits[i]..].fill(0.0);
            let mut l = s.zero();
            for x in row[..most.next_multiple_of(LANES)].as_chunks::<LANES>().0 {
                l = s.add(l, s.load(x));
            }
            sum[i] = s.sum(l);
        }
        let mut c = 0;
        while S::TILE >= 8 && c + 4 * LANES <= v_dim {
            mix::<S, E, T, 4>(s, scores, v, most, c, v_dim, values);
            c += 4 * LANES;
        }
        while c + 2 * LANES <= v_dim {
            mix::<S, E, T, 2>(s, scores, v, most, c, v_dim, values);
            c += 2 * LANES;
        }
        while c + LANES <= v_dim {
            mix::<S, E, T, 1>(s, scores, v, most, c, v_dim, values);
            c += LANES;
        }
        if c < v_dim {
            mix_tail::<S, E, T>(s, scores, v, most, c, v_dim - c, v_dim, values);
        }
        for i in 0..T {
            if limits[i] > 0 {
                let at = first + i;
                let acc = &mut self.acc[at * v_dim..(at + 1) * v_dim];
                let values = &values[i * v_dim..(i + 1) * v_dim];
                merge(s, (&mut self.max[at], &mut self.sum[at], acc), (max[i], sum[i], values));
            }
        }
    }

    /// Divides by the sums: `out` is `[v_dim]` of query `i`.
    #[inline(always)]
    pub(crate) fn finish(&self, i: usize, out: &mut [f32]) {
        let r = 1.0 / self.sum[i];
        for (o, a) in out.iter_mut().zip(&self.acc[i * self.v_dim..(i + 1) * self.v_dim]) {
            *o = a * r;
        }
    }
}

/// Takes a block's `(max, sum, values)` into the state of all blocks before it.
#[inline(always)]
pub(crate) fn merge<S: Simd>(s: S, state: (&mut f32, &mut f32, &mut [f32]), block: (f32, f32, &[f32])) {
    let (m, l, acc) = state;
    let max = m.max(block.0);
    let (old, new) = ((*m - max).exp(), (block.0 - max).exp());
    (*m, *l) = (max, *l * old + block.1 * new);
    let (a16, a_tail) = acc.as_chunks_mut::<LANES>();
    let (b16, b_tail) = block.2.as_chunks::<LANES>();
    let (f, g) = (s.splat(old), s.splat(new));
    for (a, b) in a16.iter_mut().zip(b16) {
        s.store(s.fma(s.load(a), f, s.mul(s.load(b), g)), a);
    }
    s.store_part(s.fma(s.load_part(a_tail), f, s.mul(s.load_part(b_tail), g)), a_tail);
}

/// Scores of `T` queries against `P` positions from `j` on: lanes take every sixteenth product, then are added up.
#[inline(always)]
fn score<S: Simd, E: Num, const T: usize, const P: usize>(
    s: S,
    q: &[f32],
    dim: usize,
    k: Rows<'_, E>,
    j: usize,
    scores: &mut [f32],
) {
    let full = dim / LANES;
    let mut acc = [[s.zero(); P]; T];
    let mut keys = [&[] as &[E]; P];
    let mut keys16 = [&[] as &[[E; LANES]]; P];
    for p in 0..P {
        keys[p] = &k.data[k.at[j + p]..k.at[j + p] + dim];
        keys16[p] = &keys[p].as_chunks().0[..full];
    }
    let mut q16 = [&[] as &[[f32; LANES]]; T];
    for t in 0..T {
        q16[t] = &q[t * dim..(t + 1) * dim].as_chunks().0[..full];
    }
    for c in 0..full {
        let mut key = [s.zero(); P];
        for p in 0..P {
            key[p] = E::load(s, &keys16[p][c]);
        }
        for t in 0..T {
            let x = s.load(&q16[t][c]);
            for p in 0..P {
                acc[t][p] = s.fma(x, key[p], acc[t][p]);
            }
        }
    }
    if full * LANES < dim {
        for p in 0..P {
            let key = load_at(s, keys[p], full * LANES, dim - full * LANES);
            for t in 0..T {
                acc[t][p] = s.fma(load_at(s, q, t * dim + full * LANES, dim - full * LANES), key, acc[t][p]);
            }
        }
    }
    for t in 0..T {
        let out = &mut scores[t * SPLIT + j..t * SPLIT + j + P];
        match acc[t].as_array() {
            Some(four) => out.copy_from_slice(&s.sum4(*four)),
            None => (0..P).for_each(|p| out[p] = s.sum(acc[t][p])),
        }
    }
}

/// Weighted sums of `C` vectors of columns from `c` on of the first `n` values, one position after the other.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn mix<S: Simd, E: Num, const T: usize, const C: usize>(
    s: S,
    weights: &[f32],
    v: Rows<'_, E>,
    n: usize,
    c: usize,
    v_dim: usize,
    out: &mut [f32],
) {
    let mut acc = [[s.zero(); C]; T];
    let at = &v.at[..n];
    let mut w = [&[] as &[f32]; T];
    for t in 0..T {
        w[t] = &weights[t * SPLIT..t * SPLIT + n];
    }
    for j in 0..n {
        let row = &v.data[at[j] + c..][..C * LANES].as_chunks::<LANES>().0[..C];
        let mut x = [s.zero(); C];
        for i in 0..C {
            x[i] = E::load(s, &row[i]);
        }
        for t in 0..T {
            let w = s.splat(w[t][j]);
            for i in 0..C {
                acc[t][i] = s.fma(w, x[i], acc[t][i]);
            }
        }
    }
    for t in 0..T {
        let out = out[t * v_dim + c..][..C * LANES].as_chunks_mut::<LANES>().0;
        for i in 0..C {
            s.store(acc[t][i], &mut out[i]);
        }
    }
}

/// [`mix`] for the last `width` columns, less than a vector.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn mix_tail<S: Simd, E: Num, const T: usize>(
    s: S,
    weights: &[f32],
    v: Rows<'_, E>,
    n: usize,
    c: usize,
    width: usize,
    v_dim: usize,
    out: &mut [f32],
) {
    let mut acc = [s.zero(); T];
    for j in 0..n {
        let x = load_at(s, v.data, v.at[j] + c, width);
        for t in 0..T {
            acc[t] = s.fma(s.splat(weights[t * SPLIT + j]), x, acc[t]);
        }
    }
    for t in 0..T {
        s.store_part(acc[t], &mut out[t * v_dim + c..t * v_dim + c + width]);
    }
}

/// Where the rows of a sequence lie: slots of a paged cache, or rows of a batch.
#[derive(Clone, Copy)]
pub(crate) enum Places<'a> {
    /// Position p is row `first + p`.
    Run {
        /// Row of position 0.
        first: usize,
    },
    /// Position p is in block `table[p / block]`.
    Paged {
        /// Block numbers.
        table: &'a [u32],
        /// Tokens per block.
        block: usize,
    },
}

impl Places<'_> {
    /// Offsets of positions `from..from + at.len()` in rows of `width`, plus `first`.
    #[inline(always)]
    pub(crate) fn fill(&self, from: usize, width: usize, first: usize, at: &mut [usize]) {
        for (j, o) in at.iter_mut().enumerate() {
            let p = from + j;
            let row = match *self {
                Places::Run { first } => first + p,
                Places::Paged { table, block } => table[p / block] as usize * block + p % block,
            };
            *o = row * width + first;
        }
    }
}

/// One of the two streams of a cache: rows of `width`, of which a head's part begins at `first`.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a, E> {
    pub(crate) data: &'a [E],
    pub(crate) width: usize,
    pub(crate) first: usize,
}

/// Query heads that share one key and value head, for a band of rows of one span: the loop over blocks.
pub(crate) struct AttendBand<'a, E> {
    /// `[tokens, q_width]`; the heads' queries, each `dim` wide, begin at column `q_first`.
    pub(crate) q: &'a [f32],
    pub(crate) q_width: usize,
    pub(crate) q_first: usize,
    /// Number of query heads.
    pub(crate) group: usize,
    pub(crate) dim: usize,
    pub(crate) v_dim: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Keys and values of all positions, and where they lie.
    pub(crate) k: Stream<'a, E>,
    pub(crate) v: Stream<'a, E>,
    pub(crate) places: Places<'a>,
    /// Positions that the band's first row sees.
    pub(crate) seen: usize,
    /// Whether each row after the first sees one more.
    pub(crate) causal: bool,
    /// `[band's rows, group × v_dim]`.
    pub(crate) rect: Rect<'a>,
    /// At least [`band_scratch`] numbers.
    pub(crate) scratch: &'a mut [f32],
}

/// Scratch memory of [`AttendBand`] for `queries` queries.
pub(crate) fn band_scratch(queries: usize, dim: usize, v_dim: usize) -> usize {
    queries * (dim + 2 + v_dim) + Flash::work(v_dim)
}

impl<E: Num> Kernel for AttendBand<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (dim, v_dim, group) = (self.dim, self.v_dim, self.group);
        let rows = self.rect.rows.clone();
        let queries = rows.len() * group;
        let (q, rest) = self.scratch.split_at_mut(queries * dim);
        for (out, row) in q.chunks_exact_mut(group * dim).zip(rows.clone()) {
            let at = row * self.q_width + self.q_first;
            for (o, x) in out.iter_mut().zip(&self.q[at..at + group * dim]) {
                *o = x * self.scale;
            }
        }
        let mut flash = Flash::start(q, dim, v_dim, rest);
        let end = if self.causal { self.seen + rows.len() - 1 } else { self.seen };
        let (mut k_at, mut v_at) = ([0; SPLIT], [0; SPLIT]);
        for from in (0..end).step_by(SPLIT) {
            let n = SPLIT.min(end - from);
            self.places.fill(from, self.k.width, self.k.first, &mut k_at[..n]);
            self.places.fill(from, self.v.width, self.v.first, &mut v_at[..n]);
            let (k, v) = (Rows { data: self.k.data, at: &k_at[..n] }, Rows { data: self.v.data, at: &v_at[..n] });
            let (seen, causal) = (self.seen, self.causal);
            flash.block(s, k, v, |i| if causal { (seen + i / group).saturating_sub(from) } else { n });
        }
        for (i, row) in rows.enumerate() {
            let out = self.rect.row(row);
            for h in 0..group {
                flash.finish(i * group + h, &mut out[h * v_dim..(h + 1) * v_dim]);
            }
        }
    }
}
