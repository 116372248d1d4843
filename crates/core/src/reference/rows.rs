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

/// `(x − mean) / √(variance + eps) · weight + bias` for each row of `weight.len()` (Ba et al. 2016, eq. 3).
pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f32) -> Vec<f64> {
    let n = weight.len() as f64;
    x.chunks_exact(weight.len())
        .flat_map(|row| {
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let r = 1.0 / (variance + f64::from(eps)).sqrt();
            row.iter().zip(weight).zip(bias).map(move |((v, w), b)| (v - mean) * r * w + b)
        })
        .collect()
}

/// `x · Φ(x) = x · erfc(−x / √2) / 2` (Hendrycks & Gimpel 2016).
pub fn gelu(x: f64) -> f64 {
    0.5 * x * erfc(-x / std::f64::consts::SQRT_2)
}

/// The complementary error function: its Taylor series near zero, its continued fraction (Abramowitz & Stegun 7.1.5 and
/// 7.1.14) elsewhere; 13 digits.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        // erf x = 2/√π Σ (−1)ⁿ x²ⁿ⁺¹ / (n! (2n + 1))
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - std::f64::consts::FRAC_2_SQRT_PI * sum;
    }
    // √π eˣ² erfc x = 1 / (x + (1/2) / (x + 1 / (x + (3/2) / (x + …))))
    let fraction = (1..=80).rev().fold(x, |f, n| x + f64::from(n) / 2.0 / f);
    0.5 * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Abramowitz & Stegun, tables 7.1 and 7.2.
    #[test]
    fn erfc_is_the_tables() {
        let table = [(0.0, 1.0), (0.5, 0.4795001222), (1.0, 0.1572992070), (2.0, 0.0046777350), (3.0, 2.209049700e-5)];
        for (x, y) in table {
            assert!((erfc(x) - y).abs() < 1e-10 && (erfc(-x) - (2.0 - y)).abs() < 1e-10, "{x}");
        }
        assert!((erfc(2.4999999) / erfc(2.5000001) - 1.0).abs() < 1e-5, "the two ways meet");
    }
}
