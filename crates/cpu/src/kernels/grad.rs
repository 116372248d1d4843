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

/// Derivatives by gate and up.
#[inline(always)]
fn swiglu_back<S: Simd>(s: S, g: S::F, u: S::F, dy: S::F) -> (S::F, S::F) {
    let one = s.splat(1.0);
    let sigma = s.div(one, s.add(one, s.exp(s.sub(s.zero(), g))));
    let slope = s.mul(sigma, s.fma(g, s.sub(one, sigma), one));
    (s.mul(s.mul(u, slope), dy), s.mul(s.mul(g, sigma), dy))
}

impl Kernel for SwiGluGrad<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (g16, g_tail) = self.gate.as_chunks::<LANES>();
        let (u16, u_tail) = self.up.as_chunks::<LANES>();
        let (dy16, dy_tail) = self.dy.as_chunks::<LANES>();
        let (dg16, dg_tail) = self.dgate.as_chunks_mut::<LANES>();
        let (du16, du_tail) = self.dup.as_chunks_mut::<LANES>();
        for (((g, u), dy), (dg, du)) in g16.iter().zip(u16).zip(dy16).zip(dg16.iter_mut().zip(du16)) {
            let (a, b) = swiglu_back(s, s.load(g), s.load(u), s.load(dy));
            s.store(a, dg);
            s.store(b, du);
        }
        let (a, b) = swiglu_back(s, s.load_part(g_tail), s.load_part(u_tail), s.load_part(dy_tail));
        s.store_part(a, dg_tail);
        s.store_part(b, du_tail);
    }
}

/// Of `x·r·w` with `r = 1/√(mean x² + eps)`: `dx = r·(w dy) − x·r³/n·Σ(x w dy)`, row by row, and `dw += Σ x r dy`.
pub(crate) struct RmsNormGrad<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) w: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) dy: &'a [f32],
    pub(crate) dx: &'a mut [f32],
    pub(crate) dw: &'a mut [f32],
}

impl Kernel for RmsNormGrad<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.w.len();
        let (w16, w_tail) = self.w.as_chunks::<LANES>();
        let rows = self.x.chunks_exact(n).zip(self.dy.chunks_exact(n)).zip(self.dx.chunks_exact_mut(n));
        for ((x, dy), dx) in rows {
            let ((x16, x_tail), (dy16, dy_tail)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
            let (x_tail, dy_tail, w_tail) = (s.load_part(x_tail), s.load_part(dy_tail), s.load_part(w_tail));
            let mut squares = s.mul(x_tail, x_tail);
            let mut along = s.mul(s.mul(x_tail, w_tail), dy_tail);
            for ((x, dy), w) in x16.iter().zip(dy16).zip(w16) {
                let x = s.load(x);
                squares = s.fma(x, x, squares);
                along = s.fma(s.mul(x, s.load(w)), s.load(dy), along);
            }
            let r = 1.0 / (s.sum(squares) / n as f32 + self.eps).sqrt();
            let back = s.splat(-(r * r * r / n as f32 * s.sum(along)));
            let r = s.splat(r);
            let ((dx16, dx_tail), (dw16, dw_tail)) = (dx.as_chunks_mut::<LANES>(), self.dw.as_chunks_mut::<LANES>());
            for (((x, dy), w), (dx, dw)) in x16.iter().zip(dy16).zip(w16).zip(dx16.iter_mut().zip(dw16)) {
                let (x, d) = (s.load(x), s.mul(r, s.load(dy)));
                s.store(s.fma(d, s.load(w), s.mul(x, back)), dx);
                s.store(s.fma(x, d, s.load(dw)), dw);
            }
            let d = s.mul(r, dy_tail);
            s.store_part(s.fma(d, w_tail, s.mul(x_tail, back)), dx_tail);
            s.store_part(s.fma(x_tail, d, s.load_part(dw_tail)), dw_tail);
        }
    }
}

/// `out[i] = a[i]·b[(first + i) / sharing]`, rows `dim` long.
pub(crate) struct Dots<'a> {
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) first: usize,
    pub(crate) sharing: usize,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, (a, out)) in self.a.chunks_exact(self.dim).zip(self.out).enumerate() {
            let b = &self.b[(self.first + i) / self.sharing * self.dim..][..self.dim];
            let ((a16, a_tail), (b16, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            let mut sum = s.mul(s.load_part(a_tail), s.load_part(b_tail));
            for (a, b) in a16.iter().zip(b16) {
                sum = s.fma(s.load(a), s.load(b), sum);
            }
            *out = s.sum(sum);
        }
    }
}

/// One row's `−log softmax(z)[target]`, and `weight × (softmax(z) − 1[target])` into `d`.
pub(crate) struct CrossEntropy<'a> {
    pub(crate) logits: &'a [f32],
    pub(crate) target: usize,
    pub(crate) weight: f32,
    pub(crate) d: &'a mut [f32],
}

impl Kernel for CrossEntropy<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let at = self.logits[self.target];
        let (z16, z_tail) = self.logits.as_chunks::<LANES>();
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..z_tail.len()].copy_from_slice(z_tail);
        let mut peak = s.load(&last);
        for z in z16 {
            peak = s.max(peak, s.load(z));
        }
        let peak = s.peak(peak);
        // Sums of some hundred terms in f32, of those in f64.
        let (d16, d_tail) = self.d.as_chunks_mut::<LANES>();
        let mut sum = 0.0;
        for (z, d) in z16.chunks(64).zip(d16.chunks_mut(64)) {
            let mut part = s.zero();
            for (z, d) in z.iter().zip(d) {
                let e = s.exp(s.sub(s.load(z), s.splat(peak)));
                s.store(e, d);
                part = s.add(part, e);
            }
            sum += f64::from(s.sum(part));
        }
        s.store_part(s.exp(s.sub(s.load(&last), s.splat(peak))), d_tail);
        sum += d_tail.iter().map(|e| f64::from(*e)).sum::<f64>();
        let factor = s.splat((f64::from(self.weight) / sum) as f32);
        for d in d16.iter_mut() {
            s.store(s.mul(s.load(d), factor), d);
        }
        s.store_part(s.mul(s.load_part(d_tail), factor), d_tail);
        self.d[self.target] -= self.weight;
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
