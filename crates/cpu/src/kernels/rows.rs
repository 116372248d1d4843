//! Operations on one row at a time: normalisation, rotation, activation, sums.
//!
//! Rows whose length is not a multiple of 16 end in a partial vector, padded with zeros.

use fathom_core::RopeLayout;

use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// Writes sixteen outputs of row `row`, or what is left of them, from column `first` of a rectangle on. `bias` has one number for each
/// column of the whole output.
#[inline(always)]
pub(crate) fn put<S: Simd>(s: S, sums: S::F, bias: Option<&[f32]>, rect: &mut Rect<'_>, row: usize, first: usize) {
    let n = LANES.min(rect.width - first);
    let sums = match bias {
        Some(b) => s.add(sums, s.load_part(&b[rect.first + first..][..n])),
        None => sums,
    };
    s.store_part(sums, &mut rect.row(row)[first..first + n]);
}

/// `x / √(mean(x²) + eps) · weight` (Zhang & Sennrich 2019, eq. 4).
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let mut squares = s.zero();
            let (x16, x_tail) = x.as_chunks::<LANES>();
            for v in x16 {
                let v = s.load(v);
                squares = s.fma(v, v, squares);
            }
            let v = s.load_part(x_tail);
            squares = s.fma(v, v, squares);
            let r = s.splat(1.0 / (s.sum(squares) / cols as f32 + self.eps).sqrt());
            let (w16, w_tail) = self.weight.as_chunks::<LANES>();
            let (out16, out_tail) = out.as_chunks_mut::<LANES>();
            for ((o, x), w) in out16.iter_mut().zip(x16).zip(w16) {
                s.store(s.mul(s.mul(s.load(x), r), s.load(w)), o);
            }
            s.store_part(s.mul(s.mul(s.load_part(x_tail), r), s.load_part(w_tail)), out_tail);
        }
    }
}

/// `gate ← silu(gate) ⊙ up`, where `silu(g) = g / (1 + e^−g)` (Shazeer 2020, eq. 6).
pub(crate) struct SwiGlu<'a> {
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
}

#[inline(always)]
pub(crate) fn silu_mul<S: Simd>(s: S, g: S::F, u: S::F) -> S::F {
    let e = s.exp(s.sub(s.zero(), g));
    s.mul(s.div(g, s.add(s.splat(1.0), e)), u)
}

impl Kernel for SwiGlu<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (g16, g_tail) = self.gate.as_chunks_mut::<LANES>();
        let (u16, u_tail) = self.up.as_chunks::<LANES>();
        for (g, u) in g16.iter_mut().zip(u16) {
            s.store(silu_mul(s, s.load(g), s.load(u)), g);
        }
        s.store_part(silu_mul(s, s.load_part(g_tail), s.load_part(u_tail)), g_tail);
    }
}

/// `x ← x + factor · y`.
pub(crate) struct AddScaled<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) y: &'a [f32],
    pub(crate) factor: f32,
}

impl Kernel for AddScaled<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let factor = s.splat(self.factor);
        let (x16, x_tail) = self.x.as_chunks_mut::<LANES>();
        let (y16, y_tail) = self.y.as_chunks::<LANES>();
        for (x, y) in x16.iter_mut().zip(y16) {
            s.store(s.fma(s.load(y), factor, s.load(x)), x);
        }
        s.store_part(s.fma(s.load_part(y_tail), factor, s.load_part(x_tail)), x_tail);
    }
}

/// Rotates each pair `(a, b)` of a head to `(a cos − b sin, b cos + a sin)` (Su et al. 2021, eq. 34). `x` holds rows of heads of
/// `head_dim`; a row of `table`, `dim` long, holds `[cos | sin]` of one position.
pub(crate) struct Rope<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) table: &'a [f32],
    pub(crate) row: usize,
    pub(crate) dim: usize,
    pub(crate) head_dim: usize,
    pub(crate) first: usize,
    pub(crate) layout: RopeLayout,
}

impl Kernel for Rope<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.dim == 0 {
            return;
        }
        for (row, angles) in self.x.chunks_exact_mut(self.row).zip(self.table.chunks_exact(self.dim)) {
            let (cos, sin) = angles.split_at(self.dim / 2);
            for head in row.chunks_exact_mut(self.head_dim) {
                let head = &mut head[self.first..self.first + self.dim];
                match self.layout {
                    RopeLayout::Interleaved => {
                        for ((pair, c), sn) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                            (pair[0], pair[1]) = (pair[0] * c - pair[1] * sn, pair[1] * c + pair[0] * sn);
                        }
                    }
                    RopeLayout::Halves => {
                        let (a, b) = head.split_at_mut(self.dim / 2);
                        let (a16, a_tail) = a.as_chunks_mut::<LANES>();
                        let (b16, b_tail) = b.as_chunks_mut::<LANES>();
                        let (c16, c_tail) = cos.as_chunks::<LANES>();
                        let (s16, s_tail) = sin.as_chunks::<LANES>();
                        for (((a, b), c), sn) in a16.iter_mut().zip(b16).zip(c16).zip(s16) {
                            let (x, y, c, sn) = (s.load(a), s.load(b), s.load(c), s.load(sn));
                            s.store(s.sub(s.mul(x, c), s.mul(y, sn)), a);
                            s.store(s.add(s.mul(y, c), s.mul(x, sn)), b);
                        }
                        for (((a, b), c), sn) in a_tail.iter_mut().zip(b_tail).zip(c_tail).zip(s_tail) {
                            (*a, *b) = (*a * c - *b * sn, *b * c + *a * sn);
                        }
                    }
                }
            }
        }
    }
}

/// Rounds to binary16.
pub(crate) struct ToF16<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) out: &'a mut [half::f16],
}

impl Kernel for ToF16<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x16, x_tail) = self.x.as_chunks::<LANES>();
        let (out16, out_tail) = self.out.as_chunks_mut::<LANES>();
        for (x, o) in x16.iter().zip(out16) {
            s.store_f16(s.load(x), o);
        }
        for (x, o) in x_tail.iter().zip(out_tail) {
            *o = half::f16::from_f32(*x);
        }
    }
}
