//! Derivatives of operations that are no products: activation, loss, attention.

use crate::simd::{Kernel, LANES, Simd};

/// Of `silu(g)·u`: `du = silu(g) dy`, `dg = u·σ(g)·(1 + g·(1 − σ(g))) dy`.
pub(crate) struct SwiGluGrad<'a> {
    pub(crate) gate: &'a [f32],
    pub(crate) up: &'a [f32],
    pub(crate) dy: &'a [f32],
    pub(crate) dgate: &'a mut [f32],
    pub(crate) dup: &'a mut [f32],
}

impl Kernel for SwiGluGrad<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let one = s.splat(1.0);
        let outs = self.dgate.chunks_mut(LANES).zip(self.dup.chunks_mut(LANES));
        let ins = self.gate.chunks(LANES).zip(self.up.chunks(LANES)).zip(self.dy.chunks(LANES));
        for ((dg, du), ((g, u), dy)) in outs.zip(ins) {
            let (g, u, dy) = (s.load_part(g), s.load_part(u), s.load_part(dy));
            let sigma = s.div(one, s.add(one, s.exp(s.sub(s.zero(), g))));
            let slope = s.mul(sigma, s.fma(g, s.sub(one, sigma), one));
            s.store_part(s.mul(s.mul(u, slope), dy), dg);
            s.store_part(s.mul(s.mul(g, sigma), dy), du);
        }
    }
}

/// One row's `−log softmax(z)[target]`, and `weight × (softmax(z) − 1[target])` in place of the logits.
pub(crate) struct CrossEntropy<'a> {
    pub(crate) logits: &'a mut [f32],
    pub(crate) target: usize,
    pub(crate) weight: f32,
}

impl Kernel for CrossEntropy<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let at = self.logits[self.target];
        let peak = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for z in self.logits.chunks_mut(LANES) {
            let e = s.exp(s.sub(s.load_part(z), s.splat(peak)));
            s.store_part(e, z);
            sum += z.iter().map(|v| f64::from(*v)).sum::<f64>();
        }
        let factor = (f64::from(self.weight) / sum) as f32;
        for z in self.logits.chunks_mut(LANES) {
            s.store_part(s.mul(s.load_part(z), s.splat(factor)), z);
        }
        self.logits[self.target] -= self.weight;
        f64::from(self.weight) * (f64::from(peak) + sum.ln() - f64::from(at))
    }
}

/// Rows of attention scores, `stride` long, to weights: row i is the softmax of its first `seen + i × step`, and zero behind them.
pub(crate) struct Softmax<'a> {
    pub(crate) rows: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) seen: usize,
    pub(crate) step: usize,
}

impl Kernel for Softmax<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, row) in self.rows.chunks_exact_mut(self.stride).enumerate() {
            let (live, rest) = row.split_at_mut(self.seen + i * self.step);
            rest.fill(0.0);
            let (full, tail) = live.as_chunks_mut::<LANES>();
            let mut last = [f32::NEG_INFINITY; LANES];
            last[..tail.len()].copy_from_slice(tail);
            let mut peak = s.load(&last);
            for x in full.iter() {
                peak = s.max(peak, s.load(x));
            }
            let peak = s.splat(s.peak(peak));
            let mut sum = s.zero();
            for x in full.iter_mut() {
                let e = s.exp(s.sub(s.load(x), peak));
                s.store(e, x);
                sum = s.add(sum, e);
            }
            // exp is clamped and never quite zero: lanes behind the tail are cleared by hand.
            let e = s.exp(s.sub(s.load(&last), peak));
            s.store(e, &mut last);
            last[tail.len()..].fill(0.0);
            let sum = s.splat(1.0 / s.sum(s.add(sum, s.load(&last))));
            for x in full.iter_mut() {
                s.store(s.mul(s.load(x), sum), x);
            }
            s.store_part(s.mul(s.load(&last), sum), tail);
        }
    }
}

/// From weights p and derivatives by them, rows `stride` long, to derivatives by the scores: `scale · p · (dp − Σ p dp)`. `seen` and
/// `step` as in [`Softmax`].
pub(crate) struct SoftmaxGrad<'a> {
    pub(crate) p: &'a [f32],
    pub(crate) dp: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) seen: usize,
    pub(crate) step: usize,
    pub(crate) scale: f32,
}

impl Kernel for SoftmaxGrad<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.p.chunks_exact(self.stride).zip(self.dp.chunks_exact_mut(self.stride));
        for (i, (p, dp)) in rows.enumerate() {
            // Rows are whole vectors; behind what a row sees p is zero, and so shall dp be.
            dp[self.seen + i * self.step..].fill(0.0);
            let (p, dp) = (p.as_chunks::<LANES>().0, dp.as_chunks_mut::<LANES>().0);
            let mut mean = s.zero();
            for (p, dp) in p.iter().zip(dp.iter()) {
                mean = s.fma(s.load(p), s.load(dp), mean);
            }
            let (mean, scale) = (s.splat(s.sum(mean)), s.splat(self.scale));
            for (p, dp) in p.iter().zip(dp) {
                s.store(s.mul(s.mul(s.load(p), scale), s.sub(s.load(dp), mean)), dp);
            }
        }
    }
}
