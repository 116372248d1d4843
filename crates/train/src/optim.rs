//! Optimisers: AdamW for tables and vectors, Muon for the matrices inside blocks.
//!
//! Both work on f32 master weights on the host and are deterministic. Muon's products run on the backend.

use fathom_core::{Grad, Proj, Shape, Tensor, Weight};
use fathom_model::Result;
use fathom_model::names::Slot;
use fathom_model::weights::Demand;

use crate::params::{Param, Params};

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
    /// One step, the `step`-th (from 1), in place.
    pub fn step(&self, step: u64, lr: f32, values: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        let t = step as i32;
        let (c1, c2) = (1.0 - self.beta1.powi(t), (1.0 - self.beta2.powi(t)).sqrt());
        for (((w, g), m), v) in values.iter_mut().zip(grad).zip(m).zip(v) {
            *w -= lr * self.decay * *w;
            *m += (1.0 - self.beta1) * (g - *m);
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *w -= lr / c1 * *m / (v.sqrt() / c2 + self.eps);
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
    /// Newton–Schulz iterations.
    pub iterations: usize,
}

impl Default for Muon {
    fn default() -> Self {
        Muon { momentum: 0.95, decay: 0.05, iterations: 5 }
    }
}

impl Muon {
    /// One step on a matrix `[rows, cols]`, in place.
    ///
    /// # Errors
    /// If the backend fails.
    #[allow(clippy::too_many_arguments)] // a matrix, its derivative, its momentum, and where to compute
    pub fn step(
        &self,
        b: &dyn Grad,
        lr: f32,
        (rows, cols): (usize, usize),
        values: &mut [f32],
        grad: &[f32],
        m: &mut [f32],
    ) -> Result<()> {
        let mut look = vec![0.0; grad.len()];
        for ((look, m), g) in look.iter_mut().zip(m.iter_mut()).zip(grad) {
            *m = self.momentum * *m + (1.0 - self.momentum) * g;
            *look = self.momentum * *m + (1.0 - self.momentum) * g;
        }
        let update = self.orthogonal(b, rows, cols, &look)?;
        let scale = lr * 0.2 * (rows.max(cols) as f32).sqrt();
        for (w, u) in values.iter_mut().zip(&update) {
            *w = *w * (1.0 - lr * self.decay) - scale * u;
        }
        Ok(())
    }

    /// Newton–Schulz towards the orthogonal factor: `X ← aX + (bA + cA²)X` with `A = XXᵀ`, on the side that is shorter.
    fn orthogonal(&self, b: &dyn Grad, rows: usize, cols: usize, x: &[f32]) -> Result<Vec<f32>> {
        const A: f32 = 3.4445;
        const B: f32 = -4.775;
        const C: f32 = 2.0315;
        let tall = rows > cols;
        let (n, k) = if tall { (cols, rows) } else { (rows, cols) };
        let norm = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32 + 1e-7;
        let mut x: Vec<f32> = if tall { transpose(x, rows, cols) } else { x.to_vec() };
        x.iter_mut().for_each(|v| *v /= norm);
        let read = |t: &Tensor, out: &mut Vec<f32>| -> Result<()> {
            out.resize(t.shape.numel(), 0.0);
            Ok(b.read(t, out)?)
        };
        let (mut a, mut a2) = (Vec::new(), Vec::new());
        for _ in 0..self.iterations {
            let weight = b.upload(&Weight::from_f32(n, k, &x))?;
            let t = b.tensor(Shape::matrix(n, k), &x)?;
            read(&b.linear(&t, &[Proj { weight: &weight, bias: None }])?[0], &mut a)?;
            let a_weight = b.upload(&Weight::from_f32(n, n, &a))?;
            let a_tensor = b.tensor(Shape::matrix(n, n), &a)?;
            read(&b.linear(&a_tensor, &[Proj { weight: &a_weight, bias: None }])?[0], &mut a2)?;
            a.iter_mut().zip(&a2).for_each(|(a, a2)| *a = B * *a + C * a2);
            let mix = b.tensor(Shape::matrix(n, n), &a)?;
            let mut moved = Vec::new();
            read(&b.linear_dx(&mix, &weight)?, &mut moved)?;
            x.iter_mut().zip(&moved).for_each(|(x, y)| *x = A * *x + y);
        }
        Ok(if tall { transpose(&x, cols, rows) } else { x })
    }
}

/// `[rows, cols]` → `[cols, rows]`.
fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
}

/// How a parameter is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// By AdamW: tables, norms, biases, routers.
    AdamW,
    /// By Muon: matrices of blocks, each expert's by itself.
    Muon,
    /// Not by its derivative: the router's correction bias, which balances load.
    Balance,
    /// Not at all.
    Frozen,
}

/// The usual rule for a parameter.
pub fn rule(d: &Demand, muon: bool) -> Rule {
    match d.id.slot {
        Slot::RouterBias => Rule::Balance,
        Slot::TokenEmbd | Slot::Output | Slot::Router => Rule::AdamW,
        _ if muon && d.rows > 1 => Rule::Muon,
        _ => Rule::AdamW,
    }
}

/// What an optimiser remembers of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Mean of derivatives, or Muon's momentum.
    pub m: Vec<f32>,
    /// Mean of squares; empty under Muon.
    pub v: Vec<f32>,
}

/// Optimiser state of a whole model.
pub struct Optimiser {
    /// Settings for vectors and tables.
    pub adamw: AdamW,
    /// Settings for matrices.
    pub muon: Muon,
    /// Largest norm of all derivatives together; larger ones are scaled down to it.
    pub clip: f32,
    /// Speed of the router's correction bias (V3 paper, section 2.1.2: γ).
    pub balance: f32,
    /// Steps taken.
    pub steps: u64,
    /// Per parameter.
    pub rules: Vec<Rule>,
    /// Per parameter.
    pub moments: Vec<Moments>,
}

