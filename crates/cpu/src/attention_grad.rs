//! Attention of training, forward and back, over a batch's own keys and values: products of blocks of queries with all the keys that
//! they see, and row operations between them (Vaswani et al. 2017, eq. 1, and its derivatives).
//!
//! A task is a sequence and a group of query heads that share a key head. Weights are computed again on the way
//! back instead of being kept.

use std::sync::Mutex;

use fathom_core::{AttendSpec, DType, Mask, Result, Spans, Tensor};

use crate::Cpu;
use crate::backend::lock;
use crate::gemm::{Factors, room};
use crate::kernels::gemm::Strided;
use crate::kernels::grad::{Softmax, SoftmaxGrad};
use crate::simd::LANES;

/// Queries of a block.
const QUERIES: usize = 64;

/// What a task works on: columns of one sequence's rows.
struct Part<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// Derivative by the output; empty on the way forward.
    dy: &'a [f32],
    rows: usize,
    spec: &'a AttendSpec,
}

/// Memory of a task.
struct Room<'a> {
    words: &'a mut [u32],
    /// Scores of a block, then weights, and the derivatives by them.
    weights: &'a mut [f32],
    dweights: &'a mut [f32],
}

impl Part<'_> {
    /// Queries of head h of the group.
    fn q(&self, h: usize, first: usize) -> Strided<'_> {
        let cols = self.spec.heads * self.spec.head_dim;
        Strided::rows(&self.q[first * cols + h * self.spec.head_dim..], cols)
    }

    fn k(&self) -> Strided<'_> {
        Strided::rows(self.k, self.spec.kv_heads * self.spec.head_dim)
    }

    fn v(&self) -> Strided<'_> {
        Strided::rows(self.v, self.spec.kv_heads * self.spec.v_dim)
    }

    fn dy(&self, h: usize, first: usize) -> Strided<'_> {
        let cols = self.spec.heads * self.spec.v_dim;
        Strided::rows(&self.dy[first * cols + h * self.spec.v_dim..], cols)
    }

    /// Keys that the queries before `end` see, and by how many more each query sees than the one before it.
    fn sees(&self, end: usize) -> (usize, usize) {
        match self.spec.mask {
            Mask::Causal => (end, 1),
            Mask::Full => (self.rows, 0),
        }
    }
}

impl Cpu {
    /// Output of attention, forward.
    pub(crate) fn attend_trained(
        &self,
        op: &'static str,
        [q, k, v]: [&Tensor; 3],
        spans: &Spans<'_>,
        spec: &AttendSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        let (heads, v_dim) = (spec.heads / spec.kv_heads, spec.v_dim);
        let mut packed = [self.arena.alloc(out.shape, DType::F32)];
        self.attend_tasks(op, [q, k, v, q], &mut packed, spans, spec, |part, room, outs| {
            let [y] = outs else { unreachable!("invariant: a task gets as many results as there are outputs") };
            for h in 0..heads {
                for first in (0..part.rows).step_by(QUERIES) {
                    let (n, keys, stride) = self.weights(part, h, first, room);
                    let a = Strided::rows(&room.weights[..n * stride], stride);
                    let product = Factors { a, b: part.v(), rows: n, depth: keys };
                    let y = &mut y[first * heads * v_dim + h * v_dim..];
                    self.gemm_here(self.factors(), product, v_dim, (y, heads * v_dim), 1.0, 0.0, room.words);
                }
            }
        })?;
        self.place(op, &packed[0], spans, spec, out)
    }

    /// Derivatives by queries, keys and values.
    pub(crate) fn attend_derivatives(
        &self,
        op: &'static str,
        ins: [&Tensor; 4],
        spans: &Spans<'_>,
        spec: &AttendSpec,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (heads, dim, v_dim) = (spec.heads / spec.kv_heads, spec.head_dim, spec.v_dim);
        let mut packed = [ins[0], ins[1], ins[2]].map(|t| self.arena.alloc(t.shape, DType::F32));
        self.attend_tasks(op, ins, &mut packed, spans, spec, |part, room, outs| {
            let [dq, dk, dv] = outs else {
                unreachable!("invariant: a task gets as many results as there are outputs")
            };
            dk.fill(0.0);
            dv.fill(0.0);
            for h in 0..heads {
                for first in (0..part.rows).step_by(QUERIES) {
                    let (n, keys, stride) = self.weights(part, h, first, room);
                    let (p, dp) = (&room.weights[..n * stride], &mut room.dweights[..n * stride]);
                    let (dy, q) = (part.dy(h, first), part.q(h, first));
                    let back = Factors { a: dy, b: part.v().transposed(), rows: n, depth: v_dim };
                    self.gemm_here(self.factors(), back, keys, (dp, stride), 1.0, 0.0, room.words);
                    let (_, step) = part.sees(0);
                    let seen = keys - step * (n - 1);
                    self.isa.run(SoftmaxGrad { p, dp, stride, seen, step, scale: spec.scale });
                    let (p, ds) = (Strided::rows(p, stride), Strided::rows(dp, stride));
                    let by_q = Factors { a: ds, b: part.k(), rows: n, depth: keys };
                    let at = first * heads * dim + h * dim;
                    self.gemm_here(self.factors(), by_q, dim, (&mut dq[at..], heads * dim), 1.0, 0.0, room.words);
                    let by_k = Factors { a: ds.transposed(), b: q, rows: keys, depth: n };
                    self.gemm_here(self.factors(), by_k, dim, (dk, dim), 1.0, 1.0, room.words);
                    let by_v = Factors { a: p.transposed(), b: dy, rows: keys, depth: n };
                    self.gemm_here(self.factors(), by_v, v_dim, (dv, v_dim), 1.0, 1.0, room.words);
                }
            }
        })?;
        let [mut dq, mut dk, mut dv] = [ins[0], ins[1], ins[2]].map(|t| self.arena.alloc(t.shape, DType::F32));
        for (packed, out) in packed.iter().zip([&mut dq, &mut dk, &mut dv]) {
            self.place(op, packed, spans, spec, out)?;
        }
        Ok((dq, dk, dv))
    }

