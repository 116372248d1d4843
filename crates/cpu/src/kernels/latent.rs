//! Multi-head latent attention (V2 paper, section 2.1.2 and appendix C).
//!
//! Absorbed, for few rows: queries move into the latent space ([`Absorb`]), where the cache row is key and value at once and all heads
//! share it ([`AttendAbsorbed`]), and results move back ([`Expand`]). A vector is sixteen heads there: latents are widened
//! once, read as rows, and nothing is added up across lanes.
//!
//! Plain, for many rows: keys and values of one head are expanded from the latent, one block of positions at a time, for all
//! rows together ([`PlainBand`]).

use fathom_core::{LatentForm, LatentSpec};

use super::attend::{Block, Flash, Num, SPLIT, TILES, load_at};
use super::tile::{RowsByTile, pack_queries, tile_of, turn, widen};
use crate::kv::{GROUP, History};
use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// Positions whose latents are widened at a time.
const CHUNK: usize = 32;
/// Heads in a vector.
pub(crate) const HEADS: usize = LANES;

/// Sixteen heads of one row in absorbed form.
#[derive(Clone, Copy)]
struct Unit {
    row: usize,
    /// First head, and how many there are.
    head: usize,
    heads: usize,
}

/// What absorbed queries have in common.
#[derive(Clone, Copy)]
pub(crate) struct Absorbed<'a> {
    /// `[tokens, heads × (rank + rope)]`.
    pub(crate) q: &'a [f32],
    pub(crate) latents: History<'a>,
    pub(crate) spec: &'a LatentSpec,
    /// Rows of the batch: the first, and how many.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// First head, and how many of them.
    pub(crate) head: usize,
    pub(crate) heads: usize,
    /// Positions that the first row sees; each one after it sees one more.
    pub(crate) seen: usize,
}

/// Numbers of one vector of heads: largest scores, sums of weights, and sums of latents as `[rank / 16, heads, 16]`.
fn unit_state(rank: usize) -> usize {
    HEADS * (2 + rank.next_multiple_of(LANES))
}

/// Numbers that describe what `rows` rows of `heads` heads have seen.
pub(crate) fn absorbed_state(rows: usize, heads: usize, rank: usize) -> usize {
    rows * heads.div_ceil(HEADS) * unit_state(rank)
}

/// Scratch memory of `rows` rows of `heads` heads.
pub(crate) fn absorbed_scratch(rows: usize, heads: usize, spec: &LatentSpec) -> usize {
    let dim = spec.rank + spec.rope;
    let turned = rows * heads.div_ceil(HEADS) * dim * HEADS;
    let work = CHUNK * dim.next_multiple_of(LANES) + CHUNK * HEADS + HEADS * dim;
    turned + 2 * absorbed_state(rows, heads, spec.rank) + work
}

impl Absorbed<'_> {
    fn units(&self) -> impl Iterator<Item = Unit> + use<> {
        let (row, head, heads) = (self.row, self.head, self.heads);
        (0..self.rows).flat_map(move |r| {
            (0..heads).step_by(HEADS).map(move |h| Unit { row: row + r, head: head + h, heads: HEADS.min(heads - h) })
        })
    }

    fn unit_count(&self) -> usize {
        self.rows * self.heads.div_ceil(HEADS)
    }

    /// Turns every unit's queries, times the scale, so that a vector is one number of sixteen heads.
    #[inline(always)]
    fn turn<S: Simd>(&self, s: S, out: &mut [f32], room: &mut [f32]) {
        let dim = self.spec.rank + self.spec.rope;
        for (u, out) in self.units().zip(out.chunks_exact_mut(dim * HEADS)) {
            let at = (u.row * self.spec.heads + u.head) * dim;
            let q = &mut room[..u.heads * dim];
            for (o, x) in q.iter_mut().zip(&self.q[at..at + u.heads * dim]) {
                *o = x * self.spec.scale;
            }
            turn(s, q, dim, u.heads, out.as_chunks_mut().0);
        }
    }

    /// Sees positions `from..from + SPLIT`; `states` then tell of these alone.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, turned: &[f32], from: usize, states: &mut [f32], work: &mut [f32]) {
        let LatentSpec { rank, rope, .. } = *self.spec;
        let (dim, each) = (rank + rope, unit_state(rank));
        let stride = dim.next_multiple_of(LANES);
        let (wide, rest) = work.split_at_mut(CHUNK * stride);
        let scores = &mut rest.as_chunks_mut::<HEADS>().0[..CHUNK];
        for state in states.chunks_exact_mut(each) {
            clear(state);
        }
        let end = (self.seen + self.rows - 1).min(from + SPLIT);
        for first in (from..end).step_by(CHUNK) {
            self.latents.rows(s, first, CHUNK.min(end - first), 0, stride, wide);
            let all = self.units().zip(turned.chunks_exact(dim * HEADS)).zip(states.chunks_exact_mut(each));
            for ((u, q), state) in all {
                let n = (self.seen + u.row - self.row).saturating_sub(first).min(CHUNK);
                if n > 0 {
                    s.call(RowsByTile { rows: wide, stride, tile: q.as_chunks().0, out: &mut scores[..n] });
                    take(s, &mut scores[..n], wide, stride, state);
                }
            }
        }
    }
}

