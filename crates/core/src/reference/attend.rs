//! Attention over the keys and values of one span, grouped-query and latent.
//!
//! A span's keys and values arrive gathered: row p is position p of the sequence.

use super::{decoded, dot};
use crate::{AttendSpec, HeadProj, LatentForm, LatentSpec, Mask, Weight};

/// `eˣⁱ⁻ᵐ / Σ eˣʲ⁻ᵐ` with m the largest, in place.
pub fn softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|v| *v /= sum);
}

/// `Σ_p weights[p] · rows[p]`, where row p begins at `p × stride + first`.
fn mix(weights: &[f64], rows: &[f64], stride: usize, first: usize, width: usize) -> Vec<f64> {
    let mut out = vec![0.0; width];
    for (w, row) in weights.iter().zip(rows.chunks_exact(stride)) {
        out.iter_mut().zip(&row[first..first + width]).for_each(|(o, v)| *o += w * v);
    }
    out
}

/// `softmax(scale · q·Kᵀ)·V` per head; query heads share key and value heads in consecutive groups (Vaswani et al. 2017, eq. 1;
/// Ainslie et al. 2023).
///
/// `q: [rows, heads × head_dim]` at positions `start..`, `k: [positions, kv_heads × head_dim]`, `v: [positions,
/// kv_heads × v_dim]`; returns `[rows, heads × v_dim]`.
pub fn attend(q: &[f64], k: &[f64], v: &[f64], start: usize, spec: &AttendSpec) -> Vec<f64> {
    let (dim, v_dim) = (spec.head_dim, spec.v_dim);
    let (k_width, v_width) = (spec.kv_heads * dim, spec.kv_heads * v_dim);
    let mut out = Vec::new();
    for (i, row) in q.chunks_exact(spec.heads * dim).enumerate() {
        let seen = match spec.mask {
            Mask::Causal => start + i + 1,
            Mask::Full => k.len() / k_width,
        };
        for (h, q) in row.chunks_exact(dim).enumerate() {
            let g = h / (spec.heads / spec.kv_heads);
            let keys = k.chunks_exact(k_width).take(seen);
            let mut p: Vec<f64> = keys.map(|k| f64::from(spec.scale) * dot(q, &k[g * dim..(g + 1) * dim])).collect();
            softmax(&mut p);
            out.extend(mix(&p, v, v_width, g * v_dim, v_dim));
        }
    }
    out
}

/// A head's projection out of the latent, `[features, rank]`, decoded row by row.
pub type Slab = Vec<Vec<f64>>;

/// The slabs of all heads, in `[features, rank]` order however they are stored.
pub fn head_slabs(w: &Weight, p: HeadProj<'_>, heads: usize) -> Vec<Slab> {
    (0..heads)
        .map(|h| {
            let first = p.first_row + h * p.head_stride;
            let stored: Slab = (first..first + p.head_rows).map(|r| decoded(w, r)).collect();
            if !p.transposed {
                return stored;
            }
            (0..w.cols).map(|j| stored.iter().map(|row| row[j]).collect()).collect()
        })
        .collect()
}

/// Multi-head latent attention (V2 paper, section 2.1.2 and appendix C).
///
/// `cache: [positions, rank + rope]` holds `[c | k_r]`. Per head with projections `W_k: [nope, rank]`, `W_v: [v_dim, rank]`:
/// - plain: `score = scale · (q_n · W_k c + q_r · k_r)`, output `Σ p · W_v c`;
/// - absorbed: `score = scale · (W_kᵀ q_n · c + q_r · k_r)`, output `W_v Σ p · c`.
///
/// `q: [rows, heads × (nope + rope)]` at positions `start..`; returns `[rows, heads × v_dim]`.
pub fn attend_latent(
    q: &[f64],
    cache: &[f64],
    wk: &[Slab],
    wv: &[Slab],
    start: usize,
    form: LatentForm,
    spec: &LatentSpec,
) -> Vec<f64> {
    let width = spec.rank + spec.rope;
    let rows = q.len() / (spec.heads * (spec.nope + spec.rope));
    let mut out = vec![0.0; rows * spec.heads * spec.v_dim];
    for h in 0..spec.heads {
        let expand = |w: &Slab| -> Vec<f64> {
            let latents = cache.chunks_exact(width).map(|row| &row[..spec.rank]);
            latents.flat_map(|c| w.iter().map(move |w| dot(w, c))).collect()
        };
        let (k, v) = match form {
            LatentForm::Plain => (expand(&wk[h]), expand(&wv[h])),
            LatentForm::Absorbed => (Vec::new(), Vec::new()),
        };
        for i in 0..rows {
            let at = (i * spec.heads + h) * (spec.nope + spec.rope);
            let (q_n, q_r) = q[at..at + spec.nope + spec.rope].split_at(spec.nope);
            let seen = cache.chunks_exact(width).take(start + i + 1);
            let rotated = seen.clone().map(|row| dot(q_r, &row[spec.rank..]));
            let mut p: Vec<f64> = match form {
                LatentForm::Plain => rotated.zip(k.chunks_exact(spec.nope)).map(|(r, k)| dot(q_n, k) + r).collect(),
                LatentForm::Absorbed => {
                    let q_c = mix(q_n, &wk[h].concat(), spec.rank, 0, spec.rank);
                    rotated.zip(seen).map(|(r, row)| dot(&q_c, &row[..spec.rank]) + r).collect()
                }
            };
            p.iter_mut().for_each(|s| *s *= f64::from(spec.scale));
            softmax(&mut p);
            let o = match form {
                LatentForm::Plain => mix(&p, &v, spec.v_dim, 0, spec.v_dim),
                LatentForm::Absorbed => {
                    let c = mix(&p, cache, width, 0, spec.rank);
                    wv[h].iter().map(|w| dot(w, &c)).collect()
                }
            };
            let at = (i * spec.heads + h) * spec.v_dim;
            out[at..at + spec.v_dim].copy_from_slice(&o);
        }
    }
    out
}
