//! What optimisers do to single numbers. Loops over slices: the compiler makes vectors of them, for every level the same bits.

use fathom_core::optim::{AdamW, Stride};

use crate::simd::{Kernel, LANES, Simd};

/// `Σ x²`: sixteen lanes in f32 over some thousand numbers at a time, these in f64.
pub(crate) struct Squares<'a>(pub(crate) &'a [f32]);

impl Kernel for Squares<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut total = 0.0;
        for piece in self.0.chunks(1 << 12) {
            let (full, tail) = piece.as_chunks::<LANES>();
            let mut sum = s.load_part(tail);
            sum = s.mul(sum, sum);
            for x in full {
                sum = s.fma(s.load(x), s.load(x), sum);
            }
            total += f64::from(s.sum(sum));
        }
        total
    }
}

/// `x ← factor · x`.
pub(crate) struct Scale<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) factor: f32,
}

impl Kernel for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.x.iter_mut().for_each(|x| *x *= self.factor);
    }
}

/// [`AdamW::step`].
pub(crate) struct AdamWStep<'a> {
    pub(crate) rule: &'a AdamW,
    pub(crate) at: Stride,
    pub(crate) values: &'a mut [f32],
    pub(crate) grad: &'a [f32],
    pub(crate) m: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
}

impl Kernel for AdamWStep<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.rule.step(self.at, self.values, self.grad, self.m, self.v);
    }
}