#[inline(always)]
fn clear(state: &mut [f32]) {
    let (max, rest) = state.split_at_mut(HEADS);
    max.fill(f32::NEG_INFINITY);
    rest.fill(0.0);
}

type State<'a> = (&'a mut [f32; HEADS], &'a mut [f32; HEADS], &'a mut [[[f32; LANES]; HEADS]]);

#[inline(always)]
fn open(state: &mut [f32]) -> State<'_> {
    let (max, rest) = state.split_first_chunk_mut().expect("invariant: a state begins with its largest scores");
    let (sum, rest) = rest.split_first_chunk_mut().expect("invariant: sums follow");
    (max, sum, rest.as_chunks_mut::<LANES>().0.as_chunks_mut::<HEADS>().0)
}

/// Takes positions with these scores, which become their weights, into a state.
#[inline(always)]
fn take<S: Simd>(s: S, scores: &mut [[f32; HEADS]], wide: &[f32], stride: usize, state: &mut [f32]) {
    let (max, sum, acc) = open(state);
    let old = s.load(max);
    let mut m = old;
    for x in scores.iter() {
        m = s.max(m, s.load(x));
    }
    let f = s.exp(s.sub(old, m));
    let mut l = s.mul(s.load(sum), f);
    for x in scores.iter_mut() {
        let w = s.exp(s.sub(s.load(x), m));
        l = s.add(l, w);
        s.store(w, x);
    }
    s.store(m, max);
    s.store(l, sum);
    let mut factors = [0.0; HEADS];
    s.store(f, &mut factors);
    let mut c = 0;
    while c < acc.len() {
        let many = S::TILE >= 8 && c + 4 <= acc.len();
        let mut h = 0;
        while h < HEADS {
            h += match tile_of::<S>(HEADS - h) {
                6 if S::TILE >= 8 && many => take_tile::<S, 6, 4>(s, scores, &factors, wide, stride, c, h, acc),
                5 if S::TILE >= 8 && many => take_tile::<S, 5, 4>(s, scores, &factors, wide, stride, c, h, acc),
                6 if S::QUERIES >= 6 => take_tile::<S, 6, 1>(s, scores, &factors, wide, stride, c, h, acc),
                5 if S::QUERIES >= 5 => take_tile::<S, 5, 1>(s, scores, &factors, wide, stride, c, h, acc),
                _ => take_tile::<S, 2, 1>(s, scores, &factors, wide, stride, c, h, acc),
            };
        }
        c += if many { 4 } else { 1 };
    }
}

/// `T` heads from `h` on, `C` vectors of latents from `c` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn take_tile<S: Simd, const T: usize, const C: usize>(
    s: S,
    weights: &[[f32; HEADS]],
    factors: &[f32; HEADS],
    wide: &[f32],
    stride: usize,
    c: usize,
    h: usize,
    state: &mut [[[f32; LANES]; HEADS]],
) -> usize {
    let mut acc = [[s.zero(); C]; T];
    for t in 0..T {
        let f = s.splat(factors[h + t]);
        for i in 0..C {
            acc[t][i] = s.mul(s.load(&state[c + i][h + t]), f);
        }
    }
    for (w, row) in weights.iter().zip(wide.chunks_exact(stride)) {
        let w: &[f32; T] = w[h..].first_chunk().expect("invariant: a tile's heads lie in the vector");
        let row = &row[c * LANES..][..C * LANES].as_chunks::<LANES>().0[..C];
        let mut x = [s.zero(); C];
        for i in 0..C {
            x[i] = s.load(&row[i]);
        }
        for t in 0..T {
            let w = s.splat(w[t]);
            for i in 0..C {
                acc[t][i] = s.fma(w, x[i], acc[t][i]);
            }
        }
    }
    for t in 0..T {
        for i in 0..C {
            s.store(acc[t][i], &mut state[c + i][h + t]);
        }
    }
    T
}

