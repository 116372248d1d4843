//! Derivatives, as plain functions over slices in f64.
//!
//! `d<x>` is the derivative of the loss by x. Each function stands beside the formula that it comes from.

use super::attend::softmax;
use super::route::scores;
use super::{dot, widen};
use crate::optim::Muon;
use crate::{AttendSpec, Mask, RopeLayout, RouteSpec, Score};

/// Of `y = x·r·w` with `r = 1/√(mean x² + eps)`: `dx = r·(w dy) − x·r³/n·Σ(x w dy)`, `dw = Σ_t x r dy`.
pub fn rms_norm(x: &[f64], w: &[f64], eps: f32, dy: &[f64], dw: &mut [f64]) -> Vec<f64> {
    let n = w.len();
    let mut dx = Vec::with_capacity(x.len());
    for (x, dy) in x.chunks_exact(n).zip(dy.chunks_exact(n)) {
        let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / n as f64 + f64::from(eps)).sqrt();
        let along: f64 = (0..n).map(|i| x[i] * w[i] * dy[i]).sum();
        for i in 0..n {
            dw[i] += x[i] * r * dy[i];
            dx.push(r * w[i] * dy[i] - x[i] * r.powi(3) / n as f64 * along);
        }
    }
    dx
}

/// A rotation's inverse is the rotation by the opposite angle; the factor on cos and sin stays.
pub fn rope(dy: &mut [f64], table: &[f64], tokens: usize, head_dim: usize, first: usize, layout: RopeLayout) {
    if tokens == 0 {
        return;
    }
    let dim = table.len() / tokens;
    let back: Vec<f64> = table
        .chunks_exact(dim)
        .flat_map(|r| r.iter().enumerate().map(|(i, v)| if i < dim / 2 { *v } else { -v }))
        .collect();
    super::rows::rope(dy, &back, tokens, head_dim, first, layout);
}

/// Of attention over one sequence. With `p = softmax(s)`, `s = scale·q·kᵀ`, `y = p·v`: `dv = pᵀ dy`, `dp = dy vᵀ`,
/// `ds = p ⊙ (dp − Σ p dp)`, `dq = scale·ds·k`, `dk = scale·dsᵀ·q`. Results are added to.
#[allow(clippy::too_many_arguments)] // three inputs, their three derivatives, and what came from above
pub fn attend(
    (q, k, v): (&[f64], &[f64], &[f64]),
    dy: &[f64],
    spec: &AttendSpec,
    (dq, dk, dv): (&mut [f64], &mut [f64], &mut [f64]),
) {
    let (dim, v_dim, scale) = (spec.head_dim, spec.v_dim, f64::from(spec.scale));
    let (k_width, v_width) = (spec.kv_heads * dim, spec.kv_heads * v_dim);
    let rows = q.len() / (spec.heads * dim);
    for i in 0..rows {
        let seen = if spec.mask == Mask::Causal { i + 1 } else { rows };
        for h in 0..spec.heads {
            let g = h / (spec.heads / spec.kv_heads);
            let (q_at, y_at) = ((i * spec.heads + h) * dim, (i * spec.heads + h) * v_dim);
            let (q, dy) = (&q[q_at..q_at + dim], &dy[y_at..y_at + v_dim]);
            let k_at = |p: usize| p * k_width + g * dim;
            let v_at = |p: usize| p * v_width + g * v_dim;
            let mut p: Vec<f64> = (0..seen).map(|j| scale * dot(q, &k[k_at(j)..k_at(j) + dim])).collect();
            softmax(&mut p);
            let dp: Vec<f64> = (0..seen).map(|j| dot(dy, &v[v_at(j)..v_at(j) + v_dim])).collect();
            let mean = dot(&p, &dp);
            for j in 0..seen {
                let ds = scale * p[j] * (dp[j] - mean);
                for c in 0..dim {
                    dq[q_at + c] += ds * k[k_at(j) + c];
                    dk[k_at(j) + c] += ds * q[c];
                }
                for c in 0..v_dim {
                    dv[v_at(j) + c] += p[j] * dy[c];
                }
            }
        }
    }
}

