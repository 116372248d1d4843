//! Multi-head latent attention of one head for a band of rows (V2 paper, section 2.1.2 and appendix C).
//!
//! Absorbed: the query moves into the latent space, where the cache row is key and value at once. Plain: keys and values are
//! expanded from the latent, one block of positions at a time, for all rows of the band together.

use fathom_core::{LatentForm, LatentSpec};

use super::attend::{Flash, Num, Places, Rows, SPLIT};
use crate::matrix::Matrix;
use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// A head's rows of a projection.
#[derive(Clone, Copy)]
pub(crate) struct Slab<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) first_row: usize,
    pub(crate) head_stride: usize,
    pub(crate) transposed: bool,
}

impl Slab<'_> {
    /// Decodes head `h` as `[features, rank]`; `row` holds at least `features` numbers.
    fn decode(&self, h: usize, features: usize, rank: usize, row: &mut [f32], out: &mut [f32]) {
        let first = self.first_row + h * self.head_stride;
        if !self.transposed {
            for (f, out) in out.chunks_exact_mut(rank).take(features).enumerate() {
                self.matrix.decode_row(first + f, out);
            }
            return;
        }
        let row = &mut row[..features];
        for r in 0..rank {
            self.matrix.decode_row(first + r, row);
            for (f, v) in row.iter().enumerate() {
                out[f * rank + r] = *v;
            }
        }
    }
}

/// One head, a band of rows of one span.
pub(crate) struct LatentBand<'a, E> {
    /// `[tokens, heads × (nope + rope)]`.
    pub(crate) q: &'a [f32],
    /// `[slots, rank + rope]`.
    pub(crate) cache: &'a [E],
    pub(crate) places: Places<'a>,
    pub(crate) k: Slab<'a>,
    pub(crate) v: Slab<'a>,
    pub(crate) spec: &'a LatentSpec,
    pub(crate) form: LatentForm,
    /// Positions that the band's first row sees.
    pub(crate) seen: usize,
    pub(crate) rect: Rect<'a>,
    pub(crate) scratch: &'a mut [f32],
}

/// Scratch memory of [`LatentBand`] for `rows` rows.
pub(crate) fn band_scratch(rows: usize, spec: &LatentSpec) -> usize {
    let width = spec.rank + spec.rope;
    let wide = width.max(spec.nope + spec.rope);
    let value = spec.rank.max(spec.v_dim);
    spec.rank * (spec.nope + spec.v_dim)
        + rows * (wide + value + 2)
        + spec.nope.max(spec.v_dim).max(spec.rank)
        + SPLIT * (spec.nope + spec.rope + spec.v_dim)
        + Flash::work(value)
}

impl<E: Num> Kernel for LatentBand<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let LatentSpec { heads, rank, nope, rope, v_dim, scale } = *self.spec;
        let (head, rows) = (self.rect.first / v_dim, self.rect.rows.clone());
        let absorbed = self.form == LatentForm::Absorbed;
        let (dim, value) = if absorbed { (rank + rope, rank) } else { (nope + rope, v_dim) };
        let (wk, rest) = self.scratch.split_at_mut(nope * rank);
        let (wv, rest) = rest.split_at_mut(v_dim * rank);
        let (q, rest) = rest.split_at_mut(rows.len() * dim);
        let (max, rest) = rest.split_at_mut(rows.len());
        let (sum, rest) = rest.split_at_mut(rows.len());
        let (acc, rest) = rest.split_at_mut(rows.len() * value);
        let (row_work, rest) = rest.split_at_mut(nope.max(v_dim).max(rank));
        let (keys, rest) = rest.split_at_mut(SPLIT * (nope + rope));
        let (values, rest) = rest.split_at_mut(SPLIT * v_dim);
        self.k.decode(head, nope, rank, row_work, wk);
        self.v.decode(head, v_dim, rank, row_work, wv);
        for (out, row) in q.chunks_exact_mut(dim).zip(rows.clone()) {
            let at = (row * heads + head) * (nope + rope);
            let (q_n, q_r) = self.q[at..at + nope + rope].split_at(nope);
            let (first, last) = out.split_at_mut(dim - rope);
            if absorbed {
                combine(s, q_n, wk, first);
            } else {
                first.copy_from_slice(q_n);
            }
            last.copy_from_slice(q_r);
            out.iter_mut().for_each(|v| *v *= scale);
        }
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        acc.fill(0.0);
        let mut flash = Flash { q, dim, v_dim: value, max, sum, acc, work: &mut rest[..Flash::work(value)] };
        let end = self.seen + rows.len() - 1;
        let (mut at, mut k_at, mut v_at) = ([0; SPLIT], [0; SPLIT], [0; SPLIT]);
        for from in (0..end).step_by(SPLIT) {
            let n = SPLIT.min(end - from);
            self.places.fill(from, rank + rope, 0, &mut at[..n]);
            let seen = self.seen;
            let sees = |i: usize| (seen + i).saturating_sub(from);
            if absorbed {
                let rows = Rows { data: self.cache, at: &at[..n] };
                flash.block(s, rows, rows, sees);
                continue;
            }
            for j in 0..n {
                let stored = &self.cache[at[j]..at[j] + rank + rope];
                let latent = &mut row_work[..rank];
                latent.iter_mut().zip(stored).for_each(|(o, v)| *o = v.widen());
                let key = &mut keys[j * (nope + rope)..(j + 1) * (nope + rope)];
                project(s, wk, latent, &mut key[..nope]);
                key[nope..].iter_mut().zip(&stored[rank..]).for_each(|(o, v)| *o = v.widen());
                project(s, wv, latent, &mut values[j * v_dim..(j + 1) * v_dim]);
                (k_at[j], v_at[j]) = (j * (nope + rope), j * v_dim);
            }
            flash.block(s, Rows { data: keys, at: &k_at[..n] }, Rows { data: values, at: &v_at[..n] }, sees);
        }
        for (i, row) in rows.enumerate() {
            let out = self.rect.row(row);
            if absorbed {
                let latent = &mut row_work[..rank];
                flash.finish(i, latent);
                project(s, wv, latent, out);
            } else {
                flash.finish(i, out);
            }
        }
    }
}

/// `out = Σ_i x[i] · w[i, ·]`, one i after the other.
#[inline(always)]
fn combine<S: Simd>(s: S, x: &[f32], w: &[f32], out: &mut [f32]) {
    let width = out.len();
    for (c, out) in out.chunks_mut(LANES).enumerate() {
        let mut acc = s.zero();
        for (i, x) in x.iter().enumerate() {
            let w = &w[i * width + c * LANES..][..out.len()];
            let w = match w.as_array() {
                Some(w) => s.load(w),
                None => s.load_part(w),
            };
            acc = s.fma(s.splat(*x), w, acc);
        }
        s.store_part(acc, out);
    }
}

/// `out[f] = w[f, ·]·x`: lanes take every sixteenth product, then are added up.
#[inline(always)]
fn project<S: Simd>(s: S, w: &[f32], x: &[f32], out: &mut [f32]) {
    let (x16, x_tail) = x.as_chunks::<LANES>();
    for (w, out) in w.chunks_exact(x.len()).zip(out) {
        let (w16, w_tail) = w.as_chunks::<LANES>();
        let mut acc = s.zero();
        for (w, x) in w16.iter().zip(x16) {
            acc = s.fma(s.load(w), s.load(x), acc);
        }
        *out = s.sum(s.fma(s.load_part(w_tail), s.load_part(x_tail), acc));
    }
}