/// Takes a block's state into the one of all blocks before it.
#[inline(always)]
fn merge<S: Simd>(s: S, state: &mut [f32], block: &[f32]) {
    let (max, sum, acc) = open(state);
    let (b_max, rest) = block.split_first_chunk().expect("invariant: a state begins with its largest scores");
    let (b_sum, rest) = rest.split_first_chunk().expect("invariant: sums follow");
    let b_acc = rest.as_chunks::<LANES>().0.as_chunks::<HEADS>().0;
    let m = s.max(s.load(max), s.load(b_max));
    let (old, new) = (s.exp(s.sub(s.load(max), m)), s.exp(s.sub(s.load(b_max), m)));
    s.store(s.fma(s.load(sum), old, s.mul(s.load(b_sum), new)), sum);
    s.store(m, max);
    let (mut f, mut g) = ([0.0; HEADS], [0.0; HEADS]);
    s.store(old, &mut f);
    s.store(new, &mut g);
    for (a, b) in acc.iter_mut().zip(b_acc) {
        for h in 0..HEADS {
            s.store(s.fma(s.load(&a[h]), s.splat(f[h]), s.mul(s.load(&b[h]), s.splat(g[h]))), &mut a[h]);
        }
    }
}

/// The weighted mean of the latents of a unit's head `h`.
#[inline(always)]
fn finish<S: Simd>(s: S, state: &mut [f32], h: usize, out: &mut [f32]) {
    let (_, sum, acc) = open(state);
    let r = s.splat(1.0 / sum[h]);
    for (a, out) in acc.iter().zip(out.chunks_mut(LANES)) {
        s.store_part(s.mul(s.load(&a[h]), r), out);
    }
}

/// Absorbed queries, block after block, or some blocks of theirs, whose results wait for those of the others.
pub(crate) struct AttendAbsorbed<'a> {
    pub(crate) part: Absorbed<'a>,
    /// Position at which the first of some blocks begins; `None`: all of them.
    pub(crate) from: Option<usize>,
    /// `[rows, heads × rank]`, or a row of [`absorbed_state`] numbers for each block.
    pub(crate) rect: Rect<'a>,
    /// At least [`absorbed_scratch`] numbers.
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for AttendAbsorbed<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let part = self.part;
        let LatentSpec { rank, rope, .. } = *part.spec;
        let (each, size) = (unit_state(rank), part.unit_count() * unit_state(rank));
        let (turned, rest) = self.scratch.split_at_mut(part.unit_count() * (rank + rope) * HEADS);
        let (states, rest) = rest.split_at_mut(size);
        let (block, work) = rest.split_at_mut(size);
        part.turn(s, turned, work);
        states.chunks_exact_mut(each).for_each(clear);
        let (first, until) = match self.from {
            Some(from) => (from, from + self.rect.rows.len() * SPLIT),
            None => (0, part.seen + part.rows - 1),
        };
        for from in (first..until).step_by(SPLIT) {
            let block = match self.from {
                Some(_) => &mut self.rect.row(self.rect.rows.start + (from - first) / SPLIT)[..size],
                None => &mut *block,
            };
            part.block(s, turned, from, block, work);
            if self.from.is_some() {
                continue;
            }
            let all = part.units().zip(states.chunks_exact_mut(each)).zip(block.chunks_exact(each));
            for ((u, state), block) in all {
                if part.seen + u.row - part.row > from {
                    merge(s, state, block);
                }
            }
        }
        if self.from.is_some() {
            return;
        }
        for (u, state) in part.units().zip(states.chunks_exact_mut(each)) {
            let out = &mut self.rect.row(u.row)[(u.head - part.head) * rank..][..u.heads * rank];
            for (h, out) in out.chunks_exact_mut(rank).enumerate() {
                finish(s, state, h, out);
            }
        }
    }
}

