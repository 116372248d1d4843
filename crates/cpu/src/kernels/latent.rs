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
    let (x16, x_tail) = x.as_chunks::<LANES>();
    let (o16, o_tail) = out.as_chunks_mut::<LANES>();
    for (x, o) in x16.iter().zip(o16) {
        s.store(E::load(s, x), o);
    }
    for (x, o) in x_tail.iter().zip(o_tail) {
        *o = x.widen();
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

/// `out[j × stride + f] = w[f, ·]·x[j, ·]`: lanes take every sixteenth product, then are added up.
#[inline(always)]
fn project<S: Simd, W: Num>(s: S, w: &[W], x: &[f32], rank: usize, out: &mut [f32], stride: usize) {
    let (features, n) = (w.len() / rank, x.len() / rank);
    let mut f = 0;
    while f < features {
        let four = f + 4 <= features;
        let w = &w[f * rank..];
        let mut j = 0;
        while j < n {
            let (x, out) = (&x[j * rank..], &mut out[j * stride + f..]);
            j += match (four, n - j) {
                (true, 4..) if S::TILE >= 8 => project_tile::<S, W, 4, 4>(s, w, x, rank, out, stride),
                (true, _) => project_tile::<S, W, 4, 1>(s, w, x, rank, out, stride),
                (false, _) => project_tile::<S, W, 1, 1>(s, w, x, rank, out, stride),
            };
        }
        f += if four { 4 } else { 1 };
    }
}

/// `R` features of `T` vectors; returns `T`.
#[inline(always)]
fn project_tile<S: Simd, W: Num, const R: usize, const T: usize>(
    s: S,
    w: &[W],
    x: &[f32],
    rank: usize,
    out: &mut [f32],
    stride: usize,
) -> usize {
    let full = rank / LANES;
    let mut acc = [[s.zero(); R]; T];
    let mut w16 = [&[] as &[[W; LANES]]; R];
    for r in 0..R {
        w16[r] = &w[r * rank..(r + 1) * rank].as_chunks().0[..full];
    }
    let mut x16 = [&[] as &[[f32; LANES]]; T];
    for j in 0..T {
        x16[j] = &x[j * rank..(j + 1) * rank].as_chunks().0[..full];
    }
    for c in 0..full {
        let mut v = [s.zero(); T];
        for j in 0..T {
            v[j] = s.load(&x16[j][c]);
        }
        for r in 0..R {
            let w = W::load(s, &w16[r][c]);
            for j in 0..T {
                acc[j][r] = s.fma(w, v[j], acc[j][r]);
            }
        }
    }
    if full * LANES < rank {
        let (c, n) = (full * LANES, rank - full * LANES);
        for j in 0..T {
            let v = load_at(s, x, j * rank + c, n);
            for r in 0..R {
                acc[j][r] = s.fma(load_at(s, w, r * rank + c, n), v, acc[j][r]);
            }
        }
    }
    for j in 0..T {
        let out = &mut out[j * stride..j * stride + R];
        match acc[j].as_array() {
            Some(four) => out.copy_from_slice(&s.sum4(*four)),
            None => (0..R).for_each(|r| out[r] = s.sum(acc[j][r])),
        }
    }
    T
}

/// Whether a span of this form is [`PlainBand`]'s.
pub(crate) fn is_plain(form: LatentForm) -> bool {
    form == LatentForm::Plain
}
