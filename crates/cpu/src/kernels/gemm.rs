//! The f32 matrix product of training: `C (+)= A·B` with any strides.
//!
//! Lanes are columns of B, of which two vectors are packed side by side, row after row of the inner dimension; elements of A are
//! broadcast. Eight rows of C times two vectors are kept in registers. Sums run along the inner dimension in order, so
//! a result depends on no other row.

use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// Columns of B that are packed side by side.
pub(crate) const WIDTH: usize = 2 * LANES;
/// Rows of C in registers.
const ROWS: usize = 8;

/// A matrix read with strides: element (i, j) is `data[i × row + j × col]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a> Strided<'a> {
    /// A row-major matrix of `cols` columns.
    pub(crate) fn rows(data: &'a [f32], cols: usize) -> Self {
        Strided { data, row: cols, col: 1 }
    }

    /// Its transpose.
    pub(crate) fn transposed(self) -> Self {
        Strided { row: self.col, col: self.row, ..self }
    }

    /// Packs columns `first..first + width` of `depth` rows: `[depth][WIDTH]`, zeros beyond `width`.
    pub(crate) fn pack(self, depth: usize, first: usize, width: usize, panel: &mut [f32]) {
        let panel = &mut panel[..depth * WIDTH];
        if self.col == 1 {
            for (k, to) in panel.chunks_exact_mut(WIDTH).enumerate() {
                let at = k * self.row + first;
                to[..width].copy_from_slice(&self.data[at..at + width]);
                to[width..].fill(0.0);
            }
            return;
        }
        panel.fill(0.0);
        for j in 0..width {
            let from = self.data[(first + j) * self.col..].iter().step_by(self.row);
            panel[j..].iter_mut().step_by(WIDTH).zip(from).for_each(|(to, v)| *to = *v);
        }
    }
}

/// A block of columns of the product.
pub(crate) struct Gemm<'a, 'b, 'r> {
    pub(crate) a: Strided<'a>,
    pub(crate) depth: usize,
    /// `[depth][WIDTH]`.
    pub(crate) panel: &'a [f32],
    /// Where the result goes; at most [`WIDTH`] wide.
    pub(crate) rect: &'b mut Rect<'r>,
    /// Whether it is added to what is there.
    pub(crate) add: bool,
}

impl Kernel for Gemm<'_, '_, '_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.rect.rows.clone();
        let mut row = rows.start;
        while row + ROWS <= rows.end {
            self.tile::<S, ROWS>(s, row);
            row += ROWS;
        }
        while row < rows.end {
            self.tile::<S, 1>(s, row);
            row += 1;
        }
    }
}

impl Gemm<'_, '_, '_> {
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&mut self, s: S, row: usize) {
        let from = row - self.rect.rows.start;
        let a: [&[f32]; N] = std::array::from_fn(|i| &self.a.data[(from + i) * self.a.row..]);
        let mut sums = [[s.zero(); 2]; N];
        let (pairs, _) = self.panel[..self.depth * WIDTH].as_chunks::<WIDTH>();
        for (k, b) in pairs.iter().enumerate() {
            let (halves, _) = b.as_chunks::<LANES>();
            let (b0, b1) = (s.load(&halves[0]), s.load(&halves[1]));
            let at = k * self.a.col;
            for (a, sum) in a.iter().zip(&mut sums) {
                let x = s.splat(a[at]);
                sum[0] = s.fma(x, b0, sum[0]);
                sum[1] = s.fma(x, b1, sum[1]);
            }
        }
        let add = self.add;
        for (i, sum) in sums.iter().enumerate() {
            let out = self.rect.row(row + i);
            for (sum, out) in sum.iter().zip(out.chunks_mut(LANES)) {
                let sum = if add { s.add(*sum, s.load_part(out)) } else { *sum };
                s.store_part(sum, out);
            }
        }
    }
}

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

/// Derivatives of attention for the heads of one group over one sequence, packed: `q, dq: [rows, heads × dim]`, `k, dk:
/// [rows, dim]`, `v, dv: [rows, v_dim]`, `dy: [rows, heads × v_dim]`; causal or not.
pub(crate) struct AttendGrad<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) dy: &'a [f32],
    pub(crate) dq: &'a mut [f32],
    pub(crate) dk: &'a mut [f32],
    pub(crate) dv: &'a mut [f32],
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
}

#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.zero();
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        sum = s.fma(s.load_part(a), s.load_part(b), sum);
    }
    s.sum(sum)
}

#[inline(always)]
fn axpy<S: Simd>(s: S, factor: f32, x: &[f32], y: &mut [f32]) {
    let factor = s.splat(factor);
    for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
        let sum = s.fma(s.load_part(x), factor, s.load_part(y));
        s.store_part(sum, y);
    }
}

impl Kernel for AttendGrad<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (dim, v_dim, rows) = (self.dim, self.v_dim, self.k.len() / self.dim);
        let mut p = vec![0.0f32; rows];
        let mut dp = vec![0.0f32; rows];
        for i in 0..rows {
            let seen = if self.causal { i + 1 } else { rows };
            for h in 0..self.heads {
                let at = (i * self.heads + h) * dim;
                let q = &self.q[at..at + dim];
                let y_at = (i * self.heads + h) * v_dim;
                let dy = &self.dy[y_at..y_at + v_dim];
                let mut peak = f32::NEG_INFINITY;
                for (p, k) in p[..seen].iter_mut().zip(self.k.chunks_exact(dim)) {
                    *p = self.scale * dot(s, q, k);
                    peak = peak.max(*p);
                }
                let mut total = 0.0;
                for p in p[..seen].chunks_mut(LANES) {
                    s.store_part(s.exp(s.sub(s.load_part(p), s.splat(peak))), p);
                    total += p.iter().sum::<f32>();
                }
                let mut mean = 0.0;
                for ((p, dp), v) in p[..seen].iter_mut().zip(&mut dp).zip(self.v.chunks_exact(v_dim)) {
                    *p /= total;
                    *dp = dot(s, dy, v);
                    mean += *p * *dp;
                }
                let dq = &mut self.dq[at..at + dim];
                for j in 0..seen {
                    let ds = self.scale * p[j] * (dp[j] - mean);
                    axpy(s, ds, &self.k[j * dim..(j + 1) * dim], dq);
                    axpy(s, ds, q, &mut self.dk[j * dim..(j + 1) * dim]);
                    axpy(s, p[j], dy, &mut self.dv[j * v_dim..(j + 1) * v_dim]);
                }
            }
        }
    }
}
