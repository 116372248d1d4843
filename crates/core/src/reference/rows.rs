//! Operations on one row at a time: normalisation, rotation, activation.

use crate::RopeLayout;

/// `x / √(mean(x²) + eps) · weight` for each row of `weight.len()` (Zhang & Sennrich 2019, eq. 4).
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f32) -> Vec<f64> {
    x.chunks_exact(weight.len())
        .flat_map(|row| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let r = 1.0 / (mean + f64::from(eps)).sqrt();
            row.iter().zip(weight).map(move |(v, w)| v * r * w)
        })
        .collect()
}

/// Rotates each pair `(a, b)` of a head to `(a cos − b sin, b cos + a sin)` (Su et al. 2021, eq. 34).
///
/// `x` holds `tokens` rows of heads; a row of `table` holds `[cos | sin]` of one position, one number per pair each.
/// Elements `first .. first + table row` of a head take part.
pub fn rope(x: &mut [f64], table: &[f64], tokens: usize, head_dim: usize, first: usize, layout: RopeLayout) {
    if tokens == 0 {
        return;
    }
    let (width, dim) = (x.len() / tokens, table.len() / tokens);
    for (row, angles) in x.chunks_exact_mut(width).zip(table.chunks_exact(dim)) {
        let (cos, sin) = angles.split_at(dim / 2);
        for head in row.chunks_exact_mut(head_dim) {
            for i in 0..dim / 2 {
                let (a, b) = match layout {
                    RopeLayout::Interleaved => (first + 2 * i, first + 2 * i + 1),
                    RopeLayout::Halves => (first + i, first + i + dim / 2),
                };
                (head[a], head[b]) = (head[a] * cos[i] - head[b] * sin[i], head[b] * cos[i] + head[a] * sin[i]);
            }
        }
    }
}

/// `silu(gate) ⊙ up`, where `silu(g) = g / (1 + e^−g)` (Shazeer 2020, eq. 6).
pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}
