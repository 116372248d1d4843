//! Softmax attention of several queries over one key and value head, block by block (Milakov & Gimelshein 2018; Dao et al.
//! 2022).
//!
//! Positions are cut at multiples of [`SPLIT`], whatever the batch looks like. For each block a query gets its largest score m, the sum l of
//! `e^(score − m)` and the sum a of values with these weights; blocks are merged in order. The same arithmetic whether a block is
//! reached in a loop (prefill) or by a task of its own (decode), so both give the same bits.
//!
//! Keys lie as tiles of sixteen positions (see `kv`), so that a vector holds the scores of sixteen positions and nothing is
//! added up across lanes. Every score is one chain of products along the head, every value one along the positions: how
//! many queries or tiles a loop holds in registers changes speed and no bit.

use fathom_core::dtype::RUN;
use half::f16;

use super::tile::{MOST, Mix, STRETCH, Tiled, by_queries, dots, tile_of};
use crate::kv::{GROUP, scales_at};
use crate::simd::{LANES, Simd};

/// Positions per block.
pub(crate) const SPLIT: usize = 256;
/// Tiles of keys per block.
pub(crate) const TILES: usize = SPLIT / GROUP;

/// Element of a cache.
pub(crate) trait Num: Copy + Send + Sync {
    /// Whether what is loaded is still to be multiplied with a scale.
    const SCALED: bool = false;
    /// Most queries of which every tile widens for itself; more share the work.
    const DIRECT: usize = usize::MAX;
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

/// Signed bytes of q8_0.
impl Num for u8 {
    const SCALED: bool = true;
    const DIRECT: usize = 4 * MOST;
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u8; 16]) -> S::F {
        s.load_i8(x)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self as i8)
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

/// Keys and values of one block as loops read them: sixteen positions begin at each offset.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a, E> {
    /// Tile g is `[dim, 16]` from `keys_at[g]` on. Behind the block's own tiles may be the next one's, to be asked for.
    pub(crate) keys: &'a [E],
    pub(crate) keys_at: &'a [usize],
    /// Row j of group g begins at `values_at[g] + j × stride`; all are whole vectors.
    pub(crate) values: &'a [E],
    pub(crate) values_at: &'a [usize; TILES],
    pub(crate) stride: usize,
    /// Scales of keys and of values, if they have any, where [`scales_at`] says.
    pub(crate) key_scales: &'a [f16],
    pub(crate) value_scales: &'a [f16],
    /// Positions.
    pub(crate) len: usize,
    /// Whether it is read where the cache lies, so that what is next is asked for.
    pub(crate) ahead: bool,
}

impl<'a> Block<'a, f32> {
    /// One that was widened, `keys_at` and `values_at` within it.
    pub(crate) fn wide(
        keys: &'a [f32],
        keys_at: &'a [usize],
        values: &'a [f32],
        values_at: &'a [usize; TILES],
        stride: usize,
        len: usize,
    ) -> Self {
        let (key_scales, value_scales) = (&[][..], &[][..]);
        Block { keys, keys_at, values, values_at, stride, key_scales, value_scales, len, ahead: false }
    }
}

impl<'a, E> Block<'a, E> {
    /// What is wanted while the values of group `g` are added: those of the group after the next, and a tile of the next block's keys.
    #[inline(always)]
    pub(crate) fn wanted(&self, g: usize) -> [&'a [E]; 2] {
        let from = |x: &'a [E], at: Option<&usize>| at.and_then(|&at| x.get(at..)).unwrap_or_default();
        if !self.ahead {
            return [&[], &[]];
        }
        let values = self.values_at.get(g + 2).filter(|_| (g + 2) * GROUP < self.len);
        [from(self.values, values), from(self.keys, self.keys_at.get(TILES + g))]
    }
}

/// Scores, then weights, of one query in a block. Longer than a block, so that loads of several queries' at once, a row apart, do
/// not meet in one bank of the first-level cache.
pub(crate) type Scores = [f32; ROW];
const ROW: usize = SPLIT + LANES;

/// Tiles of queries that keys and values in the first-level cache serve.
const ABREAST: usize = 3;

/// Some queries that share a register tile.
#[derive(Clone, Copy, Default)]
struct Tile {
    first: usize,
    queries: usize,
    /// Positions of the block that each sees, and the most of these.
    limits: [usize; MOST],
    most: usize,
}

