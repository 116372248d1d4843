//! [`Grad`] for the reference backend: opens tensors, checks shapes, calls the functions of [`super::grad`].

use super::{Reference, decoded, dot, grad};
use crate::optim::{AdamW, Muon, Stride, Update};
use crate::{
    AttendSpec, DType, Error, Experts, Grad, KvView, Resident, ResidentExperts, Result, RopeLayout, RouteSpec, Routing,
    Shape, Spans, Tensor, check,
};

impl Reference {
    /// Adds `values` to the elements of `to`.
    fn add_to(&self, op: &'static str, to: &mut Tensor, values: &[f64]) -> Result<()> {
        let found = to.shape;
        Error::check_shape(found.numel() == values.len(), op, "d", found, || format!("{} elements", values.len()))?;
        self.arena.f32s_mut(op, to)?.iter_mut().zip(values).for_each(|(o, v)| *o = (f64::from(*o) + v) as f32);
        Ok(())
    }

    /// Experts of the slots, and how many slots share a row of an input with `x_rows` rows.
    fn slots(&self, op: &'static str, routing: &Routing, x_rows: usize) -> Result<(Vec<u32>, usize)> {
        let experts = self.arena.u32s(op, &routing.experts)?.to_vec();
        let sharing = experts.len().checked_div(x_rows).unwrap_or(1).max(1);
        Ok((experts, sharing))
    }
}

impl Grad for Reference {
    fn zeros(&self, shape: Shape) -> Result<Tensor> {
        let mut t = self.arena.alloc(shape, DType::F32);
        self.arena.f32s_mut("zeros", &mut t)?.fill(0.0);
        Ok(t)
    }

    fn linear_dx(&self, dy: &Tensor, weight: &Resident) -> Result<Tensor> {
        let op = "linear_dx";
        check::wide(op, "dy", dy, weight.rows)?;
        let (dys, w) = (self.open(op, dy)?, self.weight(op, weight)?);
        let mut dx = vec![0.0; dy.rows() * weight.cols];
        for o in 0..w.rows {
            let row = decoded(w, o);
            for (dx, dy) in dx.chunks_exact_mut(w.cols).zip(dys.chunks_exact(w.rows)) {
                dx.iter_mut().zip(&row).for_each(|(d, w)| *d += dy[o] * w);
            }
        }
        self.close(Shape::matrix(dy.rows(), weight.cols), dx)
    }

    fn linear_dw(&self, x: &Tensor, dy: &Tensor, dw: &mut Tensor) -> Result<()> {
        let op = "linear_dw";
        let (xs, dys) = (self.open(op, x)?, self.open(op, dy)?);
        let mut sum = vec![0.0; x.cols() * dy.cols()];
        for (x, dy) in xs.chunks_exact(x.cols()).zip(dys.chunks_exact(dy.cols())) {
            for (row, dy) in sum.chunks_exact_mut(x.len()).zip(dy) {
                row.iter_mut().zip(x).for_each(|(s, x)| *s += dy * x);
            }
        }
        self.add_to(op, dw, &sum)
    }