/// Merges what [`AttendAbsorbed`]s found for one vector of heads, in the order of the blocks.
pub(crate) struct AbsorbedJoin<'a> {
    /// The unit's state of block b begins at `b × stride`.
    pub(crate) states: &'a [f32],
    pub(crate) stride: usize,
    /// Blocks that the row sees.
    pub(crate) blocks: usize,
    pub(crate) rank: usize,
    /// `[heads, rank]`.
    pub(crate) out: &'a mut [f32],
    /// Numbers of a unit's state, as [`absorbed_state`] says.
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for AbsorbedJoin<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let state = &mut self.scratch[..unit_state(self.rank)];
        clear(state);
        for b in 0..self.blocks {
            merge(s, state, &self.states[b * self.stride..][..unit_state(self.rank)]);
        }
        for (h, out) in self.out.chunks_exact_mut(self.rank).enumerate() {
            finish(s, state, h, out);
        }
    }
}

/// The projections of one head in the order that expansion reads them: keys' as rows, values' as tiles of sixteen features.
#[derive(Clone, Copy)]
pub(crate) struct Expansion<'a> {
    /// `[nope, rank]`.
    pub(crate) k: &'a [f32],
    /// `[v_dim / 16, rank, 16]`.
    pub(crate) v: &'a [f32],
}

/// Numbers of an [`Expansion`]'s two parts.
pub(crate) fn expansion(spec: &LatentSpec) -> (usize, usize) {
    (spec.nope * spec.rank, spec.v_dim.next_multiple_of(LANES) * spec.rank)
}

/// Brings stored projections of head `head` into the order of an [`Expansion`].
pub(crate) struct Spread<'a, W> {
    pub(crate) k: Slabs<'a, W>,
    pub(crate) v: Slabs<'a, W>,
    pub(crate) spec: &'a LatentSpec,
    pub(crate) head: usize,
    pub(crate) k_out: &'a mut [f32],
    pub(crate) v_out: &'a mut [f32],
    /// `16 × rank` numbers.
    pub(crate) room: &'a mut [f32],
}

impl<W: Num> Kernel for Spread<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LatentSpec { rank, nope, v_dim, .. } = *self.spec;
        widen(s, self.k.head(self.head, nope, rank), self.k_out);
        let rows = self.v.head(self.head, v_dim, rank);
        for (rows, out) in rows.chunks(LANES * rank).zip(self.v_out.chunks_exact_mut(LANES * rank)) {
            widen(s, rows, self.room);
            turn(s, self.room, rank, rows.len() / rank, out.as_chunks_mut().0);
        }
    }
}

/// One head in plain form, a band of rows of one span.
pub(crate) struct PlainBand<'a> {
    /// `[tokens, heads × (nope + rope)]`.
    pub(crate) q: &'a [f32],
    pub(crate) latents: History<'a>,
    pub(crate) heads: Expansion<'a>,
    pub(crate) spec: &'a LatentSpec,
    /// Positions that the band's first row sees.
    pub(crate) seen: usize,
    /// One head of `[tokens, heads × v_dim]`.
    pub(crate) rect: Rect<'a>,
    /// At least [`plain_scratch`] numbers.
    pub(crate) scratch: &'a mut [f32],
}

/// Scratch memory of [`PlainBand`] for `rows` rows.
pub(crate) fn plain_scratch(rows: usize, spec: &LatentSpec) -> usize {
    let (dim, padded) = (spec.nope + spec.rope, spec.v_dim.next_multiple_of(LANES));
    let latents = (spec.rank + spec.rope).next_multiple_of(LANES);
    let queries = rows * dim + Flash::state(rows, spec.v_dim) + Flash::work(spec.v_dim);
    queries + SPLIT * (dim + padded) + CHUNK * latents + GROUP * spec.rank + CHUNK * LANES
}