    /// Weights of a block of queries of head `h`: their number, the keys that they see together, and the length of a row.
    fn weights(&self, part: &Part<'_>, h: usize, first: usize, room: &mut Room<'_>) -> (usize, usize, usize) {
        let n = QUERIES.min(part.rows - first);
        let (keys, step) = part.sees(first + n);
        let stride = keys.next_multiple_of(LANES);
        let rows = &mut room.weights[..n * stride];
        let product = Factors { a: part.q(h, first), b: part.k().transposed(), rows: n, depth: part.spec.head_dim };
        self.gemm_here(self.factors(), product, keys, (rows, stride), part.spec.scale, 0.0, room.words);
        self.isa.run(Softmax { rows, stride, seen: keys - step * (n - 1), step });
        (n, keys, stride)
    }

    /// Runs a task for each sequence and group of heads; each fills its part of the outputs, packed: sequence after sequence, in it group after
    /// group, in it row after row.
    fn attend_tasks(
        &self,
        op: &'static str,
        ins: [&Tensor; 4],
        outs: &mut [Tensor],
        spans: &Spans<'_>,
        spec: &AttendSpec,
        task: impl Fn(&Part<'_>, &mut Room<'_>, &mut [&mut [f32]]) + Sync,
    ) -> Result<()> {
        let &AttendSpec { heads, kv_heads, head_dim, v_dim, .. } = spec;
        let group = heads / kv_heads;
        let widths = [group * head_dim, head_dim, v_dim, group * v_dim];
        let mut data = [&[] as &[f32]; 4];
        for (data, t) in data.iter_mut().zip(ins) {
            *data = self.arena.f32s(op, t)?;
        }
        let longest = spans.spans.iter().map(|s| s.rows).max().unwrap_or(0);
        let block = QUERIES * longest.next_multiple_of(LANES);
        let (dim, most) = (head_dim.max(v_dim), longest.max(QUERIES));
        self.scratch.reserve(2 * block);
        self.tiles.reserve(room(most, most, dim).max(room(most, dim, most)));
        let mut parts: Vec<Vec<&mut [f32]>> = (0..spans.spans.len() * kv_heads).map(|_| Vec::new()).collect();
        for out in outs {
            let w = out.cols() / kv_heads;
            let mut rest = self.arena.f32s_mut(op, out)?;
            for (index, parts) in parts.iter_mut().enumerate() {
                let (part, behind) = std::mem::take(&mut rest).split_at_mut(spans.spans[index / kv_heads].rows * w);
                parts.push(part);
                rest = behind;
            }
        }
        let parts: Vec<Mutex<Vec<&mut [f32]>>> = parts.into_iter().map(Mutex::new).collect();
        self.pool.run(parts.len(), |t| {
            let (span, g) = (&spans.spans[t.index / kv_heads], t.index % kv_heads);
            let part = |i: usize| &data[i][span.row * ins[i].cols() + g * widths[i]..];
            let part = Part { q: part(0), k: part(1), v: part(2), dy: part(3), rows: span.rows, spec };
            let (mut words, mut scratch) = (self.tiles.lock(t.worker), self.scratch.lock(t.worker));
            let (weights, dweights) = scratch.split_at_mut(block);
            let mut room = Room { words: &mut words, weights, dweights };
            task(&part, &mut room, &mut lock(&parts[t.index]));
        });
        Ok(())
    }

    /// Puts what the tasks left packed in its place.
    fn place(
        &self,
        op: &'static str,
        packed: &Tensor,
        spans: &Spans<'_>,
        spec: &AttendSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        let (cols, heads) = (out.cols(), spec.kv_heads);
        let w = cols / heads;
        let packed = self.arena.f32s(op, packed)?;
        let n = Self::grain(out.rows(), cols) * cols;
        self.pool.chunks_mut(self.arena.f32s_mut(op, out)?, n, |first, out| {
            for (i, row) in out.chunks_exact_mut(cols).enumerate() {
                let row_number = first / cols + i;
                let span = &spans.spans[spans.spans.partition_point(|s| s.row + s.rows <= row_number)];
                for (g, part) in row.chunks_exact_mut(w).enumerate() {
                    let at = span.row * heads + g * span.rows + row_number - span.row;
                    part.copy_from_slice(&packed[at * w..(at + 1) * w]);
                }
            }
        });
        Ok(())
    }
}
