//! Optimisers' steps on the pool. AdamW goes through pieces of fixed length; Muon takes a task per matrix, whose iterations stay in that
//! core's cache.

use std::sync::Mutex;

use fathom_core::optim::{AdamW, Muon, Stride, Update};
use fathom_core::{Result, Tensor};

use crate::Cpu;
use crate::backend::lock;
use crate::gemm::{Factors, room};
use crate::kernels::gemm::Strided;
use crate::kernels::optim::{AdamWStep, Scale, Squares};

/// Numbers in a task.
const PIECE: usize = 1 << 14;

/// A part of one parameter: values, derivatives, moments.
type Piece<'a> = (&'a mut [f32], &'a [f32], &'a mut [f32], &'a mut [f32]);

impl Cpu {
    pub(crate) fn squares_of(&self, x: &Tensor) -> Result<f64> {
        let xs = self.arena.f32s("squares", x)?;
        let mut sums = vec![0.0; xs.len().div_ceil(PIECE)];
        self.pool.chunks_mut(&mut sums, 1, |i, sum| {
            sum[0] = self.isa.run(Squares(&xs[i * PIECE..xs.len().min((i + 1) * PIECE)]));
        });
        Ok(sums.iter().sum())
    }

    pub(crate) fn adamw_step(&self, updates: &mut [Update<'_>], rule: &AdamW, at: Stride) -> Result<()> {
        let mut pieces: Vec<Mutex<Piece<'_>>> = Vec::new();
        for u in updates {
            let grads = self.arena.f32s("adamw", u.grad)?.chunks(PIECE);
            let moments = u.m.chunks_mut(PIECE).zip(u.v.chunks_mut(PIECE));
            for ((values, grad), (m, v)) in u.values.chunks_mut(PIECE).zip(grads).zip(moments) {
                pieces.push(Mutex::new((values, grad, m, v)));
            }
        }
        self.pool.run(pieces.len(), |task| {
            let (values, grad, m, v) = &mut *lock(&pieces[task.index]);
            self.isa.run(AdamWStep { rule, at, values, grad, m, v });
        });
        Ok(())
    }

    pub(crate) fn muon_step(&self, updates: &mut [Update<'_>], rule: &Muon, at: Stride) -> Result<()> {
        let mut matrices: Vec<(usize, usize, Mutex<Piece<'_>>)> = Vec::new();
        let (mut numbers, mut words) = (0, 0);
        for u in updates {
            let (rows, cols, n) = (u.rows, u.cols, u.rows * u.cols);
            let grads = self.arena.f32s("muon", u.grad)?.chunks_exact(n);
            for ((values, grad), m) in u.values.chunks_exact_mut(n).zip(grads).zip(u.m.chunks_exact_mut(n)) {
                matrices.push((rows, cols, Mutex::new((values, grad, m, &mut []))));
            }
            let (short, long) = (rows.min(cols), rows.max(cols));
            numbers = numbers.max(2 * n + 2 * short * short);
            words = words.max(room(long, short, long)).max(room(short, long, short));
        }
        self.scratch.reserve(numbers);
        self.tiles.reserve(words);
        self.pool.run(matrices.len(), |task| {
            let (rows, cols, piece) = &matrices[task.index];
            let (values, grad, m, _) = &mut *lock(piece);
            let mut numbers = self.scratch.lock(task.worker);
            let (x, rest) = numbers.split_at_mut(values.len());
            rule.look(at, grad, m, x);
            self.orthogonal((*rows, *cols), rule.iterations, x, rest, &mut self.tiles.lock(task.worker));
            rule.apply(at, (*rows, *cols), values, x);
        });
        Ok(())
    }

    /// Newton–Schulz iterations on `x: [rows, cols]`, in place; on the side that is longer the matrix is multiplied from.
    fn orthogonal(
        &self,
        (rows, cols): (usize, usize),
        iterations: usize,
        x: &mut [f32],
        rest: &mut [f32],
        words: &mut [u32],
    ) {
        let [a, b, c] = Muon::QUINTIC;
        let n = rows.min(cols);
        let (moved, rest) = rest.split_at_mut(x.len());
        let (squared, rest) = rest.split_at_mut(n * n);
        let mix = &mut rest[..n * n];
        let norm = self.isa.run(Squares(x)).sqrt() as f32 + 1e-7;
        self.isa.run(Scale { x, factor: 1.0 / norm });
        for _ in 0..iterations {
            let m = Strided::rows(x, cols);
            let (by, depth) = if rows > cols { (m.transposed(), rows) } else { (m, cols) };
            let square = Factors { a: by, b: by.transposed(), rows: n, depth };
            self.symmetric_here(self.factors(), square, squared, 1.0, 0.0, words);
            mix.copy_from_slice(squared);
            let s = Strided::rows(squared, n);
            let fourth = Factors { a: s, b: s, rows: n, depth: n };
            self.symmetric_here(self.factors(), fourth, mix, c, b, words);
            moved.copy_from_slice(x);
            let mix = Strided::rows(mix, n);
            let (left, right) = if rows > cols { (m, mix) } else { (mix, m) };
            let step = Factors { a: left, b: right, rows, depth: n };
            self.gemm_here(self.factors(), step, cols, (moved, cols), 1.0, a, words);
            x.copy_from_slice(moved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, Pool, Products};
    use fathom_core::reference::Reference;
    use fathom_core::{Grad, Shape};

    /// Both optimisers against the reference, on shapes that are wide, tall, and no multiple of anything; one thread as two.
    #[test]
    fn steps_are_the_references() {
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
        };
        let run = |b: &dyn Grad, (rows, cols): (usize, usize), muon: bool| {
            let n = 3 * rows * cols;
            let grad = b.tensor(Shape::matrix(3 * rows, cols), &numbers(n, 1)).unwrap();
            let (mut values, mut m, mut v) = (numbers(n, 2), numbers(n, 3), numbers(n, 4));
            v.iter_mut().for_each(|v| *v = v.abs());
            let (m_, v_) = (&mut m[..], if muon { &mut v[..0] } else { &mut v[..] });
            let mut updates = [Update { values: &mut values, grad: &grad, m: m_, v: v_, rows, cols }];
            let at = Stride { step: 3, lr: 0.1, scale: 0.7 };
            match muon {
                true => b.muon(&mut updates, &Muon::default(), at).unwrap(),
                false => b.adamw(&mut updates, &AdamW { decay: 0.1, ..AdamW::default() }, at).unwrap(),
            }
            (values, m, v, b.squares(&grad).unwrap())
        };
        for (isa, products) in Level::present().flat_map(|l| [(l, Products::F32), (l, Products::Bf16)]) {
            let cpus = [1, 2].map(|n| Cpu::training(Pool::new(n).unwrap(), Some(isa), products).unwrap());
            for (size, muon) in
                [((40, 72), true), ((72, 40), true), ((33, 33), true), ((1, 50), false), ((130, 90), false)]
            {
                let expected = run(&Reference::new(), size, muon);
                let found = cpus.each_ref().map(|c| run(&**c, size, muon));
                assert!(found[0] == found[1], "{isa:?} {size:?}: threads");
                let found = &found[0];
                assert!((found.3 / expected.3 - 1.0).abs() < 1e-6, "{isa:?} {size:?}");
                let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
                assert!(worst(&found.1, &expected.1) < 1e-6 && worst(&found.2, &expected.2) < 1e-6, "{isa:?} {size:?}");
                // A step of Muon is about 0.02 x the root of the longer side here; bf16 loses a few percent of it.
                let bound = if muon && products == Products::Bf16 { 8e-3 } else { 2e-5 };
                let off = worst(&found.0, &expected.0);
                assert!(off < bound, "{isa:?} {products:?} {size:?} muon {muon}: {off}");
            }
        }
    }
}