impl Optimiser {
    /// Fresh state for `params`.
    pub fn new(params: &Params, muon: bool) -> Self {
        let rules: Vec<Rule> = params.all.iter().map(|p| rule(&p.demand, muon)).collect();
        let state = |(p, rule): (&Param, &Rule)| {
            let zeros = |yes| if yes { vec![0.0; p.values().len()] } else { Vec::new() };
            Moments { m: zeros(matches!(rule, Rule::AdamW | Rule::Muon)), v: zeros(*rule == Rule::AdamW) }
        };
        let moments = params.all.iter().zip(&rules).map(state).collect();
        let (adamw, muon) = (AdamW::default(), Muon::default());
        Optimiser { adamw, muon, clip: 1.0, balance: 1e-3, steps: 0, rules, moments }
    }

    /// One step by the derivatives `grads` (as [`crate::Tape::backward`] leaves them). Returns their norm before clipping.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// While a decoder over `params` is alive.
    pub fn step(&mut self, b: &dyn Grad, lr: f32, params: &mut Params, grads: &[Option<Tensor>]) -> Result<f64> {
        self.steps += 1;
        let mut read: Vec<Vec<f32>> = Vec::with_capacity(grads.len());
        let mut squares = 0.0;
        for g in grads {
            let mut values = vec![0.0; g.as_ref().map_or(0, |g| g.shape.numel())];
            if let Some(g) = g {
                b.read(g, &mut values)?;
            }
            squares += values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
            read.push(values);
        }
        let norm = squares.sqrt();
        let scale = (f64::from(self.clip) / (norm + 1e-6)).min(1.0) as f32;
        for (i, (param, mut g)) in params.all.iter_mut().zip(read).enumerate() {
            if g.is_empty() {
                continue;
            }
            g.iter_mut().for_each(|v| *v *= scale);
            let Demand { rows, cols, experts, .. } = param.demand;
            let Moments { m, v } = &mut self.moments[i];
            match self.rules[i] {
                Rule::AdamW => {
                    let lr = lr * param.rate;
                    self.adamw.step(self.steps, lr, param.values_mut(), &g, m, v);
                }
                Rule::Muon => {
                    let size = (rows / experts, cols);
                    let n = size.0 * cols;
                    let parts =
                        param.values_mut().chunks_exact_mut(n).zip(g.chunks_exact(n)).zip(m.chunks_exact_mut(n));
                    for ((w, g), m) in parts {
                        self.muon.step(b, lr, size, w, g, m)?;
                    }
                }
                Rule::Balance | Rule::Frozen => {}
            }
        }
        Ok(norm)
    }

    /// Moves the correction bias of a router: up for experts with less than the mean load, down for those with more
    /// (V3 paper, section 2.1.2, "auxiliary-loss-free load balancing").
    pub fn balance(&self, bias: &mut [f32], load: &[u64]) {
        let mean = load.iter().sum::<u64>() as f64 / load.len() as f64;
        for (b, &n) in bias.iter_mut().zip(load) {
            *b += self.balance * (mean - n as f64).partial_cmp(&0.0).map_or(0.0, |o| o as i8 as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_core::reference::Reference;
    use fathom_core::rng::Rng;

    /// Three steps computed by PyTorch 2's `torch.optim.AdamW` formulas by hand: with a constant derivative the update is the learning
    /// rate exactly, whatever the size of the derivative.
    #[test]
    fn adamw_moves_by_the_learning_rate_under_a_constant_derivative() {
        let adamw = AdamW { eps: 0.0, decay: 0.1, ..AdamW::default() };
        let (mut w, mut m, mut v) = (vec![1.0, -2.0], vec![0.0; 2], vec![0.0; 2]);
        let mut expected = [1.0f64, -2.0];
        for t in 1..=3 {
            adamw.step(t, 0.01, &mut w, &[5.0, -0.003], &mut m, &mut v);
            expected = [expected[0] * (1.0 - 0.001) - 0.01, expected[1] * (1.0 - 0.001) + 0.01];
        }
        for (w, e) in w.iter().zip(expected) {
            assert!((f64::from(*w) - e).abs() < 1e-6, "{w} {e}");
        }
    }

    #[test]
    fn muon_makes_a_matrix_nearly_orthogonal() {
        let b = Reference::new();
        for (rows, cols) in [(6, 10), (10, 6)] {
            let mut rng = Rng::new(4, 2);
            let x: Vec<f32> = (0..60).map(|_| rng.normal() as f32).collect();
            let q = Muon::default().orthogonal(&b, rows, cols, &x).unwrap();
            let q = if rows > cols { transpose(&q, rows, cols) } else { q };
            for i in 0..6 {
                for j in 0..6 {
                    let dot: f32 = (0..10).map(|k| q[i * 10 + k] * q[j * 10 + k]).sum();
                    let (low, high) = if i == j { (0.4, 1.6) } else { (-0.35, 0.35) };
                    assert!((low..high).contains(&dot), "{rows}x{cols} {i} {j} {dot}");
                }
            }
        }
    }

    #[test]
    fn balancing_pulls_towards_the_mean() {
        let spec = Optimiser {
            adamw: AdamW::default(),
            muon: Muon::default(),
            clip: 1.0,
            balance: 0.5,
            steps: 0,
            rules: vec![],
            moments: vec![],
        };
        let mut bias = [0.0; 3];
        spec.balance(&mut bias, &[4, 2, 0]);
        assert_eq!(bias, [-0.5, 0.0, 0.5]);
    }
}
