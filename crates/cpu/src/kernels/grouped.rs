//! Grouped-query attention: query heads that share one key and value head, for a band of rows of one span.

use half::f16;

use super::attend::{Block, Flash, Num, SPLIT, TILES, merge};
use super::tile::{MOST, pack_queries};
use crate::kv::{GROUP, History, Numbers};
use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// What tasks of all kinds have in common.
#[derive(Clone, Copy)]
pub(crate) struct Band<'a> {
    /// `[tokens, q_width]`; the group's queries, each `dim` wide, begin at column `q_first`.
    pub(crate) q: &'a [f32],
    pub(crate) q_width: usize,
    pub(crate) q_first: usize,
    /// Rows of the batch: the first, and how many.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// Number of query heads.
    pub(crate) group: usize,
    /// Which key and value head.
    pub(crate) head: usize,
    pub(crate) dim: usize,
    pub(crate) v_dim: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Keys and values of all positions, at the same places.
    pub(crate) k: History<'a>,
    pub(crate) v: History<'a>,
    /// Positions that the band's first row sees.
    pub(crate) seen: usize,
    /// Whether each row after the first sees one more.
    pub(crate) causal: bool,
}

/// Scratch memory of a band of `queries` queries.
pub(crate) fn band_scratch(queries: usize, dim: usize, v_dim: usize) -> usize {
    let padded = v_dim.next_multiple_of(LANES);
    queries * dim + Flash::state(queries, v_dim) + Flash::work(v_dim) + SPLIT * (dim + padded)
}

impl Band<'_> {
    /// Positions that some row sees.
    fn end(&self) -> usize {
        if self.causal { self.seen + self.rows - 1 } else { self.seen }
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, out: &mut [f32]) {
        pack_queries(s, self.rows * self.group, self.dim, self.scale, out, |i| {
            let at = (self.row + i / self.group) * self.q_width + self.q_first + i % self.group * self.dim;
            &self.q[at..at + self.dim]
        });
    }

    /// Whether every tile of queries widens what it reads, which the portable level does slowly.
    fn direct<S: Simd, E: Num>(&self) -> bool {
        self.rows * self.group <= if S::QUERIES > 2 { E::DIRECT } else { MOST }
    }

    /// Takes the block that begins at position `from` into `flash`, one of those before `until`; `wide` holds a block
    /// widened.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, flash: &mut Flash<'_>, from: usize, until: usize, wide: &mut [f32]) {
        let (seen, group, causal) = (self.seen, self.group, self.causal);
        let len = SPLIT.min(self.end() - from);
        let sees = |i: usize| if causal { (seen + i / group).saturating_sub(from) } else { len };
        let pieces = self.k.places.grouped() && self.v_dim.is_multiple_of(LANES);
        match (self.k.numbers, self.v.numbers) {
            (Numbers::F16(keys), Numbers::F16(values)) if pieces && self.direct::<S, f16>() => {
                self.stored(s, flash, (keys, &[]), (values, &[]), from, until, sees);
            }
            (Numbers::Q8_0 { q: keys, d: k }, Numbers::Q8_0 { q: values, d: v })
                if pieces && self.direct::<S, u8>() =>
            {
                self.stored(s, flash, (keys, k), (values, v), from, until, sees);
            }
            _ => {
                let padded = self.v_dim.next_multiple_of(LANES);
                let (keys, values) = wide[..SPLIT * (self.dim + padded)].split_at_mut(SPLIT * self.dim);
                self.k.tiles(s, from, len, self.head, keys);
                self.v.rows(s, from, len, self.head, padded, values);
                let (mut keys_at, mut values_at) = ([0; TILES], [0; TILES]);
                for g in 0..TILES {
                    (keys_at[g], values_at[g]) = (g * GROUP * self.dim, g * GROUP * padded);
                }
                flash.block(s, Block::wide(keys, &keys_at, values, &values_at, padded, len), sees);
            }
        }
    }

    /// [`Band::block`] of numbers as they are stored, each with scales if they have any.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn stored<S: Simd, E: Num>(
        &self,
        s: S,
        flash: &mut Flash<'_>,
        (keys, key_scales): (&[E], &[f16]),
        (values, value_scales): (&[E], &[f16]),
        from: usize,
        until: usize,
        sees: impl Fn(usize) -> usize,
    ) {
        let len = SPLIT.min(self.end() - from);
        let end = if until > from + SPLIT { self.end() } else { from + len };
        let (mut keys_at, mut values_at) = ([0; 2 * TILES], [0; TILES]);
        let wanted = keys_at.iter_mut().zip((from..end).step_by(GROUP));
        let tiles = wanted.map(|(at, p)| *at = self.k.at(p, self.head)).count();
        for (at, p) in values_at.iter_mut().zip((from..from + len).step_by(GROUP)) {
            *at = self.v.at(p, self.head);
        }
        let block = Block {
            keys,
            keys_at: &keys_at[..tiles],
            values,
            values_at: &values_at,
            stride: self.v_dim,
            key_scales,
            value_scales,
            len,
            ahead: true,
        };
        flash.block(s, block, sees);
    }
}