/// Of `silu(g)·u`: `du = silu(g) dy`, `dg = u·σ(g)·(1 + g·(1 − σ(g))) dy`.
pub fn swiglu(gate: &[f64], up: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let each = |i: usize| {
        let (g, sigma) = (gate[i], 1.0 / (1.0 + (-gate[i]).exp()));
        (up[i] * sigma * (1.0 + g * (1.0 - sigma)) * dy[i], g * sigma * dy[i])
    };
    (0..dy.len()).map(each).unzip()
}

/// Of one token's routing weights `w_e = scale·s_e/Σ_chosen s` (or `scale·s_e`) by its logits, through the scores.
pub fn route(logits: &[f64], chosen: &[u32], dweights: &[f64], spec: &RouteSpec) -> Vec<f64> {
    let (s, scale) = (scores(logits, spec.score), f64::from(spec.scale));
    let picked = || chosen.iter().map(|&e| s[e as usize]);
    let (sum, shared) = if spec.normalise {
        let sum = picked().sum::<f64>() + 1e-20;
        (sum, picked().zip(dweights).map(|(s, d)| s * d).sum::<f64>() / (sum * sum))
    } else {
        (1.0, 0.0)
    };
    let mut ds = vec![0.0; logits.len()];
    for (&e, d) in chosen.iter().zip(dweights) {
        ds[e as usize] += scale * (d / sum - shared);
    }
    match spec.score {
        Score::Sigmoid => s.iter().zip(&ds).map(|(s, d)| d * s * (1.0 - s)).collect(),
        Score::Softmax => {
            let mean = dot(&s, &ds);
            s.iter().zip(&ds).map(|(s, d)| s * (d - mean)).collect()
        }
    }
}

/// Of one row's `−log softmax(z)[target]`: the loss, and `softmax(z) − 1[target]` in place of the logits.
pub fn cross_entropy(logits: &mut [f64], target: usize) -> f64 {
    let at = logits[target];
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + logits.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    softmax(logits);
    logits[target] -= 1.0;
    log_sum - at
}

