//! [`Grad`] on the CPU: the derivatives that training needs, in f32 whatever the precision.
//!
//! Products are those of `gemm.rs`; weights that are not f32 are decoded first (they are frozen ones, under an adapter). Work is cut by
//! shapes alone, so a step's result does not depend on the number of threads.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;

use fathom_core::optim::{AdamW, Muon, Stride, Update};
use fathom_core::{
    AttendSpec, DType, Error, Grad, KvView, Resident, ResidentExperts, Result, RopeLayout, RouteSpec, Routing, Score,
    Shape, Spans, Tensor, check, format,
};

use crate::backend::lock;
use crate::gemm::Factors;
use crate::kernels::gemm::Strided;
use crate::kernels::grad::{CrossEntropy, Dots, RmsNormGrad, SwiGluGrad};
use crate::kernels::rows::{AddScaled, Rope};
use crate::matrix::Held;
use crate::{Cpu, DEVICE};

/// Rows of a task of the norm's derivative.
const NORM_ROWS: usize = 128;

/// Numbers of a weight that are decoded at a time.
const DECODED: usize = 1 << 22;

impl Grad for Cpu {
    fn zeros(&self, shape: Shape) -> Result<Tensor> {
        let mut t = self.arena.alloc(shape, DType::F32);
        self.arena.f32s_mut("zeros", &mut t)?.fill(0.0);
        Ok(t)
    }

    fn linear_dx(&self, dy: &Tensor, weight: &Resident) -> Result<Tensor> {
        let op = "linear_dx";
        check::wide(op, "dy", dy, weight.rows)?;
        let held: &Held = weight.data(op, DEVICE)?;
        let (rows, cols) = (weight.rows, weight.cols);
        let mut dx = self.arena.alloc(Shape::matrix(dy.rows(), cols), DType::F32);
        let dys = self.arena.f32s(op, dy)?;
        // What must be decoded is decoded some rows at a time: the whole head of a small model would take more than its file.
        let some = if weight.format == format::F32 { rows } else { (DECODED / cols).max(1) };
        for first in (0..rows).step_by(some) {
            let depth = some.min(rows - first);
            let w = self.values(&held.each[0], first..first + depth, cols);
            let (a, b) = (Strided::rows(&dys[first.min(dys.len())..], rows), Strided::rows(&w, cols));
            let product = Factors { a, b, rows: dy.rows(), depth };
            let beta = if first == 0 { 0.0 } else { 1.0 };
            self.gemm(self.factors(), &[product], self.arena.f32s_mut(op, &mut dx)?, cols, 1.0, beta);
        }
        Ok(dx)
    }

    fn linear_dw(&self, x: &Tensor, dy: &Tensor, dw: &mut Tensor) -> Result<()> {
        let op = "linear_dw";
        check::sized(op, "dw", dw, dy.cols(), x.cols())?;
        let a = Strided::rows(self.arena.f32s(op, dy)?, dy.cols()).transposed();
        let b = Strided::rows(self.arena.f32s(op, x)?, x.cols());
        let product = Factors { a, b, rows: dy.cols(), depth: x.rows() };
        self.gemm(self.factors(), &[product], self.arena.f32s_mut(op, dw)?, x.cols(), 1.0, 1.0);
        Ok(())
    }

    fn bias_db(&self, dy: &Tensor, db: &mut Tensor) -> Result<()> {
        let op = "bias_db";
        check::sized(op, "db", db, 1, dy.cols())?;
        let dys = self.arena.f32s(op, dy)?;
        let sums = self.arena.f32s_mut(op, db)?;
        for row in dys.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
        Ok(())
    }