/// A band, block after block, or some blocks of it, whose results wait for those of the others.
pub(crate) struct Attend<'a> {
    pub(crate) band: Band<'a>,
    /// Position at which the first of some blocks begins; `None`: all of them.
    pub(crate) from: Option<usize>,
    /// `[band's rows, group × v_dim]`, or a row of [`Flash::state`] numbers for each block.
    pub(crate) rect: Rect<'a>,
    /// At least [`band_scratch`] numbers.
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Band { group, rows, row, dim, v_dim, .. } = self.band;
        let queries = rows * group;
        let (q, rest) = self.scratch.split_at_mut(queries * dim);
        let (state, rest) = rest.split_at_mut(Flash::state(queries, v_dim));
        let (work, wide) = rest.split_at_mut(Flash::work(v_dim));
        self.band.pack(s, q);
        // Blocks of their own begin anew each time.
        let (times, first, until) = match self.from {
            Some(from) => (self.rect.rows.len(), from, from + self.rect.rows.len() * SPLIT),
            None => (1, 0, self.band.end()),
        };
        for i in 0..times {
            let (state, blocks) = match self.from {
                Some(from) => (self.rect.row(self.rect.rows.start + i), from + i * SPLIT..from + i * SPLIT + 1),
                None => (&mut *state, first..until),
            };
            let mut flash = Flash::start(q, dim, v_dim, state, work);
            for from in blocks.step_by(SPLIT) {
                self.band.block(s, &mut flash, from, until, wide);
            }
        }
        if self.from.is_some() {
            return;
        }
        for i in 0..queries {
            let out = &mut self.rect.row(row + i / group)[i % group * v_dim..][..v_dim];
            Flash::finish(state, queries, i, out);
        }
    }
}

/// Merges what [`Attend`]s found for one query, in the order of the blocks.
pub(crate) struct Join<'a> {
    /// The query's `(max, sum, values)` of block b are in `states[b × stride..]`.
    pub(crate) states: &'a [f32],
    pub(crate) stride: usize,
    /// Blocks that the query sees.
    pub(crate) blocks: usize,
    /// Number of the query in its band, and queries of the band.
    pub(crate) query: usize,
    pub(crate) queries: usize,
    /// `[v_dim]`.
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Join<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (v_dim, n) = (self.out.len(), self.queries);
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
        self.out.fill(0.0);
        for b in 0..self.blocks {
            let state = &self.states[b * self.stride..];
            let values = &state[2 * n + self.query * v_dim..][..v_dim];
            merge(s, (&mut max, &mut sum, self.out), (state[self.query], state[n + self.query], values));
        }
        let r = 1.0 / sum;
        self.out.iter_mut().for_each(|o| *o *= r);
    }
}