/// Every formula against central differences of the operation itself, in f64.
/// Newton–Schulz iterations from a matrix `[rows, cols]` towards its orthogonal factor (see [`Muon::iterations`]).
pub fn orthogonal(iterations: usize, rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
    let [a, b, c] = Muon::QUINTIC.map(f64::from);
    let transpose =
        |x: &[f64], n: usize| -> Vec<f64> { (0..n).flat_map(|j| x.iter().copied().skip(j).step_by(n)).collect() };
    // `[n, k] · [m, k]ᵀ`.
    let product = |x: &[f64], y: &[f64], k: usize| -> Vec<f64> {
        x.chunks_exact(k).flat_map(|x| y.chunks_exact(k).map(|y| dot(x, y))).collect()
    };
    let mut x = widen(x);
    let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-7;
    x.iter_mut().for_each(|v| *v /= norm);
    let k = rows.max(cols);
    if rows > cols {
        x = transpose(&x, cols);
    }
    for _ in 0..iterations {
        let n = x.len() / k;
        let squared = product(&x, &x, k);
        let fourth = product(&squared, &squared, n);
        let mix: Vec<f64> = squared.iter().zip(&fourth).map(|(s, f)| b * s + c * f).collect();
        let moved = product(&mix, &transpose(&x, k), n);
        x.iter_mut().zip(moved).for_each(|(x, y)| *x = a * *x + y);
    }
    if rows > cols {
        x = transpose(&x, k);
    }
    x.into_iter().map(|v| v as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{attend as forward_attend, rows};
    use super::*;
    use crate::rng::Rng;

    fn random(rng: &mut Rng, n: usize) -> Vec<f64> {
        (0..n).map(|_| rng.normal()).collect()
    }

    /// Compares `dx` with the slope of `x ↦ Σ dy·f(x)` along every coordinate.
    fn compare(what: &str, x: &[f64], dx: &[f64], dy: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) {
        const STEP: f64 = 1e-5;
        let mut x = x.to_vec();
        for i in 0..x.len() {
            let at = x[i];
            x[i] = at + STEP;
            let up = dot(&f(&x), dy);
            x[i] = at - STEP;
            let down = dot(&f(&x), dy);
            x[i] = at;
            let slope = (up - down) / (2.0 * STEP);
            assert!((slope - dx[i]).abs() < 1e-7 * (1.0 + slope.abs()), "{what}[{i}]: {} against {slope}", dx[i]);
        }
    }

    #[test]
    fn norms_and_activations() {
        let mut rng = Rng::new(1, 0);
        let (x, w, dy) = (random(&mut rng, 21), random(&mut rng, 7), random(&mut rng, 21));
        let mut dw = vec![0.0; 7];
        let dx = rms_norm(&x, &w, 1e-5, &dy, &mut dw);
        compare("rms_norm dx", &x, &dx, &dy, |x| rows::rms_norm(x, &w, 1e-5));
        compare("rms_norm dw", &w, &dw, &dy, |w| rows::rms_norm(&x, w, 1e-5));

        let up = random(&mut rng, 21);
        let (dg, du) = swiglu(&x, &up, &dy);
        compare("swiglu gate", &x, &dg, &dy, |g| rows::swiglu(g, &up));
        compare("swiglu up", &up, &du, &dy, |u| rows::swiglu(&x, u));
    }

    #[test]
    fn rotations() {
        let mut rng = Rng::new(2, 0);
        let (tokens, heads, head_dim) = (3, 2, 7);
        let (x, dy) = (random(&mut rng, tokens * heads * head_dim), random(&mut rng, tokens * heads * head_dim));
        let table = random(&mut rng, tokens * 4);
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            for first in [0, 3] {
                let mut dx = dy.clone();
                rope(&mut dx, &table, tokens, head_dim, first, layout);
                compare("rope", &x, &dx, &dy, |x| {
                    let mut y = x.to_vec();
                    rows::rope(&mut y, &table, tokens, head_dim, first, layout);
                    y
                });
            }
        }
    }

    #[test]
    fn attention() {
        let mut rng = Rng::new(3, 0);
        for mask in [Mask::Causal, Mask::Full] {
            let spec = AttendSpec { heads: 4, kv_heads: 2, head_dim: 3, v_dim: 5, scale: 0.6, mask };
            let rows = 4;
            let (q, k, v) = (random(&mut rng, rows * 12), random(&mut rng, rows * 6), random(&mut rng, rows * 10));
            let dy = random(&mut rng, rows * 20);
            let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
            attend((&q, &k, &v), &dy, &spec, (&mut dq, &mut dk, &mut dv));
            compare("attend dq", &q, &dq, &dy, |q| forward_attend::attend(q, &k, &v, 0, &spec));
            compare("attend dk", &k, &dk, &dy, |k| forward_attend::attend(&q, k, &v, 0, &spec));
            compare("attend dv", &v, &dv, &dy, |v| forward_attend::attend(&q, &k, v, 0, &spec));
        }
    }

    #[test]
    fn routing() {
        use super::super::route as forward;
        let mut rng = Rng::new(4, 0);
        for score in [Score::Sigmoid, Score::Softmax] {
            for normalise in [false, true] {
                let spec = RouteSpec {
                    experts: 6,
                    top_k: 3,
                    score,
                    groups: 1,
                    groups_kept: 1,
                    group_top: 1,
                    normalise,
                    scale: 2.5,
                };
                let (z, dw) = (random(&mut rng, 6), random(&mut rng, 3));
                let chosen = forward::choose(&scores(&z, score), None, &spec);
                let dz = route(&z, &chosen, &dw, &spec);
                compare("route", &z, &dz, &dw, |z| forward::weights(&scores(z, score), &chosen, &spec));
            }
        }
    }

    #[test]
    fn loss() {
        let mut rng = Rng::new(5, 0);
        let z = random(&mut rng, 9);
        let mut dz = z.clone();
        cross_entropy(&mut dz, 4);
        compare("cross_entropy", &z, &dz, &[1.0], |z| vec![cross_entropy(&mut z.to_vec(), 4)]);
    }
}