impl Kernel for PlainBand<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let LatentSpec { heads, rank, nope, rope, v_dim, scale } = *self.spec;
        let (head, rows, dim) = (self.rect.first / v_dim, self.rect.rows.clone(), nope + rope);
        let (padded, stride) = (v_dim.next_multiple_of(LANES), (rank + rope).next_multiple_of(LANES));
        let (q, rest) = self.scratch.split_at_mut(rows.len() * dim);
        let (state, rest) = rest.split_at_mut(Flash::state(rows.len(), v_dim));
        let (work, rest) = rest.split_at_mut(Flash::work(v_dim));
        let (keys, rest) = rest.split_at_mut(SPLIT * dim);
        let (values, rest) = rest.split_at_mut(SPLIT * padded);
        let (wide, rest) = rest.split_at_mut(CHUNK * stride);
        let (turned, rest) = rest.split_at_mut(GROUP * rank);
        let (turned, part) = (turned.as_chunks_mut::<GROUP>().0, &mut rest.as_chunks_mut::<LANES>().0[..CHUNK]);
        pack_queries(s, rows.len(), dim, scale, q, |i| &self.q[((rows.start + i) * heads + head) * dim..][..dim]);
        let mut flash = Flash::start(q, dim, v_dim, state, work);
        let end = self.seen + rows.len() - 1;
        let (mut keys_at, mut values_at) = ([0; TILES], [0; TILES]);
        for g in 0..TILES {
            (keys_at[g], values_at[g]) = (g * GROUP * dim, g * GROUP * padded);
        }
        for from in (0..end).step_by(SPLIT) {
            let len = SPLIT.min(end - from);
            for first in (0..len).step_by(CHUNK) {
                let n = CHUNK.min(len - first);
                self.latents.rows(s, from + first, n, 0, stride, wide);
                for g in (0..n).step_by(GROUP) {
                    let (rows, n) = (&wide[g * stride..], GROUP.min(n - g));
                    let tile = keys[(first + g) * dim..][..GROUP * dim].as_chunks_mut::<GROUP>().0;
                    let (latent, rotated) = tile.split_at_mut(nope);
                    turn(s, rows, stride, n, turned);
                    s.call(RowsByTile { rows: self.heads.k, stride: rank, tile: turned, out: latent });
                    turn(s, &rows[rank..], stride, n, rotated);
                }
                for (f, tile) in self.heads.v.chunks_exact(LANES * rank).enumerate() {
                    s.call(RowsByTile { rows: wide, stride, tile: tile.as_chunks().0, out: &mut part[..n] });
                    for (j, x) in part[..n].iter().enumerate() {
                        values[(first + j) * padded + f * LANES..][..LANES].copy_from_slice(x);
                    }
                }
            }
            let block = Block::wide(keys, &keys_at, values, &values_at, padded, len);
            let seen = self.seen;
            flash.block(s, block, |i| (seen + i).saturating_sub(from));
        }
        let queries = rows.len();
        for (i, row) in rows.enumerate() {
            Flash::finish(state, queries, i, self.rect.row(row));
        }
    }
}

/// Projections of all heads, widened: `[features, rank]` of head h begins at `(first_row + h × head_stride) × cols`.
#[derive(Clone, Copy)]
pub(crate) struct Slabs<'a, W> {
    pub(crate) data: &'a [W],
    pub(crate) cols: usize,
    pub(crate) first_row: usize,
    pub(crate) head_stride: usize,
}

impl<'a, W> Slabs<'a, W> {
    #[inline(always)]
    fn head(&self, h: usize, features: usize, rank: usize) -> &'a [W] {
        &self.data[(self.first_row + h * self.head_stride) * self.cols..][..features * rank]
    }
}

/// `[W_kᵀ q_n | q_r]` of one head, for the rows of a rectangle.
pub(crate) struct Absorb<'a, W> {
    /// `[tokens, heads × (nope + rope)]`.
    pub(crate) q: &'a [f32],
    pub(crate) k: Slabs<'a, W>,
    pub(crate) spec: &'a LatentSpec,
    /// One head of `[tokens, heads × (rank + rope)]`.
    pub(crate) rect: Rect<'a>,
}