    fn linear_experts_dx(&self, dy: &Tensor, routing: &Routing, w: &ResidentExperts, x_rows: usize) -> Result<Tensor> {
        let op = "linear_experts_dx";
        check::wide(op, "dy", dy, w.each.rows)?;
        let held: &Held = w.each.data(op, DEVICE)?;
        let (rows, cols) = (w.each.rows, w.each.cols);
        let mut order = lock(&self.order);
        order.sort(self.arena.u32s(op, &routing.experts)?, w.experts);
        let sharing = order.slots.len() / x_rows.max(1);
        let dys = self.arena.f32s(op, dy)?;
        let weights: Vec<_> = order.experts.iter().map(|&e| self.values(&held.each[e], 0..rows, cols)).collect();
        let products: Vec<Factors<'_>> = order
            .bands
            .windows(2)
            .zip(&weights)
            .map(|(band, w)| Factors {
                a: Strided::picked(dys, rows, &order.slots[band[0]..band[1]]),
                b: Strided::rows(w, cols),
                rows: band[1] - band[0],
                depth: rows,
            })
            .collect();
        let mut by_slot = self.arena.alloc(Shape::matrix(order.slots.len(), cols), DType::F32);
        self.gemm(self.factors(), &products, self.arena.f32s_mut(op, &mut by_slot)?, cols, 1.0, 0.0);
        // A row's slots are added in the order of the slots, whatever the experts.
        let by_slot = self.arena.f32s(op, &by_slot)?;
        let mut dx = self.arena.alloc(Shape::matrix(x_rows, cols), DType::F32);
        let n = Self::grain(x_rows, sharing * cols) * cols;
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut dx)?, n, |first, out| {
            for (x, places) in out.chunks_exact_mut(cols).zip(order.places[first / cols * sharing..].chunks(sharing)) {
                x.copy_from_slice(&by_slot[places[0] * cols..(places[0] + 1) * cols]);
                for &i in &places[1..] {
                    self.isa.run(AddScaled { x, y: &by_slot[i * cols..(i + 1) * cols], factor: 1.0 });
                }
            }
        });
        Ok(dx)
    }

    fn linear_experts_dw(&self, x: &Tensor, dy: &Tensor, routing: &Routing, dw: &mut Tensor) -> Result<()> {
        let op = "linear_experts_dw";
        let (rows, cols) = (dy.cols(), x.cols());
        let experts = dw.rows() / rows.max(1);
        check::sized(op, "dw", dw, experts * rows, cols)?;
        let mut order = lock(&self.order);
        order.sort(self.arena.u32s(op, &routing.experts)?, experts);
        let sharing = order.slots.len() / x.rows().max(1);
        let (xs, dys, x_rows) = (self.arena.f32s(op, x)?, self.arena.f32s(op, dy)?, order.rows(sharing));
        // Every expert has a product, so that their rows lie one below the other; who got no token has one of no depth.
        let mut bands = vec![0..0; experts];
        order.bands.windows(2).zip(&order.experts).for_each(|(band, &e)| bands[e] = band[0]..band[1]);
        let product = |band: Range<usize>| Factors {
            a: Strided::picked(dys, rows, &order.slots[band.clone()]).transposed(),
            b: Strided::picked(xs, cols, &x_rows[band.clone()]),
            rows,
            depth: band.len(),
        };
        let products: Vec<Factors<'_>> = bands.into_iter().map(product).collect();
        self.gemm(self.factors(), &products, self.arena.f32s_mut(op, dw)?, cols, 1.0, 1.0);
        Ok(())
    }

    fn rms_norm_grad(
        &self,
        x: &Tensor,
        w: &Resident,
        eps: f32,
        dy: &Tensor,
        dw: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        let op = "rms_norm_grad";
        check::rms_norm(x, w)?;
        check::same(op, "dy", x, dy)?;
        let held: &Held = w.data(op, DEVICE)?;
        let w = match &held.vector {
            Some(v) => Cow::Borrowed(&v[..]),
            None => self.values(&held.each[0], 0..1, w.cols),
        };
        let w = &w[..];
        let (xs, dys, n) = (self.arena.f32s(op, x)?, self.arena.f32s(op, dy)?, w.len());
        let mut dx = self.arena.alloc(x.shape, DType::F32);
        // Each piece of rows adds up its own derivative by the weight; the pieces are added in order.
        let pieces = x.rows().div_ceil(NORM_ROWS);
        let mut sums = vec![0.0; pieces * n];
        let outs = self.arena.f32s_mut(op, &mut dx)?.chunks_mut(NORM_ROWS * n);
        let outs: Vec<Mutex<(&mut [f32], &mut [f32])>> = outs.zip(sums.chunks_exact_mut(n)).map(Mutex::new).collect();
        self.pool.run(pieces, |task| {
            let (dx, dw) = &mut *lock(&outs[task.index]);
            let at = task.index * NORM_ROWS * n..task.index * NORM_ROWS * n + dx.len();
            self.isa.run(RmsNormGrad { x: &xs[at.clone()], w, eps, dy: &dys[at], dx, dw });
        });
        drop(outs);
        if let Some(dw) = dw {
            let dw = self.arena.f32s_mut(op, dw)?;
            for sum in sums.chunks_exact(n) {
                dw.iter_mut().zip(sum).for_each(|(s, v)| *s += v);
            }
        }
        Ok(dx)
    }

    fn rope_grad(&self, dy: &Tensor, table: &Tensor, heads: usize, first: usize, layout: RopeLayout) -> Result<Tensor> {
        let op = "rope_grad";
        let head_dim = check::rope(dy, table, heads, first)?;
        let dim = table.cols();
        let forward = self.arena.f32s(op, table)?;
        let back = |(i, v): (usize, &f32)| if i % dim < dim / 2 { *v } else { -*v };
        let back: Vec<f32> = forward.iter().enumerate().map(back).collect();
        let mut dx = self.arena.from_f32(dy.shape, self.arena.f32s(op, dy)?)?;
        let row = dy.cols();
        let n = Self::grain(dy.rows(), 2 * row);
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut dx)?, n * row, |at, x| {
            let table = &back[at / row * dim..(at + x.len()) / row * dim];
            self.isa.run(Rope { x, table, row, dim, head_dim, first, layout });
        });
        Ok(dx)
    }

    fn attend_grad(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
        spans: &Spans<'_>,
        spec: &AttendSpec,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let op = "attend_grad";
        let shape = check::attend(q, KvView::Fresh { k, v }, spans, spec)?;
        check::sized(op, "dy", dy, shape.rows(), shape.cols())?;
        self.attend_derivatives(op, [q, k, v, dy], spans, spec)
    }

    fn swiglu_grad(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let op = "swiglu_grad";
        check::same(op, "up", gate, up)?;
        check::same(op, "dy", gate, dy)?;
        let (g, u, d) = (self.arena.f32s(op, gate)?, self.arena.f32s(op, up)?, self.arena.f32s(op, dy)?);
        let mut dgate = self.arena.alloc(gate.shape, DType::F32);
        let mut dup = self.arena.alloc(gate.shape, DType::F32);
        let n = Self::grain(g.len(), 16).next_multiple_of(16);
        let (dgs, dus) = (self.arena.f32s_mut(op, &mut dgate)?, self.arena.f32s_mut(op, &mut dup)?);
        let parts: Vec<Mutex<(&mut [f32], &mut [f32])>> =
            dgs.chunks_mut(n).zip(dus.chunks_mut(n)).map(Mutex::new).collect();
        self.pool.run(parts.len(), |task| {
            let mut part = lock(&parts[task.index]);
            let at = task.index * n..task.index * n + part.0.len();
            let (dgate, dup) = &mut *part;
            let (gate, up, dy) = (&g[at.clone()], &u[at.clone()], &d[at]);
            self.isa.run(SwiGluGrad { gate, up, dy, dgate, dup });
        });
        drop(parts);
        Ok((dgate, dup))
    }

    fn route_grad(&self, logits: &Tensor, routing: &Routing, dweights: &Tensor, spec: &RouteSpec) -> Result<Tensor> {
        let op = "route_grad";
        check::same(op, "dweights", &routing.weights, dweights)?;
        check::wide(op, "logits", logits, spec.experts)?;
        let (zs, dws) = (self.arena.f32s(op, logits)?, self.arena.f32s(op, dweights)?);
        let chosen = self.arena.u32s(op, &routing.experts)?;
        let mut dx = self.arena.alloc(logits.shape, DType::F32);
        let rows = self.arena.f32s_mut(op, &mut dx)?.chunks_exact_mut(spec.experts);
        let ins = zs.chunks_exact(spec.experts).zip(chosen.chunks_exact(spec.top_k)).zip(dws.chunks_exact(spec.top_k));
        for (out, ((z, chosen), dw)) in rows.zip(ins) {
            route_row(z, chosen, dw, spec, out);
        }
        Ok(dx)
    }

    fn combine_experts_grad(&self, y: &Tensor, routing: &Routing, dout: &Tensor) -> Result<(Tensor, Tensor)> {
        let op = "combine_experts_grad";
        let shape = check::combine_experts(y, routing, Some(dout))?;
        let (ys, douts, dim) = (self.arena.f32s(op, y)?, self.arena.f32s(op, dout)?, shape.cols());
        let (weights, top_k) = (self.arena.f32s(op, &routing.weights)?, routing.weights.cols());
        let of = |s: usize| &douts[s / top_k * dim..(s / top_k + 1) * dim];
        let mut dy = self.arena.alloc(y.shape, DType::F32);
        let n = Self::grain(weights.len(), dim) * dim;
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut dy)?, n, |first, out| {
            for (i, out) in out.chunks_exact_mut(dim).enumerate() {
                let s = first / dim + i;
                out.iter_mut().zip(of(s)).for_each(|(o, d)| *o = weights[s] * d);
            }
        });
        let mut dw = self.arena.alloc(routing.weights.shape, DType::F32);
        let n = Self::grain(weights.len(), dim);
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut dw)?, n, |first, out| {
            self.isa.run(Dots { a: &ys[first * dim..], b: douts, dim, first, sharing: top_k, out });
        });
        Ok((dy, dw))
    }

    fn embed_grad(&self, ids: &[u32], dy: &Tensor, dtable: &mut Tensor) -> Result<()> {
        let op = "embed_grad";
        check::wide(op, "dtable", dtable, dy.cols())?;
        check::below(op, "ids", ids, dtable.rows())?;
        let (dys, n) = (self.arena.f32s(op, dy)?, dy.cols());
        let table = self.arena.f32s_mut(op, dtable)?;
        for (&id, d) in ids.iter().zip(dys.chunks_exact(n)) {
            table[id as usize * n..(id as usize + 1) * n].iter_mut().zip(d).for_each(|(s, d)| *s += d);
        }
        Ok(())
    }

    fn slice_cols_grad(&self, dy: &Tensor, from: usize, cols: usize) -> Result<Tensor> {
        let op = "slice_cols_grad";
        let n = dy.cols();
        Error::check_shape(from + n <= cols, op, "dy", dy.shape, || format!("at most {} columns", cols - from))?;
        let mut dx = self.zeros(Shape::matrix(dy.rows(), cols))?;
        let rows = self.arena.f32s_mut(op, &mut dx)?.chunks_exact_mut(cols);
        for (x, d) in rows.zip(self.arena.f32s(op, dy)?.chunks_exact(n)) {
            x[from..from + n].copy_from_slice(d);
        }
        Ok(dx)
    }

    fn select_rows_grad(&self, dy: &Tensor, picked: &[u32], rows: usize) -> Result<Tensor> {
        let op = "select_rows_grad";
        check::below(op, "picked", picked, rows)?;
        let n = dy.cols();
        let mut dx = self.zeros(Shape::matrix(rows, n))?;
        let dxs = self.arena.f32s_mut(op, &mut dx)?;
        for (&r, d) in picked.iter().zip(self.arena.f32s(op, dy)?.chunks_exact(n)) {
            dxs[r as usize * n..(r as usize + 1) * n].iter_mut().zip(d).for_each(|(x, d)| *x += d);
        }
        Ok(dx)
    }

    fn cross_entropy(&self, logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<(f64, Tensor)> {
        let op = "cross_entropy";
        let (rows, vocab) = (logits.rows(), logits.cols());
        let fits = targets.len() == rows && weights.len() == rows;
        Error::check_shape(fits, op, "targets", Shape::new(&[targets.len().max(1)]), || {
            format!("{rows} targets and weights")
        })?;
        check::below(op, "targets", targets, vocab)?;
        let zs = self.arena.f32s(op, logits)?;
        let mut d = self.arena.alloc(logits.shape, DType::F32);
        let losses: Vec<Mutex<f64>> = (0..rows).map(|_| Mutex::new(0.0)).collect();
        let n = Self::grain(rows, 16 * vocab);
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut d)?, n * vocab, |first, d| {
            for (i, d) in d.chunks_exact_mut(vocab).enumerate() {
                let t = first / vocab + i;
                let logits = &zs[t * vocab..(t + 1) * vocab];
                let loss = self.isa.run(CrossEntropy { logits, target: targets[t] as usize, weight: weights[t], d });
                *lock(&losses[t]) = loss;
            }
        });
        Ok((losses.iter().map(|l| *lock(l)).sum(), d))
    }

    fn squares(&self, x: &Tensor) -> Result<f64> {
        self.squares_of(x)
    }

    fn adamw(&self, updates: &mut [Update<'_>], rule: &AdamW, at: Stride) -> Result<()> {
        self.adamw_step(updates, rule, at)
    }

    fn muon(&self, updates: &mut [Update<'_>], rule: &Muon, at: Stride) -> Result<()> {
        self.muon_step(updates, rule, at)
    }
}

/// Of one token's routing weights by its logits: see `core`'s `reference::grad::route`.
fn route_row(logits: &[f32], chosen: &[u32], dweights: &[f32], spec: &RouteSpec, out: &mut [f32]) {
    let mut s = logits.to_vec();
    match spec.score {
        Score::Sigmoid => s.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp())),
        Score::Softmax => {
            let peak = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            s.iter_mut().for_each(|v| *v = (*v - peak).exp());
            let sum: f32 = s.iter().sum();
            s.iter_mut().for_each(|v| *v /= sum);
        }
    }
    let picked = || chosen.iter().map(|&e| s[e as usize]);
    let (sum, shared) = if spec.normalise {
        let sum = picked().sum::<f32>() + 1e-20;
        (sum, picked().zip(dweights).map(|(s, d)| s * d).sum::<f32>() / (sum * sum))
    } else {
        (1.0, 0.0)
    };
    out.fill(0.0);
    for (&e, d) in chosen.iter().zip(dweights) {
        out[e as usize] += spec.scale * (d / sum - shared);
    }
    match spec.score {
        Score::Sigmoid => out.iter_mut().zip(&s).for_each(|(d, s)| *d *= s * (1.0 - s)),
        Score::Softmax => {
            let mean: f32 = s.iter().zip(&*out).map(|(s, d)| s * d).sum();
            out.iter_mut().zip(&s).for_each(|(d, s)| *d = s * (*d - mean));
        }
    }
}
