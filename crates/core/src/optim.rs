//! What an optimiser's step does to a weight: the rules, as [`crate::Grad`] carries them out.
//!
//! Master weights and moments are f32 in the caller's memory; derivatives are tensors of the backend.

use crate::Tensor;

/// Matrices or vectors of one size at an optimiser's step.
pub struct Update<'a> {
    /// Values, row-major: one or several matrices, one below the other.
    pub values: &'a mut [f32],
    /// Derivative of the loss by them.
    pub grad: &'a Tensor,
    /// Mean of derivatives, or Muon's momentum.
    pub m: &'a mut [f32],
    /// Mean of their squares; empty under Muon.
    pub v: &'a mut [f32],
    /// Rows of one matrix.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// When and how far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stride {
    /// Number of the step, from 1.
    pub step: u64,
    /// Learning rate.
    pub lr: f32,
    /// Factor on the derivatives (clipping).
    pub scale: f32,
}

/// AdamW (Loshchilov & Hutter 2019), with PyTorch's order of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the mean of derivatives.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Decoupled weight decay, times the learning rate.
    pub decay: f32,
}

impl Default for AdamW {
    /// V3's settings (V3 paper, section 4.2), without decay.
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.0 }
    }
}

impl AdamW {
    /// One step, in place.
    #[inline(always)] // into functions compiled for more instructions
    pub fn step(&self, at: Stride, values: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        let t = at.step as i32;
        let (c1, c2) = (1.0 - self.beta1.powi(t), (1.0 - self.beta2.powi(t)).sqrt());
        for (((w, g), m), v) in values.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g * at.scale;
            *w -= at.lr * self.decay * *w;
            *m += (1.0 - self.beta1) * (g - *m);
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *w -= at.lr / c1 * *m / (v.sqrt() / c2 + self.eps);
        }
    }
}

/// Muon (Jordan et al. 2024): momentum, then the nearest orthogonal matrix, scaled so that the update's
/// root mean square is AdamW's usual 0.2 (Liu et al. 2025, "Muon is Scalable for LLM Training").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Momentum, with Nesterov's look-ahead.
    pub momentum: f32,
    /// Decoupled weight decay, times the learning rate.
    pub decay: f32,
    /// Newton–Schulz iterations: `X ← aX + (bA + cA²)X` with `A = XXᵀ`, on the side that is shorter.
    pub iterations: usize,
}

impl Default for Muon {
    fn default() -> Self {
        Muon { momentum: 0.95, decay: 0.05, iterations: 5 }
    }
}

impl Muon {
    /// Coefficients a, b, c of an iteration (Jordan et al. 2024).
    pub const QUINTIC: [f32; 3] = [3.4445, -4.775, 2.0315];

    /// Moves the momentum on; `look` becomes what to make orthogonal.
    #[inline(always)]
    pub fn look(&self, at: Stride, grad: &[f32], m: &mut [f32], look: &mut [f32]) {
        for ((look, m), g) in look.iter_mut().zip(m).zip(grad) {
            let g = g * at.scale;
            *m = self.momentum * *m + (1.0 - self.momentum) * g;
            *look = self.momentum * *m + (1.0 - self.momentum) * g;
        }
    }

    /// Moves a matrix `[rows, cols]` by an orthogonal one.
    #[inline(always)]
    pub fn apply(&self, at: Stride, (rows, cols): (usize, usize), values: &mut [f32], orthogonal: &[f32]) {
        let factor = at.lr * 0.2 * (rows.max(cols) as f32).sqrt();
        for (w, u) in values.iter_mut().zip(orthogonal) {
            *w = *w * (1.0 - at.lr * self.decay) - factor * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::grad::orthogonal;
    use crate::rng::Rng;

    /// With a constant derivative the update is the learning rate exactly, whatever the size of the derivative.
    #[test]
    fn adamw_moves_by_the_learning_rate_under_a_constant_derivative() {
        let adamw = AdamW { eps: 0.0, decay: 0.1, ..AdamW::default() };
        let (mut w, mut m, mut v) = (vec![1.0, -2.0], vec![0.0; 2], vec![0.0; 2]);
        let mut expected = [1.0f64, -2.0];
        for step in 1..=3 {
            adamw.step(Stride { step, lr: 0.01, scale: 0.5 }, &mut w, &[10.0, -0.006], &mut m, &mut v);
            expected = [expected[0] * (1.0 - 0.001) - 0.01, expected[1] * (1.0 - 0.001) + 0.01];
        }
        for (w, e) in w.iter().zip(expected) {
            assert!((f64::from(*w) - e).abs() < 1e-6, "{w} {e}");
        }
    }

    #[test]
    fn muon_makes_a_matrix_nearly_orthogonal() {
        for (rows, cols) in [(6, 10), (10, 6)] {
            let mut rng = Rng::new(4, 2);
            let x: Vec<f32> = (0..60).map(|_| rng.normal() as f32).collect();
            let q = orthogonal(Muon::default().iterations, rows, cols, &x);
            // Vectors along the longer side.
            let at = |i: usize, k: usize| if rows > cols { q[k * cols + i] } else { q[i * cols + k] };
            for i in 0..6 {
                for j in 0..6 {
                    let dot: f32 = (0..10).map(|k| at(i, k) * at(j, k)).sum();
                    let (low, high) = if i == j { (0.4, 1.6) } else { (-0.35, 0.35) };
                    assert!((low..high).contains(&dot), "{rows}x{cols} {i} {j} {dot}");
                }
            }
        }
    }
}
