//! Search for the scales of a block: what the encoders of the K and IQ4 formats share.
//!
//! Rounding the largest number onto the last level is rarely best. Both searches try a number of scales
//! around that one, round, solve for the scale (and minimum) that fits the rounded numbers by weighted least
//! squares, and keep the best. Large numbers weigh more, as they contribute more to a dot product.
//! The idea is ggml's (`make_qx_quants`, `make_qkx2_quants`).

use super::{peak, range};

/// Nearest integer of magnitude below 2^22, by letting the addition round.
pub(super) fn nearest(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23
    (v + SHIFT) - SHIFT
}

/// The nearest integer between `low` and `high`.
pub(super) fn nearest_in(low: f32, high: f32) -> impl Fn(f32) -> f32 {
    move |v| nearest(v.clamp(low, high))
}

/// The scale d for which d · level(x / d) is nearest to x.
///
/// `level` rounds to the levels there are; `first` is the one of largest magnitude, `gap` its distance to the next.
pub(super) fn fit_scale(x: &[f32], first: f32, gap: f32, level: impl Fn(f32) -> f32) -> f32 {
    let peak = peak(x);
    if !peak.is_normal() {
        return 0.0;
    }
    let (mut best, mut scale) = (0.0, 0.0);
    for trial in -9i8..=9 {
        let inverse = first + gap * f32::from(trial) / 10.0;
        let (mut uq, mut qq) = (0.0, 0.0);
        for v in x {
            let u = v / peak;
            let q = level(u * inverse);
            uq += u * u * u * q;
            qq += u * u * q * q;
        }
        if uq * uq > best * qq {
            (best, scale) = (uq * uq / qq, uq / qq);
        }
    }
    scale * peak
}

/// The scale d and the minimum m ≥ 0 for which d · q − m, q = 0 to `levels`, is nearest to x.
pub(super) fn fit_affine(x: &[f32], levels: f32) -> (f32, f32) {
    let (min, max) = range(x);
    let min = min.min(0.0);
    if max <= min {
        return (0.0, -min);
    }
    let rms = (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32).sqrt();
    let level = nearest_in(0.0, levels);
    let (mut best, mut found) = (f32::INFINITY, ((max - min) / levels, -min));
    for trial in -9i8..=10 {
        let inverse = (levels + f32::from(trial) / 10.0) / (max - min);
        let (mut w1, mut wx, mut wq, mut wxq, mut wqq) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &v in x {
            let (w, q) = (rms + v.abs(), level((v - min) * inverse));
            w1 += w;
            wx += w * v;
            wq += w * q;
            wxq += w * v * q;
            wqq += w * q * q;
        }
        let determinant = w1 * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut d = (w1 * wxq - wx * wq) / determinant;
        let mut m = (wq * wxq - wx * wqq) / determinant;
        if m < 0.0 {
            // The formats can only subtract.
            (d, m) = (wxq / wqq, 0.0);
        }
        let error: f32 = x.iter().map(|&v| (rms + v.abs()) * (d * level((v - min) * inverse) - m - v).powi(2)).sum();
        if error < best {
            (best, found) = (error, (d, m));
        }
    }
    found
}

/// A super-block's shared scale in f16 and its sub-blocks' scales as multiples of it, `low` to `high`.
/// The scale of largest magnitude becomes `low` if that is negative, else `high`.
pub(super) fn fit_multiples<const N: usize>(scales: [f32; N], low: f32, high: f32) -> (f32, [f32; N]) {
    let first = if low < 0.0 { low } else { high };
    let shared = super::round_f16(peak(&scales) / first);
    let inverse = super::inverse(shared);
    (shared, scales.map(|s| nearest((s * inverse).clamp(low, high))))
}
