//! Multi-head latent attention (V2 paper, section 2.1.2 and appendix C).
//!
//! Absorbed, for few rows: queries move into the latent space ([`Absorb`]), where the cache row is key and value at once and all heads
//! share it (`attend::AttendBand`), and results move back ([`Expand`]). Plain, for many rows: keys and values of one head are
//! expanded from the latent, one block of positions at a time, for all rows together ([`PlainBand`]).

use fathom_core::{LatentForm, LatentSpec};

use super::attend::{Flash, Num, Places, Rows, SPLIT, load_at};
use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// Positions whose latents are widened at a time.
const CHUNK: usize = 32;

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
            project(s, w, x, rank, self.rect.row(row), v_dim);
        }
    }
}

/// One head in plain form, a band of rows of one span.
pub(crate) struct PlainBand<'a, E, W> {
    /// `[tokens, heads × (nope + rope)]`.
    pub(crate) q: &'a [f32],
    /// `[slots, rank + rope]`.
    pub(crate) cache: &'a [E],
    pub(crate) places: Places<'a>,
    pub(crate) k: Slabs<'a, W>,
    pub(crate) v: Slabs<'a, W>,
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
    let width = spec.nope + spec.rope;
    rows * (width + spec.v_dim + 2) + SPLIT * (width + spec.v_dim) + CHUNK * spec.rank + Flash::work(spec.v_dim)
}

impl<E: Num, W: Num> Kernel for PlainBand<'_, E, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let LatentSpec { heads, rank, nope, rope, v_dim, scale } = *self.spec;
        let (head, rows, dim) = (self.rect.first / v_dim, self.rect.rows.clone(), nope + rope);
        let (wk, wv) = (self.k.head(head, nope, rank), self.v.head(head, v_dim, rank));
        let (q, rest) = self.scratch.split_at_mut(rows.len() * dim);
        let (keys, rest) = rest.split_at_mut(SPLIT * dim);
        let (values, rest) = rest.split_at_mut(SPLIT * v_dim);
        let (latents, rest) = rest.split_at_mut(CHUNK * rank);
        for (out, row) in q.chunks_exact_mut(dim).zip(rows.clone()) {
            for (o, x) in out.iter_mut().zip(&self.q[(row * heads + head) * dim..]) {
                *o = x * scale;
            }
        }
        let mut flash = Flash::start(q, dim, v_dim, rest);
        let end = self.seen + rows.len() - 1;
        let (mut at, mut k_at, mut v_at) = ([0; SPLIT], [0; SPLIT], [0; SPLIT]);
        for j in 0..SPLIT {
            (k_at[j], v_at[j]) = (j * dim, j * v_dim);
        }
        for from in (0..end).step_by(SPLIT) {
            let n = SPLIT.min(end - from);
            self.places.fill(from, rank + rope, 0, &mut at[..n]);
            for first in (0..n).step_by(CHUNK) {
                let m = CHUNK.min(n - first);
                for (j, latent) in latents.chunks_exact_mut(rank).take(m).enumerate() {
                    let stored = &self.cache[at[first + j]..at[first + j] + rank + rope];
                    widen(s, &stored[..rank], latent);
                    widen(s, &stored[rank..], &mut keys[(first + j) * dim + nope..(first + j + 1) * dim]);
                }
                let latents = &latents[..m * rank];
                project(s, wk, latents, rank, &mut keys[first * dim..], dim);
                project(s, wv, latents, rank, &mut values[first * v_dim..], v_dim);
            }
            let (k, v) = (Rows { data: &*keys, at: &k_at[..n] }, Rows { data: &*values, at: &v_at[..n] });
            let seen = self.seen;
            flash.block(s, k, v, |i| (seen + i).saturating_sub(from));
        }
        for (i, row) in rows.enumerate() {
            flash.finish(i, self.rect.row(row));
        }
    }
}

#[inline(always)]
fn widen<S: Simd, E: Num>(s: S, x: &[E], out: &mut [f32]) {
    for (c, out) in out.chunks_mut(LANES).enumerate() {
        let v = load_at(s, x, c * LANES, out.len());
        s.store_part(v, out);
    }
}

/// `out = Σ_i x[i] · w[i, ·]`, one i after the other.
#[inline(always)]
fn combine<S: Simd, W: Num>(s: S, x: &[f32], w: &[W], out: &mut [f32]) {
    let width = out.len();
    let mut c = 0;
    while c < width {
        // Four vectors side by side, so that four sums are under way.
        let mut acc = [s.zero(); 4];
        let left = width - c;
        for (i, x) in x.iter().enumerate() {
            let (x, row) = (s.splat(*x), &w[i * width + c..(i + 1) * width]);
            if left >= 4 * LANES {
                for (v, a) in acc.iter_mut().enumerate() {
                    *a = s.fma(x, load_at(s, row, v * LANES, LANES), *a);
                }
            } else {
                acc[0] = s.fma(x, load_at(s, row, 0, left.min(LANES)), acc[0]);
            }
        }
        let vectors = if left >= 4 * LANES { 4 } else { 1 };
        for a in acc.into_iter().take(vectors) {
            let n = LANES.min(width - c);
            s.store_part(a, &mut out[c..c + n]);
            c += n;
        }
    }
}

/// `out[j × stride + f] = w[f, ·]·x[j, ·]`: lanes take every sixteenth product, then are added up.
#[inline(always)]
fn project<S: Simd, W: Num>(s: S, w: &[W], x: &[f32], rank: usize, out: &mut [f32], stride: usize) {
    let (features, n) = (w.len() / rank, x.len() / rank);
    let mut f = 0;
    while f + 4 <= features {
        let mut j = 0;
        while S::TILE >= 8 && j + 4 <= n {
            project_tile::<S, W, 4>(s, &w[f * rank..], &x[j * rank..], rank, &mut out[j * stride + f..], stride);
            j += 4;
        }
        while j < n {
            project_tile::<S, W, 1>(s, &w[f * rank..], &x[j * rank..], rank, &mut out[j * stride + f..], stride);
            j += 1;
        }
        f += 4;
    }
    while f < features {
        for j in 0..n {
            let mut acc = s.zero();
            for c in (0..rank).step_by(LANES) {
                let m = LANES.min(rank - c);
                acc = s.fma(load_at(s, w, f * rank + c, m), load_at(s, x, j * rank + c, m), acc);
            }
            out[j * stride + f] = s.sum(acc);
        }
        f += 1;
    }
}

/// Four features of `T` vectors.
#[inline(always)]
fn project_tile<S: Simd, W: Num, const T: usize>(
    s: S,
    w: &[W],
    x: &[f32],
    rank: usize,
    out: &mut [f32],
    stride: usize,
) {
    let mut acc = [[s.zero(); 4]; T];
    let mut c = 0;
    while c < rank {
        let n = LANES.min(rank - c);
        let mut v = [s.zero(); T];
        for (j, v) in v.iter_mut().enumerate() {
            *v = load_at(s, x, j * rank + c, n);
        }
        for f in 0..4 {
            let w = load_at(s, w, f * rank + c, n);
            for j in 0..T {
                acc[j][f] = s.fma(w, v[j], acc[j][f]);
            }
        }
        c += n;
    }
    for j in 0..T {
        out[j * stride..j * stride + 4].copy_from_slice(&s.sum4(acc[j]));
    }
}

/// Whether a span of this form is [`PlainBand`]'s.
pub(crate) fn is_plain(form: LatentForm) -> bool {
    form == LatentForm::Plain
}