/// Queries on their way through the blocks.
pub(crate) struct Flash<'a> {
    /// Already times the softmax scale, tile by tile: `[dim, T]` of the queries of a tile.
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

impl<'a> Flash<'a> {
    /// Queries that have seen nothing yet. `state` holds [`Flash::state`] numbers, `work` [`Flash::work`].
    #[inline(always)]
    pub(crate) fn start(
        q: &'a [f32],
        dim: usize,
        v_dim: usize,
        state: &'a mut [f32],
        work: &'a mut [f32],
    ) -> Flash<'a> {
        let queries = q.len() / dim;
        let (max, rest) = state.split_at_mut(queries);
        let (sum, rest) = rest.split_at_mut(queries);
        let acc = &mut rest[..queries * v_dim];
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        acc.fill(0.0);
        Flash { q, dim, v_dim, max, sum, acc, work }
    }

    /// Numbers that describe what `queries` queries have seen.
    pub(crate) fn state(queries: usize, v_dim: usize) -> usize {
        queries * (2 + v_dim)
    }

    /// Numbers of scratch memory.
    pub(crate) fn work(v_dim: usize) -> usize {
        ABREAST * MOST * (ROW + v_dim.next_multiple_of(LANES))
    }

    /// Attends to one block, of which query i sees the first `seen(i)` positions.
    #[inline(always)]
    pub(crate) fn block<S: Simd, E: Num>(&mut self, s: S, block: Block<'_, E>, seen: impl Fn(usize) -> usize) {
        let (queries, mut i) = (self.max.len(), 0);
        while i < queries {
            let (mut tiles, mut n) = ([Tile::default(); ABREAST], 0);
            while n < ABREAST && i < queries {
                let mut tile = Tile { first: i, queries: tile_of::<S>(queries - i), ..Tile::default() };
                for (j, l) in tile.limits.iter_mut().enumerate().take(tile.queries) {
                    *l = seen(i + j).min(block.len);
                    tile.most = tile.most.max(*l);
                }
                i += tile.queries;
                if tile.most > 0 {
                    tiles[n] = tile;
                    n += 1;
                }
            }
            self.abreast(s, block, &tiles[..n]);
        }
    }

    /// Some tiles of queries, so that keys and values that are in the first-level cache serve all of them.
    #[inline(always)]
    fn abreast<S: Simd, E: Num>(&mut self, s: S, block: Block<'_, E>, tiles: &[Tile]) {
        let (dim, v_dim) = (self.dim, self.v_dim);
        let padded = v_dim.next_multiple_of(LANES);
        let (scores, values) = self.work.split_at_mut(ABREAST * MOST * ROW);
        let (scores, _) = scores.as_chunks_mut::<ROW>();
        let most = tiles.iter().map(|t| t.most).max().unwrap_or(0);
        let strip = if tiles.len() > 1 { GROUP * S::TILE.div_ceil(4) } else { SPLIT };
        for from in (0..most).step_by(strip) {
            for (t, tile) in tiles.iter().enumerate().filter(|t| from < t.1.most) {
                let q = &self.q[tile.first * dim..(tile.first + tile.queries) * dim];
                let (from, to) = (from / GROUP, tile.most.min(from + strip).div_ceil(GROUP));
                let scores = &mut scores[t * MOST..(t + 1) * MOST];
                by_queries(s, tile.queries, Score { q, block, from, to, scores });
            }
        }
        let (mut max, mut sum) = ([0.0; ABREAST * MOST], [0.0; ABREAST * MOST]);
        for (t, tile) in tiles.iter().enumerate() {
            for i in 0..tile.queries {
                let at = t * MOST + i;
                (max[at], sum[at]) = softmax(s, &mut scores[at], tile.limits[i], tile.most);
            }
        }
        for from in (0..most).step_by(STRETCH) {
            for (t, tile) in tiles.iter().enumerate().filter(|t| from < t.1.most) {
                let (weights, to) = (&scores[t * MOST..(t + 1) * MOST], tile.most.min(from + STRETCH));
                let out = &mut values[t * MOST * padded..(t + 1) * MOST * padded];
                by_queries(s, tile.queries, Mix { weights, block, from, to, width: padded, out });
            }
        }
        for (t, tile) in tiles.iter().enumerate() {
            for i in (0..tile.queries).filter(|&i| tile.limits[i] > 0) {
                let (at, from) = (tile.first + i, t * MOST + i);
                let acc = &mut self.acc[at * v_dim..(at + 1) * v_dim];
                let values = &values[from * padded..from * padded + v_dim];
                merge(s, (&mut self.max[at], &mut self.sum[at], acc), (max[from], sum[from], values));
            }
        }
    }

    /// Divides by the sums: `out` is what query `i` of `queries` gets, whose state this is.
    #[inline(always)]
    pub(crate) fn finish(state: &[f32], queries: usize, i: usize, out: &mut [f32]) {
        let r = 1.0 / state[queries + i];
        let acc = &state[2 * queries + i * out.len()..];
        for (o, a) in out.iter_mut().zip(acc) {
            *o = a * r;
        }
    }
}

