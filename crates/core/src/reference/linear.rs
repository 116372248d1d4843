//! Products with weights: one matrix, or one of many experts per row.

use super::{decoded, dot};
use crate::{Experts, Weight};

/// `y = x·Wᵀ + b`: `x` is `[tokens, w.cols]`, the result `[tokens, w.rows]`.
pub fn linear(x: &[f64], w: &Weight, bias: Option<&[f64]>) -> Vec<f64> {
    let tokens = x.len() / w.cols;
    let mut y = vec![0.0; tokens * w.rows];
    for r in 0..w.rows {
        let row = decoded(w, r);
        for (t, x) in x.chunks_exact(w.cols).enumerate() {
            y[t * w.rows + r] = dot(&row, x) + bias.map_or(0.0, |b| b[r]);
        }
    }
    y
}

/// For slot s (row s of the result): `x[s / sharing] · W[expert[s]]ᵀ`.
///
/// `sharing` is how many slots read the same row of `x`: `top_k` before the experts' first
/// projections, 1 after them.
pub fn linear_experts(x: &[f64], sharing: usize, expert: &[u32], experts: &Experts) -> Vec<f64> {
    let (rows, cols) = (experts.get(0).rows, experts.get(0).cols);
    let mut y = vec![0.0; expert.len() * rows];
    for e in 0..experts.len() {
        let slots: Vec<usize> = (0..expert.len()).filter(|&s| expert[s] as usize == e).collect();
        if slots.is_empty() {
            continue;
        }
        let w = experts.get(e);
        for r in 0..rows {
            let row = decoded(&w, r);
            for &s in &slots {
                let x = &x[s / sharing * cols..(s / sharing + 1) * cols];
                y[s * rows + r] = dot(&row, x);
            }
        }
    }
    y
}

/// `out[t] += Σ_s weight[t, s] · y[t × top_k + s]` (V2 paper, eq. 20; `out` arrives with the shared experts' part).
pub fn combine(y: &[f64], weights: &[f64], out: &mut [f64], dim: usize) {
    let tokens = out.len() / dim;
    for (s, (w, y)) in weights.iter().zip(y.chunks_exact(dim)).enumerate() {
        let token = s / (weights.len() / tokens);
        for (o, v) in out[token * dim..(token + 1) * dim].iter_mut().zip(y) {
            *o += w * v;
        }
    }
}