    fn bias_db(&self, dy: &Tensor, db: &mut Tensor) -> Result<()> {
        let mut sum = vec![0.0; dy.cols()];
        for row in self.open("bias_db", dy)?.chunks_exact(dy.cols()) {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
        self.add_to("bias_db", db, &sum)
    }

    fn linear_experts_dx(&self, dy: &Tensor, routing: &Routing, w: &ResidentExperts, x_rows: usize) -> Result<Tensor> {
        let op = "linear_experts_dx";
        check::wide(op, "dy", dy, w.each.rows)?;
        let (experts, sharing) = self.slots(op, routing, x_rows)?;
        let (dys, all): (_, &Experts) = (self.open(op, dy)?, w.each.data(op, super::DEVICE)?);
        let cols = w.each.cols;
        let mut dx = vec![0.0; x_rows * cols];
        for e in 0..w.experts {
            let slots: Vec<usize> = (0..experts.len()).filter(|&s| experts[s] as usize == e).collect();
            if slots.is_empty() {
                continue;
            }
            let weight = all.get(e);
            for o in 0..weight.rows {
                let row = decoded(&weight, o);
                for &s in &slots {
                    let (d, at) = (dys[s * weight.rows + o], s / sharing * cols);
                    dx[at..at + cols].iter_mut().zip(&row).for_each(|(x, w)| *x += d * w);
                }
            }
        }
        self.close(Shape::matrix(x_rows, cols), dx)
    }

    fn linear_experts_dw(&self, x: &Tensor, dy: &Tensor, routing: &Routing, dw: &mut Tensor) -> Result<()> {
        let op = "linear_experts_dw";
        let (experts, sharing) = self.slots(op, routing, x.rows())?;
        let (xs, dys) = (self.open(op, x)?, self.open(op, dy)?);
        let (cols, rows) = (x.cols(), dy.cols());
        let mut sum = vec![0.0; dw.shape.numel()];
        for (s, &e) in experts.iter().enumerate() {
            let x = &xs[s / sharing * cols..(s / sharing + 1) * cols];
            for o in 0..rows {
                let at = (e as usize * rows + o) * cols;
                sum[at..at + cols].iter_mut().zip(x).for_each(|(w, x)| *w += dys[s * rows + o] * x);
            }
        }
        self.add_to(op, dw, &sum)
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
        let weight = self.vector(op, w)?;
        let mut sum = vec![0.0; weight.len()];
        let dx = grad::rms_norm(&self.open(op, x)?, &weight, eps, &self.open(op, dy)?, &mut sum);
        if let Some(dw) = dw {
            self.add_to(op, dw, &sum)?;
        }
        self.close(x.shape, dx)
    }

    fn rope_grad(&self, dy: &Tensor, table: &Tensor, heads: usize, first: usize, layout: RopeLayout) -> Result<Tensor> {
        let head_dim = check::rope(dy, table, heads, first)?;
        let mut dx = self.open("rope_grad", dy)?;
        grad::rope(&mut dx, &self.open("rope_grad", table)?, dy.rows(), head_dim, first, layout);
        self.close(dy.shape, dx)
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
        Error::check_shape(dy.shape == shape, op, "dy", dy.shape, || format!("{shape}"))?;
        let (qs, ks, vs, dys) = (self.open(op, q)?, self.open(op, k)?, self.open(op, v)?, self.open(op, dy)?);
        let (mut dq, mut dk, mut dv) = (vec![0.0; qs.len()], vec![0.0; ks.len()], vec![0.0; vs.len()]);
        for s in spans.spans {
            let part = |x: &Tensor| s.row * x.cols()..(s.row + s.rows) * x.cols();
            let inputs = (&qs[part(q)], &ks[part(k)], &vs[part(v)]);
            grad::attend(inputs, &dys[part(dy)], spec, (&mut dq[part(q)], &mut dk[part(k)], &mut dv[part(v)]));
        }
        Ok((self.close(q.shape, dq)?, self.close(k.shape, dk)?, self.close(v.shape, dv)?))
    }

    fn swiglu_grad(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let op = "swiglu_grad";
        check::same(op, "up", gate, up)?;
        check::same(op, "dy", gate, dy)?;
        let (dg, du) = grad::swiglu(&self.open(op, gate)?, &self.open(op, up)?, &self.open(op, dy)?);
        Ok((self.close(gate.shape, dg)?, self.close(gate.shape, du)?))
    }

    fn route_grad(&self, logits: &Tensor, routing: &Routing, dweights: &Tensor, spec: &RouteSpec) -> Result<Tensor> {
        let op = "route_grad";
        check::same(op, "dweights", &routing.weights, dweights)?;
        check::wide(op, "logits", logits, spec.experts)?;
        let (zs, dws) = (self.open(op, logits)?, self.open(op, dweights)?);
        let chosen = self.arena.u32s(op, &routing.experts)?;
        let rows = zs.chunks_exact(spec.experts).zip(chosen.chunks_exact(spec.top_k)).zip(dws.chunks_exact(spec.top_k));
        self.close(logits.shape, rows.flat_map(|((z, chosen), dw)| grad::route(z, chosen, dw, spec)))
    }

    fn combine_experts_grad(&self, y: &Tensor, routing: &Routing, dout: &Tensor) -> Result<(Tensor, Tensor)> {
        let op = "combine_experts_grad";
        let shape = check::combine_experts(y, routing, Some(dout))?;
        let (ys, douts, dim) = (self.open(op, y)?, self.open(op, dout)?, shape.cols());
        let weights = self.open(op, &routing.weights)?;
        let top_k = routing.weights.cols();
        let of = |s: usize| &douts[s / top_k * dim..(s / top_k + 1) * dim];
        let dy = (0..weights.len()).flat_map(|s| of(s).iter().map(move |d| (s, d))).map(|(s, d)| weights[s] * d);
        let dy: Vec<f64> = dy.collect();
        let dw: Vec<f64> = (0..weights.len()).map(|s| dot(&ys[s * dim..(s + 1) * dim], of(s))).collect();
        Ok((self.close(y.shape, dy)?, self.close(routing.weights.shape, dw)?))
    }

    fn embed_grad(&self, ids: &[u32], dy: &Tensor, dtable: &mut Tensor) -> Result<()> {
        let op = "embed_grad";
        check::wide(op, "dtable", dtable, dy.cols())?;
        check::below(op, "ids", ids, dtable.rows())?;
        let n = dy.cols();
        let dys = self.open(op, dy)?;
        let mut sum = vec![0.0; dtable.shape.numel()];
        for (&id, d) in ids.iter().zip(dys.chunks_exact(n)) {
            sum[id as usize * n..(id as usize + 1) * n].iter_mut().zip(d).for_each(|(s, d)| *s += d);
        }
        self.add_to(op, dtable, &sum)
    }

    fn slice_cols_grad(&self, dy: &Tensor, from: usize, cols: usize) -> Result<Tensor> {
        let op = "slice_cols_grad";
        let n = dy.cols();
        Error::check_shape(from + n <= cols, op, "dy", dy.shape, || format!("at most {} columns", cols - from))?;
        let mut dx = vec![0.0; dy.rows() * cols];
        for (x, d) in dx.chunks_exact_mut(cols).zip(self.open(op, dy)?.chunks_exact(n)) {
            x[from..from + n].copy_from_slice(d);
        }
        self.close(Shape::matrix(dy.rows(), cols), dx)
    }

    fn select_rows_grad(&self, dy: &Tensor, picked: &[u32], rows: usize) -> Result<Tensor> {
        let op = "select_rows_grad";
        check::below(op, "picked", picked, rows)?;
        let n = dy.cols();
        let mut dx = vec![0.0; rows * n];
        for (&r, d) in picked.iter().zip(self.open(op, dy)?.chunks_exact(n)) {
            dx[r as usize * n..(r as usize + 1) * n].iter_mut().zip(d).for_each(|(x, d)| *x += d);
        }
        self.close(Shape::matrix(rows, n), dx)
    }

    fn cross_entropy(&self, logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<(f64, Tensor)> {
        let op = "cross_entropy";
        let rows = logits.rows();
        let fits = targets.len() == rows && weights.len() == rows;
        Error::check_shape(fits, op, "targets", Shape::new(&[targets.len().max(1)]), || {
            format!("{rows} targets and weights")
        })?;
        check::below(op, "targets", targets, logits.cols())?;
        let mut z = self.open(op, logits)?;
        let mut loss = 0.0;
        for ((row, &target), &w) in z.chunks_exact_mut(logits.cols()).zip(targets).zip(weights) {
            loss += f64::from(w) * grad::cross_entropy(row, target as usize);
            row.iter_mut().for_each(|d| *d *= f64::from(w));
        }
        Ok((loss, self.close(logits.shape, z)?))
    }

    fn squares(&self, x: &Tensor) -> Result<f64> {
        Ok(self.open("squares", x)?.iter().map(|v| v * v).sum())
    }

    fn adamw(&self, updates: &mut [Update<'_>], rule: &AdamW, at: Stride) -> Result<()> {
        for u in updates {
            rule.step(at, u.values, self.arena.f32s("adamw", u.grad)?, u.m, u.v);
        }
        Ok(())
    }

    fn muon(&self, updates: &mut [Update<'_>], rule: &Muon, at: Stride) -> Result<()> {
        for u in updates {
            let n = u.rows * u.cols;
            let grads = self.arena.f32s("muon", u.grad)?.chunks_exact(n);
            for ((w, g), m) in u.values.chunks_exact_mut(n).zip(grads).zip(u.m.chunks_exact_mut(n)) {
                let mut look = vec![0.0; n];
                rule.look(at, g, m, &mut look);
                let x = grad::orthogonal(rule.iterations, u.rows, u.cols, &look);
                rule.apply(at, (u.rows, u.cols), w, &x);
            }
        }
        Ok(())
    }
}