/// Turns the scores of a query that sees `n` positions into weights; those up to `most` are defined after it. Returns the
/// largest score and the sum of the weights.
#[inline(always)]
fn softmax<S: Simd>(s: S, scores: &mut Scores, n: usize, most: usize) -> (f32, f32) {
    scores[n..SPLIT].fill(f32::NEG_INFINITY);
    let row = &mut scores.as_chunks_mut::<LANES>().0[..most.div_ceil(LANES)];
    let mut m = s.splat(f32::NEG_INFINITY);
    for x in row.iter() {
        m = s.max(m, s.load(x));
    }
    let max = s.peak(m);
    let m = s.splat(max);
    for x in row.iter_mut() {
        s.store(s.exp(s.sub(s.load(x), m)), x);
    }
    // exp is clamped and never quite zero: what a query may not see is cleared by hand, and the sum taken after it.
    scores[n..SPLIT].fill(0.0);
    let mut l = s.zero();
    for x in &scores.as_chunks::<LANES>().0[..most.div_ceil(LANES)] {
        l = s.add(l, s.load(x));
    }
    (max, s.sum(l))
}

/// Scores of the queries of a tile against tiles `from..to` of keys.
struct Score<'a, E> {
    /// `[dim, T]`.
    q: &'a [f32],
    block: Block<'a, E>,
    from: usize,
    to: usize,
    /// A row for each query.
    scores: &'a mut [Scores],
}

impl<E: Num> Tiled for Score<'_, E> {
    #[inline(always)]
    fn run<S: Simd, const T: usize>(self, s: S) {
        let Score { q, block, from: mut g, to, scores } = self;
        let q = q.as_chunks::<T>().0;
        let scores: &mut [Scores; T] = scores.first_chunk_mut().expect("invariant: a tile has room for its scores");
        while g < to {
            g += match to - g {
                4.. if S::QUERIES > 2 && (T == 1 || S::TILE >= 8) => score_tiles::<S, E, T, 4>(s, q, block, g, scores),
                2.. if S::QUERIES > 2 && (T <= 3 || S::TILE >= 8) => score_tiles::<S, E, T, 2>(s, q, block, g, scores),
                _ => score_tiles::<S, E, T, 1>(s, q, block, g, scores),
            };
        }
    }
}

#[inline(always)]
fn score_tiles<S: Simd, E: Num, const T: usize, const P: usize>(
    s: S,
    q: &[[f32; T]],
    block: Block<'_, E>,
    g: usize,
    scores: &mut [Scores; T],
) -> usize {
    let mut keys = [&[] as &[[E; LANES]]; P];
    let mut scales = [&[] as &[[f16; LANES]]; P];
    for p in 0..P {
        keys[p] = block.keys[block.keys_at[g + p]..][..q.len() * LANES].as_chunks().0;
        if E::SCALED {
            let at = scales_at(block.keys_at[g + p], q.len());
            scales[p] = block.key_scales[at..][..q.len().div_ceil(RUN) * LANES].as_chunks().0;
        }
    }
    // What is wanted next: keys two tiles on, and the values of these positions.
    let mut ahead = [[&[] as &[[E; LANES]]; P]; 2];
    if block.ahead {
        for p in 0..P {
            if let Some(at) = block.keys_at.get(g + p + 2 * P) {
                ahead[0][p] = block.keys.get(*at..).unwrap_or_default().as_chunks().0;
            }
            ahead[1][p] = block.values.get(block.values_at[g + p]..).unwrap_or_default().as_chunks().0;
        }
    }
    let acc = dots::<S, E, T, P>(s, q, keys, scales, ahead);
    for t in 0..T {
        for p in 0..P {
            let out = &mut scores[t][(g + p) * LANES..(g + p + 1) * LANES];
            s.store(acc[t][p], out.as_mut_array().expect("invariant: sixteen scores"));
        }
    }
    P
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