impl<W: Num> Kernel for Absorb<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let LatentSpec { heads, rank, nope, rope, .. } = *self.spec;
        let head = self.rect.first / (rank + rope);
        let w = self.k.head(head, nope, rank);
        for row in self.rect.rows.clone() {
            let at = (row * heads + head) * (nope + rope);
            let (q_n, q_r) = self.q[at..at + nope + rope].split_at(nope);
            let (latent, rotated) = self.rect.row(row).split_at_mut(rank);
            combine(s, q_n, w, latent);
            rotated.copy_from_slice(q_r);
        }
    }
}

/// `W_v c` of one head, for the rows of a rectangle.
pub(crate) struct Expand<'a, W> {
    /// `[tokens, heads × rank]`.
    pub(crate) latent: &'a [f32],
    pub(crate) v: Slabs<'a, W>,
    pub(crate) spec: &'a LatentSpec,
    /// One head of `[tokens, heads × v_dim]`.
    pub(crate) rect: Rect<'a>,
}

impl<W: Num> Kernel for Expand<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let LatentSpec { heads, rank, v_dim, .. } = *self.spec;
        let head = self.rect.first / v_dim;
        let w = self.v.head(head, v_dim, rank);
        for row in self.rect.rows.clone() {
            let x = &self.latent[(row * heads + head) * rank..][..rank];
            project(s, w, x, self.rect.row(row));
        }
    }
}

/// `out = Σ_i x[i] · w[i, ·]`, one i after the other.
#[inline(always)]
fn combine<S: Simd, W: Num>(s: S, x: &[f32], w: &[W], out: &mut [f32]) {
    let width = out.len();
    let (out4, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
    for (c, out) in out4.iter_mut().enumerate() {
        // Four vectors side by side, so that four sums are under way.
        let mut acc = [s.zero(); 4];
        for (x, row) in x.iter().zip(w.chunks_exact(width)) {
            let x = s.splat(*x);
            let row = &row[c * 4 * LANES..][..4 * LANES].as_chunks::<LANES>().0[..4];
            for v in 0..4 {
                acc[v] = s.fma(x, W::load(s, &row[v]), acc[v]);
            }
        }
        for (a, o) in acc.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
            s.store(a, o);
        }
    }
    let first = width - rest.len();
    for (c, out) in rest.chunks_mut(LANES).enumerate() {
        let mut acc = s.zero();
        for (x, row) in x.iter().zip(w.chunks_exact(width)) {
            acc = s.fma(s.splat(*x), load_at(s, row, first + c * LANES, out.len()), acc);
        }
        s.store_part(acc, out);
    }
}

/// `out[f] = w[f, ·]·x`: lanes take every sixteenth product, then are added up.
#[inline(always)]
fn project<S: Simd, W: Num>(s: S, w: &[W], x: &[f32], out: &mut [f32]) {
    let mut f = 0;
    while f < out.len() {
        let w = &w[f * x.len()..];
        f += match out.len() - f {
            4.. => project_rows::<S, W, 4>(s, w, x, &mut out[f..]),
            _ => project_rows::<S, W, 1>(s, w, x, &mut out[f..]),
        };
    }
}

/// `R` features; returns `R`.
#[inline(always)]
fn project_rows<S: Simd, W: Num, const R: usize>(s: S, w: &[W], x: &[f32], out: &mut [f32]) -> usize {
    let rank = x.len();
    let (x16, x_tail) = x.as_chunks::<LANES>();
    let mut acc = [s.zero(); R];
    let mut w16 = [&[] as &[[W; LANES]]; R];
    for r in 0..R {
        w16[r] = &w[r * rank..(r + 1) * rank].as_chunks().0[..x16.len()];
    }
    for (c, x) in x16.iter().enumerate() {
        let v = s.load(x);
        for r in 0..R {
            acc[r] = s.fma(W::load(s, &w16[r][c]), v, acc[r]);
        }
    }
    if !x_tail.is_empty() {
        let v = s.load_part(x_tail);
        for r in 0..R {
            acc[r] = s.fma(load_at(s, w, (r + 1) * rank - x_tail.len(), x_tail.len()), v, acc[r]);
        }
    }
    match acc.as_array() {
        Some(four) => out[..R].copy_from_slice(&s.sum4(*four)),
        None => (0..R).for_each(|r| out[r] = s.sum(acc[r])),
    }
    R
}

/// Whether a span of this form is [`PlainBand`]'s.
pub(crate) fn is_plain(form: LatentForm) -> bool {
    form == LatentForm::Plain
}
